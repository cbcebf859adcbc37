"""SAE format of EleutherAI's sparsify (and delphi): ``<hookpoint>/{cfg.json, sae.safetensors}``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.errors import AutointerpError
from autointerp.sae.formats.files import dtype_name, field, floats, read_json, read_safetensors
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor


class _Sparsify:
    def detect(self, path: Path) -> bool:
        return (path / "sae.safetensors").is_file() and (path / "cfg.json").is_file()

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        file = path / "cfg.json"
        raw = read_json(file)
        activation = raw.get("activation", "topk")  # older checkpoints knew no other
        if activation not in ("topk", "groupmax"):
            raise AutointerpError(f"{file}: the activation {activation!r} is neither topk nor groupmax")
        stored = read_safetensors(path / "sae.safetensors")
        names = {"encoder.weightᵀ": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
        if "decoder.weight" in stored:  # of a linear layer, as its first versions had
            names["decoder.weightᵀ"] = names.pop("W_dec")
        if "W_skip" in stored:
            names["W_skipᵀ"] = "W_skip"
        weights = floats(stored, names, path / "sae.safetensors")
        transcodes = bool(raw.get("transcode", False))
        d_in = int(field(raw, "d_in", file))
        return SAEConfig(
            architecture=activation,
            d_in=d_in,
            d_sae=int(raw.get("num_latents") or d_in * int(field(raw, "expansion_factor", file))),
            source_format="sparsify",
            dtype=dtype_name(stored["encoder.weight"]),
            apply_b_dec_to_input=not transcodes,
            k=int(field(raw, "k", file)),
            d_out=weights["b_dec"].shape[0] if transcodes else None,
            # the folder is the module; a transcoder reads what goes into it, which has no name of its own
            hook_name=None if transcodes else path.name,
            hook_name_out=path.name if transcodes else None,
        ), weights


FORMAT = _Sparsify()
