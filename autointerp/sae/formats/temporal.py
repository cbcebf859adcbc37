"""SAE format temporal (2511.01836): ``conf.yaml`` + ``latest_ckpt.safetensors``; codes of what attention misses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autointerp.errors import AutointerpError
from autointerp.sae.contextual import Attention
from autointerp.sae.formats.files import dtype_name, field, floats, read_safetensors, read_yaml
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS = "latest_ckpt.safetensors"
_LAYER = re.compile(r"layer_(\d+)")


class _Temporal:
    def detect(self, path: Path) -> bool:
        return (path / _WEIGHTS).is_file() and (path / "conf.yaml").is_file()

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        file = path / "conf.yaml"
        says = field(read_yaml(file), "sae", file)
        stored = read_safetensors(path / _WEIGHTS)
        layer = _LAYER.search(str(path.absolute()))
        return configured(
            {**says, "hook_name": f"blocks.{layer[1]}.hook_resid_post" if layer else None},
            floats(stored, {"D": "W_dec", "b": "b_dec"} | ({"E": "W_enc"} if "E" in stored else {}), path / _WEIGHTS)
            | {name: tensor.float() for name, tensor in stored.items() if name.startswith("attn_layers.")},
            file,
            dtype_name(stored["D"]),
        )


def configured(
    says: dict[str, Any], weights: dict[str, Tensor], file: Path, dtype: str
) -> tuple[SAEConfig, dict[str, Tensor]]:
    """A temporal SAE of its own settings (sae_diff_type, kval_topk, n_heads, n_attn_layers, scaling_factor) and its
    weights, with the scales of its inputs folded in: x times scaling_factor, its codes' inputs over 4 d_in.

    AutointerpError where a setting is missing or not known.
    """
    kind = field(says, "sae_diff_type", file)
    if kind not in ("relu", "topk"):
        raise AutointerpError(f"{file}: sae_diff_type is {kind!r}, neither relu nor topk")
    d_sae, d_in = weights["W_dec"].shape
    factor = float(field(says, "scaling_factor", file))
    k = says.get("kval_topk") if kind == "topk" else None
    weights["W_enc"] = weights.get("W_enc", weights["W_dec"].T) * (factor / (4 * d_in))
    weights["W_dec"] = weights["W_dec"] / factor
    weights["b_dec"] = weights["b_dec"] / factor
    weights["b_enc"] = torch.zeros(d_sae)
    attention = Attention(int(field(says, "n_attn_layers", file)), int(field(says, "n_heads", file)), 1e-6 / factor)
    return SAEConfig(
        architecture="topk" if k is not None else "relu",
        d_in=d_in,
        d_sae=d_sae,
        source_format="temporal",
        dtype=dtype,
        apply_b_dec_to_input=True,
        k=k,
        hook_name=says.get("hook_name"),
        attention=attention,
    ), weights


FORMAT = _Temporal()
