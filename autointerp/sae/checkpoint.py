"""A training's checkpoint: one file that is whole or not there, with the hash of its content in front."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from autointerp.artifacts import write_atomically

log = logging.getLogger("autointerp")

HASH = 32  # bytes


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """state: tensors, numbers, texts, and lists and dicts of them."""
    saved = io.BytesIO()
    torch.save(state, saved)
    digest = hashlib.sha256(saved.getbuffer()).digest()

    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(digest)
            file.write(saved.getbuffer())

    write_atomically(path, write)


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """None where there is none. A damaged one is set aside, for torch raises ten kinds of error for it, or none and
    gives other numbers."""
    if not path.exists():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content[HASH:]).digest() != content[:HASH]:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        log.warning("the checkpoint of this training is damaged: set aside as %s, trained anew", aside)
        return None
    return torch.load(io.BytesIO(content[HASH:]), map_location=device, weights_only=True)
