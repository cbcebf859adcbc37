"""Any dictionary of directions, and the composite check on it: no language model, no harvest."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from autointerp.errors import AutointerpError, ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

log = logging.getLogger("autointerp")
Frame: TypeAlias = Any  # a pandas.DataFrame

BARE = (".npy", ".safetensors", ".pt", ".pth", ".bin")
_NAMED = ("W_dec", "decoder.weight")  # the second as torch.nn.Linear keeps it: [d_model, latents]
WRITES = (".parquet", ".csv", ".json")


def load_decoders(specs: Sequence[str | Path], *, transpose: bool = False) -> list[np.ndarray | torch.Tensor]:
    """Decoder rows [n, d_model] of SAEs (all that `load_sae` reads) or of files with a bare matrix.

    Args:
        specs: each an SAE; a ``.npy`` file, which is mapped and not read; or a ``.safetensors`` or torch file with a
            tensor W_dec, a tensor decoder.weight ([d_model, n], as torch keeps it) or one single matrix.
        transpose: bare matrices are [d_model, n].

    Raises:
        ConfigError: there is nothing at one of `specs`, or nothing that is known; or `transpose` and no bare matrix.
        AutointerpError: a file is damaged, or which of its tensors is the decoder cannot be told.
    """
    found = [_load(spec, transpose) for spec in specs]
    if transpose and not any(bare for _, bare in found):
        raise ConfigError(f"{specs[0]} is of a format whose orientation is known: leave out --transpose")
    return [matrix for matrix, _ in found]


def _load(spec: str | Path, transpose: bool) -> tuple[Any, bool]:
    """The decoder, and whether it is a bare matrix, whose orientation the file does not tell."""
    from autointerp.sae import load_sae
    from autointerp.sae.hub import looks_remote

    path = Path(spec).expanduser()
    if path.suffix not in BARE or not path.is_file():
        if not path.exists() and not looks_remote(str(spec)):
            raise ConfigError(f"no SAE and no file of decoder rows at {spec}")
        return load_sae(spec).W_dec, False
    matrix, turned = _bare(path)  # of an SAE's own file, too: its decoder is all that is needed
    if matrix.ndim != 2 or not all(matrix.shape):
        raise AutointerpError(f"{path} holds an array {list(matrix.shape)}, expected a matrix [latents, d_model]")
    if turned:
        return matrix.T, False
    if transpose:
        return matrix.T, True
    if matrix.shape[0] < matrix.shape[1]:
        log.warning("%s: %s rows of width %s; if its columns are the latents, add --transpose", spec, *matrix.shape)
    return matrix, True


def _bare(path: Path) -> tuple[Any, bool]:
    """The matrix in a file, an array or a tensor, and whether its name says that latents are its columns."""
    from autointerp.sae.formats.files import read_safetensors, read_torch

    if path.suffix == ".npy":
        import numpy as np

        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise AutointerpError(f"{path} cannot be read as an array ({error}): is it whole?") from error
        if not isinstance(array, np.ndarray):
            raise AutointerpError(f"{path} is an archive of several arrays (.npz), expected one matrix")
        return array, False
    held = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if not isinstance(held, dict):
        if not hasattr(held, "ndim"):
            raise AutointerpError(f"{path} holds a {type(held).__name__}, expected a matrix")
        return held, False
    for name in _NAMED:
        if hasattr(held.get(name), "ndim"):
            return held[name], name == "decoder.weight"
    matrices = [name for name, value in held.items() if getattr(value, "ndim", 0) == 2]
    if len(matrices) == 1:
        return held[matrices[0]], False
    found = f"the matrices {', '.join(map(str, matrices[:6]))}" if matrices else "no matrix"
    raise AutointerpError(f"{path} holds {found}: name the decoder W_dec, [latents, d_model]")


def check_decoder(spec: str | Path, union: str | Path | None, *, transpose: bool, device: str, memory: int) -> Frame:
    """`find_composites` on decoders named as for `load_decoders`, with the columns `atoms` and `atom_coefficients`
    (what a flagged latent's constituents come down to: see `composites.expand`; empty elsewhere)."""
    from autointerp.composites import find_composites

    rows, *others = load_decoders([spec, *([] if union is None else [union])], transpose=transpose)
    n, d = rows.shape
    total = n + sum(map(len, others))
    if (work := 2e-12 * n * total * d) > 1:
        log.info("%s latents of width %s: %.1f TFLOP, %.0f s for every 100 GFLOP/s", f"{n:,}", d, work, 10 * work)
    return with_atoms(find_composites(rows, *others, device=usable_device(device), memory=memory))


def usable_device(wanted: str) -> str:
    """`wanted`, or the GPU if there is one for "auto"; a ConfigError where torch has no such device."""
    import torch

    from autointerp.engine.session import pick_device

    device = pick_device(wanted)
    try:
        torch.ones(1, device=device).item()  # "meta" is a device that holds nothing
    except (RuntimeError, AssertionError) as error:
        known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise ConfigError(f"no device {wanted!r} here; there is {', '.join(known)}") from error
    return device


def with_atoms(table: Frame) -> Frame:
    from autointerp.composites import FLAGGED, expand

    atoms = expand(table, table.loc[table["label"].isin(FLAGGED), "feature"])
    found = [atoms.get(int(row), {}) for row in table["feature"]]
    return table.assign(
        atoms=[list(a) for a in found],
        atom_coefficients=[list(a.values()) for a in found],
    )


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
    from autointerp.pipeline.composites import save_composites

    kinds: dict[str, Any] = {
        ".parquet": lambda to: save_composites(table, to),
        ".csv": lambda to: table.to_csv(to, index=False),
        ".json": lambda to: to.write_text(table.to_json(orient="records", indent=1) + "\n"),
    }
    write_atomically(path, kinds[path.suffix])
