"""Download SAEs from the hub: ``ORG/REPO[@REVISION][:FOLDER]``, and SAELens' ``release/sae_id``."""

from __future__ import annotations

import re
from pathlib import Path

from autointerp.errors import AutointerpError, ConfigError
from autointerp.registry import did_you_mean
from autointerp.sae import published

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<folder>[^:]+))?")


def looks_remote(spec: str) -> bool:
    """Not on this disk, and of the form of an id rather than a path."""
    return "/" in spec and not spec.startswith((".", "/", "~")) and not Path(spec).expanduser().exists()


def listed(spec: str) -> published.Listed | None:
    """The entry of SAELens' list that ``release/sae_id`` names; None where its first part is no release.

    Raises ConfigError where SAELens knows the release and not the SAE: with the nearest id.
    """
    release, _, sae_id = spec.partition("/")
    return published.find(release, sae_id) if release in published.releases() else None


def fetch(spec: str) -> Path:
    """Download the files of an SAE (once: into the hub's own cache) and return their folder or file.

    Raises:
        ConfigError: `spec` is no id, or SAELens knows the release and not the SAE: with the nearest id.
        AutointerpError: the hub does not give it.
    """
    entry = listed(spec)
    if entry is not None:
        return _download(spec, entry.repo, None, entry.target, entry.patterns)
    match = _HUB.fullmatch(spec)
    if match is None:
        if releases := published.releases():
            release = spec.partition("/")[0]
            hint = did_you_mean(release, releases) if len(release) > 3 else ""
        else:
            hint = "; to name SAEs by SAELens' release/sae_id: pip install 'autointerp-sae[saelens]'"
        raise ConfigError(f"no SAE at {spec!r}: no such file, and no hub id ORG/REPO@REVISION:FOLDER{hint[:200]}")
    folder = match["folder"]
    patterns = [folder, f"{folder}/*", *_beside(folder)] if folder else None
    return _download(spec, match["repo"], match["revision"], folder, patterns)


def _beside(file: str) -> list[str]:
    """What a format whose SAE is one file reads beside it: configs, and a cross-layer transcoder's decoder."""
    folder, _, name = file.rpartition("/")
    stem = name.partition(".")[0]
    names = ("config.json", "config.yaml", f"{stem}_cfg.json", name.replace("W_enc_", "W_dec_"))
    return [f"{folder}/{beside}".lstrip("/") for beside in names] if "." in name else []


def _download(spec: str, repo: str, revision: str | None, target: str | None, patterns: list[str] | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        root = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (RepositoryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AutointerpError(f"cannot fetch {spec!r} from the hub ({repo}): {first}") from error
    path = root / target if target else root
    if not path.exists():
        raise ConfigError(f"the hub's {repo} has no {target!r}")
    return path
