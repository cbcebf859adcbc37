"""Columns and types of the Parquet tables that a run writes; writing them, and reading the rows of a few features."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH = 1 << 14  # rows in memory at a time


# Table -> column -> type: text (UTF-8), whole (64-bit), real and float (64- and 32-bit), yes or no; [x]: a list of x.
COLUMNS: dict[str, dict[str, str]] = {
    "selection": {
        "feature": "whole",
        "firings": "whole",  # tokens on which it fires, over the whole harvest
        "frequency": "real",  # firings over the tokens harvested
        "max_activation": "real",
        "selected": "text",  # how it came among the features: features.select, "ids", or "constituent"
        "status": "text",  # ok, dead or too_rare
        "failure": "text",  # why it is not explained
    },
    "explanations": {
        "feature": "whole",
        "explainer": "text",  # its label in the config
        "explanation": "text",  # null where there is none
        "model": "text",  # the language model; null where none is asked
        "prompt_hash": "text",  # of the first prompt sent
        "prompt_tokens": "whole",
        "completion_tokens": "whole",
        "status": "text",  # ok, failed, or not_composite
        "failure": "text",  # why there is no explanation
        "raw": "text",  # the model's whole answer
    },
    "calibration": {
        "feature": "whole",
        "explainer": "text",
        "scorer": "text",
        "truth": "real",  # 1 where the answer is Yes
        "evidence": "real",  # of the judge: log odds of a Yes, or 1 and 0
    },
    "scores": {
        "feature": "whole",
        "explainer": "text",  # whose explanation
        "scorer": "text",  # its label in the config
        "control": "text",  # which control put another explanation in its place; null for the score itself
        "value": "real",  # null where nothing could be scored
        "low": "real",  # 95 % interval
        "high": "real",
        "n_scored": "whole",  # examples that were judged
        "n_unscored": "whole",  # examples whose judgement was lost or unreadable
        "base_rate": "real",  # share of the scored examples that are positive
        "chance": "real",  # mean value of a judge who knows nothing
        "corrected": "real",  # (value − chance) / (1 − chance): the headline
        "yes_rate": "real",  # share of the examples to which the judge says yes
        "ece": "real",  # expected calibration error of the judge's probabilities
        "failure": "text",  # why there is no value
    },
    "judgements": {
        "feature": "whole",
        "explainer": "text",
        "scorer": "text",
        "control": "text",
        "example": "whole",  # number of the context in contexts.parquet, or of what the scorer made
        "kind": "text",  # activating, random or near; or how the scorer made it, such as marked or neighbour
        "quantile": "whole",  # of an activating window, 0 = weakest
        "truth": "real",  # 1 where the answer is Yes, else 0; of simulation the window's highest activation
        "prediction": "real",  # 1 or 0, or the evidence that it is ranked by; null where it could not be judged
        "probability": "real",  # of a yes, where the judge gives it
        "truths": "[float]",  # activations by token, of scorers that predict these
        "predictions": "[float]",  # by token, from 0 to 10
        "status": "text",  # ok or failed
        "failure": "text",  # why it could not be judged
        "text": "text",  # what was judged, where it is no window as it stands in contexts.parquet
    },
    "usage": {
        "stage": "text",  # for which the request was made
        "feature": "whole",
        "model": "text",
        "kind": "text",  # complete: a text; choose: one of some answers; fill: a digit a token; weigh: a text's nats
        "prompt_tokens": "whole",
        "completion_tokens": "whole",
        "cached_tokens": "whole",  # prompt tokens that the endpoint's prefix cache served
        "cached": "yes or no",  # answered from the request cache: it cost nothing
        "seconds": "real",  # until the answer
        "attempts": "whole",  # retries included
        "outcome": "text",  # ok, or why it failed
        "prompt_hash": "text",  # of the whole prompt
    },
    "cofiring": {
        "feature": "whole",  # the composite
        "example": "whole",  # number of the window
        "latent": "whole",  # the composite itself, then each of its constituents, on the same tokens
        "dictionary": "text",  # union for a constituent of the union dictionary; else null
        "document": "whole",  # of the corpus
        "position": "whole",  # of the window's first token in its document
        "tokens": "[text]",  # joined, they are the text
        "activations": "[float]",  # of the latent, on each of these tokens
    },
    "semantic": {
        "feature": "whole",
        "pair": "text",  # own, swapped or random
        "constituents": "[whole]",
        "union_constituents": "[whole]",  # of the union dictionary; they come after the others
        "probabilities": "[real]",  # that the composite's explanation entails each constituent's
        "semantic": "real",  # the smallest
        "reverse": "[real]",  # that each constituent's entails the composite's
        "semantic_either": "real",  # the smallest
        "by_concept": "[text]",  # latents whose explanations say the composite's concepts, by embedding and judge
        "agree": "real",  # share of the pair's constituents that are among them
        "failure": "text",
    },
    "causal": {
        "feature": "whole",  # the composite
        "how": "text",  # ablated where it fires, or steered where it is silent
        "arm": "text",  # what is done in its place; clean: nothing
        "output": "real",  # agreement of the effects on the log probabilities, 1 where they are the same
        "output_low": "real",  # 95 % interval over documents
        "output_high": "real",
        "output_cosine": "real",  # of the two effects
        "later": "real",  # of those on what later layers write, or on the latents of a later SAE
        "later_low": "real",  # 95 % interval over documents
        "later_high": "real",
        "later_cosine": "real",  # of the two effects
        "kl": "real",  # nats, from the composite's next-token distribution to the arm's
        "top": "real",  # share of the ten tokens that the composite raises most
        "tokens": "whole",  # on which it was tried
        "documents": "whole",  # in which these lie
        "failure": "text",
    },
    "evaluation": {
        "metric": "text",  # name of the figure
        "value": "real",  # null where it is not defined
        "low": "real",  # 95 % interval over documents
        "high": "real",
        "n": "whole",  # tokens, documents or latents that it is over
        "note": "text",
    },
    "evaluation_positions": {
        "position": "whole",  # in the context, from 0
        "last": "whole",  # of a band of positions
        "n": "whole",  # tokens
        "beyond": "yes or no",  # further than the contexts that the SAE was trained on
    },
    "histograms": {
        "feature": "whole",
        "highest": "real",  # its highest activation in the harvest
        "counts": "[whole]",  # its firings in equal steps of activation from 0 to the highest
    },
    "neighbours": {
        "feature": "whole",
        "rank": "whole",  # 0 = nearest
        "neighbour": "whole",  # a latent of the same SAE
        "cosine": "real",  # of the two decoder rows
    },
    "logits": {
        "feature": "whole",
        "direction": "text",  # up: tokens that the feature raises; down: that it lowers
        "rank": "whole",  # 0 = strongest
        "token": "text",
        "weight": "real",  # what the direct path from the decoder row adds to the token's logit
    },
}


def schema(table: str) -> pa.Schema:
    """The columns of a table that `COLUMNS` names."""
    import pyarrow as pa

    types: dict[str, pa.DataType] = {
        "text": pa.string(),
        "whole": pa.int64(),
        "real": pa.float64(),
        "float": pa.float32(),
        "yes or no": pa.bool_(),
    }
    types |= {f"[{name}]": pa.list_(kind) for name, kind in types.items()}
    return pa.schema([(column, types[kind]) for column, kind in COLUMNS[table].items()])


def to_table(name: str, rows: Sequence[Mapping[str, Any]], extra: Iterable[str] = ()) -> pa.Table:
    """Rows as a table of the schema `name`; `extra` float columns come after the fixed ones."""
    import pyarrow as pa

    full = schema(name)
    for column in extra:
        full = full.append(pa.field(column, pa.float64()))
    return pa.table({f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in full}, schema=full)


def write_rows(path: Path, name: str, rows: Sequence[Mapping[str, Any]], extra: Iterable[str] = ()) -> None:
    import pyarrow.parquet as pq

    pq.write_table(to_table(name, rows, extra), path)


def write_stream(path: Path, name: str, rows: Iterable[Mapping[str, Any]], group: int = 1 << 15) -> None:
    """Rows of the schema `name` from an iterator of any length, a row group for each `group` rows."""
    import pyarrow.parquet as pq

    waiting = iter(rows)
    with pq.ParquetWriter(path, schema(name)) as writer:
        while part := list(islice(waiting, group)):
            writer.write_table(to_table(name, part))


def concat(files: Sequence[Path], name: str | None, to: Path, group: int = _BATCH) -> None:
    """Files of one table after each other as one file, columns united; empty where there is no file.

    Small files share a row group, of `group` rows or a few more; so many rows are in memory at a time. Columns beyond
    the schema `name`, where there is one, are those that any of the files has; a row whose file lacks one has null.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas = [*([] if name is None else [schema(name)]), *map(pq.read_schema, files)]
    united = pa.unify_schemas(schemas, promote_options="permissive")
    united = united.with_metadata(schemas[0].metadata if name is None else None)  # how pandas reads whole numbers
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(to, united) as writer:
        for file in files:
            with pq.ParquetFile(file) as source:
                for batch in source.iter_batches(batch_size=_BATCH):
                    waiting.append(_united(pa.Table.from_batches([batch]), united))
                    if sum(map(len, waiting)) >= group:
                        writer.write_table(pa.concat_tables(waiting))
                        waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _united(rows: pa.Table, united: pa.Schema) -> pa.Table:
    import pyarrow as pa

    for field in united:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows.select(united.names).cast(united).replace_schema_metadata(united.metadata)


def compute() -> Any:
    """pyarrow.compute, whose functions are made at import and unknown to type checkers."""
    import pyarrow.compute

    return pyarrow.compute


class FeatureRows:
    """A Parquet file whose rows each have a `feature`: those of a few are read without reading the others.

    Row groups whose smallest and largest feature leave room for none that is asked for are passed over, so that a file
    in the order of its features is read once in all, whatever the number of reads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._metadata, self._low, self._high = _bounds(path, path.stat().st_size, path.stat().st_mtime_ns)

    def read(self, features: Collection[int], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of `features`, in the file's order."""
        import pyarrow as pa

        with self.opened() as parquet:
            names = list(parquet.schema_arrow.names if columns is None else columns)
            parts = list(self._parts(parquet, features, list(dict.fromkeys([*names, "feature"]))))
            table = pa.Table.from_batches(parts) if parts else parquet.schema_arrow.empty_table()
        return table.select(names)

    def opened(self) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self._path, metadata=self._metadata)  # pq.read_table would import pandas

    def _parts(
        self, parquet: pq.ParquetFile, features: Collection[int], columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        pc = compute()
        wanted = pa.array(sorted(set(features)), pa.int64())
        for group in self._groups(sorted(set(features))):
            for batch in parquet.iter_batches(_BATCH, row_groups=[group], columns=columns):
                kept = batch.filter(pc.is_in(pc.cast(batch["feature"], pa.int64()), wanted))
                if len(kept):
                    yield kept

    def _groups(self, features: Sequence[int]) -> Iterator[int]:
        """Row groups within whose bounds a feature lies; `features` are rising."""
        for group, (low, high) in enumerate(zip(self._low, self._high)):
            place = bisect_left(features, low)
            if place < len(features) and features[place] <= high:
                yield group


@lru_cache(maxsize=4)  # metadata of a table of 100,000 features is 10 MB, and live tables are new files each time
def _bounds(path: Path, size: int, changed: int) -> tuple[Any, list[float], list[float]]:
    """The file's metadata, and the smallest and largest feature of each row group; kept while the file is the same."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    low, high = [], []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "feature")
        bounds = column.statistics
        smallest, largest = (bounds.min, bounds.max) if bounds is not None and bounds.has_min_max else (-inf, inf)
        low.append(smallest)
        high.append(largest)
    return metadata, low, high


def append_rows(path: Path, name: str, rows: Sequence[Mapping[str, Any]], sort_by: str) -> None:
    """Add rows to a table that is small enough for memory, in the order of a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables([pq.read_table(path), to_table(name, rows)], promote_options="default")
    pq.write_table(table.sort_by(sort_by), path)
