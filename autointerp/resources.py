"""Where files lie: shipped prompts and pipelines, a config by its name, and the user's cache folder."""

from __future__ import annotations

import sys
from pathlib import Path

from autointerp.errors import ConfigError
from autointerp.registry import did_you_mean

_PACKAGE = Path(__file__).parent


def package_version() -> str:
    """Of the code that runs, whatever distribution it came from."""
    return sys.modules["autointerp"].__version__


def folder(name: str) -> Path:
    """``prompts`` or ``pipelines``: the checkout's own where there is one, else the wheel's copy."""
    for candidate in (_PACKAGE.parent / name, _PACKAGE / "_shipped" / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the installation lacks its {name} folder: install autointerp again")


def find_pipeline(name: str) -> Path:
    """A path that exists, or a file of ``pipelines/`` by its name with or without ``.yaml``."""
    given = Path(name)
    if given.is_file():
        return given
    shipped = {path.stem: path for path in sorted(folder("pipelines").glob("*.yaml"))}
    stem = given.stem if given.suffix in (".yaml", ".yml") and given.parent == Path(".") else name
    if stem in shipped:
        return shipped[stem]
    raise ConfigError(f"no config at {name!r}, and none of that name is shipped{did_you_mean(stem, shipped)}")


def cache_dir() -> Path:
    """Where models, artifacts and answered requests are kept: $AUTOINTERP_CACHE or the user's cache folder."""
    import os

    named = os.environ.get("AUTOINTERP_CACHE")
    if named:
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("autointerp")


def mirror_url() -> str | None:
    """Where artifacts are kept a second time, for other machines: $AUTOINTERP_MIRROR, a URL or a folder, or None."""
    import os

    return os.environ.get("AUTOINTERP_MIRROR", "").strip() or None
