"""A run in the files of other tools, one file an export: what each writes, and where its schema comes from.

An export is a function ``write(run, out, wanted)``: it reads the run's tables part by part and writes into the folder
`out`. The same run gives the same bytes: what stands in for a time is the run's own.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from autointerp.errors import ConfigError
from autointerp.registry import did_you_mean
from autointerp.report.exports.reading import Wanted
from autointerp.report.folder import RunFolder

Write = Callable[[RunFolder, Path, Wanted], None]
NAMES = ("neuronpedia", "saebench", "circuit-tracer", "delphi", "hub")


def writer(name: str) -> Write:
    """Raises ConfigError for a name that is none of `NAMES`."""
    if name not in NAMES:
        raise ConfigError(f"no export {name!r}{did_you_mean(name, NAMES)}")
    return import_module(f"autointerp.report.exports.{name.replace('-', '_')}").write


__all__ = ["NAMES", "Wanted", "writer"]
