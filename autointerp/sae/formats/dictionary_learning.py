"""SAE format dictionary_learning: ``trainer_<i>/{ae.pt, config.json}``, told apart by ``trainer.dict_class``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autointerp.errors import AutointerpError
from autointerp.sae.formats.files import dtype_name, field, floats, read_json, read_json_if, read_pickle
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

_LINEAR = {"encoder.weightᵀ": "W_enc", "encoder.bias": "b_enc", "decoder.weightᵀ": "W_dec"}
_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_GATED = {"r_mag": "r_mag", "gate_bias": "b_gate", "mag_bias": "b_mag", "decoder_bias": "b_dec"}
# class -> (architecture, is b_dec subtracted from the input, tensors)
_CLASSES = {
    "AutoEncoder": ("relu", True, {**_LINEAR, "bias": "b_dec"}),
    "AutoEncoderNew": ("relu", False, {**_LINEAR, "decoder.bias": "b_dec"}),
    "GatedAutoEncoder": ("gated", True, {"encoder.weightᵀ": "W_enc", "decoder.weightᵀ": "W_dec", **_GATED}),
    "JumpReluAutoEncoder": ("jumprelu", False, {**_PLAIN, "threshold": "threshold"}),
    "AutoEncoderTopK": ("topk", True, {**_LINEAR, "b_dec": "b_dec"}),
    "BatchTopKSAE": ("jumprelu", True, {**_LINEAR, "b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True, {**_PLAIN, "threshold": "threshold"}),
}
_PLACES = {"resid_post": "hook_resid_post", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out"}


class _DictionaryLearning:
    def detect(self, path: Path) -> bool:
        return (path / "ae.pt").is_file() and "dict_class" in read_json_if(path / "config.json").get("trainer", {})

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        file = path / "config.json"
        raw = read_json(file)
        trainer = field(raw, "trainer", file)
        kind = field(trainer, "dict_class", file)
        if kind not in _CLASSES:
            raise AutointerpError(f"{file}: the dict_class {kind!r} is not one of {', '.join(_CLASSES)}")
        architecture, subtracts, names = _CLASSES[kind]
        stored = read_pickle(path / "ae.pt")
        weights = floats(stored, names, path / "ae.pt")
        d_in, d_sae = weights["W_enc"].shape
        if architecture == "gated":
            weights["b_enc"] = torch.zeros(d_sae)
        if architecture == "jumprelu":
            weights["threshold"] = weights["threshold"].expand(d_sae)  # BatchTopK has one for all
        if kind == "AutoEncoder":
            _unit_norm(weights)  # as dictionary_learning's own load_dictionary does
        k = stored.get("k", trainer.get("k"))
        return SAEConfig(
            architecture=architecture,
            d_in=d_in,
            d_sae=d_sae,
            source_format="dictionary_learning",
            dtype=dtype_name(stored[next(iter(names)).removesuffix("ᵀ")]),
            apply_b_dec_to_input=subtracts,
            k=None if k is None else int(k),
            hook_name=_hook(trainer),
            model_name=trainer.get("lm_name"),
            context_size=(raw.get("buffer") or {}).get("ctx_len"),
        ), weights


def _unit_norm(weights: dict[str, Tensor]) -> None:
    norm = weights["W_dec"].norm(dim=1)
    weights["W_dec"] = weights["W_dec"] / norm[:, None]
    weights["W_enc"] = weights["W_enc"] * norm
    weights["b_enc"] = weights["b_enc"] * norm


def _hook(trainer: dict[str, Any]) -> str | None:
    """``resid_post_layer_8`` -> ``blocks.8.hook_resid_post``; any other submodule's name as it is."""
    name = trainer.get("submodule_name")
    match = re.fullmatch(r"(\w+)_layer_(\d+)", name or "")
    return f"blocks.{match[2]}.{_PLACES[match[1]]}" if match and match[1] in _PLACES else name


FORMAT = _DictionaryLearning()
