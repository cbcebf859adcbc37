"""The features table as a command asks for it: by any explainer of the run, with columns that lie in other tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import reduce
from typing import TYPE_CHECKING

from autointerp.errors import AutointerpError, ConfigError
from autointerp.registry import did_you_mean
from autointerp.report.figures import all_scorers_of
from autointerp.report.folder import RunFolder
from autointerp.report.labels import read_labels, with_labels
from autointerp.tables import compute

if TYPE_CHECKING:
    import pyarrow as pa

_OF_A_ROW = ("feature", "explainer", "scorer", "control")
_TOO_FEW = ("dead", "too_rare")  # statuses that no explainer changes


def explainers_of(run: RunFolder) -> list[str]:
    """Labels of the explainers that wrote something, that of features.parquet first."""
    named = run.features["explainer"].unique().to_pylist() if "explainer" in run.features.column_names else []
    shown = next((name for name in named if name), None)
    parts = (part["explainer"].unique().to_pylist() for part in run.batches("explanations", ["explainer"]))
    others = (name for names in parts for name in names)
    return list(dict.fromkeys([shown, *others] if shown else others))


def features_by(run: RunFolder, explainer: str | None) -> pa.Table:
    """features.parquet; with another `explainer` than its own, that explainer's texts and scores in their place.

    Raises ConfigError for an explainer that the run does not have, AutointerpError for a run of an earlier version.
    """
    if explainer is None:
        return run.features
    known = explainers_of(run)
    if known and explainer == known[0]:
        return run.features
    if explainer not in known:
        raise ConfigError(f"no explainer {explainer!r} in {run.path}{did_you_mean(explainer, known)}")
    if "corrected" not in measures_of(run):
        raise AutointerpError(f"{run.path} was made by an earlier version: run it again to see {explainer!r}")
    import pyarrow as pa

    from autointerp.stages.tables import explained_by

    features = run.features
    own = ["feature", "firings", "frequency", "max_activation", "selected", "composite", "constituents"]
    frame = features.select([*(name for name in own if name in features.column_names), "status", "failure"]).to_pandas()
    unfit = frame["status"].isin(_TOO_FEW)
    frame.loc[~unfit, "status"], frame.loc[~unfit, "failure"] = "ok", None
    for name in ("composite", "constituents"):
        if name not in frame:
            frame[name] = None
    return pa.Table.from_pandas(
        explained_by(frame, run.path, explainer, all_scorers_of(features)), preserve_index=False
    )


def with_columns(run: RunFolder, features: pa.Table, names: Iterable[str], explainer: str | None) -> pa.Table:
    """`features` with those of `names` that it lacks and other files of the run have: ``SCORER_MEASURE`` (detection_f1)
    and ``SCORER_CONTROL``, the value with that control's explanation, of scores.parquet; ``label`` and ``comment``,
    written by hand. Unknown names are left out."""
    lacking = [name for name in dict.fromkeys(names) if name not in features.column_names]
    if not {"label", "comment"}.isdisjoint(lacking):
        features = with_labels(features, read_labels(run.path))
        lacking = [name for name in lacking if name not in features.column_names]
    if not lacking:
        return features
    shown = explainer or next(iter(explainers_of(run)), None)
    scorers = sorted(all_scorers_of(features), key=len, reverse=True)
    for name in lacking:
        scorer = next((scorer for scorer in scorers if name.startswith(f"{scorer}_")), None)
        column = _scored(run, shown, scorer, name.removeprefix(f"{scorer}_"), features) if scorer and shown else None
        if column is not None:
            features = features.append_column(name, column)
    return features


def measures_of(run: RunFolder) -> list[str]:
    """Columns of scores.parquet that hold numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = run.path / "scores.parquet"
    fields = pq.read_schema(file) if file.is_file() else []
    return [f.name for f in fields if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]


def _scored(run: RunFolder, explainer: str, scorer: str, measure: str, features: pa.Table) -> pa.Array | None:
    """A measure, or the value with a control of that name, by the order of `features`; None where there is none."""
    import pyarrow as pa

    column, control = (measure, None) if measure in measures_of(run) else ("value", measure)
    values: dict[int, float | None] = {}
    for part in run.batches("scores", [*_OF_A_ROW, column]):
        rows = part.filter(_is(part, explainer=explainer, scorer=scorer, control=control))
        values |= dict(zip(rows["feature"].to_pylist(), rows[column].to_pylist()))
    if control is not None and not values:
        return None
    return pa.array([values.get(feature) for feature in features["feature"].to_pylist()], pa.float64())


def _is(part: pa.Table, **wanted: str | None) -> pa.ChunkedArray:
    """Which rows have these values, None for a missing one."""
    pc = compute()
    masks = (
        pc.is_null(part[name]) if value is None else pc.fill_null(pc.equal(part[name], value), False)
        for name, value in wanted.items()
    )
    return reduce(pc.and_, masks)


def names_in(expression: str) -> list[str]:
    """What could be the name of a column in an expression of `where`."""
    return [name for name in re.findall(r"`([^`]+)`|([A-Za-z_][\w.]*)", expression) for name in name if name]
