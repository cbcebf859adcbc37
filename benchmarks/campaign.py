"""Explainers by judges by controls on many features: how much is an explanation worth, and what does the score hang on?

    python benchmarks/campaign.py [--config reference] [--features 100 | --ids 80 275 …]
        [--explainers default token_stats whole_words] [--judges qwen2.5-coder-1.5b-instruct smollm2-135m]
        [--windows 100] [--minutes 60] [--set subject.hook=blocks.26.hook_resid_post …]

One run of the pipeline, RUNS/campaign, in as many parts as it takes: after `--minutes` it stops, writes what there is,
and the same command goes on where it was. `--base-url` puts all judges behind an endpoint. It leaves campaign.json, .md
and .png in `--out`:

1. each explainer by each judge: mean, chance-corrected mean, control, and the ceilings and floors without a model;
2. the first explainer less each other, less its control and less `lexical_shown`, paired by feature;
3. what each explanation takes of the model, in tokens;
4. what each explanation adds to the counts of tokens: `lexical` or `lexical_shown` with the judge's answers beside it,
   weighed by a logistic regression on the other features, less the same without them;
5. how far the judges agree: on features (correlation of their scores) and on windows (kappa);
6. the variance of a score split over features, windows, explainers and judges (`stats.variance_components`).
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

import autointerp as ai
from autointerp import stats
from autointerp.commands.shell import overrides
from autointerp.errors import AutointerpError, ConfigError

CONTROL = "other_feature"
COUNTS = ("lexical_shown", "lexical")  # what an explanation may add to
CEILINGS = ("lexical", "lexical_shown", "position", "constant")
SHARES = "shares of a score on all windows"
HALVES = 2  # groups of windows of a feature, each scored by itself
DRAWS = 20  # of an order where counts are equal
FOLDS = 10  # of features: each is weighed as the others' windows say
FLOOR = 1e-12  # probabilities are cut this far from 0 and 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="reference")
    parser.add_argument("--features", type=int, default=100, help="drawn at random")
    parser.add_argument("--ids", nargs="*", type=int, default=[], help="these features, and none drawn")
    parser.add_argument(
        "--explainers",
        nargs="+",
        default=["default", "token_stats", "whole_words"],
        help="names, or entries of a config: '{name: whole_words, label: contrast, neighbours: 3}'",
    )
    parser.add_argument("--judges", nargs="+", default=["qwen2.5-coder-1.5b-instruct", "smollm2-135m"])
    parser.add_argument("--windows", type=int, default=100, help="judged for each feature, half of them firing")
    parser.add_argument("--controls", nargs="*", default=[CONTROL])
    parser.add_argument("--donors", type=int, default=3, help="explanations of others that a feature is also judged by")
    parser.add_argument("--set", nargs="+", default=[], help="KEY=VALUE of the config besides")
    parser.add_argument("--base-url", help="of an OpenAI-compatible endpoint that has all judges")
    parser.add_argument("--minutes", type=float, default=60.0, help="then stop; run again to go on")
    parser.add_argument("--run", type=Path, default=Path("results/campaign"), help="the run's folder")
    parser.add_argument("--out", type=Path, default=Path("results/reference"))
    options = parser.parse_args()
    with time_limit(60 * options.minutes) as within:
        run = ai.run(options.config, set=settings(options), out=options.run)
    if within.over:
        try:
            run = ai.open_run(options.run)
        except AutointerpError as error:
            print(f"stopped after {options.minutes:g} minutes, and there is no table yet ({error}): run again to go on")
            return
    report = summary(run, [label(judge) for judge in options.judges])
    keys = ("config", "ids" if options.ids else "features", "explainers", "judges", "windows", "controls", "donors")
    keys += ("set",) if options.set else ()
    given = " ".join(f"--{key} {shlex.join(map(str, np.atleast_1d(getattr(options, key))))}" for key in keys)
    about = {"command": f"python benchmarks/campaign.py {given}", "whole": not within.over}
    write(about | report, options.out)
    print((options.out / "campaign.md").read_text())
    if within.over:
        print("stopped for now: run again to go on")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Of the config, what the campaign changes."""
    where = {"base_url": options.base_url} if options.base_url else {}
    judged = [
        {"name": "detection", "label": label(judge), "llm": {"model": judge, **where}} for judge in options.judges
    ]
    return overrides(options.set) | {
        "name": "campaign",
        "features.select": "random",
        "features.count": options.features,
        "features.ids": options.ids or None,
        "explainers": [yaml.safe_load(each) for each in options.explainers],
        "scorers": [*judged, *CEILINGS],
        "contexts.test_activating": options.windows // 2,
        "contexts.test_random": options.windows // 4,
        "contexts.test_near": options.windows // 4,
        "controls": [
            {"name": name, "donors": options.donors} if name == CONTROL else name for name in options.controls
        ],
    }


def label(judge: str) -> str:
    return f"detection by {judge.rpartition('/')[2]}"


class Within:
    over = False


@contextmanager
def time_limit(seconds: float) -> Iterator[Within]:
    """What is inside is interrupted after `seconds`, as by Ctrl-C, which a run takes up again."""
    within = Within()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    started = time.monotonic()
    try:
        yield within
    except KeyboardInterrupt:
        if time.monotonic() - started < seconds:  # the user's own Ctrl-C
            raise
        within.over = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- the figures ------------------------------------------------------------------------------


def summary(run: ai.Run, judges: Sequence[str]) -> dict[str, Any]:
    """All figures of a run, of what it has so far. `judges` are labels of scorers."""
    scores = run.scores
    present = [judge for judge in judges if judge in set(scores["scorer"])]
    ceilings = [name for name in CEILINGS if name in set(scores["scorer"])]
    explainers = list(dict.fromkeys(scores["explainer"]))
    halves = half_scores(run, present)
    return {
        "asked": len(run.features),
        "means": [mean_row(scores, e, s) for s in present for e in explainers]
        + [mean_row(scores, explainers[0], s) for s in ceilings],
        "differences": differences(run, present),
        "against ceilings": [against_ceiling(scores, explainers[0], j, c) for j in present for c in ceilings],
        "explaining": explaining(run),
        "beyond counts": [row for j in present for e in explainers for c in COUNTS for row in beyond(run, e, j, c)],
        "agreement": [agreement(scores, run, *pair) for pair in combinations(present, 2)],
        "variance": list(variance(halves, explainers, present)),
        "packages": run.info["packages"] if (run.folder / "run.json").exists() else {},
        "revision": run.info["git"] if (run.folder / "run.json").exists() else None,
    }


def series(scores: Any, explainer: str, scorer: str, control: str | None = None, column: str = "corrected") -> Any:
    rows = scores[(scores["explainer"] == explainer) & (scores["scorer"] == scorer)]
    rows = rows[rows["control"].isna() if control is None else rows["control"] == control]
    return rows.set_index("feature")[column].astype(float)


def mean_row(scores: Any, explainer: str, scorer: str) -> dict[str, Any]:
    """A mean over all features asked for: those without a value are counted beside it."""
    own = series(scores, explainer, scorer)
    controls = scores["control"].dropna().unique() if scorer not in CEILINGS else ()
    return {
        "scorer": scorer,
        "explainer": explainer if scorer not in CEILINGS else None,
        "value": mean_of(series(scores, explainer, scorer, column="value")),
        "corrected": mean_of(own),
        "corrected, missing as chance": rounded(float(own.fillna(0.0).mean())),
        "yes_rate": rounded(float(series(scores, explainer, scorer, column="yes_rate").mean())),
        "ece": rounded(float(series(scores, explainer, scorer, column="ece").mean())),
        **{
            f"control {control}": mean_of(
                series(scores, explainer, scorer, control), lenders(scores, explainer, scorer, control)
            )
            for control in controls
        },
    }


def lenders(scores: Any, explainer: str, scorer: str, control: str) -> Any:
    """Feature -> the features whose explanations the control lent it."""
    rows = scores[(scores["explainer"] == explainer) & (scores["scorer"] == scorer) & (scores["control"] == control)]
    return rows.set_index("feature").filter(regex=r"^lent_by_\d+$")


def mean_of(values: Any, shared: Any = None) -> dict[str, Any]:
    """With an interval that allows for what the values of several features rest on, where `shared` tells."""
    kept = values.dropna()
    if shared is None or not shared.shape[1]:
        low, high = stats.mean_interval(kept) or (None, None)
    else:
        low, high = stats.shared_interval(kept, shared.reindex(kept.index)) or (None, None)
    limits = {"mean": float(kept.mean()) if len(kept) else None, "low": low, "high": high}
    return {key: rounded(value) for key, value in limits.items()} | {"n": len(kept), "missing": len(values) - len(kept)}


def explaining(run: ai.Run) -> list[dict[str, Any]]:
    """What an explanation takes of the model, all requests for it: tokens, means over the features."""
    table: Any = run.explanations
    tokens = table.groupby("explainer", sort=False)[["prompt_tokens", "completion_tokens"]].mean().fillna(0)
    return [{"explainer": name} | {key: round(n) for key, n in row.items()} for name, row in tokens.iterrows()]


def differences(run: ai.Run, judges: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs of `run.compare`, over all windows and by quantile; none of one explainer without a control."""
    try:
        table: Any = run.compare(by="explainer")
    except ConfigError:  # nothing to compare
        return []
    kept = table[table["scorer"].isin(judges)].drop(columns=["within", "paired", "n_a", "n_b"])
    return [{key: rounded(value) for key, value in row.items()} for row in kept.astype(object).to_dict("records")]


def against_ceiling(scores: Any, explainer: str, judge: str, ceiling: str) -> dict[str, Any]:
    own, theirs = series(scores, explainer, judge), series(scores, explainer, ceiling)
    features = own.index.union(theirs.index)
    gap = stats.paired_difference(own.reindex(features).tolist(), theirs.reindex(features).tolist())
    figures = {"difference": gap.mean, "low": gap.low, "high": gap.high, "wins": gap.wins, "losses": gap.losses}
    named = {"scorer": judge, "a": explainer, "b": ceiling, "measure": "corrected"}
    return named | {key: rounded(value) for key, value in figures.items()} | {"n": gap.n, "dropped": gap.dropped}


# --- beside the counts ------------------------------------------------------------------------


def beyond(run: ai.Run, explainer: str, judge: str, counts: str) -> list[dict[str, Any]]:
    """What the judge's answers add to the counts, by the explanations themselves and by each control's."""
    table, keys = judged(run), ["feature", "example"]
    heard = table[(table["scorer"] == judge) & (table["explainer"] == explainer)]
    counted = table[(table["scorer"] == counts) & table["control"].isna()].drop_duplicates(keys).set_index(keys)
    rows = []
    for control in [None, *heard["control"].dropna().unique()]:
        mine = heard[heard["control"].isna() if control is None else heard["control"] == control]
        answers = mine.groupby(keys)["evidence"].mean().rename("answer")  # of all donors
        both = counted.join(answers, how="inner").dropna(subset=["answer", "probability"])
        if len(both.groupby("feature")) < 2:
            continue
        gap = added(both, "probability", "answer")
        rows.append(
            {"scorer": judge, "a": explainer if control is None else f"{explainer}, {control}", "b": counts}
            | {"difference": rounded(gap.mean), "low": rounded(gap.low), "high": rounded(gap.high)}
            | {"wins": gap.wins, "losses": gap.losses, "n": gap.n}
        )
    return rows


def added(table: Any, first: str, second: str) -> stats.Paired:
    """Chance-corrected average precision of `first` and `second` together less that of `first`, by feature.

    Only the order of a feature's windows counts, so both enter as normal scores of their ranks in it (van der Waerden),
    equal ones in the middle: a judge's habit of saying Yes changes nothing. Windows that are equal in either stand in
    the same random orders on both sides, so an answer that is always the same adds 0.
    """
    rng = np.random.default_rng(0)
    features = table.index.get_level_values("feature").to_numpy()
    order, place = np.unique(features, return_inverse=True)
    fold = rng.permutation(len(order))[place] % FOLDS
    ranks = table[[first, second]].groupby(features).rank().to_numpy()
    known = norm.ppf(ranks / (np.bincount(place)[place, None] + 1))
    truth, counts = table["truth"].to_numpy() > 0, known[:, 0]
    together = np.zeros(len(table))
    for held in range(min(FOLDS, len(order))):
        mine = fold == held
        together[mine] = LogisticRegression().fit(known[~mine], truth[~mine]).decision_function(known[mine])
    pairs = []
    for mine in (place == number for number in range(len(order))):
        ties = [1e-9 * rng.random(mine.sum()) for _ in range(DRAWS)]
        sides = [[above_chance(truth[mine], side[mine] + tie) for tie in ties] for side in (together, counts)]
        pairs.append([None if None in values else float(np.mean(values)) for values in sides])
    return stats.paired_difference(*zip(*pairs))


def log_odds(probability: Any) -> Any:
    p = np.clip(probability, FLOOR, 1 - FLOOR)
    return np.log(p) - np.log1p(-p)


def above_chance(truth: Any, score: Any) -> float | None:
    value = stats.average_precision(truth, score)
    return stats.chance_corrected(value, stats.average_precision_chance(truth, score))


# --- two judges -------------------------------------------------------------------------------


def agreement(scores: Any, run: ai.Run, first: str, second: str) -> dict[str, Any]:
    """Of features and explainers: correlations of their chance-corrected scores. Of windows: kappa at ½, and with Yes
    for as large a share of the windows as fire, which no habit of saying Yes spoils."""
    own = scores[scores["control"].isna()]
    wide = own.pivot_table(index=["feature", "explainer"], columns="scorer", values="corrected")
    row: dict[str, Any] = {"judges": [first, second]}
    if first not in wide or second not in wide:
        return row
    pairs = wide[[first, second]].dropna()
    for explainer in dict.fromkeys(own["explainer"]):
        both = pairs[pairs.index.get_level_values("explainer") == explainer]
        for name, measure in (("pearson", stats.pearson), ("spearman", stats.spearman)):
            value = measure(both[first].to_numpy(), both[second].to_numpy())
            low, high = stats.correlation_interval(value, len(both)) or (None, None)
            limits = {"mean": rounded(value), "low": rounded(low), "high": rounded(high)}
            row[f"{name}, {explainer}"] = limits | {"n": len(both)}
    return row | of_windows(run, first, second)


def of_windows(run: ai.Run, first: str, second: str) -> dict[str, Any]:
    """Kappa of the answers at ½, and of the most likely windows of each feature and explanation, as many as fire."""
    table = judged(run)
    table = table[table["control"].isna()]
    keys, rng = ["feature", "explainer", "example"], np.random.default_rng(0)
    a, b = (table[table["scorer"] == name].set_index(keys) for name in (first, second))
    both = a.join(b, rsuffix="_b", how="inner")
    answers = [both[name].to_numpy() > 0 for name in ("prediction", "prediction_b")]
    most = [np.zeros(len(both), bool), np.zeros(len(both), bool)]
    for where in both.groupby(keys[:2]).indices.values():
        share = (both["truth"].iloc[where] > 0).mean()
        for side, name in zip(most, ("evidence", "evidence_b")):
            side[where] = stats.top_share(both[name].iloc[where], share, rng)
    return {
        "kappa at ½": rounded(stats.kappa(*answers)),
        "kappa at the base rate": rounded(stats.kappa(*most)),
        "windows": len(both),
    }


def judged(run: ai.Run) -> Any:
    """What was heard, with the judge's evidence: log odds where it gives probabilities, else 1 for Yes and 0 for No."""
    table: Any = run.judgements
    table = table[table["status"] == "ok"]
    graded = table["probability"].notna()
    evidence = table["prediction"].astype(float).where(~graded, log_odds(table["probability"].astype(float)))
    return table.assign(evidence=evidence)


# --- what the score hangs on ------------------------------------------------------------------


def half_scores(run: ai.Run, judges: Sequence[str]) -> dict[Any, float]:
    """(feature, half of its windows, explainer, judge) -> chance-corrected value. The halves are the same windows for
    all explainers and judges, dealt in turn from those that fire and from those that do not."""
    table = judged(run)
    table = table[table["scorer"].isin(judges) & table["control"].isna()]
    windows = table[["feature", "example", "truth"]].drop_duplicates().sort_values(["feature", "truth", "example"])
    half = windows.groupby(["feature", "truth"]).cumcount() % HALVES
    table = table.merge(windows.assign(half=half)[["feature", "example", "half"]], on=["feature", "example"])
    values = {}
    for key, rows in table.groupby(["feature", "half", "explainer", "scorer"]):
        corrected = above_chance(rows["truth"].to_numpy() > 0, rows["evidence"].to_numpy())
        if corrected is not None:
            values[key] = corrected
    return values


def variance(
    halves: Mapping[tuple[int, int, str, str], float], explainers: Sequence[str], judges: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Components and shares of the variance of a score, for each judge and for all, of the features that have a value
    in every cell. A judge at chance turns all that features differ in into its interaction with them."""
    features = sorted({key[0] for key in halves})
    for asked in dict.fromkeys([*((judge,) for judge in judges), tuple(judges)]):
        cells = [[(f, h, e, j) for h in range(HALVES) for e in explainers for j in asked] for f in features]
        whole = [[halves[cell] for cell in mine] for mine in cells if all(cell in halves for cell in mine)]
        row: dict[str, Any] = {"judges": asked, "features": len(whole), "left out": len(features) - len(whole)}
        if len(whole) > 1:
            components = stats.variance_components(np.reshape(whole, (len(whole), HALVES, len(explainers), len(asked))))
            shares = stats.variance_shares(components, HALVES)
            row["components"] = {" × ".join(sorted(effect)): rounded(value, 5) for effect, value in components.items()}
            row[SHARES] = {name: rounded(share) for name, share in shares.items()}
        yield row


def rounded(value: Any, digits: int = 4) -> Any:
    """For JSON: floats rounded, nan and pandas' missing as None."""
    if value is None or value is pd.NA or value != value:
        return None
    return round(float(value), digits) if isinstance(value, float | np.floating) else value


# --- table and picture ------------------------------------------------------------------------


def write(report: Mapping[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "campaign.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    (out / "campaign.md").write_text(page(report))
    draw(report, out / "campaign.png")


def page(report: Mapping[str, Any]) -> str:
    lines = ["# Campaign", "", f"`{report['command']}`" + ("" if report["whole"] else " (not done yet)"), ""]
    controls = sorted({key for row in report["means"] for key in row if key.startswith("control ")})
    lines += table_lines(
        ["scorer", "explainer", "value", "corrected", *controls, "yes-rate", "no value"],
        [
            [row["scorer"], row["explainer"] or "–", cell(row["value"]), cell(row["corrected"])]
            + [cell(row.get(control)) for control in controls]
            + [three(row["yes_rate"]), str(row["corrected"]["missing"])]
            for row in report["means"]
        ],
    )
    lines += ["", "Paired by feature, chance-corrected:", ""]
    paired = [row for row in report["differences"] if row["quantile"] is None] + report["against ceilings"]
    lines += table_lines(
        ["judge", "", "measure", "difference", "won : lost", "features"],
        [
            [
                *(row["scorer"], f"{row['a']} − {row['b']}", row["measure"]),
                *(cell(row | {"mean": row["difference"]}), f"{row['wins']} : {row['losses']}", str(row["n"])),
            ]
            for row in paired
        ],
    )
    lines += ["", "Tokens that an explanation takes, of prompts and of answers:", ""]
    lines += table_lines(
        ["explainer", "prompts", "answers"],
        [
            [row["explainer"], f"{row['prompt_tokens']:,}", f"{row['completion_tokens']:,}"]
            for row in report["explaining"]
        ],
    )
    lines += [
        "",
        "What answers add to counts of tokens, chance-corrected, weighed on the other features:",
        "",
    ]
    lines += table_lines(
        ["judge", "explanations of", "added to", "difference", "features"],
        [
            [row["scorer"], row["a"], row["b"], cell(row | {"mean": row["difference"]}), str(row["n"])]
            for row in report["beyond counts"]
        ],
    )
    for row in report["agreement"]:
        told = {key: value for key, value in row.items() if key != "judges"}
        lines += ["", f"Agreement of {row['judges'][0]} and {row['judges'][1]}:", ""]
        lines += [f"- {key}: {cell(value) if isinstance(value, dict) else value}" for key, value in told.items()]
    for split in report["variance"]:
        told = f"of {split['features']} features, {split['left out']} left out for want of a score"
        lines += ["", f"Variance of a score on all windows, by {' and '.join(split['judges'])}, {told}:", ""]
        shares = split.get(SHARES, {})
        lines += [f"- {name}: {100 * share:.0f} %" for name, share in shares.items()] or ["- two features are needed"]
    return "\n".join(lines) + "\n"


def table_lines(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in [names, ["---"] * len(names), *rows]]


def three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    return three(row["mean"]) + ("" if row["low"] is None else f" [{three(row['low'])}, {three(row['high'])}]")


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Left: corrected means with their controls; right: the split of the variance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = report["means"]
    split = report["variance"][0] if report["variance"] else {}  # by the first judge alone
    shares = split.get(SHARES, {})
    panels = 2 if shares else 1
    size = {"figsize": (7 + 4 * (panels - 1), 0.42 * len(rows) + 1.4), "width_ratios": (2.2, 1)[:panels]}
    figure, axes = plt.subplots(1, panels, squeeze=False, layout="constrained", **size)
    left, right = axes[0, 0], axes[0, -1]
    for place, row in enumerate(rows):
        for key, colour in (("corrected", "#1f6fb4"), *((key, "#b0b0b0") for key in row if key.startswith("control "))):
            point = row[key]
            if point["mean"] is None:
                continue
            left.plot(point["mean"], place, "o", color=colour, markersize=5)
            if point["low"] is not None:
                left.hlines(place, point["low"], point["high"], color=colour, alpha=0.5, linewidth=3)
    names = ["\n".join(filter(None, (row["explainer"], row["scorer"]))) for row in rows]
    left.set_yticks(range(len(rows)), names)
    left.invert_yaxis()
    left.axvline(0, color="#222222", linewidth=0.8)
    left.set_title("above chance, 95 % over features\n(grey: another feature's explanation)", fontsize=10, loc="left")
    if shares:
        right.barh(list(shares), list(shares.values()), color="#1f6fb4", alpha=0.7)
        right.invert_yaxis()
        right.set_xlim(0, 1)
        right.set_title("share of the variance of a\nscore by the first judge", fontsize=10, loc="left")
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(length=0, labelsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
