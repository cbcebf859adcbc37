"""Sparse autoencoders: load them, train them, check them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autointerp.sae.check import SaeCheck as SaeCheck
    from autointerp.sae.check import check_sae as check_sae
    from autointerp.sae.check import require_width as require_width
    from autointerp.sae.formats.saelens import save_sae as save_sae
    from autointerp.sae.load import load_sae as load_sae
    from autointerp.sae.model import SAE as SAE
    from autointerp.sae.model import SAEConfig as SAEConfig
    from autointerp.sae.source import ActivationSource as ActivationSource
    from autointerp.sae.source import ArraySource as ArraySource
    from autointerp.sae.source import StreamSource as StreamSource
    from autointerp.sae.train import train_sae as train_sae
    from autointerp.sae.train_config import TrainConfig as TrainConfig

# Imported when first asked for: torch takes a second.
_WHERE = {
    "load_sae": "autointerp.sae.load:load_sae",
    "save_sae": "autointerp.sae.formats.saelens:save_sae",
    **{name: f"autointerp.sae.model:{name}" for name in ("SAE", "SAEConfig")},
    "train_sae": "autointerp.sae.train:train_sae",
    "TrainConfig": "autointerp.sae.train_config:TrainConfig",
    **{name: f"autointerp.sae.source:{name}" for name in ("ActivationSource", "ArraySource", "StreamSource")},
    **{name: f"autointerp.sae.check:{name}" for name in ("SaeCheck", "check_sae", "require_width")},
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module, _, attribute = _WHERE[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'autointerp.sae' has no attribute {name!r}")
