"""Export saebench: a result of SAEBench's "autointerp" evaluation, and its "core" one where the run was evaluated.

The autointerp result is that of the scorer `saebench`, which samples and asks as SAEBench does; a run without it has no
such figure, and none is made up from another scorer.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from autointerp.errors import ConfigError
from autointerp.report.exports.reading import Feature, Wanted, an_id, model_of, parts, slug, to_json, write_text
from autointerp.report.folder import RunFolder

SCORER = "saebench"  # the registered name


def write(run: RunFolder, out: Path, wanted: Wanted) -> None:
    """ConfigError for a run that has neither the scorer's figures nor an evaluation."""
    scorers = [plugin for plugin in run.config.get("scorers") or [] if plugin["name"] == SCORER]
    core = run.path / "saebench.json"
    if not scorers and not core.is_file():
        raise ConfigError(f"{run.path} was not scored by {SCORER!r} (add it to scorers) nor evaluated")
    if core.is_file():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(core, out / "core_eval_results.json")
    if scorers:
        label = scorers[0].get("label") or SCORER
        latents = {f.index: latent for features in parts(run) for f in features if (latent := _latent(f, label))}
        write_text(out / "autointerp_eval_results.json", to_json(_result(run, wanted, latents), indent=2))


def _latent(feature: Feature, scorer: str) -> dict[str, Any] | None:
    """What SAEBench keeps of a latent; None where the first explainer's explanation has no value."""
    shown = feature.row["explainer"]
    score = next(
        (row for row in feature.scores
         if (row["explainer"], row["scorer"], row.get("control")) == (shown, scorer, None)), None,
    )  # fmt: skip
    if score is None or score["value"] is None:
        return None
    judged = [row for row in feature.judgements if (row["explainer"], row["scorer"]) == (shown, scorer)]
    return {
        "latent": feature.index,
        "explanation": feature.row["explanation"],
        "predictions": [i for i, row in enumerate(judged, start=1) if row["prediction"]],
        "correct seqs": [i for i, row in enumerate(judged, start=1) if row["truth"]],
        "score": score["value"],
    }


def _result(run: RunFolder, wanted: Wanted, latents: dict[int, dict[str, Any]]) -> dict[str, Any]:
    scores = [latent["score"] for latent in latents.values()]
    if not scores:
        raise ConfigError(f"{run.path}: no feature has a value of the scorer {SCORER!r}")
    mean = sum(scores) / len(scores)
    deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) if len(scores) > 1 else 0.0
    config, info = run.config, run.info
    sae, version = config.get("sae") or {}, f"autointerp {info.get('autointerp', '')}".strip()
    return {
        "eval_type_id": "autointerp",
        "eval_config": _settings(run, wanted, len(scores)),
        "eval_id": an_id(run.path.name, scores),
        "datetime_epoch_millis": _millis(info.get("started")),
        "eval_result_metrics": {"autointerp": {"autointerp_score": mean, "autointerp_std_dev": deviation}},
        "eval_result_details": [],
        "sae_bench_commit_hash": version,  # which code measured; it is not SAEBench's
        "sae_lens_id": slug(Path(str(sae.get("load") or "custom_sae")).name),
        "sae_lens_release_id": slug(str(config.get("name") or run.path.name)),
        "sae_lens_version": version,
        "sae_cfg_dict": ((info.get("stages") or {}).get("sae") or {}).get("facts") or {},
        "eval_result_unstructured": latents,
    }


def _settings(run: RunFolder, wanted: Wanted, latents: int) -> dict[str, Any]:
    config = run.config
    corpus, subject = config.get("corpus") or {}, config.get("subject") or {}
    return {
        "model_name": model_of(run, wanted),
        "n_latents": latents,
        "override_latents": None,
        "dead_latent_threshold": (config.get("features") or {}).get("min_firings", 0),
        "random_seed": config.get("seed", 0),
        "dataset_name": slug(Path(str(corpus.get("source") or "")).name),
        "llm_context_size": corpus.get("context", 128),
        "llm_batch_size": max(1, subject.get("batch_tokens", 8192) // corpus.get("context", 128)),
        "llm_dtype": subject.get("dtype", "float32"),
        "total_tokens": corpus.get("tokens", 0),
        "scoring": True,
    }


def _millis(started: str | None) -> int:
    from datetime import datetime

    return int(datetime.fromisoformat(started).timestamp() * 1000) if started else 0
