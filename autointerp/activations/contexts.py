"""Contexts: windows of text are drawn in which a feature fires or is silent, split into train and test, and kept.

How windows are drawn, and why:

- A document belongs to train or to test by a hash of its tokens and the seed, for all features alike. Equal
  documents are in one split.
- An activating window holds a firing at a place drawn uniformly over the window. Centred windows tell
  a simulator where the feature fires; windows on a fixed grid cut off what a firing at their start read.
- The strata (`quantile`) are of equal size over the feature's candidate windows by their maximum, in
  both splits together, so a quantile means the same in both.
- Random windows copy the place in the document, the place in the row and the length of the activating
  windows, so "starts with Once upon a time" tells nothing about the kind.
- Near windows lie around a neighbour's firing exactly as activating windows lie around the feature's.
- A silent window holds no firing of the feature at all. Where too few exist, fewer are returned.
- Of each kind a document gives one window as long as there are other documents. Windows of a feature
  never overlap, of whatever kind. No text comes twice for a feature, in either split, and no window of
  test holds 16 tokens in a row that one of train holds. Windows of other features, where they are shown
  or scored beside a feature's own, keep to this too (`apart`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autointerp.activations.splits import content_starts, held_out
from autointerp.activations.words import TokenStrings, Words
from autointerp.artifacts import Corpus, Firings, write_atomically
from autointerp.records import Context, Kind, Split
from autointerp.tables import FeatureRows

if TYPE_CHECKING:
    import numpy as np

    from autointerp.config import ContextsConfig

_Tokens = TypeVar("_Tokens", bytes, tuple[str, ...])

_CANDIDATES = 2048  # windows considered for the strata of one feature
_TRIES = 32  # silent candidates drawn for each silent window wanted
_RUN = 16  # tokens in a row that train and test may not share
_SAME_PLACE = 64  # rows, at least, among which a random window's place in its document is matched
_CHUNK_FIRINGS = 2_000_000  # firings in memory at once
_ROW_GROUP = 4096  # contexts; a feature's are never split over row groups


def sample_contexts(
    corpus: Corpus,
    firings: Firings,
    latents: Sequence[int],
    neighbours: Mapping[int, Sequence[int]],
    token_strings: TokenStrings,
    config: ContextsConfig,
    seed: int,
) -> Iterator[Context]:
    """The contexts of each feature in turn, all of one feature after each other.

    Train: `config.train` activating windows, an equal number from each stratum, as the test's are drawn
    (an explanation of the strongest alone misses what the others read); as many silent ones, half of
    them near. Test: `test_activating`, an equal number from each stratum, `test_random` and `test_near`.
    Near windows come from the first `config.neighbours` of a feature's `neighbours` in equal parts. A
    feature's windows depend on the seed, the feature, its
    firings and its neighbours, and on no other feature asked for.
    """
    return context_sampler(corpus, firings, neighbours, token_strings, config, seed)(latents)


def context_sampler(
    corpus: Corpus,
    firings: Firings,
    neighbours: Mapping[int, Sequence[int]],
    token_strings: TokenStrings,
    config: ContextsConfig,
    seed: int,
) -> Callable[[Sequence[int]], Iterator[Context]]:
    """`sample_contexts` of some latents after others: what is the same for all of them is made once."""
    sampler = _Sampler(corpus, token_strings, config, seed)

    def near(latent: int) -> list[int]:
        return [other for other in neighbours.get(latent, ()) if other != latent][: config.neighbours]

    def sample(latents: Sequence[int]) -> Iterator[Context]:
        for chunk in chunks(latents, firings.counts, near):
            fired = firings.of(sorted({*chunk, *(other for latent in chunk for other in near(latent))}))
            for latent in chunk:
                yield from sampler.contexts(latent, *fired[latent], [fired[other][0] for other in near(latent)])

    return sample


def chunks(
    latents: Sequence[int], counts: np.ndarray, near: Callable[[int], Sequence[int]] = lambda latent: ()
) -> Iterator[list[int]]:
    """Runs of latents whose firings, with those of the latents `near` each, fit in memory together."""
    chunk: list[int] = []
    held = 0
    for latent in latents:
        need = int(counts[[latent, *near(latent)]].sum())
        if chunk and held + need > _CHUNK_FIRINGS:
            yield chunk
            chunk, held = [], 0
        chunk.append(latent)
        held += need
    if chunk:
        yield chunk


@dataclass(frozen=True)
class _Windows:
    """Windows of one feature: flat positions [start, stop) within row `row`."""

    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __getitem__(self, index: Any) -> _Windows:
        return _Windows(self.row[index], self.start[index], self.stop[index])


class _Taken:
    """A feature's windows so far: their places by document, their texts, and what those of train show."""

    def __init__(self) -> None:
        self.places: dict[int, list[tuple[int, int]]] = {}
        self.texts: set[bytes] = set()
        self.shown: set[bytes] = set()  # runs of `_RUN` tokens


class _Picker:
    """Takes windows in a given order: no overlap, no text twice, nothing shown, no document again unless `again`."""

    def __init__(self, tokens: np.ndarray, documents: np.ndarray, taken: _Taken, split: Split) -> None:
        self.tokens, self.documents, self.taken, self.split = tokens, documents, taken, split
        self.used: set[int] = set()  # documents, by this picker

    def pick(self, windows: _Windows, order: np.ndarray, count: int, again: bool) -> list[int]:
        picked: list[int] = []
        chosen = windows[order]
        documents = self.documents[chosen.row].tolist()
        for index, document, start, stop in zip(order.tolist(), documents, chosen.start.tolist(), chosen.stop.tolist()):
            if len(picked) == count:
                break
            places = self.taken.places.setdefault(document, [])
            if (document in self.used and not again) or any(start < high and low < stop for low, high in places):
                continue
            text = self.tokens[start:stop].tobytes()
            if text in self.taken.texts or not self._unseen(text):
                continue
            self.taken.texts.add(text)
            places.append((start, stop))
            self.used.add(document)
            picked.append(index)
        return picked

    def _unseen(self, text: bytes) -> bool:
        """Whether a window of test shares no run of tokens with those of train; what these show is kept."""
        runs = _runs(text, self.tokens.itemsize)
        if self.split == "test":
            return self.taken.shown.isdisjoint(runs)
        self.taken.shown |= runs
        return True

    def fill(self, windows: _Windows, order: np.ndarray, count: int) -> list[int]:
        """`count` windows: of new documents first, then of any."""
        picked = self.pick(windows, order, count, again=False)
        return picked + self.pick(windows, order, count - len(picked), again=True)


class _Sampler:
    """What is the same for all features of a corpus, and the drawing for one."""

    def __init__(self, corpus: Corpus, token_strings: TokenStrings, config: ContextsConfig, seed: int) -> None:
        import numpy as np

        self.corpus, self.config, self.seed = corpus, config, seed % 2**64
        self.tokens = np.asarray(corpus.tokens)  # a plain view: slicing a memmap costs more
        self.words = Words(corpus, token_strings)
        self.low, self.high = content_starts(corpus), corpus.offsets[1:]
        test = held_out(corpus, config.test_share, seed)[corpus.documents]
        self.split_of_row: np.ndarray = test.astype(np.int8)  # 0 train, 1 test
        by_start = np.argsort(corpus.starts, kind="stable")
        self.rows_by_start = [by_start[self.split_of_row[by_start] == split] for split in (0, 1)]
        self.sorted_starts = [corpus.starts[rows] for rows in self.rows_by_start]

    def contexts(
        self, feature: int, position: np.ndarray, activation: np.ndarray, near: Sequence[np.ndarray]
    ) -> Iterator[Context]:
        import numpy as np

        config = self.config
        # one stream a purpose: asking for more windows of one kind does not change another
        rngs = [np.random.default_rng([self.seed, feature, purpose]) for purpose in range(3)]
        windows, peaks = self._activating(rngs[0], position, activation)
        strata = np.empty(len(peaks), np.int64)
        strata[np.argsort(peaks, kind="stable")] = np.arange(len(peaks)) * config.quantiles // max(len(peaks), 1)
        near_by = self._near(rngs[1], position, near)
        taken = _Taken()
        example = 0
        splits: tuple[tuple[Split, int, int, int], ...] = (
            ("train", config.train, (config.train + 1) // 2, config.train // 2),
            ("test", config.test_activating, config.test_random, config.test_near),
        )
        for number, (split, n_activating, n_random, n_near) in enumerate(splits):
            mine = rngs[0].permutation(np.flatnonzero(self.split_of_row[windows.row] == number))
            picker = _Picker(self.tokens, self.corpus.documents, taken, split)
            chosen = np.array(self._spread(picker, windows, mine, strata, n_activating), np.int64)
            chosen = chosen[np.argsort(-peaks[chosen], kind="stable")]
            active = windows[chosen]

            picker = _Picker(self.tokens, self.corpus.documents, taken, split)
            nearby = near_by[self.split_of_row[near_by.row] == number]
            nearby = nearby[np.array(picker.fill(nearby, np.arange(len(nearby.row)), n_near), np.int64)]
            silent = self._random(rngs[2], number, active, position, n_random)
            silent = silent[np.array(picker.fill(silent, np.arange(len(silent.row)), n_random), np.int64)]

            kinds: tuple[tuple[Kind, _Windows, list[int | None]], ...] = (
                ("activating", active, strata[chosen].tolist()),
                ("random", silent, [None] * len(silent.row)),
                ("near", nearby, [None] * len(nearby.row)),
            )
            for kind, drawn, quantiles in kinds:
                for place, tokens, values, row, quantile in zip(*self._read(drawn, position, activation), quantiles):
                    document = int(self.corpus.documents[row])
                    yield Context(feature, example, split, kind, quantile, document, place, tokens, values)
                    example += 1

    def _around(self, rng: np.random.Generator, anchors: np.ndarray) -> _Windows:
        """A window for each anchor (a flat position), which lies anywhere in it; anchors on BOS are dropped."""
        import numpy as np

        row = self.corpus.row_of(anchors)
        within = anchors >= self.low[row]
        length = np.minimum(self.config.window, self.high[row] - self.low[row])
        start = anchors - (rng.random(len(anchors)) * length).astype(np.int64)
        start = np.maximum(np.minimum(start, self.high[row] - length), self.low[row])
        return _Windows(row, start, start + length)[within]

    def _activating(
        self, rng: np.random.Generator, position: np.ndarray, activation: np.ndarray
    ) -> tuple[_Windows, np.ndarray]:
        """Candidate windows and their maxima: around every firing, or a sample of many."""
        import numpy as np

        anchors = np.arange(len(position))
        if len(anchors) > _CANDIDATES:
            anchors = np.sort(rng.choice(len(anchors), _CANDIDATES, replace=False, shuffle=False))
        windows = self._around(rng, position[anchors])
        if not len(windows.row):
            return windows, np.zeros(0, np.float32)
        within, segment = _ranges(position.searchsorted(windows.start), position.searchsorted(windows.stop))
        return windows, np.maximum.reduceat(activation[within], np.flatnonzero(np.diff(segment, prepend=-1)))

    def _spread(
        self, picker: _Picker, windows: _Windows, order: np.ndarray, strata: np.ndarray, count: int
    ) -> list[int]:
        """`count` windows, as many of each stratum as there are; what one lacks comes from the others."""
        picked: list[int] = []
        share, more = divmod(count, self.config.quantiles)
        for stratum in reversed(range(self.config.quantiles)):
            quota = share + (stratum >= self.config.quantiles - more)
            picked += picker.pick(windows, order[strata[order] == stratum], quota, again=False)
        return picked + picker.fill(windows, order, count - len(picked))

    def _near(self, rng: np.random.Generator, position: np.ndarray, near: Sequence[np.ndarray]) -> _Windows:
        """Silent windows around the neighbours' firings, one of each neighbour in turn."""
        import numpy as np

        near = [fired for fired in near if len(fired)]
        if not near:
            return self._around(rng, position[:0])
        each = _TRIES * max(self.config.test_near, self.config.train // 2) // len(near) + 1
        anchors = np.stack([fired[rng.integers(0, len(fired), each)] for fired in near], axis=1).ravel()
        windows = self._around(rng, anchors)
        return windows[_silent(position, windows)]

    def _random(
        self, rng: np.random.Generator, split: int, like: _Windows, position: np.ndarray, count: int
    ) -> _Windows:
        """Silent windows of the split, placed in their documents and rows as the windows `like` are."""
        import numpy as np

        rows, starts = self.rows_by_start[split], self.sorted_starts[split]
        if not count or not len(like.row):  # nothing to match
            return like[:0]
        model = np.resize(rng.permutation(len(like.row)), _TRIES * max(count, len(like.row)))
        row, offset = like.row[model], (like.start - self.low[like.row])[model]
        length = (like.stop - like.start)[model]
        first = starts.searchsorted(self.corpus.starts[row], "left")
        last = starts.searchsorted(self.corpus.starts[row], "right")
        widen = np.maximum(_SAME_PLACE - (last - first), 0) // 2
        first, last = np.maximum(first - widen, 0), np.minimum(last + widen, len(rows))
        other = rows[rng.integers(first, last)]
        start = self.low[other] + offset
        windows = _Windows(other, start, start + length)
        # The first that fits each model, then the second of each: else places where few fit would be rare.
        fits = np.flatnonzero((windows.stop <= self.high[other]) & _silent(position, windows))
        place = fits % len(like.row)  # of its model among them all
        by_model = np.argsort(place, kind="stable")
        turn = np.empty_like(fits)
        turn[by_model] = np.arange(len(fits)) - place[by_model].searchsorted(place[by_model])
        return windows[fits[np.lexsort((place, turn))]]

    def _read(
        self, windows: _Windows, position: np.ndarray, activation: np.ndarray
    ) -> tuple[list[int], list[tuple[str, ...]], list[tuple[float, ...]], list[int]]:
        """Place in the document, tokens, activations and row of each window."""
        import numpy as np

        if not len(windows.row):
            return [], [], [], []
        length = windows.stop - windows.start
        at = windows.start[:, None] + np.arange(length.max())
        values: np.ndarray = np.zeros(at.shape, np.float32)
        within, segment = _ranges(position.searchsorted(windows.start), position.searchsorted(windows.stop))
        values[segment, position[within] - windows.start[segment]] = activation[within]
        numbers = self.words.at(np.minimum(at, windows.stop[:, None] - 1))
        words: list[list[str]] = self.words.strings[numbers].tolist()
        places = self.corpus.starts[windows.row] + windows.start - self.low[windows.row]
        lengths = length.tolist()
        tokens = [tuple(line[:n]) for line, n in zip(words, lengths)]
        activations = [tuple(line[:n]) for line, n in zip(values.tolist(), lengths)]
        return places.tolist(), tokens, activations, windows.row.tolist()


def _runs(window: _Tokens, step: int = 1) -> set[_Tokens]:
    """Each `_RUN` tokens in a row of a window; a token takes `step` places in it."""
    return {window[i : i + _RUN * step] for i in range(0, len(window) - _RUN * step + 1, step)}


def apart(windows: Iterable[Context], other: Iterable[Context]) -> tuple[Context, ...]:
    """Those of `windows` that have no 16 tokens in a row in common with any of the `other` split."""
    held = {run for context in other for run in _runs(context.tokens)}
    return tuple(context for context in windows if held.isdisjoint(_runs(context.tokens)))


def _ranges(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers of each [low, high) after each other, and which range each is of."""
    import numpy as np

    length = high - low
    segment = np.repeat(np.arange(len(low)), length)
    return np.arange(len(segment)) + np.repeat(low - (np.cumsum(length) - length), length), segment


def _silent(position: np.ndarray, windows: _Windows) -> np.ndarray:
    return position.searchsorted(windows.start) == position.searchsorted(windows.stop)


# --- contexts.parquet -------------------------------------------------------------------------


def _schema() -> Any:
    import pyarrow as pa

    integers = [pa.field(name, pa.int32()) for name in ("quantile", "document", "position")]
    return pa.schema(
        [
            pa.field("feature", pa.int32()),
            pa.field("example", pa.int32()),
            pa.field("split", pa.string()),
            pa.field("kind", pa.string()),
            *integers,
            pa.field("tokens", pa.list_(pa.string())),
            pa.field("activations", pa.list_(pa.float32())),
        ]
    )


def write_contexts(contexts: Iterable[Context], path: Path) -> None:
    """Stream contexts into Parquet. All contexts of a feature must follow each other.

    Features in rising order make reading a few of them fast: Parquet then skips other row groups.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            held: list[Context] = []

            def flush() -> None:
                columns = {name: [getattr(context, name) for context in held] for name in schema.names}
                writer.write_table(pa.table(columns, schema=schema))
                held.clear()

            for _, group in groupby(contexts, key=lambda context: context.feature):
                held.extend(group)
                if len(held) >= _ROW_GROUP:
                    flush()
            if held:
                flush()

    write_atomically(path, write)


def merge_contexts(files: Sequence[Path], path: Path) -> None:
    """Files of contexts after each other as one, with their row groups."""
    import pyarrow.parquet as pq

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, _schema(), compression="zstd") as writer:
            for file in files:
                with pq.ParquetFile(file) as part:
                    for group in range(part.num_row_groups):
                        writer.write_table(part.read_row_group(group))

    write_atomically(path, write)


def read_contexts(path: Path, features: Sequence[int] | None = None) -> dict[int, list[Context]]:
    """feature -> its contexts, in the order written; a feature without any has an empty list if asked for."""
    rows = FeatureRows(path)
    if features is None:
        with rows.opened() as parquet:
            table = parquet.read()
    else:
        table = rows.read(features)
    contexts: dict[int, list[Context]] = {feature: [] for feature in features or ()}
    plain = ("feature", "example", "split", "kind", "quantile", "document", "position")
    columns = [table[name].to_pylist() for name in plain]
    for values in zip(*columns, _lists(table["tokens"]), _lists(table["activations"])):
        context = Context(*values)
        contexts.setdefault(context.feature, []).append(context)
    return contexts


def _lists(column: Any) -> Iterator[tuple[Any, ...]]:
    """The tuples of a list column; several times faster than its to_pylist, and each string once in memory."""
    import pyarrow as pa

    for chunk in column.chunks:
        offsets = chunk.offsets.to_pylist()
        values = chunk.values
        if pa.types.is_string(values.type):
            encoded = values.dictionary_encode()
            flat = encoded.dictionary.to_numpy(zero_copy_only=False)[encoded.indices.to_numpy()].tolist()
        else:
            flat = values.to_numpy().tolist()
        yield from (tuple(flat[low:high]) for low, high in pairwise(offsets))
