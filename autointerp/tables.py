"""The columns of the tables a run writes, and writing them. See the README for what each means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def schema(table: str) -> pa.Schema:
    import pyarrow as pa

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    columns: dict[str, dict[str, pa.DataType]] = {
        "selection": {
            "feature": whole,
            "firings": whole,
            "frequency": real,
            "max_activation": real,
            "selected": text,  # how it came among the features: features.select, "ids", or "constituent"
            "status": text,
            "failure": text,
        },
        "explanations": {
            "feature": whole,
            "explainer": text,
            "explanation": text,
            "model": text,
            "prompt_hash": text,
            "prompt_tokens": whole,
            "completion_tokens": whole,
            "status": text,
            "failure": text,
            "raw": text,
        },
        "scores": {
            "feature": whole,
            "explainer": text,
            "scorer": text,
            "control": text,
            "value": real,
            "low": real,
            "high": real,
            "n_scored": whole,
            "n_unscored": whole,
            "base_rate": real,
            "chance": real,  # mean value of a judge who knows nothing
            "corrected": real,  # (value − chance) / (1 − chance)
            "yes_rate": real,
            "ece": real,  # expected calibration error
            "failure": text,
        },
        "judgements": {
            "feature": whole,
            "explainer": text,
            "scorer": text,
            "control": text,
            "example": whole,
            "kind": text,
            "quantile": whole,
            "truth": real,
            "prediction": real,
            "probability": real,
            "truths": pa.list_(pa.float32()),
            "predictions": pa.list_(pa.float32()),
            "status": text,
            "failure": text,
            "text": text,  # what was judged, where it is no window of contexts.parquet
        },
        "usage": {
            "stage": text,
            "feature": whole,
            "model": text,
            "kind": text,
            "prompt_tokens": whole,
            "completion_tokens": whole,
            "cached_tokens": whole,
            "cached": pa.bool_(),
            "seconds": real,
            "attempts": whole,
            "outcome": text,
            "prompt_hash": text,
        },
        "cofiring": {
            "feature": whole,  # the composite
            "example": whole,
            "latent": whole,  # the composite itself, then each of its constituents, on the same tokens
            "document": whole,
            "position": whole,
            "tokens": pa.list_(text),
            "activations": pa.list_(pa.float32()),
        },
        "semantic": {
            "feature": whole,
            "pair": text,  # own, swapped or random
            "constituents": pa.list_(whole),
            "probabilities": pa.list_(real),  # that the composite's explanation entails each constituent's
            "semantic": real,  # the smallest
            "reverse": pa.list_(real),  # that each constituent's entails the composite's
            "semantic_either": real,  # the smallest
            "failure": text,
        },
        "evaluation": {"metric": text, "value": real, "low": real, "high": real, "n": whole, "note": text},
        "evaluation_positions": {"position": whole, "last": whole, "n": whole, "beyond": pa.bool_()},
        "neighbours": {"feature": whole, "rank": whole, "neighbour": whole, "cosine": real},
        "logits": {"feature": whole, "direction": text, "rank": whole, "token": text, "weight": real},
    }
    return pa.schema(list(columns[table].items()))


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
