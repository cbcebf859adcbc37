"""Read the composites among a run's features, their constituents, and what explainers may see of these.

Constituents of the union dictionary are numbered behind the SAE's own latents, as in `union`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp.activations.contexts import read_contexts
from autointerp.composites.evidence import Pair, StandIns, random_parts, swapped_parts
from autointerp.composites.labels import FLAGGED
from autointerp.composites.union import name_of, parts_of
from autointerp.records import Constituent, Context
from autointerp.tables import FeatureRows


@dataclass(frozen=True)
class Flagged:
    """The composites among a run's explained features, their parts, and the explanations of both."""

    parts: dict[Pair, dict[int, list[int]]]  # a control is absent where there is none
    coefficients: dict[int, list[float]]
    texts: dict[int, str]
    failures: dict[int, str]  # of the features without a text
    labels: dict[int, str]
    d_sae: int

    def why_not(self, feature: int) -> str | None:
        """Why a feature has no constituents to be explained by; None for a composite."""
        if feature in self.parts["own"]:
            return None
        label = self.labels[feature].replace("_", " ")
        return f"not a composite: its label is {label}"

    def name(self, latent: int) -> str:
        """``12``, or ``union 12``."""
        return name_of(latent, self.d_sae)

    def missing(self, parts: Sequence[int]) -> list[str]:
        lacking = [part for part in parts if part not in self.texts]
        return [f"constituent {self.name(part)}: {self.failure(part)}" for part in lacking]

    def failure(self, feature: int) -> str:
        default = "not among the features that are explained; features.constituents selects it"
        return self.failures.get(feature, default)


Rows = Sequence[Mapping[str, Any]]


def read_flagged(inputs: Mapping[str, Path], explainer: str, seed: int) -> Flagged:
    """From the folders of select and reencode, and of the explanations of `explainer`; and from those of the union
    dictionary, `union:select` and so on, where its constituents are explained."""
    import pyarrow.parquet as pq

    d_sae = latents_of(inputs["reencode"])
    selected: list[Mapping[str, Any]] = []
    explained: list[Mapping[str, Any]] = []
    for branch, first in (("", 0), ("union:", d_sae)):
        for rows, use, file in ((selected, "select", "selection"), (explained, f"explain/{explainer}", "explanations")):
            folder = inputs.get(branch + use)
            if folder is not None:
                rows += behind(pq.read_table(folder / f"{file}.parquet").to_pylist(), first)
    checked = checked_rows(inputs["reencode"], [row["feature"] for row in selected if row["feature"] < d_sae])
    return flagged_among(selected, explained, checked, d_sae, seed)


def behind(rows: Rows, d_sae: int) -> list[dict[str, Any]]:
    """Rows of a table of the union dictionary, with its features numbered behind the `d_sae` of the SAE."""
    return [{**row, "feature": d_sae + row["feature"]} for row in rows]


def latents_of(reencode: Path) -> int:
    """How many latents the SAE has, from the folder of reencode."""
    import pyarrow.parquet as pq

    return pq.read_metadata(reencode / "composites.parquet").num_rows


def checked_rows(reencode: Path, features: Collection[int]) -> Rows:
    """What the check says of `features` of the SAE, from the folder of reencode."""
    names = ["feature", "label", "constituents", "coefficients", "union_constituents"]
    return FeatureRows(reencode / "composites.parquet").read(features, names).to_pylist()


def flagged_among(selected: Rows, explained: Rows, checked: Rows, d_sae: int, seed: int) -> Flagged:
    """From the rows of selection.parquet, explanations.parquet and composites.parquet, the last of an SAE of `d_sae`
    latents; among the first two those of the union dictionary (`behind`)."""
    import numpy as np

    seed %= 2**64
    texts = {row["feature"]: row["explanation"] for row in explained if row["explanation"]}
    failures = {row["feature"]: row["failure"] for row in (*selected, *explained) if row["failure"]}
    chosen = {row["feature"] for row in selected if row["status"] == "ok"}
    rows = [row for row in checked if row["feature"] in chosen]
    flagged = [row for row in rows if row["label"] in FLAGGED]
    own = {row["feature"]: parts_of(row, d_sae) for row in flagged}
    counts = np.zeros(max([d_sae, *(row["feature"] + 1 for row in selected)]), np.int64)
    for row in selected:
        counts[row["feature"]] = row["firings"]
    whole = {f: parts for f, parts in own.items() if all(part in texts for part in parts)}
    pool, saying = StandIns(np.array([*texts], np.int64), counts, d_sae), {}
    for g, text in texts.items():
        saying.setdefault(text, []).append(g)
    random = {}
    for f, parts in whole.items():
        same = {g for part in parts for g in saying[texts[part]]}
        if drawn := random_parts(f, parts, pool, seed, same):
            random[f] = drawn
    return Flagged(
        {"own": own, "swapped": swapped_parts(whole, seed, d_sae), "random": random},
        {row["feature"]: row["coefficients"] for row in flagged},
        texts,
        failures,
        {row["feature"]: row["label"] for row in rows},
        d_sae,
    )


def constituents_of(
    flagged: Flagged, pair: Pair, contexts: Mapping[str, Path]
) -> Callable[[int], tuple[Constituent, ...]]:
    """What an explainer is shown of a composite's parts, or of those that stand in for them; () where there is none.
    `contexts` are folders of the stage `contexts`, and of `union:contexts` where its constituents have windows."""
    n = flagged.d_sae

    def windows(part: int) -> Sequence[Context]:
        folder = contexts.get("contexts" if part < n else "union:contexts")
        number = part if part < n else part - n
        return () if folder is None else read_contexts(folder / "contexts.parquet", [number]).get(number, ())

    def read(feature: int) -> tuple[Constituent, ...]:
        shown = []
        for part, weight in zip(flagged.parts[pair].get(feature, []), flagged.coefficients.get(feature, [])):
            train = [c for c in windows(part) if c.split == "train" and c.fires]
            text = flagged.texts.get(part)
            why = None if text else flagged.failure(part)
            strongest = tuple(sorted(train, key=lambda c: -c.peak))
            shown.append(Constituent(part - n * (part >= n), weight, text, why, strongest, part >= n))
        return tuple(shown)

    return read
