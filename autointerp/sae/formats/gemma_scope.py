"""SAE format Gemma Scope: ``params.npz``, JumpReLU, b_dec not subtracted; the path says what it was trained on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autointerp.errors import AutointerpError
from autointerp.sae.formats.files import dtype_name, floats, read_npz
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|att|mlp|transcoders)")
_LAYER = re.compile(r"layer_(\d+)")
# A transcoder reads what the layer's last norm gives to the MLP, its weight applied (2408.05147, section 3.3).
_PLACES = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out", "transcoders": "mlp.hook_in"}


class _GemmaScope:
    def detect(self, path: Path) -> bool:
        return path.name == "params.npz" or (path / "params.npz").is_file()

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        file = path if path.is_file() else path / "params.npz"
        stored = {re.sub("^w_", "W_", name): tensor for name, tensor in read_npz(file).items()}
        weights = floats(stored, {name: name for name in _NAMES}, file)
        factor = stored.get("scaling_factor")
        if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
            raise AutointerpError(f"{file} holds a scaling_factor other than 1, which is not supported")
        d_in, d_sae = weights["W_enc"].shape
        folder = str(file.absolute().parent)
        repository, layer = _REPOSITORY.search(folder), _LAYER.search(folder)
        transcodes = repository is not None and repository[3] == "transcoders"
        hook = f"blocks.{layer[1]}.{_PLACES[repository[3]]}" if layer and repository else None
        if repository and repository[3] == "res" and "/embedding/" in folder:
            # trained on the embedding before the model multiplies it by √d, which is what its hook shows
            hook, weights["W_enc"], weights["W_dec"] = (
                "hook_embed",
                weights["W_enc"] / d_in**0.5,
                weights["W_dec"] * d_in**0.5,
            )
        return SAEConfig(
            architecture="jumprelu",
            d_in=d_in,
            d_sae=d_sae,
            source_format="gemma_scope",
            dtype=dtype_name(stored["W_dec"]),
            apply_b_dec_to_input=False,
            d_out=weights["b_dec"].shape[0] if transcodes else None,
            hook_name=hook,
            hook_name_out=f"blocks.{layer[1]}.hook_mlp_out" if layer and transcodes else None,
            model_name=f"google/gemma-2-{repository[1]}" + "-it" * (repository[2] == "it") if repository else None,
            context_size=1024,  # 2408.05147, section 3
            prepend_bos=True,
        ), weights


FORMAT = _GemmaScope()
