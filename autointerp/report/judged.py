"""Every judgement behind a feature's scores, with the window that was judged and the answers under the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from autointerp.report.feature import Window
from autointerp.report.folder import RunFolder
from autointerp.report.text import number

_SEEN = 0.5  # what a predicted activation from 0 to 10 must have to be coloured: less is rounded to 0


@dataclass(frozen=True)
class Judged:
    """One example. `verdict` is right, wrong or failed; "" where the judge gave a number and no Yes or No."""

    says: str
    verdict: str
    window: Window | None  # None where what was judged is no window of the run
    predicted: Window | None  # the same tokens with the activations that were predicted, from 0 to 10
    text: str | None
    failure: str | None
    controls: dict[str, str] = field(default_factory=dict)  # control -> its answers, by each explanation that it lent

    @property
    def mark(self) -> str:
        return {"right": "✓", "wrong": "✗", "failed": "–"}.get(self.verdict, "·")


@dataclass(frozen=True)
class Group:
    """The judgements of one scorer on one explainer's words, the strongest quantile first."""

    explainer: str
    scorer: str
    rows: list[Judged]

    @property
    def wrong(self) -> int | None:
        """None where nothing was answered with Yes or No."""
        counted = [row.verdict for row in self.rows if row.verdict in ("right", "wrong")]
        return counted.count("wrong") if counted else None

    @property
    def failed(self) -> int:
        return sum(row.verdict == "failed" for row in self.rows)


def judgements_of(run: RunFolder, feature: int) -> list[Group]:
    """All that was judged of a feature, by explainer and scorer in the order of the run's table."""
    windows = {
        row["example"]: Window(*(row[part.name] for part in fields(Window))) for row in run.rows("contexts", [feature])
    }
    own: dict[tuple[str, str], list[dict[str, Any]]] = {}
    answers: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    for row in run.rows("judgements", [feature]):
        if row.get("control") is None:
            own.setdefault((row["explainer"], row["scorer"]), []).append(row)
        else:
            answers.setdefault(_asked(row), {}).setdefault(row["control"], []).append(_answer(row))
    return [Group(*key, [_judged(r, windows, answers.get(_asked(r), {})) for r in _in_order(rows)])
            for key, rows in own.items()]  # fmt: skip


def _asked(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What was asked: windows of two neighbours may have one number, and then differ in their text."""
    return row["explainer"], row["scorer"], row["example"], row["kind"], row.get("text")


def _in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda r: (-1 if r["quantile"] is None else r["quantile"], r["truth"] or 0), reverse=True)


def _judged(row: Mapping[str, Any], windows: Mapping[int, Window], controls: Mapping[str, Sequence[str]]) -> Judged:
    window = windows.get(row["example"]) if row.get("text") is None else None
    predicted = row.get("predictions")
    return Judged(
        says=": ".join(filter(None, [_kind(row), _answer(row)])),
        verdict=_verdict(row),
        window=window,
        predicted=None if not predicted or window is None else _beside(window, predicted),
        text=row.get("text"),
        failure=row.get("failure"),
        controls={name: told for name, said in controls.items() if (told := ", ".join(filter(None, said)))},
    )


def _kind(row: Mapping[str, Any]) -> str:
    return row["kind"] if row["quantile"] is None else f"{row['kind']}, quantile {int(row['quantile']) + 1}"


def _verdict(row: Mapping[str, Any]) -> str:
    if row["status"] != "ok":
        return "failed"
    values = row["truth"], row["prediction"]
    if not all(value in (0, 1) for value in values):
        return ""
    return "right" if values[0] == values[1] else "wrong"


def _answer(row: Mapping[str, Any]) -> str:
    """yes (.80), no, .43, failed; "" where activations are the answer."""
    if row["status"] != "ok":
        return "failed"
    if row.get("predictions"):
        return ""
    said, sure = row["prediction"], row.get("probability")
    answer = {0: "no", 1: "yes"}.get(said, number(said))
    return answer if sure is None else f"{answer} ({number(sure)})"


def _beside(window: Window, predicted: Sequence[float]) -> Window:
    length = len(window.tokens)
    values = [value if value and value >= _SEEN else 0.0 for value in predicted[:length]]
    return replace(window, activations=values + [0.0] * (length - len(values)))
