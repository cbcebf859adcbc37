"""``autointerp train`` and ``evaluate``: an SAE alone, with the results in the run's folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autointerp.artifacts import write_atomically
from autointerp.commands.folder import Run, environment, run_folder
from autointerp.commands.run import run_targets
from autointerp.config import Config, SaeConfig, load_config, read_config, resolve_config
from autointerp.errors import ConfigError
from autointerp.hashing import file_sha256
from autointerp.report.at_url import kept_at_url

log = logging.getLogger("autointerp")

FILES = (
    *("evaluation.parquet", "evaluation_positions.parquet", "evaluation_features.parquet"),
    *("evaluation_bands.parquet", "evaluation_cosines.parquet", "saebench.json"),
)


@kept_at_url
def train(
    config: str | Path | Config, *, set: Mapping[str, Any] | None = None, out: str | Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Train the SAE of `sae.train`, or go on, or find it done. Returns the folder with its files, ``sae`` in the run's
    folder, which `load_sae` and SAELens open, and its figures on held-out tokens.

    Raises ConfigError for a config that loads its SAE.
    """
    resolved = config if isinstance(config, Config) else load_config(config, set)
    if resolved.sae.train is None:
        has = f"loads its SAE ({resolved.sae.load})" if resolved.sae.load else "reads neurons"
        raise ConfigError(f"{resolved.name} {has}: give sae.train in its place")
    made = run_targets(resolved, ["sae"], out=out)["sae"]
    folder = run_folder(resolved, out) / "sae"
    folder.mkdir(parents=True, exist_ok=True)
    # cfg.json last: no loader takes the folder for an SAE before it is whole
    for file in sorted((made / name for name in _sae_files(made)), key=lambda file: file.name == "cfg.json"):
        _copy(file, folder / file.name)
    return folder, json.loads((made / "train.json").read_text())["figures"]


@kept_at_url
def evaluate(
    sae: str | Path,
    config: str | Path | Config,
    *,
    set: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Run:
    """Measure an SAE, whatever `load_sae` opens, on the subject and the corpus of `config`, of whose own `sae` only
    `outlier_norm` counts.

    The folder is `out`, else ``results/NAME-evaluation``, so that a run of the same config is left as it is.
    Returns the run, with the tables ``evaluation``, ``evaluation_positions``, ``evaluation_features`` and
    ``evaluation_cosines``; its folder also gets ``saebench.json``, ``evaluation.json`` (how they came to be) and plots.
    """
    given = dict(set or {})
    chosen: dict[str, Any] = {"load": str(sae), "format": given.pop("sae.format", None)}
    if isinstance(config, Config):
        chosen["outlier_norm"] = config.sae.outlier_norm
        resolved = config.model_copy(update={"sae": SaeConfig.model_validate(chosen)})
    else:
        raw, file = read_config(config)
        own = raw.get("sae")
        chosen |= {key: value for key, value in (own if isinstance(own, dict) else {}).items() if key == "outlier_norm"}
        resolved = resolve_config(raw | {"sae": chosen}, given, str(file))
    folder = run_folder(resolved, out)
    if out is None:
        folder = folder.with_name(f"{resolved.name}-evaluation")
    made = run_targets(resolved, ["evaluate"], out=folder)["evaluate"]
    manifest = json.loads((made / "manifest.json").read_text())
    about = folder / "evaluation.json"
    if _key(about) == manifest["key"] and all(
        (folder / name).exists() for name in (*manifest["files"], "evaluation.png", "evaluation.svg")
    ):
        log.info("nothing to do: this SAE is evaluated in %s", folder)
        return Run(folder)
    about.unlink(missing_ok=True)
    for name in FILES:
        if (made / name).exists():
            _copy(made / name, folder / name)
        else:  # of an earlier SAE
            (folder / name).unlink(missing_ok=True)
    from autointerp.report.evaluation import draw

    draw(folder)
    told = {
        "sae": str(sae),
        "subject": resolved.subject.model_dump(include={"model", "revision", "dtype"}),
        "corpus": resolved.corpus.model_dump(exclude_none=True),
        "evaluation": resolved.evaluation.model_dump(exclude_none=True),
        "seed": resolved.seed,
        "key": manifest["key"],
        "seconds": manifest["seconds"],
        "facts": manifest["facts"],
        **environment(),
    }
    text = json.dumps(told, indent=2)
    write_atomically(about, lambda path: path.write_text(text))
    return Run(folder)


def _key(path: Path) -> str | None:
    try:
        return json.loads(path.read_text())["key"]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _sae_files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file() and path.name != "manifest.json"]


def _copy(source: Path, target: Path) -> None:
    """Whole or as it was; what is there already with the same content stays."""
    same = target.exists() and target.stat().st_size == source.stat().st_size
    if not (same and file_sha256(target) == file_sha256(source)):
        write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))
