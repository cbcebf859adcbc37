"""Read a run's folder as Arrow tables: of a run that is done, goes on, or was stopped.

Arrow and not pandas: `autointerp table` answers before pandas would be imported. No table that has a row for each
example is read whole: `RunFolder.read` takes the rows of the features that are asked for, `RunFolder.batches` goes
over all rows, part by part.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.engine.remote import is_url
from autointerp.errors import AutointerpError, ConfigError
from autointerp.progress import Standing, read_standing
from autointerp.redact import redact
from autointerp.registry import did_you_mean
from autointerp.tables import FeatureRows

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH = 1 << 14  # rows in memory at a time


def find_run(run: str | Path) -> Path:
    """The folder of a run that has tables, given the folder, the name of one in ``results/``, or a URL: a copy then."""
    candidates = [_copied(str(run))] if is_url(run) else [Path(run), Path("results") / run]
    for folder in candidates:
        if (folder / "features.parquet").is_file():
            return folder
    for folder in candidates:
        if folder.is_dir():
            shown = run if is_url(run) else folder
            raise AutointerpError(f"{redact(str(shown))} has no features.parquet yet: {_why_no_tables(folder)}")
    known = sorted(path.parent.name for path in Path("results").glob("*/features.parquet"))
    raise ConfigError(f"no run at {redact(str(run))!r}{did_you_mean(str(run), known)}")


def _copied(url: str) -> Path:
    from autointerp.report.at_url import fetched

    return fetched(url)


def _why_no_tables(folder: Path) -> str:
    standing = read_standing(folder)
    if standing is None:
        return "the run is not done, `autointerp run` goes on"
    later = "tables come with the first scores" if standing.alive else "`autointerp run` goes on"
    return f"the run {standing.sentence()}; {later}"


def so_far(folder: Path) -> str | None:
    """One line about a run that is not done; None for one that is.

    ``the run goes on: stage 12 of 16, score/detection/default, 120 of 400 features, 5m10s left; …``
    """
    standing = read_standing(folder)
    if standing is None:
        return None
    if standing.tables is None:
        return f"the run {standing.sentence()}; it has no scores yet, these tables are of an earlier run"
    return f"the run {standing.sentence()}; these are its results so far"


class RunFolder:
    """The tables of a run, read when asked for. A table that this run did not write is None."""

    def __init__(self, run: str | Path) -> None:
        self.path = find_run(run)

    def read(
        self, name: str, columns: Sequence[str] | None = None, features: Collection[int] | None = None
    ) -> pa.Table | None:
        """`name`.parquet; of `columns` those that it has; the rows of `features` alone where these are given.

        Without `features` the whole table is in memory: only for tables of a row a feature.
        """
        import pyarrow as pa

        file = self.path / f"{name}.parquet"
        if not file.is_file():
            return None
        try:
            with _opened(file) as parquet:
                wanted = _present(parquet, columns)
                return parquet.read(wanted) if features is None else FeatureRows(file).read(features, wanted)
        except pa.ArrowException as error:
            raise _unreadable(file, error) from error

    def batches(self, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """All rows of `name`.parquet, part by part; of `columns` those that it has. Nothing where there is no file."""
        import pyarrow as pa

        file = self.path / f"{name}.parquet"
        if not file.is_file():
            return
        try:
            with _opened(file) as parquet:
                for batch in parquet.iter_batches(_BATCH, columns=_present(parquet, columns)):
                    yield pa.Table.from_batches([batch])
        except pa.ArrowException as error:
            raise _unreadable(file, error) from error

    @cached_property
    def features(self) -> pa.Table:
        return self.read_features()

    def read_features(self, features: Collection[int] | None = None) -> pa.Table:
        """features.parquet, or the rows of a few of them; it is read anew, for callers that let go of it."""
        table = self.read("features", features=features)
        if table is None:
            raise AutointerpError(f"{self.path} has no features.parquet any more")
        return table

    @cached_property
    def standing(self) -> Standing | None:
        """How far the run is; None where it is done."""
        return read_standing(self.path)

    @cached_property
    def info(self) -> dict[str, Any]:
        """run.json, {} where there is none; of a run that is not done what is known of its stages."""
        if self.standing is not None:
            return {"stages": dict(self.standing.stages), "started": self.standing.started}
        file = self.path / "run.json"
        try:
            return json.loads(file.read_text()) if file.is_file() else {}
        except ValueError as error:
            raise AutointerpError(f"{file} is not JSON ({one_line(error)})") from error

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as resolved, {} where there is none."""
        import yaml

        file = self.path / "config.yaml"
        try:
            return yaml.safe_load(file.read_text()) or {} if file.is_file() else {}
        except yaml.YAMLError as error:
            raise AutointerpError(f"{file} is not YAML ({one_line(error)})") from error

    def rows(
        self, name: str, features: Collection[int] | None = None, columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """`read` as dictionaries; no rows where the run has no such table."""
        table = self.read(name, columns, features)
        return [] if table is None else table.to_pylist()


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _opened(file: Path) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file)  # pq.read_table would import pandas


def _present(parquet: pq.ParquetFile, columns: Sequence[str] | None) -> list[str] | None:
    present = parquet.schema_arrow.names
    return None if columns is None else [column for column in columns if column in present]


def _unreadable(file: Path, error: BaseException) -> AutointerpError:
    return AutointerpError(f"{file} cannot be read ({one_line(error)}): run the pipeline again")
