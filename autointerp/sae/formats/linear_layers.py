"""SAE format of two linear layers in one torch file: Goodfire's, and qresearch's for DeepSeek R1.

ReLU; b_dec is not subtracted from the input. The file's name says the model and the layer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.sae.formats.files import dtype_name, exactly, read_pickle, torch_names
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

_FILE = re.compile(r"(.+)-SAE-l(\d+)\.pth?")
_OWNERS = {"Llama": "meta-llama", "DeepSeek": "deepseek-ai"}


class _LinearLayers:
    def detect(self, path: Path) -> bool:
        if not path.is_file() or path.suffix not in (".pt", ".pth"):
            return False
        held = torch_names(path)
        return any(_names(suffix).keys() <= {*held, *(f"{name}ᵀ" for name in held)} for suffix in ("", "_linear"))

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        stored = read_pickle(path)
        suffix = "_linear" if "encoder_linear.weight" in stored else ""
        weights = exactly(stored, _names(suffix), path)
        d_in, d_sae = weights["W_enc"].shape
        file = _FILE.fullmatch(path.name)
        owner = _OWNERS.get(file[1].split("-")[0]) if file else None
        return SAEConfig(
            architecture="relu",
            d_in=d_in,
            d_sae=d_sae,
            source_format="linear_layers",
            dtype=dtype_name(stored[f"encoder{suffix}.weight"]),
            apply_b_dec_to_input=False,
            hook_name=f"blocks.{file[2]}.hook_resid_post" if file else None,
            model_name=f"{owner}/{file[1]}" if file and owner else None,
            dataset="lmsys/lmsys-chat-1m" if owner else None,
        ), weights


def _names(suffix: str) -> dict[str, str]:
    return {
        f"encoder{suffix}.weightᵀ": "W_enc",
        f"encoder{suffix}.bias": "b_enc",
        f"decoder{suffix}.weightᵀ": "W_dec",
        f"decoder{suffix}.bias": "b_dec",
    }


FORMAT = _LinearLayers()
