"""saebench.json: the figures in the form of SAEBench's "core" evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from autointerp.composites.neighbours import top_neighbours
from autointerp.hashing import digest
from autointerp.resources import package_version

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from autointerp.artifacts import Corpus
    from autointerp.config import Config
    from autointerp.evaluation.run import Evaluation
    from autointerp.sae.model import SAE

# SAEBench's category -> its metric -> ours. SAEBench also counts BOS as ablated and divides its mse by the batch.
METRICS: dict[str, dict[str, str]] = {
    "model_behavior_preservation": {
        "kl_div_score": "kl_loss_recovered",
        "kl_div_with_ablation": "kl_zero",
        "kl_div_with_sae": "kl_sae",
    },
    "model_performance_preservation": {
        "ce_loss_score": "ce_loss_recovered",
        "ce_loss_with_ablation": "ce_zero",
        "ce_loss_with_sae": "ce_sae",
        "ce_loss_without_sae": "ce_clean",
    },
    "reconstruction_quality": {
        "explained_variance": "explained_variance",
        "explained_variance_legacy": "explained_variance_per_token",
        "mse": "mse",
        "cossim": "cosine",
    },
    "shrinkage": {
        "l2_norm_in": "l2_norm_in",
        "l2_norm_out": "l2_norm_out",
        "l2_ratio": "l2_ratio",
        "relative_reconstruction_bias": "relative_reconstruction_bias",
    },
    "sparsity": {"l0": "l0", "l1": "l1"},
    "misc_metrics": {
        "freq_over_1_percent": "frequent_fraction",
        "freq_over_10_percent": "dense_fraction",
        "normalized_freq_over_1_percent": "frequent_firings",
        "normalized_freq_over_10_percent": "dense_firings",
    },
}


def saebench_core(config: Config, corpus: Corpus, sae: SAE, evaluation: Evaluation, device: str) -> dict[str, Any]:
    """SAEBench's "core" JSON of an evaluation that was run as `config` says."""
    settings = _settings(config, corpus)
    identity = {"settings": settings, "sae": asdict(sae.cfg), "text": corpus.info.text_sha256}
    about = {
        "eval_config": settings,
        "eval_id": digest(identity),
        "datetime_epoch_millis": round(time.time() * 1000),
        "sae_bench_commit_hash": f"autointerp {package_version()}",  # which code measured; it is not SAEBench's
        "sae_lens_id": config.sae.load or "custom_sae",
        "sae_lens_release_id": config.name,
        "sae_lens_version": f"autointerp {package_version()}",
        "sae_cfg_dict": {name: value for name, value in asdict(sae.cfg).items() if value is not None},
        "eval_result_unstructured": {
            row["metric"]: {name: row.get(name) for name in ("value", "low", "high", "n", "note")}
            for row in evaluation.figures
        },
    }
    return saebench(evaluation.figures, evaluation.latents, _encoder(sae, device), about)


def _settings(config: Config, corpus: Corpus) -> dict[str, Any]:
    """SAEBench's names for how the evaluation was run."""
    context = config.evaluation.context or corpus.info.context
    batch = max(1, config.subject.batch_tokens // context)
    batches = -(-config.evaluation.tokens // (batch * context))
    return {
        "model_name": config.subject.model,
        "llm_dtype": config.subject.dtype,
        "batch_size_prompts": batch,
        "n_eval_reconstruction_batches": batches,
        "n_eval_sparsity_variance_batches": batches,
        "dataset": corpus.info.source,
        "context_size": context,
        "compute_kl": True,
        "compute_ce_loss": True,
        "compute_l2_norms": True,
        "compute_sparsity_metrics": True,
        "compute_variance_metrics": True,
        "compute_featurewise_density_statistics": True,
        "compute_featurewise_weight_based_metrics": True,
        "exclude_special_tokens_from_reconstruction": corpus.info.bos_id is not None,
        "verbose": False,
    }


def _encoder(sae: SAE, device: str) -> dict[str, Tensor]:
    """Figures of each latent's encoder column, [latents] each; see `saebench`."""
    import torch

    encoder = {
        "norm": sae.W_enc.norm(dim=0),
        "bias": sae.b_mag if sae.cfg.architecture == "gated" else sae.b_enc,
        "max_cosine": top_neighbours(sae.W_enc.T.contiguous(), 1, device=device)[1][:, 0],
    }
    if sae.cfg.d_out is None:
        encoder["cosine"] = torch.cosine_similarity(sae.W_enc.T, sae.W_dec, dim=1)
    return encoder


def saebench(
    rows: list[dict[str, Any]],
    features: pd.DataFrame,
    encoder: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """rows: of evaluation.parquet. features: of evaluation_features.parquet. encoder: norm, bias, cosine (to its
    decoder row; absent for a transcoder) and max_cosine (to another encoder column), [latents] each. about: the keys
    beside the figures (eval_config, eval_id, sae_cfg_dict …).

    What has no value is null: a reader that insists on numbers meets it only for dead latents.
    """
    values = {row["metric"]: row.get("value") for row in rows}
    tokens = {row["metric"]: row.get("n") for row in rows}
    metrics: dict[str, dict[str, Any]] = {
        category: {theirs: values.get(ours) for theirs, ours in names.items()} for category, names in METRICS.items()
    }
    dead = values["dead_fraction"]
    metrics["misc_metrics"] |= {
        "frac_alive": None if dead is None else 1 - dead,
        "average_max_encoder_cosine_sim": _number(encoder["max_cosine"].mean().item()),
        "average_max_decoder_cosine_sim": values.get("mmcs"),
    }
    metrics["token_stats"] = {
        "total_tokens_eval_reconstruction": tokens["kl_sae"],
        "total_tokens_eval_sparsity_variance": tokens["l0"],
    }
    columns = {
        "index": features["feature"].tolist(),
        "feature_density": features["frequency"].tolist(),
        "consistent_activation_heuristic": features["firings_per_row"].tolist(),
        "encoder_bias": encoder["bias"].tolist(),
        "encoder_norm": encoder["norm"].tolist(),
        "encoder_decoder_cosine_sim": encoder["cosine"].tolist() if "cosine" in encoder else [None] * len(features),
        "max_decoder_cosine_sim": features["max_cosine"].tolist(),
        "max_encoder_cosine_sim": encoder["max_cosine"].tolist(),
    }
    details = [dict(zip(columns, (_number(v) for v in entry))) for entry in zip(*columns.values())]
    return {"eval_type_id": "core", **about, "eval_result_metrics": metrics, "eval_result_details": details}


def _number(value: float | None) -> float | None:
    if value is None or isinstance(value, int):
        return value
    return round(value, 10) if math.isfinite(value) else None
