"""How many features a plan counts on before the run, and what a few of them are like.

1. Stages that are done tell what they can: the corpus its tokens, the harvest which latents fire, the check which are
   composites. Where the harvest is there and the selection is not, the selection is made in memory.
2. What no stage has told is taken from the config and from the SAE's own files: then it is known "at most".
3. Samples are features spread over how often they fire. Their contexts are read, or drawn in memory from the
   harvest, or imagined (`commands.imagined`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autointerp.artifacts import Corpus, Firings
from autointerp.commands.imagined import CONSTITUENTS, imagine
from autointerp.composites.evidence import Pair
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Population, Sample, Sizes
from autointerp.engine.session import Session
from autointerp.engine.stage import Use
from autointerp.plugins import needs
from autointerp.records import Constituent, Context, Neighbour
from autointerp.sae.describe import Description, describe
from autointerp.stages.branches import UNION
from autointerp.stages.explain import evidence_of, explained
from autointerp.stages.near import Near
from autointerp.stages.select import choose, selected
from autointerp.subject.describe import described_subject
from autointerp.tables import compute

if TYPE_CHECKING:
    import pyarrow as pa

    from autointerp.composites.flagged import Flagged
    from autointerp.records import FeatureEvidence

COMPOSITES = 0.05  # of the features, before the check has told

Certainty = Literal["known", "at most", "guessed"]


@dataclass(frozen=True)
class Count:
    number: int | None  # None: nothing tells it yet
    certainty: Certainty


class Known:
    """`inputs`: the folder of each use that is done. `stand_in`: the text of an explanation that is not written yet.
    `lengths`: by use, how many words such a text has, where that is known."""

    def __init__(
        self,
        config: Config,
        session: Session,
        uses: Mapping[str, Use],
        inputs: Mapping[str, Path],
        stand_in: str,
        *,
        lengths: Mapping[str, float] | None = None,
    ) -> None:
        self.config, self.session, self.uses, self.inputs, self.stand_in = config, session, uses, inputs, stand_in
        self._lengths = lengths or {}

    # --- how many

    @cached_property
    def sizes(self) -> Sizes:
        tokens, latents, active = self.config.corpus.tokens, self._described.d_sae, self._described.k
        if "corpus" in self.inputs:
            tokens = json.loads((self.inputs["corpus"] / "corpus.json").read_text())["n_tokens"]
        if "harvest" in self.inputs:
            firings = Firings(self.inputs["harvest"])
            latents, active = firings.info.n_latents, float(firings.counts.sum()) / max(firings.info.n_tokens, 1)
        return Sizes(
            tokens=tokens,
            latents=latents,
            width=self._described.d_in,
            active=active,
            features=self.features.number,
            composites=self.composites.number,
        )

    @cached_property
    def features(self) -> Count:
        """Features that are explained: selected ones that fire often enough."""
        if self.selection is not None:
            return Count(len(self._ready), "known")
        wanted, most = self.config.features, self._most
        if wanted.ids is not None:
            number = len(set(wanted.ids))
        elif wanted.select == "all":
            number = most
        else:
            number = wanted.count if most is None else min(wanted.count, most)
        if not wanted.constituents or number is None:
            return Count(number, "at most")
        share = 1.0 if wanted.select == "composites" and wanted.ids is None else COMPOSITES
        with_parts = number + round(share * number * CONSTITUENTS)
        return Count(with_parts if most is None else min(with_parts, most), "guessed")

    @cached_property
    def composites(self) -> Count:
        """Those of the features that the check flags as sums of others."""
        if not self.config.composites.enabled:
            return Count(0, "known")
        if self.selection is not None and "reencode" in self.inputs:
            return Count(len(self.flagged(None).parts["own"]), "known")
        features = self.features.number
        if features is None:
            return Count(None, "guessed")
        if self.config.features.select == "composites" and self.config.features.ids is None:
            return Count(min(features, self.config.features.count), "at most")
        return Count(-(-features // round(1 / COMPOSITES)), "guessed")

    def count(self, use: Use, about: Population) -> Count:
        if use.name.startswith(UNION):
            return self._lent_count
        return self.features if about == "features" else self.composites

    @cached_property
    def _lent_count(self) -> Count:
        """Constituents of the union dictionary that are explained."""
        if self._lent is not None:
            return Count(sum(row["status"] == "ok" for row in self._lent), "known")
        composites = self.composites.number
        return Count(None if composites is None else round(composites * CONSTITUENTS), "guessed")

    @cached_property
    def _most(self) -> int | None:
        """Features that there can be: those that fire often enough, else all of the SAE."""
        if "harvest" in self.inputs:
            counts = Firings(self.inputs["harvest"]).counts
            return int((counts >= self.config.features.min_firings).sum())
        return self._described.d_sae

    @cached_property
    def _described(self) -> Description:
        """The SAE as its own files or the config of its training describe it."""
        if self.config.sae.train is not None:
            from autointerp.stages.sae import train_config

            wanted = train_config(self.config)
            width = described_subject(self.config.subject.model).width
            return Description(width, wanted.d_sae, wanted.k, self.config.subject.hook)
        if self.config.sae.load is None:  # neurons: their number is known when the subject is loaded
            return Description(hook_name=self.config.subject.hook)
        return describe(Path(self.config.sae.load).expanduser())

    # --- which ones

    @cached_property
    def selection(self) -> pa.Table | None:
        """selection.parquet, made here where the stage has not run; None where it cannot be made yet."""
        if "select" in self.inputs:
            return selected(self.inputs["select"])
        select = self.uses.get("select")
        if select is not None and all(name in self.inputs for name in select.needs):
            needed = {name: self.inputs[name] for name in select.needs}
            return choose(self.config, needed)[0]
        return None

    @cached_property
    def _ready(self) -> list[int]:
        """Features that are explained, those that fire least first."""
        if self.selection is None:
            return []
        fit = self.selection.filter(compute().equal(self.selection["status"], "ok"))
        return fit.sort_by([("firings", "ascending"), ("feature", "ascending")])["feature"].to_pylist()

    def flagged(self, explainer: str | None) -> Flagged:
        """The composites, with what `explainer` says of the features; a text of its own for each where it has not run,
        so that the controls are drawn as they will be."""
        from autointerp.composites.flagged import behind, checked_rows, flagged_among, latents_of

        def texts(branch: str, features: Sequence[int]) -> list[dict[str, Any]]:
            written = self._explanations(explainer, branch) if explainer else None
            made = ({"feature": f, "explanation": f"{self.stand_in} {f}", "failure": None} for f in features)
            return list(made) if written is None else written

        folder, lent = self.inputs["reencode"], self._lent or []
        d_sae, own = latents_of(folder), [] if self.selection is None else self.selection.to_pylist()
        selected = [*own, *behind(lent, d_sae)]
        explained = behind(texts(UNION, [row["feature"] for row in lent if row["status"] == "ok"]), d_sae)
        checked = checked_rows(folder, [row["feature"] for row in own])
        return flagged_among(selected, [*texts("", self._ready), *explained], checked, d_sae, self.config.seed)

    @cached_property
    def _lent(self) -> list[dict[str, Any]] | None:
        """Rows as of selection.parquet of the union dictionary's constituents that are explained, made here where the
        stage has not run: as if each fired often enough. None where it is not known which they are."""
        from autointerp.composites.flagged import checked_rows
        from autointerp.composites.labels import FLAGGED

        if f"{UNION}select" not in self.uses:
            return []
        if f"{UNION}select" in self.inputs:
            return selected(self.inputs[f"{UNION}select"]).to_pylist()
        if self.selection is None or "reencode" not in self.inputs:
            return None
        rows = checked_rows(self.inputs["reencode"], self._ready)
        lent = {part for row in rows if row["label"] in FLAGGED for part in row["union_constituents"]}
        return [{"feature": part, "firings": 0, "status": "ok", "failure": None} for part in sorted(lent)]

    def _explanations(self, explainer: str, branch: str = "") -> list[dict[str, Any]] | None:
        import pyarrow.parquet as pq

        folder = self.inputs.get(f"{branch}explain/{explainer}")
        if folder is None:
            return None
        columns = ["feature", "explanation", "failure", "status"]
        return pq.read_table(folder / "explanations.parquet", columns=columns).to_pylist()

    # --- what they are like

    def samples(self, about: Population, most: int) -> list[Sample]:
        """At most `most` of the features or of the composites, spread over how often they fire."""
        if self.selection is None or "corpus" not in self.inputs:
            if (self.features if about == "features" else self.composites).number == 0:
                return []
            sample = imagine(self.config, about, self.stand_in)
            return [self.with_texts(replace(sample, others=(self.features.number or 2) - 1))]
        population = self._ready
        if about == "composites":
            if "reencode" not in self.inputs:  # which ones is not known: any features, as if they were composites
                return [self._as_composite(sample) for sample in self.real(spread(population, most))]
            own = self.flagged(None).parts["own"]
            population = [feature for feature in population if feature in own]
            near = self._near(population)  # composites alone can lend to composites, of those that are not near
            sampled = self.real(spread(population, most))
            return [replace(each, others=len(population) - 1 - len(near[each.evidence.feature])) for each in sampled]
        return list(self.real(spread(population, most)))

    def _near(self, features: Sequence[int]) -> dict[int, set[int]]:
        """feature -> those of the features that are too near to lend to it; none before that stage has run."""
        known = Near(self.inputs["near"]) if "near" in self.inputs else {}
        return {feature: {*features} & {*known.get(feature, ())} for feature in features}

    def real(self, features: Sequence[int]) -> Iterator[Sample]:
        """Samples of these features, from the harvest's own text."""
        if not features:
            return
        contexts, evidence = self._shown(features)
        held_out = {f: [c for c in contexts[f] if c.split == "test"] for f in features}
        flagged = self._parts_of()
        for feature in features:
            near = [f for f in features if f != feature][: self.config.contexts.neighbours]
            firing = {f: tuple(c for c in held_out[f] if c.fires) for f in near}
            neighbours = tuple(Neighbour(f, 0.5, self.stand_in, firing[f]) for f in near)
            sample = Sample(
                evidence[feature],
                held_out[feature],
                parts=lambda of, pair, f=feature: flagged(of, pair, f, evidence[f].activating),
                neighbours=neighbours,
                others=len(self._ready) - 1,
            )
            yield self.with_texts(sample)

    def _shown(self, features: Sequence[int]) -> tuple[dict[int, list[Context]], dict[int, FeatureEvidence]]:
        from autointerp.activations.contexts import read_contexts, sample_contexts
        from autointerp.activations.evidence import EvidenceReader

        config, inputs = self.config, self.inputs
        if "contexts" in inputs:
            read = read_contexts(inputs["contexts"] / "contexts.parquet", features)
            return {f: list(read.get(f, ())) for f in features}, evidence_of(self.session, inputs)(features)
        corpus, firings = Corpus(inputs["corpus"]), Firings(inputs["harvest"])
        strings = models.token_strings(self.session)
        beside = {f: [g for g in self._alive if g != f][: config.contexts.neighbours] for f in features}
        contexts: dict[int, list[Context]] = {feature: [] for feature in features}
        for context in sample_contexts(corpus, firings, features, beside, strings, config.contexts, config.seed):
            contexts[context.feature].append(context)
        reader = EvidenceReader(firings, corpus, strings, test_share=config.contexts.test_share, seed=config.seed)
        return contexts, {each.feature: each for each in reader.read(contexts)}

    @cached_property
    def _alive(self) -> list[int]:
        """Latents that stand in for neighbours: a few that fire, in no order."""
        import numpy as np

        alive = np.flatnonzero(Firings(self.inputs["harvest"]).counts > 0)
        turn = np.random.default_rng(self.config.seed % 2**64).permutation(alive)
        return turn[: self.config.contexts.neighbours + 1].tolist()

    def _parts_of(self) -> Callable[[str, Pair, int, tuple[Context, ...]], tuple[Constituent, ...]]:
        """Constituents of a composite for an explainer that reads `of`: with its texts, or stand-ins for them."""
        if self.selection is None or "reencode" not in self.inputs:
            return lambda of, pair, feature, contexts: ()
        from autointerp.composites.flagged import constituents_of

        kept: dict[str, Flagged] = {}

        def parts(of: str, pair: Pair, feature: int, contexts: tuple[Context, ...]) -> tuple[Constituent, ...]:
            flagged = kept.setdefault(of, self.flagged(of or None))
            if "contexts" in self.inputs:  # each constituent's own
                shown = constituents_of(flagged, pair, self.inputs)(feature)
            else:
                members = flagged.parts[pair].get(feature, ())
                weights = flagged.coefficients.get(feature, ())
                texts = (flagged.texts.get(part) for part in members)
                shown = tuple(map(Constituent, members, weights, texts, repeat(None), repeat(contexts)))
            if f"explain/{of}" in self.inputs:
                return shown
            return tuple(replace(part, explanation=self.stand_in if part.explanation else None) for part in shown)

        return parts

    def _as_composite(self, sample: Sample) -> Sample:
        part = Constituent(
            sample.evidence.feature, 1 / CONSTITUENTS, self.stand_in, contexts=sample.evidence.activating
        )
        return self.with_texts(replace(sample, texts={}, parts=lambda of, pair: (part,) * CONSTITUENTS))

    def with_texts(self, sample: Sample) -> Sample:
        """With what each explainer says: read, made here where it asks no language model, or a stand-in."""
        feature, texts = sample.evidence.feature, dict(sample.texts)
        explain_uses = [use for use in self.uses.values() if use.name.startswith("explain/")]
        for use in sorted(explain_uses, key=lambda use: use.given.of is not None):
            key = use.given.plugin.key
            known = self._texts.get(key)
            if known is not None:
                texts[key] = known.get(feature)
            elif needs(use.given.explain) <= {"constituents", "neighbours"}:
                texts[key] = self.session.wait(explained(use, replace(sample, texts=texts), None)).text
            elif use.given.of is not None:
                parts = sample.parts(use.given.of, use.given.pair)
                texts[key] = self._unwritten(use) if parts and all(part.explanation for part in parts) else None
            else:
                texts[key] = self._unwritten(use)
        return replace(sample, texts=texts)

    def _unwritten(self, use: Use) -> str:
        words = self.stand_in.split()
        length = max(1, round(self._lengths.get(use.name, len(words))))
        return " ".join(islice(cycle(words), length))

    @cached_property
    def _texts(self) -> dict[str, dict[int, str | None]]:
        """What explainers that have run say, by explainer and feature."""
        texts: dict[str, dict[int, str | None]] = {}
        for plugin in self.config.explainers:
            rows = self._explanations(plugin.key)
            if rows is not None:
                texts[plugin.key] = {row["feature"]: row["explanation"] for row in rows}
        return texts


def spread(population: Sequence[int], most: int) -> list[int]:
    """At most `most` of them, evenly spaced."""
    if len(population) <= most:
        return list(population)
    return [population[round((i + 0.5) * len(population) / most - 0.5)] for i in range(most)]
