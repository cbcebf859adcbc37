"""Read the composites among a run's features, their constituents, and what explainers may see of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp.activations.contexts import read_contexts
from autointerp.composites.evidence import Pair, random_parts, swapped_parts
from autointerp.composites.labels import FLAGGED
from autointerp.records import Constituent


@dataclass(frozen=True)
class Flagged:
    """The composites among a run's explained features, their parts, and the explanations of both."""

    parts: dict[Pair, dict[int, list[int]]]  # a control is absent where there is none
    coefficients: dict[int, list[float]]
    texts: dict[int, str]
    failures: dict[int, str]  # of the features without a text
    labels: dict[int, str]

    def why_not(self, feature: int) -> str | None:
        """Why a feature has no constituents to be explained by; None for a composite."""
        if feature in self.parts["own"]:
            return None
        label = self.labels[feature].replace("_", " ")
        return f"not a composite of this SAE's latents: its label is {label}"

    def missing(self, parts: Sequence[int]) -> list[str]:
        return [f"constituent {part}: {self.failure(part)}" for part in parts if part not in self.texts]

    def failure(self, feature: int) -> str:
        default = "not among the features that are explained; features.constituents selects it"
        return self.failures.get(feature, default)


def read_flagged(inputs: Mapping[str, Path], explainer: str | None, seed: int) -> Flagged:
    """From the folders of select and reencode, and of `explainer` (None: nothing is explained yet)."""
    import pyarrow.parquet as pq

    selected = pq.read_table(inputs["select"] / "selection.parquet").to_pylist()
    explained = []
    if explainer:
        explained = pq.read_table(inputs[f"explain/{explainer}"] / "explanations.parquet").to_pylist()
    return flagged_among(selected, explained, checked_rows(inputs["reencode"]), seed)


Rows = Sequence[Mapping[str, Any]]


def checked_rows(reencode: Path) -> Rows:
    """What the check says of each latent of the SAE, from the folder of reencode."""
    import pyarrow.parquet as pq

    names = ["feature", "label", "constituents", "coefficients", "union_constituents"]
    return pq.read_table(reencode / "composites.parquet", columns=names).to_pylist()


def flagged_among(selected: Rows, explained: Rows, checked: Rows, seed: int) -> Flagged:
    """From the rows of selection.parquet, explanations.parquet and composites.parquet, the last with all latents."""
    import numpy as np

    seed %= 2**64
    texts = {row["feature"]: row["explanation"] for row in explained if row["explanation"]}
    failures = {row["feature"]: row["failure"] for row in (*selected, *explained) if row["failure"]}
    chosen = {row["feature"] for row in selected if row["status"] == "ok"}
    rows = [row for row in checked if row["feature"] in chosen]
    flagged = [row for row in rows if row["label"] in FLAGGED and not row["union_constituents"]]
    own = {row["feature"]: row["constituents"] for row in flagged}
    counts = np.zeros(len(checked), np.int64)
    for row in selected:
        counts[row["feature"]] = row["firings"]
    whole = {f: parts for f, parts in own.items() if all(part in texts for part in parts)}
    random = {}
    for f, parts in whole.items():
        own_texts = {texts[part] for part in parts}
        pool = np.array([g for g, text in texts.items() if text not in own_texts], np.int64)
        if drawn := random_parts(f, parts, pool, counts, seed):
            random[f] = drawn
    return Flagged(
        {"own": own, "swapped": swapped_parts(whole, seed), "random": random},
        {row["feature"]: row["coefficients"] for row in flagged},
        texts,
        failures,
        {row["feature"]: row["label"] for row in rows},
    )


def constituents_of(flagged: Flagged, pair: Pair, contexts: Path) -> Callable[[int], tuple[Constituent, ...]]:
    """What an explainer is shown of a composite's parts, or of those that stand in for them; () where there is none."""

    def read(feature: int) -> tuple[Constituent, ...]:
        parts = flagged.parts[pair].get(feature, [])
        seen = read_contexts(contexts, parts)
        shown = []
        for part, weight in zip(parts, flagged.coefficients.get(feature, [])):
            train = [c for c in seen[part] if c.split == "train" and c.fires]
            text = flagged.texts.get(part)
            why = None if text else flagged.failure(part)
            shown.append(Constituent(part, weight, text, why, tuple(sorted(train, key=lambda c: -c.peak))))
        return tuple(shown)

    return read
