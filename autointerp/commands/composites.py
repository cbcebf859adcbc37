"""``autointerp composites``: the composite check on any SAE or bare decoder matrix, without a language model."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from autointerp.errors import ConfigError

if TYPE_CHECKING:
    from autointerp.composites.injection import Injected

log = logging.getLogger("autointerp")
Frame: TypeAlias = Any  # a pandas.DataFrame

WRITES = (".parquet", ".csv", ".json")


def check_decoder(
    spec: str | Path, union: str | Path | None, *, transpose: bool, device: str, memory: int, inject: int = 0
) -> tuple[Frame, Injected | None]:
    """`find_composites` on decoders named as for `load_decoders`, with the columns `atoms` and `atom_coefficients`
    (what a flagged latent's constituents come down to: see `labels.with_atoms`); and, with `inject`, what the check
    makes of so many sums of the dictionary's own latents."""
    from autointerp.composites import injection
    from autointerp.composites.check import find_composites
    from autointerp.composites.labels import with_atoms
    from autointerp.sae.decoders import load_decoders

    rows, *others = load_decoders([spec, *([] if union is None else [union])], transpose=transpose)
    n, d = rows.shape
    total = n + sum(map(len, others))
    if (work := 2e-12 * n * total * d) > 1:
        log.info("%s latents of width %s: %.1f TFLOP, %.0f s for every 100 GFLOP/s", f"{n:,}", d, work, 10 * work)
    place: dict[str, Any] = {"device": usable_device(device), "memory": memory}
    table = find_composites(rows, *others, **place)
    if not inject:
        return with_atoms(table), None
    alone = find_composites(rows, **place) if others else table
    return with_atoms(table), injection.inject(rows, alone, inject, **place)


def usable_device(wanted: str) -> str:
    """`wanted`, or the GPU if there is one for "auto"; a ConfigError where torch has no such device."""
    import torch

    from autointerp.engine.models import pick_device

    device = pick_device(wanted)
    try:
        torch.ones(1, device=device).item()  # "meta" is a device that holds nothing
    except (RuntimeError, AssertionError) as error:
        known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise ConfigError(f"no device {wanted!r} here; there is {', '.join(known)}") from error
    return device


def check_writable(path: Path) -> None:
    """ConfigError where `write_table` could not write to `path`, before anything is computed; makes its folder."""
    if path.suffix not in WRITES:
        raise ConfigError(f"--out {path}: the suffix must be one of {', '.join(WRITES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("a folder has this name")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written ({error.strerror or error})") from error


def write_table(table: Frame, path: Path) -> None:
    """By the suffix of `path`: Parquet, CSV or JSON (a list of rows)."""
    from autointerp.artifacts import write_atomically
    from autointerp.composites.io import save_composites

    kinds: dict[str, Any] = {
        ".parquet": lambda to: save_composites(table, to),
        ".csv": lambda to: table.to_csv(to, index=False),
        ".json": lambda to: to.write_text(table.to_json(orient="records", indent=1) + "\n"),
    }
    write_atomically(path, kinds[path.suffix])
