"""SAE format of ckkissane's attention SAEs: ``NAME.pt`` with ``NAME_cfg.json``; ReLU, heads side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.sae.formats.files import dtype_name, exactly, read_json, read_json_if, read_pickle
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_MODELS = {"gpt2-small": "openai-community/gpt2"}


class _AttentionZ:
    def detect(self, path: Path) -> bool:
        return path.suffix == ".pt" and path.is_file() and "act_name" in read_json_if(_config(path))

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        says = read_json(_config(path))
        stored = read_pickle(path)
        weights = exactly(stored, _NAMES, path)
        d_in, d_sae = weights["W_enc"].shape
        model = path.name.split("_")[0]
        return SAEConfig(
            architecture="relu",
            d_in=d_in,
            d_sae=d_sae,
            source_format="attention_z",
            dtype=dtype_name(stored["W_enc"]),
            apply_b_dec_to_input=True,
            hook_name=says.get("act_name"),
            model_name=_MODELS.get(model),
            context_size=says.get("seq_len"),
            dataset="Skylion007/openwebtext" if model in _MODELS else None,
        ), weights


def _config(path: Path) -> Path:
    return path.with_name(f"{path.name.split('.pt')[0]}_cfg.json")


FORMAT = _AttentionZ()
