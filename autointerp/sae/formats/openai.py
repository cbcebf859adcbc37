"""SAE format of OpenAI's sparse_autoencoder: one ``.pt``; the input is layer-normed if the activation is TopK."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.errors import AutointerpError
from autointerp.sae.formats.files import dtype_name, floats, read_pickle, torch_names
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {
    "encoder.weightᵀ": "W_enc",
    "latent_bias": "b_enc",
    "decoder.weightᵀ": "W_dec",
    "pre_bias": "b_dec",
}


class _OpenAI:
    def detect(self, path: Path) -> bool:
        return path.is_file() and path.suffix == ".pt" and {"pre_bias", "latent_bias"} <= torch_names(path)

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        stored = read_pickle(path)
        weights = floats(stored, _NAMES, path)
        d_in, d_sae = weights["W_enc"].shape
        activation = stored.get("activation")
        if activation not in ("TopK", "ReLU"):
            raise AutointerpError(f"{path}: the activation {activation!r} is neither TopK nor ReLU")
        topk = activation == "TopK"
        k = (stored.get("activation_state_dict") or {}).get("k")
        if topk and k is None:
            raise AutointerpError(f"{path} does not say k (activation_state_dict.k)")
        return SAEConfig(
            architecture="topk" if topk else "relu",
            d_in=d_in,
            d_sae=d_sae,
            source_format="openai",
            dtype=dtype_name(stored["encoder.weight"]),
            apply_b_dec_to_input=True,
            normalize_activations="layer_norm" if topk else "none",
            k=int(k) if topk and k is not None else None,
        ), weights


FORMAT = _OpenAI()
