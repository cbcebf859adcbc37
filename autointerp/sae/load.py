"""`load_sae`: any SAE, from a local path, a hub id or SAELens' release/sae_id."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from autointerp.errors import AutointerpError
from autointerp.sae import published
from autointerp.sae.formats import find_format
from autointerp.sae.hub import fetch, listed, looks_remote
from autointerp.sae.model import SAE, SAEConfig

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
        spec: a local file or folder; a hub id ``ORG/REPO[@REVISION][:FOLDER]``; SAELens' ``release/sae_id``.
        format: one of `autointerp.sae.formats.FORMATS`; None: told by its files.
        device: where it goes, ``auto`` for the GPU where there is one.
        dtype: of its weights in memory.

    Raises:
        ConfigError: there is nothing at `spec`, or no format knows its files.
        AutointerpError: its files are damaged, or say something that is not supported.
    """
    remote = looks_remote(str(spec))
    entry = listed(str(spec)) if remote else None
    if entry is not None and entry.loader not in published.READ:
        cfg, tensors = published.by_saelens(entry)
    else:
        cfg, tensors = _read(fetch(str(spec)) if remote else Path(spec).expanduser(), format)
    if entry is not None:
        cfg, tensors = entry.complete(cfg, tensors)
    sae = SAE(cfg, tensors)
    if cfg.unknown:
        log.info("%s (%s) does not say its %s", spec, cfg.source_format, ", ".join(cfg.unknown))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return sae.to(device, getattr(torch, dtype))


def _read(path: Path, format: str | None) -> tuple[SAEConfig, dict[str, Tensor]]:
    name, reader = find_format(path, format)
    try:
        return reader.load(path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        # tensors of shapes that do not fit each other, fields of another type: whatever a reader stumbles over
        first = (str(error).strip() or "?").splitlines()[0]
        raise AutointerpError(f"{path} is no whole {name} checkpoint: {type(error).__name__}: {first}") from error
