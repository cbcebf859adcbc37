"""`load_sae`: any SAE, from a local path, a hub id or SAELens' release/sae_id."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch

from autointerp.errors import AutointerpError
from autointerp.sae.formats import find_format
from autointerp.sae.model import SAE

log = logging.getLogger("autointerp")


def load_sae(
    spec: str | Path,
    *,
    format: str | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> SAE:
    """Load an SAE whatever tool wrote it.

    Args:
        spec: a local file or folder; a hub id ``ORG/REPO[@REVISION][:FOLDER]``.
        format: one of `autointerp.sae.formats.FORMATS`; None: told by its files.
        device: where it goes, ``auto`` for the GPU where there is one.
        dtype: of its weights in memory.

    Raises:
        ConfigError: there is nothing at `spec`, or no format knows its files.
        AutointerpError: its files are damaged, or say something that is not supported.
    """
    from autointerp.sae.hub import fetch, looks_remote

    path = fetch(str(spec)) if looks_remote(str(spec)) else Path(spec).expanduser()
    name, reader = find_format(path, format)
    try:
        cfg, tensors = reader.load(path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        # tensors of shapes that do not fit each other, fields of another type: whatever a reader stumbles over
        first = (str(error).strip() or "?").splitlines()[0]
        raise AutointerpError(f"{path} is no whole {name} checkpoint: {type(error).__name__}: {first}") from error
    sae = SAE(cfg, tensors)
    if cfg.unknown:
        log.info("%s (%s) does not say its %s", spec, name, ", ".join(cfg.unknown))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return sae.to(device, getattr(torch, dtype))
