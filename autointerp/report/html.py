"""The HTML report of a run: one file that asks nothing of the network.

What the page may run is named by hash in its content security policy, so that no token, explanation or
failure can run as a script even if its escaping were ever missed.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import write_atomically
from autointerp.report.feature import Window, binary_judgements, fired, gather, level
from autointerp.report.tables import (
    Mean,
    RunFolder,
    ScorerSummary,
    compute,
    interval,
    mean_interval,
    note,
    number,
    numbers,
    scorers_of,
    select,
    summarise,
    verdict,
    visible,
)
from autointerp.stats import Paired, paired_difference

if TYPE_CHECKING:
    import numpy as np

_TEMPLATES = Path(__file__).parent / "templates"
_LEVELS = 9  # shades of activation
_MOST_FEATURES = 5_000  # rows of the page
_MOST_WINDOWS = 12_000  # activating windows of the page, so that it stays at a few megabytes
_BINS = 20


def write_report(run: str | Path, out: Path | None = None) -> Path:
    """Write the report of a run to `out`, or to report.html in its folder, and return the path."""
    folder = RunFolder(run)
    path = out or folder.path / "report.html"
    text = render(folder)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="replace"))
    return path


def render(run: RunFolder) -> str:
    """The whole page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "visible": visible, "note": note, "words": lambda s: s.replace("_", " ")}
    environment.globals |= {"interval": interval, "segments": _segments, "verdict": verdict, "fired": fired}
    script, style = ((_TEMPLATES / f"report.{kind}").read_text() for kind in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    chosen = select(run.features)
    shown = chosen.slice(0, _MOST_FEATURES)
    quantiles = (run.config.get("contexts") or {}).get("quantiles") or 5
    per_quantile = max(1, min(4, _MOST_WINDOWS // (quantiles * max(len(shown), 1))))
    ids: list[int] = shown["feature"].to_pylist()
    summary = summarise(chosen)
    ranges = {s: _range(numbers(chosen, s), numbers(chosen, f"{s}_control")) for s in scorers_of(chosen)}
    return environment.get_template("report.html.j2").render(
        script=script,
        style=style,
        script_hash=digest,
        title=run.config.get("name") or run.path.name,
        about=_about(run),
        summary=summary,
        charts=[_chart(chosen, s, *ranges[s.scorer]) for s in summary.scorers],
        ranges=ranges,
        notes=_notes(run, summary.scorers),
        explainers=_explainers(run),
        judged=_judged(run),
        unread=_unread(run),
        composites=_composites(run),
        usage=_usage(run),
        stages=run.info.get("stages") or {},
        scorers=scorers_of(shown),
        views=gather(run, ids, per_quantile),
        said={row["feature"]: note(row) for row in chosen.to_pylist()},
        labels=sorted({row["composite"] for row in shown.to_pylist() if row.get("composite")}),
        per_quantile=per_quantile,
        n_left_out=len(chosen) - len(shown),
    )


# --- the head ---------------------------------------------------------------------------------


def _about(run: RunFolder) -> list[tuple[str, str]]:
    """What was studied with what, as far as the run's files tell."""
    config, info = run.config, run.info

    def at(*path: str) -> Any:
        value: Any = config
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def models(section: str, asked: dict[str, str | None] | None = None) -> str:
        """Names with their models: those in `asked` where it says who asked one, else those of the config."""
        found = [
            (p.get("label") or p["name"], (p.get("llm") or at("llm") or {}).get("model")) for p in at(section) or []
        ]
        known = [(name, model if asked is None else asked.get(name)) for name, model in found]
        return ", ".join(f"{name} ({model})" if model else name for name, model in known)

    sae = at("sae", "load") or ("trained by this run" if at("sae", "train") else None)
    tokens = at("corpus", "tokens")
    git = info.get("git") or {}
    revision = git.get("revision")
    packages = info.get("packages") or {}
    seeds = info.get("seeds") or {}
    hardware = info.get("hardware") or {}
    explained = run.rows("explanations", columns=["explainer", "model"])
    rows = [
        ("Subject", at("subject", "model")),
        ("SAE", sae),
        ("Hook", at("subject", "hook") or "the SAE's own"),
        ("Text", at("corpus", "source") and f"{at('corpus', 'source')}, {tokens:,} tokens"),
        ("Explainers", models("explainers", {row["explainer"]: row["model"] for row in explained})),
        ("Scorers (judge)", models("scorers")),
        ("Seeds", ", ".join(f"{name} {seed}" for name, seed in seeds.items())),
        ("autointerp", info.get("autointerp") and f"{info['autointerp']}, Python {info.get('python', '–')}"),
        ("Revision", revision and revision[:12] + (" with uncommitted changes" if git.get("dirty") else "")),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ("Hardware", ", ".join(f"{name} {what}" for name, what in hardware.items())),
        ("Started", info.get("started")),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _notes(run: RunFolder, scorers: Sequence[ScorerSummary]) -> list[str]:
    """How to read the figures, with the base rates of this run."""
    rows = [row for row in run.rows("scores", columns=["scorer", "control", "base_rate"]) if not row.get("control")]
    notes = []
    for s in scorers:
        rates = [r["base_rate"] for r in rows if r["scorer"] == s.scorer and r["base_rate"] is not None]
        if rates:
            notes.append(
                f"{s.scorer}: on average {number(sum(rates) / len(rates))} of the scored examples are positive (the "
                "base rate); hold a score against what a constant answer would get at that rate."
            )
        if s.n_unscored:
            total = s.n_scored + s.n_unscored
            notes.append(
                f"{s.scorer}: {s.n_unscored:,} of {total:,} examples ({s.n_unscored / total:.1%}) could not be scored. "
                "They are left out of the score and counted here, never taken as wrong or as right."
            )
    names = sorted({r["control"] for r in run.rows("scores", columns=["control"]) if r.get("control")})
    if names:
        notes.append(
            f"Control ({', '.join(names).replace('_', ' ')}): the same scorer on the same examples, told the wrong "
            "explanation. A score that is not above its control says nothing about the explanation."
        )
    else:
        notes.append("No control was run: these scores have nothing to be held against.")
    return [*notes, "Intervals are 95 %; of means, bootstrapped over features. Differences are paired by feature."]


# --- figures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chart:
    """Histogram of one scorer's values and of its control's, in units of an SVG of `width` × `height`."""

    summary: ScorerSummary
    bars: list[tuple[float, float, str]]  # x, height, what it says
    outline: str  # path of the control's histogram
    ticks: list[tuple[float, str]]
    most: int


WIDTH, HEIGHT = 420.0, 120.0


def _range(*values: np.ndarray) -> tuple[float, float]:
    """0 … 1 where all values lie there, else −1 … 1, else what holds them."""
    import numpy as np

    low = min((float(np.nanmin(v)) for v in values if not np.isnan(v).all()), default=0.0)
    high = max((float(np.nanmax(v)) for v in values if not np.isnan(v).all()), default=1.0)
    if high <= 1:
        return (0.0, 1.0) if low >= 0 else (min(low, -1.0), 1.0)
    return min(low, 0.0), high


def _chart(features: Any, summary: ScorerSummary, low: float, high: float) -> Chart:
    import numpy as np

    edges = np.linspace(low, high, _BINS + 1)
    counts, controls = (
        np.histogram(v[~np.isnan(v)], edges)[0].tolist()
        for v in (numbers(features, summary.scorer), numbers(features, f"{summary.scorer}_control"))
    )
    most, step = max([1, *counts, *controls]), WIDTH / _BINS
    bars = [
        (i * step, HEIGHT * n / most, f"{number(edges[i])} to {number(edges[i + 1])}: {n} features, control {other}")
        for i, (n, other) in enumerate(zip(counts, controls))
    ]
    outline = f"M0 {HEIGHT}" + "".join(f"V{HEIGHT - HEIGHT * n / most:.1f}h{step:.1f}" for n in controls) + f"V{HEIGHT}"
    ticks = [(WIDTH * i / 4, number(low + (high - low) * i / 4)) for i in range(5)]
    return Chart(summary, bars, outline if any(controls) else "", ticks, most)


@dataclass(frozen=True)
class ExplainerRow:
    explainer: str
    scorer: str
    mean: Mean
    control: Mean
    ahead: Paired | None  # of the first explainer, over the features that both have a value for


def _explainers(run: RunFolder) -> list[ExplainerRow]:
    """Means over features of each explainer and scorer; nothing to compare where there is one explainer.

    Explainers may have explained different features, as those of composites do: only `ahead` compares like with like.
    """
    import numpy as np

    rows = run.rows("scores", columns=["feature", "explainer", "scorer", "control", "value"])
    if len({row["explainer"] for row in rows}) < 2:
        return []

    values: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    own: dict[tuple[str, str], dict[int, float | None]] = defaultdict(dict)
    for row in rows:
        real_or_control = values[row["scorer"], row["explainer"]][bool(row.get("control"))]
        real_or_control.append(np.nan if row["value"] is None else row["value"])
        if not row.get("control"):
            own[row["scorer"], row["explainer"]][row["feature"]] = row["value"]
    first = rows[0]["explainer"]

    def ahead(scorer: str, explainer: str) -> Paired | None:
        mine, firsts = own[scorer, explainer], own[scorer, first]
        both = sorted(mine.keys() & firsts.keys())
        return None if explainer == first else paired_difference([mine[f] for f in both], [firsts[f] for f in both])

    return [
        ExplainerRow(
            explainer, scorer, mean_interval(np.array(real)), mean_interval(np.array(control)), ahead(scorer, explainer)
        )
        for (scorer, explainer), (real, control) in sorted(values.items())
    ]


@dataclass(frozen=True)
class JudgedRow:
    scorer: str
    what: str
    n: int
    yes: float  # share that the judge called positive
    right: bool  # whether yes is the right answer


def _judged(run: RunFolder) -> list[JudgedRow]:
    """How often the judge said yes to each kind of example, over all features and explainers."""
    table = binary_judgements(run)
    if table is None or len(table) == 0:
        return []
    groups = table.group_by(["scorer", "kind", "quantile"]).aggregate([("prediction", "mean"), ("prediction", "count")])
    found = []
    rows = groups.to_pylist()
    rows.sort(key=lambda row: (row["scorer"], row["kind"], -(row["quantile"] or 0)))
    for row in rows:
        quantile = "" if row["quantile"] is None else f", quantile {row['quantile'] + 1}"
        count, yes = row["prediction_count"], row["prediction_mean"]
        found.append(JudgedRow(row["scorer"], f"{row['kind']}{quantile}", count, yes, row["kind"] == "activating"))
    return found


def _unread(run: RunFolder) -> list[tuple[str, str, int]]:
    """Why judgements failed: scorer, reason, how many; controls included, the most first."""
    table = run.read("judgements", ["scorer", "status", "failure"])
    if table is None:
        return []
    failed = table.filter(compute().equal(table["status"], "failed")).to_pylist()
    counts = Counter((row["scorer"], row["failure"] or "no reason given") for row in failed)
    return [(scorer, reason, n) for (scorer, reason), n in counts.most_common(10)]


def _composites(run: RunFolder) -> list[str]:
    """What the composite check came to over all latents, as sentences; none where it was not run."""
    facts = {name: (run.info.get("stages") or {}).get(name, {}).get("facts") or {} for name in ("reencode", "semantic")}
    labels, lines = facts["reencode"].get("labels"), []
    if not labels:
        return []
    counts = ", ".join(f"{count:,} {label.replace('_', ' ')}" for label, count in labels.items())
    lines.append(f"Of {sum(labels.values()):,} latents: {counts}.")

    def against(found: dict[str, Any]) -> str:
        parts = []
        for pair in ("swapped", "random"):
            d = found.get(f"above_{pair}") or {}
            if d.get("n"):
                paired = interval(d["mean"], d["low"], d["high"])
                parts.append(f"{pair} pairs {number(found[pair])} (paired difference {paired} over {d['n']})")
        return f"; {', '.join(parts)}" if parts else ""

    tested = facts["reencode"].get("reencode") or {}
    if tested.get("own") is not None:
        lines.append(
            "Re-encoded by their constituents alone, on average over what is flagged, a share of "
            f"{number(tested['own'])} of the tokens{against(tested)}."
        )
        plain = tested.get("no_sums") or {}
        if plain.get("n"):
            lines.append(
                f"Of {plain['n']} latents that are no composites, refitted by their two nearest neighbours, "
                f"{plain['pass']} pass the same test; their mean share is {number(plain['mean'])}."
            )
    lent = facts["reencode"].get("union") or {}
    if lent.get("n"):
        plain = lent["no_sums"]
        beside = f"; by the two nearest rows of {plain['n']} latents that are no sums, {number(plain['mean'])}"
        lines.append(
            f"Of {lent['n']} with constituents of the union SAE, all constituents are on together, on average, on a "
            f"share of {number(lent['mean'])} of the tokens{beside if plain['n'] else ''}; "
            f"{lent['pass']} on .6 or more."
        )
    said = facts["semantic"]
    if said:
        either = said.get("either") or {"judged": 0}
        for asked, of, what in (
            ("the conjunction of its constituents'", said, "entail all their constituents' explanations"),
            ("one that either constituent's is enough for", either, "are entailed by each constituent's"),
        ):
            judged = f"{of['judged']} of {said['composites']} could be judged"
            if of["judged"]:
                judged += (
                    f"; of these {number(of['entailed'])} {what}; mean probability {number(of['own'])}{against(of)}"
                )
            lines.append(f"How often is the explanation of a composite {asked}? {judged}.")
    return lines


def _usage(run: RunFolder) -> list[dict[str, Any]]:
    """Requests, tokens and seconds of each stage and model; what the cache answered is counted apart."""
    names = ("requests", "from_cache", "failed", "prompt_tokens", "completion_tokens", "seconds")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in run.rows("usage"):
        key = row["stage"] or "–", row["model"]
        total = found.setdefault(key, {"stage": key[0], "model": key[1]} | dict.fromkeys(names, 0))
        if row["cached"]:
            total["from_cache"] += 1
            continue
        total["requests"] += 1
        total["failed"] += row["outcome"] != "ok"
        for name in names[3:]:
            total[name] += row[name] or 0
    return list(found.values())


# --- features ---------------------------------------------------------------------------------


def _segments(window: Window, highest: float | None) -> Iterator[tuple[int, str, str]]:
    """Runs of tokens as (level, text, activation): level 0 is silent, neighbouring silent tokens are one run."""
    parts = [
        (0 if a <= 0 else level(a, highest, _LEVELS), visible(token), f"{a:.3g}", i)
        for i, (token, a) in enumerate(zip(window.tokens, window.activations))
    ]
    for (shade, _), some in groupby(parts, key=lambda p: (p[0], p[3] if p[0] else -1)):
        several = list(some)
        yield shade, "".join(p[1] for p in several), several[0][2]
