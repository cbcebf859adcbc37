"""Make what plug-ins need and ask for by name: subject, sae, neighbours, constituents, embedder, activations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from autointerp.artifacts import Corpus, Firings
from autointerp.engine import models
from autointerp.engine.session import Session
from autointerp.engine.stage import Job
from autointerp.plugins import Need, given_by_keyword
from autointerp.records import Constituent, Context, Split
from autointerp.stages.near import Near
from autointerp.tables import FeatureRows

if TYPE_CHECKING:
    from autointerp.activations.natural import RunningText
    from autointerp.activations.nearby import NearbyWindows

# The stages whose files a need is made from, beside those that every plug-in's stage reads.
STAGES: Mapping[Need, tuple[str, ...]] = {
    "subject": ("sae",),
    "sae": ("sae",),
    "activations": ("sae", "corpus", "harvest"),
    "logit_effects": ("directions", "near"),
    "steered": ("sae", "corpus", "harvest", "near", "contexts"),
    "ablated": ("sae", "corpus", "harvest", "near", "contexts"),
    "neighbours": ("directions", "contexts", "corpus", "harvest"),
    "constituents": ("reencode", "contexts"),
    "token_table": ("corpus", "harvest"),
    "shown": ("contexts",),
    "natural_rate": ("corpus", "harvest"),
    "random_windows": ("corpus", "harvest"),
    "frequencies": ("select",),
}

Values = Callable[[Sequence[int]], Mapping[int, Any]]  # features -> the value for each
Maker = Callable[[Job, Split, Mapping[int, "str | None"]], Values]
Give = Callable[[Sequence[int]], Mapping[int, Mapping[str, Any]]]  # features -> each one's keyword arguments


def stages_of(needs: Collection[Need]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(stage for need in sorted(needs) for stage in STAGES.get(need, ())))


def makers_of(plugin: Callable[..., Any]) -> dict[str, Maker]:
    """By name, what makes the keyword-only arguments that the pipeline fills. Their code counts as the plug-in's."""
    return {name: _MAKERS[name] for name in sorted(given_by_keyword(plugin) - {"seed"})}


def giver(job: Job, makers: Mapping[str, Maker], split: Split, explanations: Mapping[int, str | None]) -> Give:
    """Fills a plug-in's keyword-only arguments for each of some features.

    Neighbours and constituents come with their contexts of `split` and the text that `explanations` has of them.
    """
    made = {name: make(job, split, explanations) for name, make in makers.items()}

    def give(features: Sequence[int]) -> dict[int, dict[str, Any]]:
        by_name = {name: values(features) for name, values in made.items()}
        return {feature: {name: values[feature] for name, values in by_name.items()} for feature in features}

    return give


def _feature(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    return lambda features: {feature: feature for feature in features}


def _sae(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    sae = models.kept_sae(job.session, job.inputs["sae"])
    return lambda features: dict.fromkeys(features, sae)


def _subject(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    sae = models.kept_sae(job.session, job.inputs["sae"])
    subject = models.subject(job.session, sae.cfg.hook_name)
    return lambda features: dict.fromkeys(features, subject)


def _activations(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    from autointerp.activations.texts import TextActivations

    sae = models.kept_sae(job.session, job.inputs["sae"])
    subject, bos = models.subject(job.session, sae.cfg.hook_name), Corpus(job.inputs["corpus"]).info.bos_id
    on_text = TextActivations(subject, sae, bos, Firings(job.inputs["harvest"]).info.outlier_threshold)

    def reader(feature: int) -> Callable[[Sequence[str]], Awaitable[list[tuple[float, ...]]]]:
        async def read(texts: Sequence[str]) -> list[tuple[float, ...]]:
            seen = await asyncio.to_thread(on_text.of(feature), texts)
            return [text.activations for text in seen]

        return read

    return lambda features: {feature: reader(feature) for feature in features}


def _logit_effects(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    from autointerp.stages import outputs

    return outputs.direct(job, explanations, Near(job.inputs["near"]))


def _steered(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    from autointerp.stages import outputs

    return outputs.tried(job, explanations, Near(job.inputs["near"]), "texts")


def _ablated(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    from autointerp.stages import outputs

    return outputs.tried(job, explanations, Near(job.inputs["near"]), "lost")


def _embedder(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    embed = models.embedder(job.session)
    return lambda features: dict.fromkeys(features, embed)


def _neighbours(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    """By decoder cosine, nearest first."""
    nearest, windows = nearest_of(job.inputs), nearby_windows(job.session, job.inputs)
    return lambda features: windows.of(nearest(features), split, explanations)


def nearby_windows(session: Session, inputs: Mapping[str, Path]) -> NearbyWindows:
    from autointerp.activations.contexts import read_contexts
    from autointerp.activations.nearby import NearbyWindows

    corpus, firings = Corpus(inputs["corpus"]), Firings(inputs["harvest"])
    config, own = session.config, partial(read_contexts, inputs["contexts"] / "contexts.parquet")
    return NearbyWindows(corpus, firings, models.token_strings(session), config.contexts, config.seed, own)


def nearest_of(inputs: Mapping[str, Path]) -> Callable[[Sequence[int]], dict[int, list[tuple[int, float]]]]:
    """Of some features: feature -> its neighbours and their decoder cosines, nearest first."""
    rows = FeatureRows(inputs["directions"] / "neighbours.parquet")

    def read(features: Sequence[int]) -> dict[int, list[tuple[int, float]]]:
        nearest: dict[int, list[tuple[int, float]]] = {feature: [] for feature in features}
        for row in rows.read(features).to_pylist():
            nearest[row["feature"]].append((row["neighbour"], row["cosine"]))
        return nearest

    return read


def _shown(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    from autointerp.activations.contexts import read_contexts

    def make(features: Sequence[int]) -> dict[int, tuple[Context, ...]]:
        contexts = read_contexts(job.inputs["contexts"] / "contexts.parquet", features)
        return {feature: tuple(c for c in contexts.get(feature, ()) if c.split == "train") for feature in features}

    return make


def _calibration(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    """The pairs of the other features; none where the config calibrates no judge."""
    use = next((name for name in job.inputs if name.startswith("calibrate/")), None)
    if use is None:
        return lambda features: dict.fromkeys(features, ())
    columns = ["feature", "truth", "evidence"]
    table = pq.read_table(job.inputs[use] / "calibration.parquet", columns=columns)
    rows = list(zip(*(column.to_pylist() for column in table.columns)))

    def make(features: Sequence[int]) -> dict[int, tuple[tuple[bool, float], ...]]:
        return {f: tuple((truth == 1, evidence) for other, truth, evidence in rows if other != f) for f in features}

    return make


def _natural_rate(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    return _running_text(job).rates


def _random_windows(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    return _running_text(job).sampler(models.token_strings(job.session))


def _running_text(job: Job) -> RunningText:
    from autointerp.activations.natural import RunningText

    sizes, folders = job.config.contexts, job.inputs
    corpus, firings = Corpus(folders["corpus"]), Firings(folders["harvest"])
    return RunningText(corpus, firings, window=sizes.window, test_share=sizes.test_share, seed=job.config.seed)


def _token_table(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    from autointerp.activations.evidence import EvidenceReader

    sizes, strings = job.config.contexts, models.token_strings(job.session)
    reader = EvidenceReader(
        Firings(job.inputs["harvest"]),
        Corpus(job.inputs["corpus"]),
        strings,
        test_share=sizes.test_share,
        seed=job.config.seed,
    )
    return reader.token_tables


def for_control(job: Job, pick: Callable[..., Any]) -> dict[str, Any]:
    """What a control asks for, of all features."""
    wanted, values = given_by_keyword(pick), {}
    if "neighbours" in wanted:
        values["neighbours"] = Near(job.inputs["near"])
    if "constituents" in wanted and "reencode" in job.inputs:
        table = pq.read_table(job.inputs["reencode"] / "composites.parquet", columns=["feature", "constituents"])
        values["constituents"] = {f: parts for f, parts in zip(*(c.to_pylist() for c in table.columns)) if parts}
    if "frequencies" in wanted:
        table = pq.read_table(job.inputs["select"] / "selection.parquet", columns=["feature", "frequency"])
        values["frequencies"] = dict(zip(*(column.to_pylist() for column in table.columns)))
    return values


def _constituents(job: Job, split: Split, explanations: Mapping[int, str | None]) -> Values:
    """Those of the latents that are flagged and sums of this SAE's alone; () of the others."""
    from autointerp.activations.contexts import apart, read_contexts
    from autointerp.composites.labels import FLAGGED

    names = ["feature", "label", "constituents", "coefficients", "union_constituents"]
    rows = pq.read_table(job.inputs["reencode"] / "composites.parquet", columns=names).to_pylist()
    flagged = {row["feature"]: row for row in rows if row["label"] in FLAGGED and not row["union_constituents"]}

    def make(features: Sequence[int]) -> dict[int, tuple[Constituent, ...]]:
        parts = {f: dict(zip(flagged[f]["constituents"], flagged[f]["coefficients"])) for f in features if f in flagged}
        wanted = sorted({part for weights in parts.values() for part in weights})
        contexts = read_contexts(job.inputs["contexts"] / "contexts.parquet", [*wanted, *parts])

        def constituent(feature: int, part: int, weight: float) -> Constituent:
            text = explanations.get(part)
            other = [c for c in contexts[feature] if c.split != split]
            firing = apart((c for c in contexts[part] if c.split == split and c.fires), other)
            return Constituent(part, weight, text, None if text else "not explained", firing)

        return {f: tuple(constituent(f, *each) for each in parts.get(f, {}).items()) for f in features}

    return make


_MAKERS: Mapping[str, Maker] = {
    "feature": _feature,
    "sae": _sae,
    "subject": _subject,
    "activations": _activations,
    "logit_effects": _logit_effects,
    "steered": _steered,
    "ablated": _ablated,
    "embedder": _embedder,
    "neighbours": _neighbours,
    "constituents": _constituents,
    "shown": _shown,
    "token_table": _token_table,
    "calibration": _calibration,
    "natural_rate": _natural_rate,
    "random_windows": _random_windows,
}
