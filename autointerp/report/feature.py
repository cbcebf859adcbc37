"""Gather all that a run says of one feature, for `show` and the HTML report."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autointerp.records import pieces
from autointerp.report.charts import Histogram, activations
from autointerp.report.figures import CEILINGS, numbers
from autointerp.report.folder import RunFolder
from autointerp.report.labels import NOTHING, ByHand, read_labels
from autointerp.report.plane import Member, members_of
from autointerp.report.text import interval, note, number, visible
from autointerp.report.tree import Latent, Part, trees
from autointerp.tables import compute

if TYPE_CHECKING:
    import pyarrow as pa

SURE_ERRORS = 3  # wrong judgements shown of a feature


@dataclass(frozen=True)
class Window:
    example: int
    split: str
    kind: str
    quantile: int | None
    tokens: list[str]
    activations: list[float]


@dataclass(frozen=True)
class ScoreRow:
    """One scorer on one explainer's words; the controls are the same scorer on others' words."""

    explainer: str
    scorer: str
    row: dict[str, Any]  # of scores.parquet
    controls: dict[str, float | None]

    @property
    def metrics(self) -> dict[str, float]:
        """What that scorer says beyond its value: each measure once. By kind, by quantile, calibrated and so on it
        stands in scores.parquet, where there are fifty of them."""
        named = (name for name in self.row if name not in _SCORE_KEYS and not _VARIANT.search(name))
        return {name: self.row[name] for name in named if isinstance(self.row[name], float)}


_VARIANT = re.compile(r"^natural_rate|_(low|high|chance|random|near|natural|counted|calibrated|q\d+)(_|$)")
_SCORE_KEYS = {
    *("feature", "explainer", "scorer", "control", "value", "low", "high"),
    *("n_scored", "n_unscored", "base_rate", "failure"),
}


@dataclass(frozen=True)
class Mistake:
    """A held-out example on which the judge was wrong: a window of the run, or a text that the scorer made."""

    scorer: str
    yes: bool  # what the judge said
    probability: float | None
    kind: str  # of `Judgement`
    window: Window | None
    text: str | None  # in place of the window


@dataclass
class FeatureView:
    row: dict[str, Any]  # of features.parquet
    explanations: list[dict[str, Any]] = field(default_factory=list)
    scores: list[ScoreRow] = field(default_factory=list)
    windows: dict[tuple[str, int | None], list[Window]] = field(default_factory=dict)  # by kind and quantile
    n_windows: dict[tuple[str, int | None], int] = field(default_factory=dict)  # that the run has
    mistakes: list[Mistake] = field(default_factory=list)  # the judge's surest first
    n_mistakes: int = 0
    composite: dict[str, Any] | None = None
    cofiring: list[dict[Latent, Window]] = field(default_factory=list)  # windows by latent: it and its constituents
    neighbours: list[dict[str, Any]] = field(default_factory=list)
    logits: dict[str, list[tuple[str, float]]] = field(default_factory=dict)  # "up" and "down"
    parts: list[Part] = field(default_factory=list)  # of a composite, and what these are the sums of
    activity: Histogram | None = None  # of all its firings; None where the run kept none
    by_hand: ByHand = NOTHING

    def scores_of(self, explainer: str) -> list[ScoreRow]:
        """An explainer's scores; what reads no explanation and came out the same is told of the first alone."""
        told = {(s.scorer, s.row["value"]) for s in self.scores if s.explainer == self.explanations[0]["explainer"]}
        first = explainer == self.explanations[0]["explainer"]
        return [
            s
            for s in self.scores
            if s.explainer == explainer
            and (first or s.scorer not in CEILINGS or (s.scorer, s.row["value"]) not in told)
        ]

    def members(self) -> list[int]:
        """The other latents of the subspace that it shares; none where it shares none."""
        return [latent for latent in (self.composite or {}).get("members") or () if latent != self.row["feature"]]

    def plane(self) -> list[Member]:
        """The members of that subspace with it, where they lie in the plane that holds most of it."""
        return members_of(self.composite or {})

    def evidence(self) -> list[str]:
        """What stands beside the label of a composite, each figure with its controls, a line each."""
        row = self.composite or {}
        return [
            line
            for line in (*_decoder_evidence(row), *_token_evidence(row), *_causal_evidence(row), *_said_evidence(row))
            if line
        ]

    def mentioned(self) -> set[Latent]:
        """The other features that are named beside this one: neighbours, constituents, members of its subspace."""
        near: set[Latent] = {row["neighbour"] for row in self.neighbours}
        cofiring = {latent for each in self.cofiring for latent in each}
        parts = {part.latent for root in self.parts for part in root.all()}
        return near | cofiring | parts | set(self.members())

    def groups(self) -> list[tuple[str, list[Window], int]]:
        """Title, windows and how many the run has: the strongest quantile first, near misses last."""
        top = max((q for _, q in self.n_windows if q is not None), default=0)
        keys = sorted(self.windows, key=lambda key: (key[0], -(key[1] or 0)))
        return [(_title(q, top), self.windows[kind, q], self.n_windows[kind, q]) for kind, q in keys]


def _decoder_evidence(row: Mapping[str, Any]) -> Iterator[str]:
    figures = [
        f"{name} {row[column]:.2g}"
        for name, column in (("R²", "r2"), ("partial R²", "partial_r2"), ("highest cosine", "max_cosine"))
        if row.get(column) is not None
    ]
    if row.get("p_value") is not None:
        figures.append(f"p {row['p_value']:.2g}")
    yield ", ".join(figures)


def _token_evidence(row: Mapping[str, Any]) -> Iterator[str]:
    if tested := _beside_controls(row, "re-encode", "reencode"):
        yield f"{tested[0]} over {row.get('tokens') or 0:.0f} tokens"
    fires = _beside_controls(row, "lift", "lift")
    if row.get("mode"):
        what = {"replacing": "they are seldom on with it", "additive": "they are on with it"}[row["mode"]]
        fires.append(f"{row['mode']} ({what})")
    yield ", ".join([*fires, *_beside_controls(row, "all of them on with it", "cofire")])


def _causal_evidence(row: Mapping[str, Any]) -> Iterator[str]:
    if row.get("causal") is None:
        return
    others = [("all at once", "together"), ("swapped pair", "swapped"), ("other parts of the same sum", "turned")]
    known = [(name, row.get(f"causal_{control}")) for name, control in others]
    beside = ", ".join(f"{name} {number(value)}" for name, value in known if value is not None)
    value = interval(row["causal"], row.get("causal_low"), row.get("causal_high"))
    yield f"its effect on the output is that of its parts added up {value} ({beside})"


def _said_evidence(row: Mapping[str, Any]) -> Iterator[str]:
    yield from _beside_controls(row, "explanation entails them", "semantic")
    yield from _beside_controls(row, "each of them entails it", "semantic_either")
    if row.get("failure"):
        yield str(row["failure"])


def _beside_controls(row: Mapping[str, Any], name: str, column: str) -> list[str]:
    """``lift 3.20 (swapped pair 1.10)``; nothing where the row has no such figure."""
    if row.get(column) is None:
        return []
    others = [(pair, row.get(f"{column}_{pair}")) for pair in ("swapped", "random")]
    beside = ", ".join(f"{pair} pair {number(value)}" for pair, value in others if value is not None)
    return [f"{name} {number(row[column])}" + (f" ({beside})" if beside else "")]


def _title(quantile: int | None, top: int) -> str:
    if quantile is None:
        return "near misses: a neighbour fires, this feature is silent"
    return f"quantile {quantile + 1} of {top + 1}"


def notes_of(run: RunFolder, ids: Collection[Latent]) -> dict[Latent, str]:
    """What features are said to be, of those of `ids` that the run has."""
    columns = ["feature", "explanation", "status", "failure"]
    own = [latent for latent in ids if isinstance(latent, int)]
    notes: dict[Latent, str] = {row["feature"]: note(row) for row in run.read_features(own).select(columns).to_pylist()}
    lent = sorted(int(latent.removeprefix("union ")) for latent in ids if isinstance(latent, str))
    for row in run.rows("union_features", lent, columns) if lent else ():
        notes.setdefault(f"union {row['feature']}", note(row))
    return notes


def gather(run: RunFolder, ids: Sequence[int], per_quantile: int) -> dict[int, FeatureView]:
    """Views of the features `ids`, each with at most `per_quantile` windows of a kind and quantile.

    Raises KeyError for an id that is not in the run.
    """
    rows = {row["feature"]: row for row in run.read_features(ids).to_pylist()}
    views = {i: FeatureView(rows[i]) for i in ids}
    for row in run.rows("explanations", ids):
        views[row["feature"]].explanations.append(row)
    _add_scores(run, views)
    for row in run.rows("composites", ids):
        views[row["feature"]].composite = row
    for feature, parts in trees(run, {i: v.composite for i, v in views.items() if v.composite}).items():
        views[feature].parts = parts
    for row in run.rows("histograms", ids):
        views[row["feature"]].activity = activations(row["counts"], row["highest"])
    for feature, words in read_labels(run.path).items():
        if feature in views:
            views[feature].by_hand = words
    cofiring: dict[tuple[int, int], dict[Latent, Window]] = defaultdict(dict)
    for row in run.rows("cofiring", ids):
        window = Window(row["example"], "", "activating", None, row["tokens"], row["activations"])
        latent = f"union {row['latent']}" if row.get("dictionary") else row["latent"]
        cofiring[row["feature"], row["example"]][latent] = window
    for (feature, _), windows in sorted(cofiring.items()):
        views[feature].cofiring.append(windows)
    for row in sorted(run.rows("neighbours", ids), key=lambda row: row["rank"]):
        views[row["feature"]].neighbours.append(row)
    for row in sorted(run.rows("logits", ids), key=lambda row: row["rank"]):
        views[row["feature"]].logits.setdefault(row["direction"], []).append((row["token"], row["weight"]))
    _add_windows(run, views, per_quantile)
    return views


def _add_scores(run: RunFolder, views: dict[int, FeatureView]) -> None:
    controls: dict[tuple[int, str, str], dict[str, float | None]] = defaultdict(dict)
    scores = run.rows("scores", views)
    for row in scores:
        if row.get("control"):
            controls[row["feature"], row["explainer"], row["scorer"]][row["control"]] = row["value"]
    for row in scores:
        if not row.get("control"):
            key = row["feature"], row["explainer"], row["scorer"]
            views[row["feature"]].scores.append(ScoreRow(row["explainer"], row["scorer"], row, controls[key]))


def _add_windows(run: RunFolder, views: dict[int, FeatureView], per_quantile: int) -> None:
    """Choose among the contexts in Arrow and numpy: 500 features have a million tokens, their views thousands."""
    contexts = run.read("contexts", features=views)
    if contexts is None or len(contexts) == 0:
        return
    contexts = contexts.combine_chunks()
    chosen, counts = _strongest(contexts, per_quantile)
    for (owner, kind, quantile), count in counts.items():
        views[owner].n_windows[kind, quantile] = count
    mistakes = _mistakes(run, views, min(SURE_ERRORS, max(per_quantile, 2)))
    feature, example = (contexts[name].to_pylist() for name in ("feature", "example"))
    place = {key: i for i, key in enumerate(zip(feature, example))}
    keys = [(m["feature"], m["example"]) for m in mistakes if m.get("text") is None]
    missed = [place[key] for key in keys if key in place]
    windows: dict[tuple[int, int], Window] = {}
    for row in contexts.take(sorted({*chosen, *missed})).to_pylist():
        parts = (row[name] for name in ("example", "split", "kind", "quantile", "tokens", "activations"))
        windows[row["feature"], row["example"]] = Window(*parts)
    for i in chosen:
        window = windows[feature[i], example[i]]
        views[feature[i]].windows.setdefault((window.kind, window.quantile), []).append(window)
    for m in mistakes:
        text = m.get("text")  # its example's number may be that of a window which was not judged
        window = windows.get((m["feature"], m["example"])) if text is None else None
        if window or text:
            said = m["scorer"], bool(m["prediction"]), m.get("probability"), m["kind"]
            views[m["feature"]].mistakes.append(Mistake(*said, window, text))


def _strongest(contexts: pa.Table, per_quantile: int) -> tuple[list[int], dict[tuple[int, str, int | None], int]]:
    """Places of the `per_quantile` strongest windows of each feature, kind and quantile; how many windows each has."""
    import numpy as np

    pc = compute()
    lengths = pc.list_value_length(contexts["activations"]).to_numpy()
    flat = pc.list_flatten(contexts["activations"]).to_numpy()
    peak = np.zeros(len(contexts))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    if len(flat):
        peak[lengths > 0] = np.maximum.reduceat(flat, starts[lengths > 0])
    feature, example = (contexts[name].to_numpy() for name in ("feature", "example"))
    quantile = np.nan_to_num(numbers(contexts, "quantile"), nan=-1).astype(int)
    kind = np.array(contexts["kind"].to_pylist())
    counts: dict[tuple[int, str, int | None], int] = defaultdict(int)
    chosen: list[int] = []
    for i in np.lexsort((example, -peak, quantile, kind, feature)).tolist():
        key = (int(feature[i]), str(kind[i]), int(quantile[i]) if quantile[i] >= 0 else None)
        counts[key] += 1
        if counts[key] <= per_quantile and key[1] != "random":
            chosen.append(i)
    return chosen, counts


JUDGED = ("feature", "explainer", "scorer", "control", "example", "kind", "quantile", "truth", "prediction")


def binary(judgements: pa.Table) -> pa.Table:
    """Of judgements those of real explanations (no controls) that could be read and are yes or no."""
    import pyarrow as pa

    pc = compute()
    keep = pc.equal(judgements["status"], "ok")
    if "control" in judgements.column_names:
        keep = pc.and_(keep, pc.is_null(judgements["control"]))
    for column in ("truth", "prediction"):
        keep = pc.and_kleene(keep, pc.is_in(pc.cast(judgements[column], pa.float64()), pa.array([0.0, 1.0])))
    return judgements.filter(keep)


def _mistakes(run: RunFolder, views: dict[int, FeatureView], most: int) -> list[dict[str, Any]]:
    """The surest wrong judgements of each feature's shown explanation; counts all of them in the views."""
    judgements = run.read("judgements", [*JUDGED, "probability", "status", "text"], views)
    if judgements is None:
        return []
    judged = binary(judgements)
    wrong = judged.filter(compute().not_equal(judged["truth"], judged["prediction"])).to_pylist()
    wrong = [m for m in wrong if m["explainer"] == views[m["feature"]].row["explainer"]]
    # a judge that gives no probability is taken at its word: as sure as can be
    wrong.sort(key=lambda m: -abs((m["prediction"] if m.get("probability") is None else m["probability"]) - 0.5))
    chosen = []
    for m in wrong:
        view = views[m["feature"]]
        view.n_mistakes += 1
        if view.n_mistakes <= most:
            chosen.append(m)
    return chosen


def fired(window: Window, most: int = 4) -> str:
    """Where a latent fires in a window, in words: "the" 1.2, "cat" .8; off."""
    on = [(a, visible(token.strip())) for token, a in pieces(window.tokens, window.activations) if a > 0]
    strongest = sorted(on, key=lambda pair: -pair[0])[:most]
    more = f" and {len(on) - most} more" if len(on) > most else ""
    return ", ".join(f"“{token}” {a:.2g}" for a, token in strongest) + more if on else "off"


def level(activation: float, highest: float | None, levels: int) -> int:
    """1 … `levels` for an activation above 0, in equal steps up to the feature's highest."""
    return min(levels, max(1, math.ceil(levels * activation / (highest or activation))))
