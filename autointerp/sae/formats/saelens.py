"""SAE format SAELens: ``cfg.json`` + ``sae_weights.safetensors``; version 6 and flat configs. Reads and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autointerp.artifacts import write_atomically
from autointerp.errors import AutointerpError
from autointerp.sae.contextual import Pursuit
from autointerp.sae.formats import temporal
from autointerp.sae.formats.files import dtype_name, field, read_json, read_json_if, read_safetensors
from autointerp.sae.model import SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

    from autointerp.sae.model import SAE

_WEIGHTS = "sae_weights.safetensors"
_VERSION = "6.54.12"  # whose form we write
# SAELens' name -> (ours, is it a transcoder)
_ARCHITECTURES = {
    "standard": ("relu", False),
    "topk": ("topk", False),
    "jumprelu": ("jumprelu", False),
    "gated": ("gated", False),
    "transcoder": ("relu", True),
    "skip_transcoder": ("relu", True),
    "jumprelu_transcoder": ("jumprelu", True),
    "jumprelu_skip_transcoder": ("jumprelu", True),
    "matching_pursuit": ("matching_pursuit", False),
    "abstopk": ("topk", False),  # with each latent's two signs as two latents: see _signs_apart
}


class _SaeLens:
    def detect(self, path: Path) -> bool:
        return (path / _WEIGHTS).is_file() and bool(read_json_if(path / "cfg.json"))

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
        return converted(read_json(path / "cfg.json"), read_safetensors(path / _WEIGHTS), path / "cfg.json")


def converted(raw: dict[str, Any], stored: dict[str, Tensor], file: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
    """From SAELens' config (of any version) and its module's tensors to ours. `file` is named in errors.

    Raises AutointerpError for an architecture, a reshaping or a normalisation that is not known.
    """
    raw = _modern(raw)
    dtype = dtype_name(stored["W_dec"]) if "W_dec" in stored else "unknown"
    weights = {key: tensor.float() for key, tensor in stored.items()}
    if raw["architecture"] == "temporal":
        cfg, weights = _temporal(raw, weights, file, dtype)
    elif raw["architecture"] in _ARCHITECTURES:
        cfg, weights = _plain(raw, weights, file, dtype)
    else:
        known = ", ".join(sorted({*_ARCHITECTURES, "temporal"}))
        raise AutointerpError(f"{file}: the SAELens architecture {raw['architecture']!r} is not one of {known}")
    metadata = raw["metadata"]
    facts = {
        "hook_name": metadata.get("hook_name"),
        "hook_name_out": metadata.get("hook_name_out"),
        "model_name": metadata.get("model_name"),
        "context_size": metadata.get("context_size"),
        "prepend_bos": metadata.get("prepend_bos"),
        "dataset": metadata.get("dataset_path"),
    }
    return replace(cfg, source_format="saelens", **facts), weights


def _plain(
    raw: dict[str, Any], weights: dict[str, Tensor], file: Path, dtype: str
) -> tuple[SAEConfig, dict[str, Tensor]]:
    """Of an architecture whose codes come from one product."""
    name, transcoder = _ARCHITECTURES[raw["architecture"]]
    if raw.get("reshape_activations", "none") not in ("none", "hook_z"):
        raise AutointerpError(f"{file}: unknown reshape_activations {raw['reshape_activations']!r}")
    _fold(weights, raw)
    _complete(weights, raw)
    normalisation = raw.get("normalize_activations") or "none"
    average = normalisation == "expected_average_only_in"
    if average:
        normalisation = "none"  # SAELens folds the average norm into the weights before it saves
    if normalisation not in ("none", "constant_norm_rescale", "layer_norm"):
        raise AutointerpError(f"{file}: the input normalisation {normalisation!r} is not known")
    d_sae = int(field(raw, "d_sae", file))
    return SAEConfig(
        architecture=name,
        d_in=int(field(raw, "d_in", file)),
        d_sae=2 * d_sae if raw["architecture"] == "abstopk" else d_sae,
        source_format="saelens",
        dtype=dtype,
        apply_b_dec_to_input=bool(field(raw, "apply_b_dec_to_input", file)) and not transcoder,
        normalize_activations=normalisation,
        k=int(field(raw, "k", file)) if name == "topk" else None,
        d_out=int(field(raw, "d_out", file)) if transcoder else None,
        pursuit=_pursuit(raw) if name == "matching_pursuit" else None,
        expects_average_norm=average,
    ), weights


def _complete(weights: dict[str, Tensor], raw: dict[str, Any]) -> None:
    """Tensors that an architecture goes without, or has in another orientation, in ours."""
    architecture = raw["architecture"]
    if architecture == "gated":
        weights["b_enc"] = torch.zeros_like(weights["b_gate"]) if "b_gate" in weights else torch.zeros(0)
    if architecture == "matching_pursuit":
        weights["W_enc"], weights["b_enc"] = weights["W_dec"].T, torch.zeros(len(weights["W_dec"]))
        if not raw["apply_b_dec_to_input"]:  # what is not taken off the input is not added to the output either
            weights["b_dec"] = torch.zeros_like(weights["b_dec"])
    if architecture == "abstopk":
        _signs_apart(weights)
    if "W_skip" in weights:
        weights["W_skip"] = weights["W_skip"].T


def _signs_apart(weights: dict[str, Tensor]) -> None:
    """An AbsTopK SAE (2510.00404) fires with both signs. Latent i keeps what is positive, latent d_sae + i fires where
    i is negative, with the opposite direction: the k strongest of both are the k of greatest magnitude."""
    for name, dim in (("W_enc", 1), ("b_enc", 0), ("W_dec", 0)):
        weights[name] = torch.cat([weights[name], -weights[name]], dim)


def _pursuit(raw: dict[str, Any]) -> Pursuit:
    return Pursuit(
        steps=int(raw.get("max_iterations") or raw["d_in"]),
        residual=float(raw.get("residual_threshold", 1e-2)),
        stop_when_stable=bool(raw.get("stop_on_duplicate_support", True)),
    )


def _temporal(
    raw: dict[str, Any], weights: dict[str, Tensor], file: Path, dtype: str
) -> tuple[SAEConfig, dict[str, Tensor]]:
    normalisation = raw.get("normalize_activations") or "none"
    if normalisation not in ("none", "constant_scalar_rescale") or not raw["apply_b_dec_to_input"]:
        raise AutointerpError(f"{file}: a temporal SAE with the input normalisation {normalisation!r} is not known")
    factor = raw["activation_normalization_factor"] if normalisation == "constant_scalar_rescale" else 1.0
    return temporal.configured({**raw, "scaling_factor": factor}, weights, file, dtype)


def _modern(raw: dict[str, Any]) -> dict[str, Any]:
    """A flat config of a version before 6 in the form of version 6, with the defaults that those versions had."""
    metadata = raw.get("metadata")
    if isinstance(metadata, dict) and "architecture" in raw:
        return {"apply_b_dec_to_input": True, **raw}
    new = dict(raw)
    new["architecture"] = raw.get("architecture") or "standard"
    if raw.get("activation_fn_str") == "topk" or raw.get("activation_fn") == "topk":
        new["architecture"] = "topk"
        new["k"] = (raw.get("activation_fn_kwargs") or {}).get("k")
    if raw.get("apply_b_dec_to_input") is None:
        new["apply_b_dec_to_input"] = True
    if isinstance(raw.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if raw["normalize_activations"] else "none"
    new["metadata"] = {
        "model_name": raw.get("model_name"),
        "hook_name": raw.get("hook_name") or raw.get("hook_point"),
        "context_size": raw.get("context_size"),
        "prepend_bos": raw.get("prepend_bos"),
        "dataset_path": raw.get("dataset_path"),
    }
    return new


def _fold(weights: dict[str, Tensor], raw: dict[str, Any]) -> None:
    """Into the weights: version 5's `scaling_factor`, version 6's `rescale_acts_by_decoder_norm`."""
    factor = weights.pop("scaling_factor", None)
    if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
        if not raw.get("finetuning_scaling_factor"):
            raise AutointerpError("the weights hold a scaling_factor that cfg.json does not speak of")
        weights["W_dec"] = weights["W_dec"] * factor[:, None]
    if raw.get("rescale_acts_by_decoder_norm"):
        norm = weights["W_dec"].norm(dim=-1)
        weights["W_enc"] = weights["W_enc"] * norm
        weights["b_enc"] = weights["b_enc"] * norm
        weights["W_dec"] = weights["W_dec"] / norm[:, None]


FORMAT = _SaeLens()


def save_sae(sae: SAE, folder: str | Path, *, dtype: str = "float32") -> None:
    """Write `sae` so that SAELens ≥ 6 and `load_sae` open it. `dtype` is the stored one: float32, bfloat16, float16."""
    from safetensors.torch import save_file

    cfg = sae.cfg
    skip = "W_skip" in sae._buffers
    names = {ours: theirs for theirs, (ours, transcoder) in reversed(_ARCHITECTURES.items()) if not transcoder}
    if cfg.architecture not in names:
        raise AutointerpError(f"SAELens has no architecture for {cfg.architecture!r}")
    architecture = names[cfg.architecture]
    if cfg.d_out is not None:
        prefix = "" if architecture == "standard" else f"{architecture}_"
        architecture = f"{prefix}skip_transcoder" if skip else f"{prefix}transcoder"
        if architecture not in _ARCHITECTURES:
            raise AutointerpError(f"SAELens has no architecture {architecture!r}")
    weights = {
        name: tensor.detach().to("cpu", getattr(torch, dtype)).contiguous() for name, tensor in sae.state_dict().items()
    }
    if cfg.architecture == "gated":
        shift = weights.pop("b_enc").float()
        if shift.any():
            raise AutointerpError("a gated SAE with a b_enc beside b_gate and b_mag cannot be written as SAELens")
    if skip:
        weights["W_skip"] = weights["W_skip"].T.contiguous()
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": cfg.apply_b_dec_to_input,
        "normalize_activations": cfg.normalize_activations,
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _VERSION,
            "model_name": cfg.model_name,
            "hook_name": cfg.hook_name,
            "hook_head_index": None,
            "context_size": cfg.context_size,
            "prepend_bos": cfg.prepend_bos,
            "dataset_path": cfg.dataset,
        },
    }
    if cfg.architecture == "topk":
        config |= {"k": cfg.k, "rescale_acts_by_decoder_norm": False}
    if cfg.d_out is not None:
        config["d_out"] = cfg.d_out
        config["metadata"]["hook_name_out"] = cfg.hook_name_out
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _WEIGHTS, lambda path: save_file(weights, path))
    write_atomically(folder / "cfg.json", lambda path: path.write_text(json.dumps(config, indent=2)))
