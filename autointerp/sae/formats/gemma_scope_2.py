"""SAE format Gemma Scope 2: ``params.safetensors``, JumpReLU, SAEs and transcoders of the Gemma 3 models.

A cross-layer transcoder's layer is a file ``params_layer_N.safetensors`` whose decoder has a row for each later layer.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.errors import AutointerpError
from autointerp.sae.formats.files import dtype_name, exactly, read_json_if, read_safetensors, safetensors_shapes
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("autointerp")

_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
_SKIP = "affine_skip_connection"  # [d_in, d_out]
_REPOSITORY = re.compile(r"gemma-scope-2-(\d+[mb])-(pt|it)")
_KIND = re.compile(r"(resid_post|attn_out|mlp_out|transcoder|clt)(?:_all)?/")
_LAYER = re.compile(r"layer_(\d+)")
_PLACES = {"resid_post": "hook_resid_post", "attn_out": "attn.hook_z", "mlp_out": "hook_mlp_out"}


class _GemmaScope2:
    def detect(self, path: Path) -> bool:
        file = _file(path)
        return file.suffix == ".safetensors" and _NAMES.keys() <= safetensors_shapes(file).keys()

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        file = _file(path)
        stored = read_safetensors(file)
        says = read_json_if(file.parent / "config.json")
        if says.get("architecture", "jump_relu") != "jump_relu":
            raise AutointerpError(
                f"{file.parent / 'config.json'}: the architecture {says['architecture']!r} is not known"
            )
        skip = {_SKIP: "W_skip"} if _SKIP in stored else {}
        weights = exactly(stored, _NAMES | skip, file)
        if weights["W_dec"].ndim == 3:
            weights["W_dec"] = add_layers(weights["W_dec"], file)
        where = str(file.absolute())
        repository, kind, layer = _REPOSITORY.search(where), _KIND.search(where), _LAYER.search(where)
        place = kind[1] if kind else _kind(str(says.get("hf_hook_point_in", "")))
        transcodes = bool(skip) or place in ("transcoder", "clt") or "hf_hook_point_out" in says
        block = f"blocks.{layer[1]}" if layer else None
        at = "mlp.hook_in" if transcodes else _PLACES.get(place or "")
        d_in, d_sae = weights["W_enc"].shape
        return SAEConfig(
            architecture="jumprelu",
            d_in=d_in,
            d_sae=d_sae,
            source_format="gemma_scope_2",
            dtype=dtype_name(stored["w_dec"]),
            apply_b_dec_to_input=False,
            d_out=weights["b_dec"].shape[0] if transcodes else None,
            hook_name=f"{block}.{at}" if block and at else None,
            hook_name_out=f"{block}.hook_mlp_out" if block and transcodes else None,
            model_name=_model(repository, says),
            context_size=1024,
            prepend_bos=True,
        ), weights


def _file(path: Path) -> Path:
    return path / "params.safetensors" if path.is_dir() else path


def _kind(module: str) -> str | None:
    """From the Hugging Face module whose input or output is read, where the path does not tell it."""
    ends = {
        "o_proj.input": "attn_out",
        "pre_feedforward_layernorm.output": "transcoder",
        "post_feedforward_layernorm.output": "mlp_out",
        "output": "resid_post",
    }
    return next((kind for end, kind in ends.items() if module.endswith(end)), None)


def _model(repository: re.Match[str] | None, says: dict) -> str | None:
    if repository is not None:
        size, tuned = repository.groups()
        # the hub's smallest pretrained Gemma 3 has no suffix
        return f"google/gemma-3-{size}" + ("" if size == "270m" and tuned == "pt" else f"-{tuned}")
    return says.get("model_name")


def add_layers(decoder: Tensor, file: Path) -> Tensor:
    """Decoders [d_sae, layers, d_out] of a cross-layer transcoder, added up: what a latent writes into the residual
    stream altogether. Its logit effects are right; what any single layer should give is not reconstructed."""
    log.warning(
        "%s writes into %s layers, whose decoders are added up: read its activations, not its reconstruction",
        file.name,
        decoder.shape[1],
    )
    return decoder.sum(1)


FORMAT = _GemmaScope2()
