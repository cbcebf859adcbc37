"""SAE format Llama Scope: ``hyperparams.json`` + ``checkpoints/final.safetensors``, and its R1-distill variant.

The variant is ``config.json`` + ``sae_weights.safetensors`` with ``log_jumprelu_threshold``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autointerp.errors import AutointerpError
from autointerp.sae.formats.files import dtype_name, field, floats, read_json, read_json_if, read_safetensors
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {
    "encoder.weightᵀ": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weightᵀ": "W_dec",
    "decoder.bias": "b_dec",
}


class _LlamaScope:
    def detect(self, path: Path) -> bool:
        first = (path / "hyperparams.json").is_file() and (path / "checkpoints" / "final.safetensors").is_file()
        return first or self._is_distill(path)

    def _is_distill(self, path: Path) -> bool:
        config = read_json_if(path / "config.json")
        return (path / "sae_weights.safetensors").is_file() and "hook_point_in" in config and "d_model" in config

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        distill = not (path / "hyperparams.json").is_file()
        file = path / ("config.json" if distill else "hyperparams.json")
        raw = read_json(file)
        tensors = path / ("sae_weights.safetensors" if distill else "checkpoints/final.safetensors")
        stored = read_safetensors(tensors)
        names = {**_NAMES, "log_jumprelu_threshold": "threshold"} if distill else _NAMES
        weights = floats(stored, names, tensors)
        d_in, d_sae = weights["W_enc"].shape
        scale = _scale(raw, d_in, file, stored)
        if distill:
            weights["threshold"] = weights["threshold"].exp()
        else:
            if raw.get("act_fn", "jumprelu").lower() not in ("jumprelu", "topk"):
                raise AutointerpError(f"{file}: the activation {raw['act_fn']!r} is not supported")
            # stored in units of the raw activations, compared with normalised ones
            weights["threshold"] = torch.full((d_sae,), float(field(raw, "jump_relu_threshold", file)) * scale)
        weights["W_enc"] = weights["W_enc"] * scale
        weights["W_dec"] = weights["W_dec"] / scale
        weights["b_dec"] = weights["b_dec"] / scale
        return SAEConfig(
            architecture="jumprelu",
            d_in=d_in,
            d_sae=d_sae,
            source_format="llama_scope",
            dtype=dtype_name(stored["encoder.weight"]),
            apply_b_dec_to_input=bool(raw.get("apply_decoder_bias_to_pre_encoder", False)),
            hook_name=raw.get("hook_point_in"),
            model_name="meta-llama/Llama-3.1-8B",
            context_size=1024,
            prepend_bos=True,
            dataset="cerebras/SlimPajama-627B",
        ), weights


def _scale(raw: dict, d_in: int, file: Path, stored: dict[str, Tensor]) -> float:
    """√d / the data set's average norm at the input: what inputs were multiplied with in training."""
    norms = raw.get("dataset_average_activation_norm")
    if isinstance(norms, dict) and norms.get("in"):
        return d_in**0.5 / float(norms["in"])
    hook = raw.get("hook_point_in")
    tensor = stored.get(f"dataset_average_activation_norm.{hook}")
    if tensor is not None and float(tensor) > 0:
        return d_in**0.5 / float(tensor)
    if raw.get("norm_activation") in (None, "inference"):
        return 1.0
    raise AutointerpError(f"{file} does not say the average norm of the inputs (dataset_average_activation_norm)")


FORMAT = _LlamaScope()
