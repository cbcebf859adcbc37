"""``autointerp export``: a run's results as files that other tools read, and sent to the hub where that is asked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from autointerp.errors import AutointerpError, ConfigError
from autointerp.report.exports import Wanted, writer
from autointerp.report.folder import RunFolder, so_far

TOKEN = "HF_TOKEN"


def export(
    run: str | Path,
    to: str,
    *,
    out: Path | None = None,
    model: str | None = None,
    source: str | None = None,
    push: str | None = None,
) -> Path:
    """Write a run's export and return its folder: `out`, or ``exports/TO`` in the run's own.

    Args:
        to: one of `autointerp.report.exports.NAMES`.
        out: a new or empty folder. In the run's own an earlier export is replaced.
        model, source: what the other tool calls the subject and the SAE, where the run does not say it.
        push: of ``hub``: the repository ORG/NAME that it is sent to, with the token in the variable HF_TOKEN.

    Raises:
        ConfigError: no such run or export; something that the format needs is not known; no token to push with.
        AutointerpError: the run is not done, or the hub refuses.
    """
    write, folder = writer(to), RunFolder(run)
    if unfinished := so_far(folder.path):
        raise AutointerpError(f"{folder.path} cannot be exported yet: {unfinished}")
    if push is not None and to != "hub":
        raise ConfigError(f"--push sends to the hub: it goes with --to hub, not --to {to}")
    if push is not None and not os.environ.get(TOKEN):
        raise ConfigError(f"--push needs a token of the hub in the environment variable {TOKEN}")
    target = out or folder.path / "exports" / to
    if out is None:
        shutil.rmtree(target, ignore_errors=True)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there and not empty: name another folder with --out")
    write(folder, target, Wanted(model, source))
    if push is not None:
        _push(target, push)
    return target


def _push(folder: Path, repository: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.errors import HTTPError as HubError  # pyright: ignore[reportPrivateImportUsage]

    hub = HfApi(token=os.environ[TOKEN])
    try:
        hub.create_repo(repository, repo_type="dataset", exist_ok=True)
        hub.upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder)
    except (HubError, HFValidationError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AutointerpError(f"{folder} is written, and the hub did not take it: {first}") from error
