"""``autointerp compare``: explainers, judges or runs against each other, feature by feature.

1. Scores of the same scorer, and of the same run and explainer where these are not what is compared, make a group.
2. Each arm of a group stands against its own controls, and the first arm against each of the others: by the headline,
   by the headline less the control's, and by quantile of the activation.
3. Arms of one SAE are paired by feature. Of two SAEs the means are compared, which needs more features to tell as much.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from autointerp.errors import ConfigError
from autointerp.registry import did_you_mean
from autointerp.report.arms import FIFTH, Arm, Values, arms_of, columns_of
from autointerp.report.folder import find_run, so_far
from autointerp.report.tables import print_data
from autointerp.report.text import aligned, number, visible
from autointerp.stats import paired_difference, shared_interval, unpaired_difference

if TYPE_CHECKING:
    import pyarrow as pa

By = Literal["explainer", "judge", "run"]
Series = Mapping[int, float | None]  # feature -> value; None where it has none
Shared = Mapping[int, Sequence[int]]  # feature -> numbers of the explanations that its value rests on

COLUMNS = {  # of the result, and their types in Arrow's words
    "scorer": "string",  # its label; where judges are compared its registered name
    "within": "string",  # the run or the explainer that both sides share
    "a": "string",  # one explainer, judge or run
    "b": "string",  # another one, or a control of a
    "control": "bool",  # whether b is a control of a
    "measure": "string",  # a column of scores.parquet; "… less NAME": less its control NAME
    "quantile": "int64",  # of the activation, 1 = weakest; null of the headline
    "mean_a": "float64",  # over the pairs; over all that have a value where nothing is paired
    "mean_b": "float64",  # the same of b
    "difference": "float64",  # mean of a − b
    "low": "float64",  # 95 % interval
    "high": "float64",
    "wins": "int64",  # features where a is ahead; null where nothing is paired
    "losses": "int64",  # those where b is
    "ties": "int64",  # those where both are equal
    "n": "int64",  # pairs; of unpaired arms null
    "n_a": "int64",  # features of a with a value
    "n_b": "int64",  # those of b
    "missing_a": "int64",  # features asked for, in both arms where they are paired, that have no value in a
    "missing_b": "int64",  # those in b
    "at_chance": "float64",  # the difference where what has no value counts as chance; null where chance is not 0
    "paired": "bool",  # feature by feature: both are of one SAE and subject
}


def compare(
    *runs: str | Path,
    by: By | None = None,
    scorer: str | None = None,
    measure: str | None = None,
    against: str | None = None,
) -> list[dict[str, Any]]:
    """The rows of a comparison, with the columns of `COLUMNS` (docs/reference/tables.md).

    `by` says what is compared: of one run its explainers where it has several, else its judges; of several the runs.
    `measure` is a column of scores.parquet; without it the chance-corrected value, or the value of a scorer that has
    no chance. `against` names the arm that the others stand against; the first without it.

    Raises:
        ConfigError: a run, scorer, measure or arm that there is not; or there is nothing to compare.
        AutointerpError: a run has no scores.
    """
    if not runs:
        raise ConfigError("compare needs a run: autointerp compare RUN [RUN …]")
    arms = arms_of(runs, measure)
    if scorer is not None:
        known = sorted({name for arm in arms for name in (arm.scorer, arm.plugin)})
        arms = [arm for arm in arms if scorer in (arm.scorer, arm.plugin)]
        if not arms:
            raise ConfigError(f"no scorer {scorer!r} in {_listed(runs)}{did_you_mean(scorer, known)}")
    how = by or _usual(arms)
    groups = list(_groups(arms, how))
    _check(groups, how, against, runs)
    return [row for held, named in groups for row in _contrasts(held, _first(named, against), measure)]


def _usual(arms: Sequence[Arm]) -> By:
    if len({arm.run for arm in arms}) > 1:
        return "run"
    return "explainer" if len({arm.explainer for arm in arms}) > 1 or not _several_judges(arms) else "judge"


def _several_judges(arms: Sequence[Arm]) -> bool:
    return len({(arm.plugin, arm.judge) for arm in arms}) > len({arm.plugin for arm in arms})


def _groups(arms: Sequence[Arm], by: By) -> Iterator[tuple[tuple[str, str], dict[str, Arm]]]:
    """((scorer, run or explainer that is held), name -> arm), in the order of the arms."""
    held: Callable[[Arm], tuple[str, str]]
    if by == "explainer":
        held = lambda arm: (arm.scorer, arm.run)  # noqa: E731
    elif by == "run":
        held = lambda arm: (arm.scorer, arm.explainer)  # noqa: E731
    else:
        held = lambda arm: (arm.plugin, arm.explainer)  # noqa: E731
        arms = [arm for arm in arms if arm.judge is not None]
    groups: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        groups.setdefault(held(arm), []).append(arm)
    for key, members in groups.items():
        yield key, {_name(arm, members, by): arm for arm in members}


def _name(arm: Arm, among: Sequence[Arm], by: By) -> str:
    if by != "judge":
        return arm.explainer if by == "explainer" else arm.run
    alike = [other for other in among if other.judge == arm.judge]
    if len(alike) == 1:
        return str(arm.judge)
    more = arm.scorer if len({other.scorer for other in alike}) == len(alike) else f"{arm.run}, {arm.scorer}"
    return f"{arm.judge} ({more})"


def _check(groups: Sequence[tuple[Any, Mapping[str, Arm]]], by: By, against: str | None, runs: Sequence[Any]) -> None:
    names = list(dict.fromkeys(name for _, named in groups for name in named))
    if against is not None and against not in names:
        raise ConfigError(f"no {by} {against!r} in {_listed(runs)}{did_you_mean(against, names)}")
    if any(len(named) > 1 or arm.controls for _, named in groups for arm in named.values()):
        return
    if by == "run" and len(runs) > 1:
        raise ConfigError(f"{_listed(runs)} share no scorer and explainer of the same names: nothing to compare")
    have = f"one {by}, {names[0]!r}, and no control" if names else f"no {by}"
    raise ConfigError(f"{_listed(runs)} {'has' if len(runs) == 1 else 'have'} {have}: nothing to compare")


def _listed(runs: Sequence[Any]) -> str:
    return " and ".join(str(run) for run in runs)


def _first(named: Mapping[str, Arm], against: str | None) -> dict[str, Arm]:
    return {name: named[name] for name in sorted(named, key=lambda name: name != against)}


# --- the rows ---------------------------------------------------------------------------------


def _contrasts(held: tuple[str, str], named: Mapping[str, Arm], measure: str | None) -> Iterator[dict[str, Any]]:
    """Each arm against its controls, then the first against the others."""
    columns = columns_of(named.values())
    headline = measure or ("corrected" if "corrected" in columns else "value")
    fifths = sorted((_quantile(column), column) for column in columns if FIFTH.match(column))
    wanted = [(headline, None), *((column, quantile) for quantile, column in fifths)]
    about = dict.fromkeys(COLUMNS) | {"scorer": held[0], "within": held[1]}
    for name, arm in named.items():
        for control, values in arm.controls.items():
            sides = {"a": name, "b": control, "control": True}
            for column, quantile in wanted:
                own, theirs = _series(arm.own, column), _series(values, column)
                yield about | sides | {"quantile": quantile} | _row(column, own, theirs, True, arm.told(control))
    (base, first), *others = named.items()
    for name, arm in others:
        paired = first.shares_features(arm)
        sides = {"a": base, "b": name, "control": False}
        for column, quantile in wanted:
            own, theirs = _series(first.own, column), _series(arm.own, column)
            yield about | sides | {"quantile": quantile} | _row(column, own, theirs, paired)
        for control in first.controls:
            if control in arm.controls:
                gain, other = _gain(first, control, headline), _gain(arm, control, headline)
                both = _either(first.told(control), arm.told(control))
                yield about | sides | _row(f"{headline} less {control}", gain, other, paired, both)


def _quantile(column: str) -> int:
    return int(column.rpartition("q")[2])


def _series(values: Values, column: str) -> Series:
    return {feature: row.get(column) for feature, row in values.items()}


def _gain(arm: Arm, control: str, column: str) -> Series:
    own, other = _series(arm.own, column), _series(arm.controls[control], column)
    return {f: None if (v := own[f]) is None or (c := other.get(f)) is None else v - c for f in own}


def _either(a: Shared, b: Shared) -> Shared:
    """What a difference of two arms rests on: explanations of either, numbered apart."""
    return {f: [*(2 * x for x in a[f]), *(2 * x + 1 for x in b[f])] for f in a.keys() & b.keys()}


def _row(measure: str, a: Series, b: Series, paired: bool, shared: Shared | None = None) -> dict[str, Any]:
    """`shared`: of paired arms, where features' differences are not independent of each other."""
    counted = {"n_a": _present(a), "n_b": _present(b), "paired": paired, "measure": measure}
    if not paired:
        x, y = ([v for v in side.values() if v is not None] for side in (a, b))
        gap = unpaired_difference(x, y)
        missing = {"missing_a": len(a) - len(x), "missing_b": len(b) - len(y)}
        means = {"mean_a": _mean(x), "mean_b": _mean(y), "difference": gap.mean, "low": gap.low, "high": gap.high}
        return counted | means | missing
    features = sorted(a.keys() & b.keys())  # one that a side was never asked for is no failure of it
    x, y = [a.get(f) for f in features], [b.get(f) for f in features]
    gap = paired_difference(x, y)
    known = [f for f, v, w in zip(features, x, y) if v is not None and w is not None]
    both = [(v, w) for v, w in zip(x, y) if v is not None and w is not None]
    low, high = gap.low, gap.high
    if shared is not None and both:
        rest_on = list(zip_longest(*(shared.get(feature, ()) for feature in known), fillvalue=-1))
        low, high = shared_interval([v - w for v, w in both], list(zip(*rest_on))) or (None, None)
    return counted | {
        "mean_a": _mean([v for v, _ in both]), "mean_b": _mean([w for _, w in both]), "difference": gap.mean,
        "low": low, "high": high, "wins": gap.wins, "losses": gap.losses,
        "ties": gap.n - gap.wins - gap.losses, "n": gap.n,
        "missing_a": sum(v is None for v in x), "missing_b": sum(w is None for w in y),
        "at_chance": _at_chance(measure, x, y),
    }  # fmt: skip


def _at_chance(measure: str, a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    """The mean difference over the features asked for in both, one without a value at chance: 0 where it is corrected,
    ½ of an AUROC."""
    if measure.startswith("corrected"):
        chance = 0.0
    elif measure.startswith("auroc"):
        chance = 0.5
    else:
        return None
    return _mean([(chance if v is None else v) - (chance if w is None else w) for v, w in zip(a, b)])


def _present(series: Series) -> int:
    return sum(value is not None for value in series.values())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# --- printing ---------------------------------------------------------------------------------


def print_comparison(
    *runs: str | Path,
    by: By | None = None,
    scorer: str | None = None,
    measure: str | None = None,
    against: str | None = None,
    format: Literal["table", "csv", "json", "parquet"] = "table",
    out: TextIO | None = None,
) -> None:
    """Print `compare` as lines to read, or all its columns as data."""
    stream, rows = out or sys.stdout, compare(*runs, by=by, scorer=scorer, measure=measure, against=against)
    unfinished = [f"{run}: {standing}" for run in runs if (standing := so_far(find_run(run)))]
    if format != "table":
        print_data(as_table(rows), format, False, stream)
        print("\n".join(unfinished), end="\n" * bool(unfinished), file=sys.stderr)
        return
    for (name, within), those in groupby(rows, key=lambda row: (row["scorer"], row["within"])):
        print("\n".join([f"{visible(name)} · {visible(within)}", *_lines(list(those))]), end="\n\n", file=stream)
    print("\n".join([*reading(rows), *unfinished]), file=stream)


def as_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    import pyarrow as pa

    types = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    return pa.Table.from_pylist([dict(row) for row in rows], types)


def contrasts(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], list[float | None]]]:
    """Each row over all quantiles of a group, with the differences by quantile, the weakest first."""
    for row in rows:
        if row["quantile"] is None:
            beside = [r for r in rows if r["quantile"] and _sides(r) == _sides(row)]
            yield row, [] if " less " in row["measure"] else [r["difference"] for r in beside]


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a contrast; the quantiles' differences stand on that of their headline."""
    cells = []
    for row, fifths in contrasts(rows):
        missing = (row["missing_a"], row["missing_b"])
        cells.append([
            visible(f"{row['a']} − {'control ' * row['control']}{row['b']}"),
            row["measure"],
            means(row),
            difference(row),
            won(row),
            over(row),
            f"{missing[0]}, {missing[1]}" if any(missing) else "",
            " ".join(number(value) for value in fifths),
        ])  # fmt: skip
    names = ["", "of", "means", "difference", "won:lost", "features", "no value", "AUROC by quantile"]
    kept = [i for i in range(len(names)) if any(line[i] for line in cells)]
    return aligned([names[i] for i in kept], [[line[i] for i in kept] for line in cells])


def means(row: Mapping[str, Any]) -> str:
    return f"{_three(row['mean_a'])} − {_three(row['mean_b'])}"


def difference(row: Mapping[str, Any]) -> str:
    return _three(row["difference"]) + _limits(row["low"], row["high"])


def won(row: Mapping[str, Any]) -> str:
    """Features won, lost and tied; "" where nothing is paired."""
    return "" if row["wins"] is None else f"{row['wins']}:{row['losses']}" + f":{row['ties']}" * bool(row["ties"])


def over(row: Mapping[str, Any]) -> str:
    """Features that the means are over: pairs, and of how many on either side where one has features of its own; of
    arms that are not paired those of each."""
    sides = f"{row['n_a']}, {row['n_b']}"
    if not row["paired"]:
        return sides
    return f"{row['n']} of {sides}" if _apart(row) else f"{row['n']}"


def _apart(row: Mapping[str, Any]) -> bool:
    """Whether a side has values of features that the other was never asked for."""
    return row["n_a"] - row["n"] > row["missing_b"] or row["n_b"] - row["n"] > row["missing_a"]


def _three(value: float | None) -> str:
    """.345, -.012: differences are small."""
    if value is None:
        return "–"
    text = f"{value:.3f}".replace("-0.000", "0.000")
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def _limits(low: float | None, high: float | None) -> str:
    return "" if low is None else f" [{_three(low)} {_three(high)}]"


def _sides(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["a"], row["b"], row["control"]


def reading(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How to read the lines."""
    notes = ["difference: mean over features with its 95 % interval; won:lost:tied counts features"]
    if any(row["quantile"] for row in rows):
        notes.append("AUROC by quantile: differences, windows of the weakest activation first")
    if not all(row["paired"] for row in rows):
        notes.append("not paired: the runs have different SAEs or subjects, so their means are compared")
    if any(row["paired"] and _apart(row) for row in rows):
        notes.append("features, n of a, b: those of both sides; what one side alone was asked for is left out")
    if any(row["missing_a"] or row["missing_b"] for row in rows):
        notes.append("no value: features that both sides were asked for and one has none for; at_chance counts them")
    return notes
