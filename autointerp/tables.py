"""Columns and types of the Parquet tables that a run writes, and writing them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


# Table -> column -> type: text (UTF-8), whole (64-bit), real and float (64- and 32-bit), yes or no; [x]: a list of x.
COLUMNS: dict[str, dict[str, str]] = {
    "selection": {
        "feature": "whole",
        "firings": "whole",
        "frequency": "real",
        "max_activation": "real",
        "selected": "text",  # how it came among the features: features.select, "ids", or "constituent"
        "status": "text",
        "failure": "text",
    },
    "explanations": {
        "feature": "whole",
        "explainer": "text",
        "explanation": "text",
        "model": "text",
        "prompt_hash": "text",
        "prompt_tokens": "whole",
        "completion_tokens": "whole",
        "status": "text",
        "failure": "text",
        "raw": "text",
    },
    "scores": {
        "feature": "whole",
        "explainer": "text",
        "scorer": "text",
        "control": "text",
        "value": "real",
        "low": "real",
        "high": "real",
        "n_scored": "whole",
        "n_unscored": "whole",
        "base_rate": "real",
        "failure": "text",
    },
    "judgements": {
        "feature": "whole",
        "explainer": "text",
        "scorer": "text",
        "control": "text",
        "example": "whole",
        "kind": "text",
        "quantile": "whole",
        "truth": "real",
        "prediction": "real",
        "probability": "real",
        "truths": "[float]",
        "predictions": "[float]",
        "status": "text",
        "failure": "text",
    },
    "usage": {
        "stage": "text",
        "feature": "whole",
        "model": "text",
        "kind": "text",
        "prompt_tokens": "whole",
        "completion_tokens": "whole",
        "cached_tokens": "whole",
        "cached": "yes or no",
        "seconds": "real",
        "attempts": "whole",
        "outcome": "text",
        "prompt_hash": "text",
    },
    "cofiring": {
        "feature": "whole",  # the composite
        "example": "whole",
        "latent": "whole",  # the composite itself, then each of its constituents, on the same tokens
        "document": "whole",
        "position": "whole",
        "tokens": "[text]",
        "activations": "[float]",
    },
    "semantic": {
        "feature": "whole",
        "pair": "text",  # own, swapped or random
        "constituents": "[whole]",
        "probabilities": "[real]",  # that the composite's explanation entails each constituent's
        "semantic": "real",  # the smallest
        "reverse": "[real]",  # that each constituent's entails the composite's
        "semantic_either": "real",  # the smallest
        "failure": "text",
    },
    "evaluation": {"metric": "text", "value": "real", "low": "real", "high": "real", "n": "whole", "note": "text"},
    "evaluation_positions": {"position": "whole", "last": "whole", "n": "whole", "beyond": "yes or no"},
    "neighbours": {"feature": "whole", "rank": "whole", "neighbour": "whole", "cosine": "real"},
    "logits": {"feature": "whole", "direction": "text", "rank": "whole", "token": "text", "weight": "real"},
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


def concat(files: Sequence[Path], name: str, to: Path) -> None:
    """Files of one table after each other as one file, a row group each, columns united; empty where there is no file.

    One file is in memory at a time. Columns beyond the schema `name` are those that any of the files has; a row whose
    file lacks one has null there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas = [pq.read_schema(file) for file in files]
    united = pa.unify_schemas([schema(name), *schemas]).remove_metadata() if schemas else schema(name)
    with pq.ParquetWriter(to, united) as writer:
        for file in files:
            with pq.ParquetFile(file) as source:
                for batch in source.iter_batches(batch_size=1 << 16):
                    rows = pa.Table.from_batches([batch])
                    for field in united:
                        if field.name not in rows.column_names:
                            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
                    writer.write_table(rows.select(united.names).cast(united))


def append_rows(path: Path, name: str, rows: Sequence[Mapping[str, Any]], sort_by: str) -> None:
    """Add rows to a table that is small enough for memory, in the order of a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables([pq.read_table(path), to_table(name, rows)], promote_options="default")
    pq.write_table(table.sort_by(sort_by), path)
