"""This run's scores against those of controls that run the pipeline again: a redrawn subject, a random SAE."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from autointerp.report.text import interval, number
from autointerp.stats import unpaired_difference

if TYPE_CHECKING:
    from autointerp.report.folder import RunFolder

_COLUMNS = ("explainer", "scorer", "control", "value", "corrected")


@dataclass(frozen=True)
class Against:
    """This run's mean over the features that have a value, less the control's, with Welch's 95 % interval."""

    run: float | None
    n_run: int
    control: float | None
    n_control: int
    difference: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Compared:
    """One scorer of one explainer, this run against a control."""

    control: str
    explainer: str
    scorer: str
    value: Against
    corrected: Against  # for chance
    asked: int  # features asked for, whether they have a value or not
    asked_control: int

    def as_json(self) -> dict[str, Any]:
        """For run.json: the names, and each figure with its interval."""
        names = {"control": self.control, "explainer": self.explainer, "scorer": self.scorer}
        figures = {"value": asdict(self.value), "corrected": asdict(self.corrected)}
        return names | figures | {"asked": self.asked, "asked_control": self.asked_control}


def compared(run: RunFolder, features: Collection[int] | None = None) -> list[Compared]:
    """A row for each control, explainer and scorer; none where no such control was run. `features`: of this run."""
    theirs = _scores(run, "control_scores", None)
    if not theirs:
        return []
    own = _scores(run, "scores", features)
    return list(_rows(own, theirs))


_Names = tuple[str, str, str]  # control ("" for the run itself), explainer, scorer
_Pairs = list[tuple[float | None, float | None]]  # value and corrected, a feature


def _scores(run: RunFolder, table: str, features: Collection[int] | None) -> dict[_Names, _Pairs]:
    wanted = None if features is None else set(features)
    scores: dict[_Names, _Pairs] = {}
    for batch in run.batches(table, ["feature", *_COLUMNS]):
        for row in batch.to_pylist():
            lent = table == "scores" and row["control"]  # scored with another feature's explanation
            if not lent and (wanted is None or row["feature"] in wanted):
                names = (row["control"] or "", row["explainer"], row["scorer"])
                scores.setdefault(names, []).append((row["value"], row["corrected"]))
    return scores


def _rows(own: dict[_Names, _Pairs], theirs: dict[_Names, _Pairs]) -> Iterator[Compared]:
    for (control, explainer, scorer), pairs in theirs.items():
        mine = own.get(("", explainer, scorer), [])
        value, corrected = (_against([m[i] for m in mine], [p[i] for p in pairs]) for i in (0, 1))
        yield Compared(control, explainer, scorer, value, corrected, len(mine), len(pairs))


def _against(run: Sequence[float | None], control: Sequence[float | None]) -> Against:
    ours, theirs = ([value for value in side if value is not None] for side in (run, control))
    gap = unpaired_difference(ours, theirs)
    return Against(_mean(ours), len(ours), _mean(theirs), len(theirs), gap.mean, gap.low, gap.high)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def control_lines(run: RunFolder, features: Collection[int], explainer: str | None) -> list[str]:
    """Lines below the table: each scorer of an explainer (the first where None) less each control, over `features` of
    this run."""
    rows = compared(run, features)
    shown = explainer or (rows[0].explainer if rows else None)
    return [_line(row) for row in rows if row.explainer == shown]


def _line(row: Compared) -> str:
    value, corrected = row.value, row.corrected
    over = f"{number(value.run)} over {value.n_run} of {row.asked} less {number(value.control)} over {value.n_control}"
    above = interval(value.difference, value.low, value.high)
    line = f"{row.scorer} against {row.control.replace('_', ' ')}: {over} of {row.asked_control}: {above}"
    if corrected.difference is None:
        return line
    return f"{line}; corrected for chance {interval(corrected.difference, corrected.low, corrected.high)}"
