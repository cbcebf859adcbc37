"""The stages that talk to language models: explain every feature, score every explanation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autointerp.config import PluginConfig
from autointerp.errors import AutointerpError
from autointerp.pipeline.features import Rows, forget_parts, in_parts, parts
from autointerp.plugins import bind_options, controls, explainers, needs_llm, scorers
from autointerp.progress import progress
from autointerp.records import Context, Explanation, FeatureEvidence, Judgement, Score
from autointerp.tables import write_rows

if TYPE_CHECKING:
    from autointerp.pipeline.dag import Job
    from autointerp.pipeline.session import Session

log = logging.getLogger("autointerp")


def explain_stage(
    session: Session,
    job: Job,
    plugin: PluginConfig,
    features: Sequence[int],
    evidence: Callable[[Sequence[int]], Mapping[int, FeatureEvidence]],
    skipped: Mapping[int, str] | None = None,
) -> None:
    """Write explanations.parquet: a row a feature. `skipped` are no composites, and why: the explainer is not asked."""
    explain = explainers.get(plugin.name)
    options = bind_options("explainer", plugin.name, explain, plugin.options, session.config.seed)
    llm = session.llm(plugin) if needs_llm(explain) else None
    stage = f"explain/{plugin.key}"

    async def work(feature: int, seen: FeatureEvidence) -> Rows:
        with session.asked(llm, stage, feature) as meter:
            explanation = await _guarded(explain, seen, llm, options, _failed_explanation)
        row = {
            "feature": feature,
            "explainer": plugin.key,
            "explanation": explanation.text,
            "model": llm.model if llm else None,
            "prompt_hash": meter.prompt_hash,
            "prompt_tokens": meter.prompt_tokens,
            "completion_tokens": meter.completion_tokens,
            "status": explanation.status,
            "failure": explanation.failure,
            "raw": explanation.raw,
        }
        return Rows({"explanations": [row]}, meter.passing_failures)

    with progress(stage, len(features), "features") as bar:
        session.wait(in_parts(job.folder, features, evidence, work, width=session.width(plugin), bar=bar))
    rows: list[dict[str, Any]] = []
    for part in parts(job.folder):
        rows += part.tables.get("explanations", [])
        job.to_retry += part.to_retry
    forget_parts(job.folder)
    failures = [row["failure"] for row in rows if row["status"] == "failed"]
    if len(rows) > 1 and len(failures) == len(rows) and len(set(failures)) == 1:
        raise AutointerpError(f"{stage}: all {len(rows)} features failed: {failures[0]}")
    failed = sum(row["status"] == "failed" for row in rows)
    job.facts |= {"features": len(rows), "failed": failed}
    for feature, why in (skipped or {}).items():
        rows.append({"feature": feature, "explainer": plugin.key, "status": "not_composite", "failure": why})
    rows.sort(key=lambda row: row["feature"])
    write_rows(job.folder / "explanations.parquet", "explanations", rows)
    if failed:
        log.warning("%s: %d of %d features have no explanation; their rows say why", stage, failed, len(features))


def score_stage(
    session: Session,
    job: Job,
    plugin: PluginConfig,
    explainer: str,
    control: PluginConfig | None,
    explanations: Mapping[int, str | None],
    failures: Mapping[int, str | None],
    examples: Callable[[Sequence[int]], Mapping[int, Sequence[Context]]],
) -> None:
    """Write scores.parquet (a row a feature) and judgements.parquet (a row a judged example)."""
    score = scorers.get(plugin.name)
    options = bind_options("scorer", plugin.name, score, plugin.options, session.config.seed)
    llm = session.llm(plugin) if needs_llm(score) else None
    stage = score_name(plugin, explainer, control)
    label = control.key if control else None
    texts = dict(explanations)
    if control:
        texts = dict.fromkeys(explanations)
        known = {feature: text for feature, text in explanations.items() if text}
        pick = controls.get(control.name)
        chosen = bind_options("control", control.name, pick, control.options, session.config.seed)
        texts |= pick(sorted(known), known, **chosen)

    async def work(feature: int, held_out: Sequence[Context]) -> Rows:
        text = texts[feature]
        with session.asked(llm, stage, feature) as meter:
            if text:
                result = await _guarded(
                    lambda _, llm, **o: score(text, held_out, llm, **o), None, llm, options, _failed_score(held_out)
                )
            else:
                why = "no other explanation to compare with" if control else f"no explanation: {failures.get(feature)}"
                result = _failed_score(held_out)(why)
        names = {"feature": feature, "explainer": explainer, "scorer": plugin.key, "control": label}
        row = names | {
            "value": result.value,
            "low": result.low,
            "high": result.high,
            "n_scored": result.n_scored,
            "n_unscored": result.n_unscored,
            "base_rate": result.base_rate,
            "failure": result.failure,
            "metrics": dict(result.metrics),
        }
        judgements = [
            names | {name: getattr(judgement, name) for name in Judgement.__dataclass_fields__}
            for judgement in result.judgements
        ]
        return Rows({"scores": [row], "judgements": judgements}, meter.passing_failures)

    with progress(stage, len(texts), "features") as bar:
        session.wait(in_parts(job.folder, sorted(texts), examples, work, width=session.width(plugin), bar=bar))
    rows: list[dict[str, Any]] = []
    judged: list[dict[str, Any]] = []
    for part in parts(job.folder):
        rows += part.tables.get("scores", [])
        judged += part.tables.get("judgements", [])
        job.to_retry += part.to_retry
    forget_parts(job.folder)
    unscored = [row["failure"] for row in rows if row["value"] is None]
    if unscored:
        log.warning(
            "%s: %d of %d features have no score, for example: %s", stage, len(unscored), len(rows), unscored[0]
        )
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    write_rows(job.folder / "scores.parquet", "scores", [row | row["metrics"] for row in rows], metrics)
    write_rows(job.folder / "judgements.parquet", "judgements", judged)
    job.facts |= {"features": len(rows), "unscored_examples": sum(row["n_unscored"] for row in rows)}


def score_name(scorer: PluginConfig, explainer: str, control: PluginConfig | None) -> str:
    """The name of a scoring stage: score/SCORER/EXPLAINER[/CONTROL]."""
    return "/".join(["score", scorer.key, explainer] + ([control.key] if control else []))


async def _guarded(plugin: Any, first: Any, llm: Any, options: Mapping[str, Any], failed: Callable[[str], Any]) -> Any:
    """A plug-in's own error is its feature's failure, with the reason; ours end the run."""
    try:
        return await plugin(first, llm, **options)
    except AutointerpError:
        raise
    except Exception as error:
        log.debug("plug-in failed", exc_info=True)
        return failed(f"{type(error).__name__}: {error}")


def _failed_explanation(reason: str) -> Explanation:
    return Explanation(None, failure=reason)


def _failed_score(examples: Sequence[Context]) -> Callable[[str], Score]:
    def make(reason: str) -> Score:
        judgements = tuple(
            replace(Judgement(e.example, e.kind, e.quantile, float(e.fires), None), status="failed", failure=reason)
            for e in examples
        )
        return Score(None, None, None, 0, len(judgements), None, {}, judgements, reason)

    return make
