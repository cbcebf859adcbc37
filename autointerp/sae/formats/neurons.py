"""SAE format neurons: a model's own neurons as features, as `autointerp.sae.neurons` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autointerp.sae.formats.files import exactly, field, read_json, read_safetensors
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor


class _Neurons:
    def detect(self, path: Path) -> bool:
        return (path / "neurons.json").is_file()

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        file = path / "neurons.json"
        says = read_json(file)
        stored = exactly(
            read_safetensors(path / "neurons.safetensors"),
            {"rows": "rows", "bias": "b_dec"},
            path / "neurons.safetensors",
        )
        d_in, rows = int(field(says, "d_in", file)), stored["rows"]
        encoder = torch.eye(d_in)
        if field(says, "signed", file):
            encoder, rows = torch.cat([encoder, -encoder], 1), torch.cat([rows, -rows])
        weights = {"W_enc": encoder, "b_enc": torch.zeros(encoder.shape[1]), "W_dec": rows, "b_dec": stored["b_dec"]}
        hook_out = says.get("hook_name_out")
        return SAEConfig(
            architecture="neurons",
            d_in=d_in,
            d_sae=encoder.shape[1],
            source_format="neurons",
            dtype="float32",
            apply_b_dec_to_input=False,
            k=says.get("k"),
            d_out=rows.shape[1] if hook_out else None,
            hook_name=says.get("hook_name"),
            hook_name_out=hook_out,
            model_name=says.get("model_name"),
            context_size=says.get("context_size"),
            prepend_bos=says.get("prepend_bos"),
        ), weights


FORMAT = _Neurons()
