"""SAE formats of circuit-tracer's transcoders, one layer's (mwhanna's) and cross-layer ones (mntss').

``layer_N.safetensors``, or ``W_enc_N.safetensors`` beside ``W_dec_N.safetensors``; ReLU; ``config.yaml``
says the model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.sae.formats.files import dtype_name, exactly, read_safetensors, read_yaml, safetensors_shapes
from autointerp.sae.formats.gemma_scope_2 import add_layers
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {"W_encᵀ": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_FILE = re.compile(r"layer_(\d+)\.safetensors")
_CROSS = re.compile(r"W_enc_(\d+)\.safetensors")
_QWEN = re.compile(r"qwen3-(\d+(?:\.\d+)?)b")


class _CircuitTranscoders:
    def detect(self, path: Path) -> bool:
        if _CROSS.fullmatch(path.name):
            return path.is_file()
        shapes = safetensors_shapes(path) if _FILE.fullmatch(path.name) and path.is_file() else {}
        return {"W_enc", "b_enc", "W_dec", "b_dec"} <= shapes.keys() and shapes["W_enc"][:1] == shapes["b_enc"]

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        cross = _CROSS.fullmatch(path.name)
        layer = (cross or _FILE.fullmatch(path.name) or ["", "0"])[1]
        stored = read_safetensors(path)
        if cross:
            stored |= read_safetensors(path.with_name(f"W_dec_{layer}.safetensors"))
            stored = {name.removesuffix(f"_{layer}"): tensor for name, tensor in stored.items()}
        weights = exactly(stored, _NAMES, path)
        if cross:
            weights["W_dec"] = add_layers(weights["W_dec"], path)
        config = path.with_name("config.yaml")
        says = read_yaml(config) if config.is_file() else {}
        d_in, d_sae = weights["W_enc"].shape
        return SAEConfig(
            architecture="relu",
            d_in=d_in,
            d_sae=d_sae,
            source_format="circuit_transcoders",
            dtype=dtype_name(stored["W_enc"]),
            apply_b_dec_to_input=False,
            d_out=weights["b_dec"].shape[0],
            hook_name=f"blocks.{layer}.{says.get('feature_input_hook', 'mlp.hook_in')}",
            hook_name_out=f"blocks.{layer}.{says.get('feature_output_hook', 'hook_mlp_out')}",
            model_name=_model(says, path),
        ), weights


def _model(says: dict[str, Any], path: Path) -> str | None:
    named = _QWEN.search(str(path.absolute()).lower())
    return says.get("model_name") or (f"Qwen/Qwen3-{named[1].upper()}B" if named else None)


FORMAT = _CircuitTranscoders()
