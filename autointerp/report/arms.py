"""The sides of a comparison: what one scorer gives to one explainer's texts in one run, and to its controls."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autointerp.errors import AutointerpError, ConfigError
from autointerp.plugins import needs, scorers
from autointerp.registry import did_you_mean
from autointerp.report.figures import LENT_BY
from autointerp.report.folder import RunFolder

FIXED = ("feature", "explainer", "scorer", "control")
FIFTH = re.compile(r"auroc_q(\d+)$")  # AUROC of one quantile's windows against the silent ones, a column of scores

Values = Mapping[int, Mapping[str, float | None]]  # feature -> column of scores.parquet -> its value


@dataclass(frozen=True)
class Arm:
    """One side of a comparison. `own` and each control hold every feature that was asked for, None where it has no
    value."""

    run: str
    sae: tuple[str, str]  # the key of the SAE's artifact, and what the config says of it; either tells that it is one
    explainer: str
    scorer: str  # its label in the config
    plugin: str  # the scorer's registered name
    judge: str | None  # the language model; None of a scorer that asks none
    own: Values
    controls: Mapping[str, Values] = field(default_factory=dict)

    def told(self, control: str) -> Mapping[int, tuple[int, ...]]:
        """feature -> itself and those whose explanations the control lent it: what its score less the control's rests
        on. Itself alone of a run that does not tell who lent."""
        rows = self.controls[control].items()
        lent = {f: [v for c, v in row.items() if c.startswith(LENT_BY) and v is not None] for f, row in rows}
        return {feature: (feature, *map(int, others)) for feature, others in lent.items()}

    def shares_features(self, other: Arm) -> bool:
        """Whether a feature's number means the same feature in both: one SAE of one subject."""
        return any(mine == theirs for mine, theirs in zip(self.sae, other.sae))


def arms_of(runs: Sequence[str | Path], measure: str | None) -> list[Arm]:
    """All arms of some runs, in the order of the runs and of their tables; `measure` is read beside the usual columns.

    Raises ConfigError for a run or a measure that there is not, AutointerpError for a run without scores.
    """
    folders = [RunFolder(run) for run in runs]
    names = [folder.path.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder.path) for folder in folders]
    if len({folder.path.resolve() for folder in folders}) < len(folders):
        raise ConfigError("one run is named twice: compare it with another, or name it once")
    return [arm for folder, name in zip(folders, names) for arm in _arms(folder, name, measure)]


def _arms(folder: RunFolder, name: str, measure: str | None) -> list[Arm]:
    table = folder.read("scores")
    if table is None or not len(table):
        raise AutointerpError(f"{folder.path} has no scores yet")
    known = [column for column in table.column_names if column not in (*FIXED, "failure")]
    if measure is not None and measure not in known:
        raise ConfigError(f"{folder.path} has no measure {measure!r}{did_you_mean(measure, known)}")
    columns = ["value", "corrected", *([measure] if measure else []), *filter(FIFTH.match, table.column_names)]
    columns += [column for column in table.column_names if column.startswith(LENT_BY)]
    kept = [column for column in dict.fromkeys(columns) if column in table.column_names]
    values: dict[tuple[str, str], dict[str | None, dict[int, Any]]] = {}
    for row in table.select([column for column in FIXED if column in table.column_names] + kept).to_pylist():
        of_arm = values.setdefault((row["explainer"], row["scorer"]), {})
        of_arm.setdefault(row.get("control"), {})[row["feature"]] = {column: _real(row[column]) for column in kept}
    sae, judges = _sae(folder), judges_of(folder.config)
    return [
        Arm(
            name, sae, explainer, scorer, *judges.get(scorer, (scorer, None)), given.get(None, {}),
            {control: those for control, those in given.items() if control is not None},
        )
        for (explainer, scorer), given in values.items()
    ]  # fmt: skip


def _real(value: Any) -> float | None:
    return None if value is None or value != value else float(value)


def judges_of(config: Mapping[str, Any]) -> dict[str, tuple[str, str | None]]:
    """A scorer's label -> its registered name, and its language model where it asks one."""
    usual = (config.get("llm") or {}).get("model")
    judges: dict[str, tuple[str, str | None]] = {}
    for given in config.get("scorers") or ():
        plugin: Mapping[str, Any] = {"name": given} if isinstance(given, str) else given
        own = (plugin.get("llm") or {}).get("model") or usual
        judges[plugin.get("label") or plugin["name"]] = plugin["name"], own if _asks(plugin["name"]) else None
    return judges


def _asks(scorer: str) -> bool:
    try:
        return "llm" in needs(scorers.get(scorer))
    except ConfigError:  # a plug-in that is not here any more
        return True


def _sae(folder: RunFolder) -> tuple[str, str]:
    key = folder.info.get("stages", {}).get("sae", {}).get("key") or str(folder.path.resolve())
    config = folder.config
    trained = (config.get("sae") or {}).get("train") is not None
    what = [config.get("subject"), config.get("sae"), [config.get("corpus"), config.get("seed")] if trained else None]
    return str(key), repr(what) if config else str(folder.path.resolve())


def columns_of(arms: Iterable[Arm]) -> set[str]:
    """Columns in which any of the arms has a value."""
    rows = (row for arm in arms for row in arm.own.values())
    return {column for row in rows for column, value in row.items() if value is not None}
