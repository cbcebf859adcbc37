"""Which rows of a run a query chooses, in which order: the features table, searched, filtered and sorted in memory.

1. `Viewed` is a run's folder. Its tables may grow: each request asks for what there is `now`.
2. A `Snapshot` holds the features table, a row a feature, and what queries chose of it as places in it.
3. Contexts are not held. `ContextSearch` goes through their file a part at a time, as long as a request may take, and
   goes on there when it is asked again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autointerp.report.columns import features_by, names_in, with_columns
from autointerp.report.figures import scorers_of
from autointerp.report.folder import RunFolder, find_run
from autointerp.report.labels import FILE as LABELS
from autointerp.report.where import mask, order
from autointerp.tables import compute

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

T = TypeVar("T")
PATIENCE = 0.12  # seconds that a request searches contexts before it answers with what there is
_KEPT = 24  # results that a snapshot holds on to, of each kind the latest
_WATCHED = ("features", "explanations", "scores", "judgements", "contexts", "composites", "usage")


@dataclass(frozen=True)
class Query:
    """What the features page asks for. Empty texts ask for nothing."""

    explainer: str = ""
    where: str = ""
    sort: str = ""  # a column, with a minus before it the other way round
    search: str = ""
    texts: bool = False  # search the contexts too

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Query:
        words = {name: parameters.get(name, "").strip() for name in ("explainer", "where", "sort", "search")}
        return cls(**words, texts=parameters.get("texts", "") == "1")

    def parameters(self) -> dict[str, str]:
        """The same as an address has it."""
        words = {name: getattr(self, name) for name in ("explainer", "where", "sort", "search")}
        return {name: text for name, text in (words | {"texts": "1" if self.texts else ""}).items() if text}


@dataclass(frozen=True)
class Chosen:
    places: np.ndarray  # [n] of the features table, in order
    scanned: float = 1.0  # share of the contexts that was searched


class Viewed:
    """A run's folder as it stands."""

    def __init__(self, run: str | Path) -> None:
        self.path = find_run(run).resolve()
        self._lock = threading.Lock()
        self._now: Snapshot | None = None

    def now(self) -> Snapshot:
        """The same snapshot as long as no table changes."""
        mark = _mark(self.path / f"{name}.parquet" for name in _WATCHED)
        with self._lock:
            if self._now is None or self._now.mark != mark:
                self._now = Snapshot(self.path, mark)
            return self._now


def _mark(files: Iterator[Path]) -> tuple[tuple[int, int], ...]:
    """Tells whether a file was written anew."""
    marks = []
    for file in files:
        try:
            status = file.stat()
            marks.append((status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            marks.append((0, 0))
    return tuple(marks)


class Snapshot:
    """A run's tables at a time, and what was made of them."""

    def __init__(self, path: Path, mark: Hashable) -> None:
        self.run, self.mark = RunFolder(path), mark
        self._lock = threading.RLock()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._made: OrderedDict[Hashable, Any] = OrderedDict()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes, kept; others who ask for the same meanwhile wait for it."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            with self._lock:
                if key in self._made:
                    self._made.move_to_end(key)
                    return self._made[key]
            made = make()
            with self._lock:
                self._made[key] = made
                while len(self._made) > _KEPT:
                    self._locks.pop(self._made.popitem(last=False)[0], None)
            return made

    def table(self, explainer: str = "", *names: str) -> pa.Table:
        """The features table of an explainer (the first where "") with labels by hand, the examples that could not be
        scored, and those of the columns `names` that scores.parquet has."""
        labels = _mark(iter([self.run.path / LABELS]))
        plain = self.once(("table", explainer), lambda: _with_unscored(features_by(self.run, explainer or None)))
        known = {*plain.column_names, "label", "comment"}
        more = tuple(sorted({name for name in names if name not in known}))

        def made() -> pa.Table:
            return with_columns(self.run, plain, ("label", "comment", *more), explainer or None)

        return self.once(("labelled", explainer, labels, more), made)

    def chosen(self, query: Query) -> Chosen:
        """Raises ConfigError with what is wrong with the query."""
        table = self.table(query.explainer, query.sort.removeprefix("-"), *names_in(query.where))
        search = self._search(query.search) if query.texts and query.search else None
        if search is not None and search.share < 1:
            search.advance(PATIENCE)
        if search is not None and search.share < 1:  # of a search that goes on nothing is kept
            return Chosen(self._places(table, query, search), search.share)
        labels = _mark(iter([self.run.path / LABELS]))
        return Chosen(self.once((query, labels), lambda: self._places(table, query, search)))

    def _places(self, table: pa.Table, query: Query, search: ContextSearch | None) -> np.ndarray:
        import numpy as np

        pc = compute()
        conditions = [mask(table, query.where)] if query.where else []
        conditions += [self._matches(table, query.search, search)] if query.search else []
        column = query.sort or next(iter(scorers_of(table)), "feature")
        if (name := column.removeprefix("-")) not in table.column_names:
            order(table, column)  # which says what there is
        keys = table.select(list(dict.fromkeys(["feature", name])))
        if not conditions:
            return np.asarray(order(keys, column))
        kept = pc.indices_nonzero(pc.fill_null(reduce(pc.and_kleene, conditions), False))
        return np.asarray(kept)[np.asarray(order(keys.take(kept), column))]

    def _matches(self, table: pa.Table, words: str, search: ContextSearch | None) -> pa.ChunkedArray:
        """Rows whose number, label, comment or explanation by any explainer has `words`, or one of whose contexts."""
        import pyarrow as pa

        pc = compute()
        columns = [pc.cast(table[name], pa.string()) for name in ("explanation", "label", "comment")]
        hits = [pc.fill_null(pc.match_substring(column, words, ignore_case=True), False) for column in columns]
        features = set(search.features) if search is not None else set()
        explained = self.explained()
        if explained is not None and len(explained):
            fits = pc.match_substring(explained["explanation"], words, ignore_case=True)
            features.update(explained.filter(pc.fill_null(fits, False))["feature"].to_pylist())
        if words.isdigit() and len(words) < 19:
            features.add(int(words))
        hits.append(pc.is_in(table["feature"], pa.array(sorted(features), table["feature"].type)))
        return reduce(pc.or_, hits)

    def explained(self) -> pa.Table | None:
        """The words of all explainers, a row a feature and explainer."""
        return self.once("explanations", lambda: self.run.read("explanations", ["feature", "explanation"]))

    def _search(self, words: str) -> ContextSearch:
        file = self.run.path / "contexts.parquet"
        return self.once(("contexts", words), lambda: ContextSearch(file, words))

    def page(self, query: Query, start: int, count: int) -> tuple[Chosen, list[dict[str, Any]]]:
        """What a query chooses, and `count` of its rows from `start`."""
        chosen = self.chosen(query)
        table = self.table(query.explainer, query.sort.removeprefix("-"), *names_in(query.where))
        return chosen, table.take(chosen.places[start : start + count]).to_pylist()

    def around(self, query: Query, feature: int) -> tuple[int | None, int | None]:
        """The features before and after one in the order of a query; None at an end, or where it is not among them."""
        import numpy as np

        features = self.table(query.explainer)["feature"].combine_chunks()
        ids = np.asarray(features)[self.chosen(query).places]
        (at,) = np.nonzero(ids == feature)
        if not len(at):
            return None, None
        place = int(at[0])
        return (int(ids[place - 1]) if place else None), (int(ids[place + 1]) if place + 1 < len(ids) else None)


def _with_unscored(features: pa.Table) -> pa.Table:
    """`features` with the column `unscored`: examples that could not be scored, over all scorers."""
    pc = compute()
    counts = [name for scorer in scorers_of(features) if (name := f"{scorer}_n_unscored") in features.column_names]
    if not counts or "unscored" in features.column_names:
        return features
    columns = [pc.fill_null(pc.cast(features[name], "int64"), 0) for name in counts]
    return features.append_column("unscored", reduce(pc.add, columns))


class ContextSearch:
    """The features in whose contexts some words stand, as far as the file has been read."""

    def __init__(self, file: Path, words: str) -> None:
        self.features: set[int] = set()
        self.share = 0.0 if file.is_file() else 1.0
        self._file, self._words, self._lock = file, words, threading.Lock()
        self._next = 0  # row group

    def advance(self, seconds: float) -> None:
        """Search on, at least a row group, for about so long."""
        import pyarrow.parquet as pq

        with self._lock, pq.ParquetFile(self._file) as file:
            end, groups = time.monotonic() + seconds, file.num_row_groups
            while self._next < groups:
                self._look_into(file, self._next)
                self._next += 1
                if time.monotonic() > end:
                    break
            self.share = self._next / groups if groups else 1.0

    def _look_into(self, file: Any, group: int) -> None:
        pc = compute()
        for batch in file.iter_batches(1 << 14, row_groups=[group], columns=["feature", "tokens"]):
            text = pc.binary_join(batch["tokens"], "")
            fits = pc.fill_null(pc.match_substring(text, self._words, ignore_case=True), False)
            self.features.update(batch["feature"].filter(fits).unique().to_pylist())
