"""The report's overview of all features: scores, judgements by kind and quantile, usage; tables are read in parts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autointerp.report.arms import judges_of
from autointerp.report.charts import Chart, chart
from autointerp.report.columns import measures_of
from autointerp.report.feature import JUDGED, binary
from autointerp.report.figures import LENT_BY, Mean, ScorerSummary, Summary, lenders_of, mean_of, numbers
from autointerp.report.folder import RunFolder
from autointerp.report.text import interval, named, number
from autointerp.stats import Paired, paired_difference
from autointerp.tables import compute

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


# --- the head ---------------------------------------------------------------------------------


def title_of(run: RunFolder) -> str:
    return str(run.config.get("name") or run.path.resolve().name)


def about(run: RunFolder) -> list[tuple[str, str]]:
    """What was studied with what, as far as the run's files tell."""
    config, info = run.config, run.info
    corpus, subject = config.get("corpus") or {}, config.get("subject") or {}
    sae, git = config.get("sae") or {}, info.get("git") or {}
    revision = git.get("revision")
    explainers = [plugin.get("label") or plugin["name"] for plugin in config.get("explainers") or ()]
    judges = {label: model for label, (_, model) in judges_of(config).items()}
    rows = [
        ("Subject", named(subject.get("model"))),
        ("SAE", named(sae.get("load")) or ("trained by this run" if sae.get("train") else None)),
        ("Hook", subject.get("hook") or "the SAE's own"),
        ("Text", corpus.get("source") and f"{named(corpus['source'])}, {corpus['tokens']:,} tokens"),
        ("Explainers", _models(explainers, _explainers_models(run))),
        ("Scorers (judge)", _models(judges, judges)),
        ("Seeds", _pairs(info.get("seeds"))),
        ("autointerp", info.get("autointerp") and f"{info['autointerp']}, Python {info.get('python', '–')}"),
        ("Revision", revision and revision[:12] + (" with uncommitted changes" if git.get("dirty") else "")),
        ("Packages", _pairs(info.get("packages"))),
        ("Hardware", _pairs(info.get("hardware"))),
        ("Started", info.get("started")),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _pairs(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (values or {}).items())


def _models(labels: Iterable[str], asked: Mapping[str, str | None]) -> str:
    """Plug-ins, each with the model that it asks."""
    return ", ".join(f"{label} ({named(asked[label])})" if asked.get(label) else label for label in labels)


def _explainers_models(run: RunFolder) -> dict[str, str | None]:
    models: dict[str, str | None] = {}
    for batch in run.batches("explanations", ["explainer", "model"]):
        for row in batch.group_by(["explainer", "model"]).aggregate([]).to_pylist():
            models[row["explainer"]] = models.get(row["explainer"]) or row["model"]
    return models


# --- scores -----------------------------------------------------------------------------------


def charts(features: pa.Table, summary: Summary, ranges: Mapping[str, tuple[float, float]]) -> list[Chart]:
    """A histogram a scorer, with the means of what reads no explanation as marks."""
    return [chart(features, s, summary.ceilings, *ranges[s.scorer]) for s in summary.scorers]


@dataclass(frozen=True)
class Scores:
    """scores.parquet as columns: rows with codes for explainer, scorer and control. About 40 bytes a row, and 8 for
    each of a control's lenders."""

    feature: np.ndarray  # [n] int64
    value: np.ndarray  # [n] float64, NaN where there is none
    base_rate: np.ndarray
    names: list[tuple[str, str, str | None]]  # explainer, scorer and control of each code, in the order of the rows
    code: np.ndarray  # [n] int32
    lenders: np.ndarray  # [n, w] float64, of a control: the features whose explanations it lent

    def of(self, explainer: str, scorer: str, control: bool = False) -> np.ndarray:
        """Which rows are of an explainer and a scorer, [n] bool."""
        import numpy as np

        codes = [
            i for i, (e, s, c) in enumerate(self.names) if (e, s) == (explainer, scorer) and (c is not None) == control
        ]
        return np.isin(self.code, codes)


def scores_of(run: RunFolder) -> Scores:
    import numpy as np

    columns: dict[str, list[np.ndarray]] = {"feature": [], "value": [], "base_rate": [], "code": []}
    lenders = [np.zeros((0, len(lent := [name for name in measures_of(run) if name.startswith(LENT_BY)])))]
    codes: dict[tuple[str, str, str | None], int] = {}
    for batch in run.batches("scores", ["feature", "explainer", "scorer", "control", "value", "base_rate", *lent]):
        for name in ("feature", "value", "base_rate"):
            columns[name].append(numbers(batch, name))
        keys = zip(*(batch[name].to_pylist() for name in ("explainer", "scorer", "control")))
        lenders.append(lenders_of(batch))
        columns["code"].append(np.array([codes.setdefault(key, len(codes)) for key in keys], np.int32))
    whole = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in columns.items()}
    return Scores(
        whole["feature"], whole["value"], whole["base_rate"], list(codes), whole["code"], np.concatenate(lenders)
    )


def notes(scores: Scores, scorers: Sequence[ScorerSummary], yes_or_no: Collection[str]) -> list[str]:
    """How to read the figures, with the base rates of the scorers whose judgements are yes or no."""
    import numpy as np

    lines = []
    for s in scorers:
        real = [i for i, (_, scorer, control) in enumerate(scores.names) if scorer == s.scorer and control is None]
        rates = scores.base_rate[np.isin(scores.code, real)]
        rates = rates[~np.isnan(rates)]
        if len(rates) and s.scorer in yes_or_no:
            lines.append(
                f"{s.scorer}: on average {number(float(rates.mean()))} of the scored examples are positive (the base"
                " rate); chance is what a judge who knows nothing gets, corrected (value − chance) / (1 − chance)."
            )
        if s.mean.n < s.asked:
            lines.append(f"{s.scorer}: {s.asked - s.mean.n:,} of {s.asked:,} features asked for have no value.")
        if s.doubt:
            lines.append(f"{s.scorer}: {s.doubt}.")
        if s.n_unscored:
            total = s.n_scored + s.n_unscored
            lines.append(
                f"{s.scorer}: {s.n_unscored:,} of {total:,} examples ({s.n_unscored / total:.1%}) could not be scored. "
                "They are left out of the score and counted here, never taken as wrong or as right."
            )
    controls = sorted({control for _, _, control in scores.names if control})
    if controls:
        lines.append(
            f"Control ({', '.join(controls).replace('_', ' ')}): the same scorer on the same examples, told the wrong "
            "explanation. A score that is not above its control says nothing about the explanation."
        )
    else:
        lines.append("No control was run: these scores have nothing to be held against.")
    return [*lines, "Intervals are 95 %, of means over features. Differences are paired by feature."]


@dataclass(frozen=True)
class ExplainerRow:
    explainer: str
    scorer: str
    mean: Mean
    control: Mean
    ahead: Paired | None  # of the first explainer, over the features that both have a value for


def explainers(scores: Scores) -> list[ExplainerRow]:
    """Means over features of each explainer and scorer; nothing to compare where there is one explainer.

    Explainers may have explained different features, as those of composites do: only `ahead` compares like with like.
    """
    names = list(dict.fromkeys(explainer for explainer, _, _ in scores.names))
    if len(names) < 2:
        return []
    rows = []
    for scorer, explainer in sorted({(scorer, explainer) for explainer, scorer, _ in scores.names}):
        own, first = scores.of(explainer, scorer), scores.of(names[0], scorer)
        told = scores.of(explainer, scorer, control=True)
        control = mean_of(scores.value[told], shared=scores.lenders[told])
        ahead = None if explainer == names[0] else _ahead(scores, own, first)
        rows.append(ExplainerRow(explainer, scorer, mean_of(scores.value[own]), control, ahead))
    return rows


def _ahead(scores: Scores, own: np.ndarray, first: np.ndarray) -> Paired:
    import numpy as np

    _, mine, others = np.intersect1d(scores.feature[own], scores.feature[first], return_indices=True)
    return paired_difference(scores.value[own][mine].tolist(), scores.value[first][others].tolist())


# --- judgements -------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgedRow:
    scorer: str
    what: str
    n: int
    yes: float  # share that the judge called positive
    right: bool  # whether yes is the right answer


def judgements(run: RunFolder) -> tuple[list[JudgedRow], list[tuple[str, str, int]]]:
    """Over all features and explainers: how often the judge said yes to each kind of example, and why judgements
    failed (scorer, reason, how many; controls included, the most first)."""
    yes: dict[tuple[str, str, int | None], list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
    failures: Counter[tuple[str, str]] = Counter()
    for batch in run.batches("judgements", [*JUDGED, "status", "failure"]):
        groups = binary(batch).group_by(["scorer", "kind", "quantile"])
        for row in groups.aggregate([("prediction", "sum"), ("truth", "sum"), ("truth", "count")]).to_pylist():
            counts = yes[row["scorer"], row["kind"], row["quantile"]]
            for i, name in enumerate(("prediction_sum", "truth_sum", "truth_count")):
                counts[i] += row[name]
        failed = batch.filter(compute().equal(batch["status"], "failed"))
        for row in failed.group_by(["scorer", "failure"]).aggregate([([], "count_all")]).to_pylist():
            failures[row["scorer"], row["failure"] or "no reason given"] += row["count_all"]
    rows = []
    for (scorer, kind, quantile), (said, true, n) in sorted(yes.items(), key=lambda i: (*i[0][:2], -(i[0][2] or 0))):
        what = kind if quantile is None else f"{kind}, quantile {int(quantile) + 1}"
        rows.append(JudgedRow(scorer, what, int(n), said / n, true > n / 2))
    return rows, [(scorer, reason, n) for (scorer, reason), n in failures.most_common(10)]


# --- composites -------------------------------------------------------------------------------


def composites(run: RunFolder) -> list[str]:
    """What the composite check came to over all latents, as sentences; none where it was not run."""
    stages = run.info.get("stages") or {}
    names = ("reencode", "causal", "semantic")
    tested, tried, judged = ({**((stages.get(name) or {}).get("facts") or {})} for name in names)
    labels = tested.get("labels")
    if not labels:
        return []
    counts = ", ".join(f"{count:,} {label.replace('_', ' ')}" for label, count in labels.items())
    lines = [f"Of {sum(labels.values()):,} latents: {counts}."]
    return [*lines, *_reencoded(tested), *_lent(tested), *_tried(tried), *_entailed(judged)]


_PAIRS = {"swapped": "swapped pairs", "random": "random pairs", "turned": "other parts of the same sum"}


def _against(facts: Mapping[str, Any]) -> str:
    parts = []
    for pair, name in _PAIRS.items():
        d = facts.get(f"above_{pair}") or {}
        if d.get("n"):
            difference = interval(d["mean"], d["low"], d["high"])
            parts.append(f"{name} {number(facts[pair])} (paired difference {difference} over {d['n']})")
    return f"; {', '.join(parts)}" if parts else ""


def _reencoded(facts: Mapping[str, Any]) -> Iterator[str]:
    tested = facts.get("reencode") or {}
    if tested.get("own") is None:
        return
    yield (
        "Re-encoded by their constituents alone, on average over what is flagged, a share of "
        f"{number(tested['own'])} of the tokens{_against(tested)}."
    )
    plain = tested.get("no_sums") or {}
    if plain.get("n"):
        yield (
            f"Of {plain['n']} latents that are no composites, refitted by their two nearest neighbours, "
            f"{plain['pass']} pass the same test; their mean share is {number(plain['mean'])}."
        )


def _lent(facts: Mapping[str, Any]) -> Iterator[str]:
    lent = facts.get("union") or {}
    if not lent.get("n"):
        return
    plain = lent["no_sums"]
    beside = f"; by the two nearest rows of {plain['n']} latents that are no sums, {number(plain['mean'])}"
    level = lent.get("reencode_no_sums") or {}
    if level.get("n"):
        yield (
            f"Of {level['n']} latents that are no composites, refitted by their two nearest rows of the union SAE, "
            f"{level['pass']} pass the re-encode test; their mean share is {number(level['mean'])}."
        )
    yield (
        f"Of {lent['n']} with constituents of the union SAE, all constituents are on together, on average, on a "
        f"share of {number(lent['mean'])} of the tokens{beside if plain['n'] else ''}; "
        f"{lent['pass']} on .6 or more."
    )


def _tried(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts.get("own") is not None:
        yield (
            f"Of {facts['composites']} ablated and steered, {facts['known']} can be compared: what their constituents "
            f"do to the output, each alone and added up, agrees with what they do by {number(facts['own'])} on average,"
            f" all at once by {number(facts['together'])}{_against(facts)}."
        )


def _entailed(facts: Mapping[str, Any]) -> Iterator[str]:
    if not facts:
        return
    either = facts.get("either") or {"judged": 0}
    for asked, answers, what in (
        ("the conjunction of its constituents'", facts, "entail all their constituents' explanations"),
        ("one that either constituent's is enough for", either, "are entailed by each constituent's"),
    ):
        judged = f"{answers['judged']} of {facts['composites']} could be judged"
        if answers["judged"]:
            judged += (
                f"; of these {number(answers['entailed'])} {what};"
                f" mean probability {number(answers['own'])}{_against(answers)}"
            )
        yield f"How often is the explanation of a composite {asked}? {judged}."
    if (search := facts.get("search") or {}).get("own") is not None:
        yield (
            f"Of the constituents, a share of {number(search['own'])} is among as many latents that were found by their"
            f" explanations alone, over {search['judged']} composites{_against(search)}."
        )


# --- usage ------------------------------------------------------------------------------------


def usage(run: RunFolder) -> list[dict[str, Any]]:
    """Requests, tokens and seconds of each stage and model; what the cache answered is counted apart."""
    import pyarrow as pa

    pc = compute()
    sums = ("prompt_tokens", "completion_tokens", "seconds")
    totals: dict[tuple[str, str], dict[str, Any]] = {}
    for batch in run.batches("usage", ["stage", "model", "cached", "outcome", *sums]):
        failed = pc.cast(pc.not_equal(batch["outcome"], "ok"), pa.int64())
        groups = batch.append_column("failed", failed).group_by(["stage", "model", "cached"])
        for row in groups.aggregate([([], "count_all"), *((name, "sum") for name in (*sums, "failed"))]).to_pylist():
            key = row["stage"] or "–", named(row["model"]) or "–"
            empty = {"stage": key[0], "model": key[1], "requests": 0, "from_cache": 0, "failed": 0}
            total = totals.setdefault(key, empty | dict.fromkeys(sums, 0))
            if row["cached"]:
                total["from_cache"] += row["count_all"]
                continue
            total["requests"] += row["count_all"]
            for name in ("failed", *sums):
                total[name] += row[f"{name}_sum"] or 0
    return list(totals.values())
