"""Load decoder rows alone: of an SAE in any format, or of a file that holds one bare matrix."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autointerp.errors import AutointerpError, ConfigError
from autointerp.sae.formats import formats_of
from autointerp.sae.formats.files import read_safetensors, read_torch
from autointerp.sae.hub import looks_remote
from autointerp.sae.load import load_sae

log = logging.getLogger("autointerp")

BARE = (".npy", ".safetensors", ".pt", ".pth", ".bin")
_NAMED = ("W_dec", "decoder.weight")  # the second as torch.nn.Linear keeps it: [d_model, latents]


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
    decoders = [_load(spec, transpose) for spec in specs]
    if transpose and not any(bare for _, bare in decoders):
        raise ConfigError(f"{specs[0]} is of a format whose orientation is known: leave out --transpose")
    return [matrix for matrix, _ in decoders]


def _load(spec: str | Path, transpose: bool) -> tuple[Any, bool]:
    """The decoder, and whether it is a bare matrix, whose orientation the file does not tell."""
    path = Path(spec).expanduser()
    if path.suffix not in BARE or not path.is_file() or formats_of(path):
        if not path.exists() and not looks_remote(str(spec)):
            raise ConfigError(f"no SAE and no file of decoder rows at {spec}")
        return load_sae(spec).W_dec, False
    matrix, turned = _bare(path)  # of a file out of an SAE's folder, too: its decoder is all that is needed
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
    if path.suffix == ".npy":
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
    several = f"the matrices {', '.join(map(str, matrices[:6]))}" if matrices else "no matrix"
    raise AutointerpError(f"{path} holds {several}: name the decoder W_dec, [latents, d_model]")
