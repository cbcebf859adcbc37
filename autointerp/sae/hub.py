"""Download SAEs from the hub: ``ORG/REPO[@REVISION][:FOLDER]``, and SAELens' ``release/sae_id``."""

from __future__ import annotations

import functools
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autointerp.errors import AutointerpError, ConfigError
from autointerp.registry import did_you_mean

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<folder>[^:]+))?")


def looks_remote(spec: str) -> bool:
    """Not on this disk, and of the form of an id rather than a path."""
    return "/" in spec and not spec.startswith((".", "/", "~")) and not Path(spec).expanduser().exists()


def fetch(spec: str) -> Path:
    """Download the files of an SAE (once: into the hub's own cache) and return their folder or file.

    Raises:
        ConfigError: `spec` is no id, or SAELens knows the release and not the SAE: with the nearest id.
        AutointerpError: the hub does not give it.
    """
    release, _, sae_id = spec.partition("/")
    releases = _releases()
    if release in releases:
        known = {sae["id"]: sae["path"] for sae in releases[release]["saes"]}
        if sae_id not in known:
            raise ConfigError(f"the SAELens release {release!r} has no SAE {sae_id!r}{did_you_mean(sae_id, known)}")
        return _download(spec, releases[release]["repo_id"], None, known[sae_id])
    match = _HUB.fullmatch(spec)
    if match is None:
        if releases:
            hint = did_you_mean(release, releases) if len(release) > 3 else ""
        else:
            hint = "; to name SAEs by SAELens' release/sae_id, install sae-lens"
        raise ConfigError(f"no SAE at {spec!r}: no such file, and no hub id ORG/REPO@REVISION:FOLDER{hint[:200]}")
    return _download(spec, match["repo"], match["revision"], match["folder"])


def _download(spec: str, repo: str, revision: str | None, folder: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        patterns = [folder, f"{folder}/*"] if folder else None
        root = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (RepositoryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AutointerpError(f"cannot fetch {spec!r} from the hub ({repo}): {first}") from error
    path = root / folder if folder else root
    if not path.exists():
        raise ConfigError(f"the hub's {repo} has no {folder!r}")
    return path


@functools.cache
def _releases() -> dict[str, Any]:
    """SAELens' list of published SAEs, read from its installed package without importing it."""
    package = find_spec("sae_lens")
    if package is None or not package.submodule_search_locations:
        return {}
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    file = Path(package.submodule_search_locations[0]) / "pretrained_saes.yaml"
    return yaml.load(file.read_text(), Loader=loader) if file.exists() else {}
