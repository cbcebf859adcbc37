"""A composite's constituents are given with their windows, but none that quotes one of its own of the other split."""

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autointerp.activations.contexts import write_contexts
from autointerp.records import Context
from autointerp.stages.given import makers_of

QUOTED, OTHER = tuple(f" q{i}" for i in range(20)), tuple(f" o{i}" for i in range(20))


async def asks(feature, llm, *, constituents=()): ...


asks.needs = frozenset({"constituents"})


@pytest.mark.parametrize(("split", "opposite"), [("train", "test"), ("test", "train")])
def test_a_constituents_window_that_quotes_the_other_split_is_left_out(tmp_path: Path, split, opposite) -> None:
    def window(feature: int, example: int, of, text: tuple[str, ...]) -> Context:
        return Context(feature, example, of, "activating", 0, example, 0, text, (1.0,) * len(text))

    contexts = [
        window(1, 0, split, QUOTED),
        window(1, 1, split, OTHER),
        window(1, 2, opposite, OTHER),
        window(7, 0, split, OTHER),
        window(7, 1, opposite, QUOTED),
    ]
    inputs = {name: tmp_path / name for name in ("reencode", "contexts")}
    for folder in inputs.values():
        folder.mkdir()
    write_contexts(contexts, inputs["contexts"] / "contexts.parquet")
    row = {"feature": 7, "label": "composite", "constituents": [1], "coefficients": [0.8], "union_constituents": []}
    table = pa.Table.from_pylist([row])
    pq.write_table(table, inputs["reencode"] / "composites.parquet")
    make = makers_of(asks)["constituents"]
    (part,) = make(SimpleNamespace(inputs=inputs), split, {1: "dogs"})([7])[7]
    assert (part.feature, part.explanation) == (1, "dogs")
    assert [context.tokens for context in part.contexts] == [OTHER]
