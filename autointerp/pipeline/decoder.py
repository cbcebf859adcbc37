"""Any dictionary of directions, and the composite check on it: no language model, no harvest."""

from __future__ import annotations

import logging
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


def load_decoder(spec: str | Path, *, transpose: bool = False) -> np.ndarray | torch.Tensor:
    """Decoder rows [n, d_model] of an SAE (all that `load_sae` reads) or of a file with a bare matrix.

    Args:
        spec: an SAE; a ``.npy`` file, which is mapped and not read; a ``.safetensors`` or torch file with a tensor
            W_dec, a tensor decoder.weight ([d_model, n], as torch keeps it) or one single matrix.
        transpose: the bare matrix is [d_model, n].

    Raises:
        ConfigError: there is nothing at `spec`, or nothing that is known.
        AutointerpError: its file is damaged, or which of its tensors is the decoder cannot be told.
    """
    from autointerp.sae import load_sae
    from autointerp.sae.hub import looks_remote

    path = Path(spec).expanduser()
    if path.suffix in BARE and path.is_file():  # an SAE's own file, too: its decoder is all that is needed
        matrix = _bare(path)
        if transpose:
            matrix = matrix.T
        if matrix.ndim == 2 and matrix.shape[0] < matrix.shape[1]:
            log.warning("%s: %s rows of width %s; if its columns are the latents, add --transpose", spec, *matrix.shape)
        return matrix
    if not path.exists() and not looks_remote(str(spec)):
        raise ConfigError(f"no SAE and no file of decoder rows at {spec}")
    if transpose:
        raise ConfigError(f"{spec} is an SAE of a known format, whose orientation is known: leave out --transpose")
    return load_sae(spec).W_dec


def _bare(path: Path) -> Any:
    """The matrix in a file, an array or a tensor."""
    from autointerp.sae.formats.files import read_safetensors, read_torch

    if path.suffix == ".npy":
        import numpy as np

        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise AutointerpError(f"{path} cannot be read as an array ({error}): is it whole?") from error
    held = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if not isinstance(held, dict):
        if not hasattr(held, "ndim"):
            raise AutointerpError(f"{path} holds a {type(held).__name__}, expected a matrix")
        return held
    for name in _NAMED:
        if hasattr(held.get(name), "ndim"):
            return held[name].T if name == "decoder.weight" else held[name]
    matrices = [name for name, value in held.items() if getattr(value, "ndim", 0) == 2]
    if len(matrices) == 1:
        return held[matrices[0]]
    found = f"the matrices {', '.join(map(str, matrices[:6]))}" if matrices else "no matrix"
    raise AutointerpError(f"{path} holds {found}: name the decoder W_dec, [latents, d_model]")


def check_decoder(spec: str | Path, union: str | Path | None, *, transpose: bool, device: str, memory: int) -> Frame:
    """`find_composites` on decoders named as for `load_decoder`, with the columns `atoms` and `atom_coefficients`
    (what a flagged latent's constituents come down to: see `composites.expand`; empty elsewhere)."""
    from autointerp.composites import find_composites

    rows = load_decoder(spec, transpose=transpose)
    others = None if union is None else load_decoder(union)
    n, d = tuple(rows.shape) if rows.ndim == 2 else (0, 0)
    total = n + (0 if others is None else len(others))
    if (work := 2e-12 * n * total * d) > 1:
        log.info("%s latents of width %s: %.1f TFLOP, %.0f s for every 100 GFLOP/s", f"{n:,}", d, work, 10 * work)
    return with_atoms(find_composites(rows, others, device=usable_device(device), memory=memory))


def usable_device(wanted: str) -> str:
    """`wanted`, or the GPU if there is one for "auto"; a ConfigError where torch has no such device."""
    import torch

    from autointerp.pipeline.session import pick_device

    device = pick_device(wanted)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise ConfigError(f"no device {wanted!r} here; there is {', '.join(known)}") from error
    return device


def with_atoms(table: Frame) -> Frame:
    from autointerp.composites import FLAGGED, expand

    flagged = table["label"].isin(FLAGGED)
    needed = {part for parts in table.loc[flagged, "constituents"] for part in parts}
    few = table[flagged | table["feature"].isin(needed)]  # expand reads whole columns
    atoms: dict[int, dict[int, float]] = {int(row): expand(few, int(row)) for row in table.loc[flagged, "feature"]}
    found = [atoms.get(int(row), {}) for row in table["feature"]]
    return table.assign(
        atoms=[list(a) for a in found],
        atom_coefficients=[list(a.values()) for a in found],
    )


def write_table(table: Frame, path: Path) -> None:
    """By the suffix of `path`: Parquet, CSV or JSON (a list of rows)."""
    from autointerp.artifacts import write_atomically
    from autointerp.pipeline.composites import save_composites

    kinds: dict[str, Any] = {
        ".parquet": lambda to: save_composites(table, to),
        ".csv": lambda to: table.to_csv(to, index=False),
        ".json": lambda to: to.write_text(table.to_json(orient="records", indent=1) + "\n"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, kinds[path.suffix])
