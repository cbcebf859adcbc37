"""What an explainer says of each feature, read by the stages that score it: about as large as its Parquet file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.tables import compute


class Texts(Mapping[int, str]):
    """Feature -> its explanation, of those that have one, in rising order.

    A dictionary of 100,000 explanations takes five times the memory of this.
    """

    def __init__(self, features: pa.ChunkedArray, texts: pa.ChunkedArray) -> None:
        pc = compute()
        written = pc.greater(pc.fill_null(pc.utf8_length(texts), 0), 0)
        numbers = features.filter(written).to_numpy()
        order = np.argsort(numbers, kind="stable")
        self._features = numbers[order]
        self._texts = texts.filter(written).take(pa.array(order)).combine_chunks()

    def __getitem__(self, feature: int) -> str:
        place = int(np.searchsorted(self._features, feature))
        if place == len(self._features) or self._features[place] != feature:
            raise KeyError(feature)
        return self._texts[place].as_py()

    def __iter__(self) -> Iterator[int]:
        return map(int, self._features)

    def __len__(self) -> int:
        return len(self._features)


class Explained:
    """The features that an explainer was asked about, from its explanations.parquet."""

    def __init__(self, folder: Path) -> None:
        columns = ["feature", "explanation", "status", "failure"]
        table = pq.read_table(folder / "explanations.parquet", columns=columns)
        table = table.filter(compute().not_equal(table["status"], "not_composite"))
        self.texts = Texts(table["feature"], table["explanation"])
        self.features = sorted(table["feature"].to_pylist())
        lost = table.filter(compute().is_valid(table["failure"]))
        self._failures = dict(zip(lost["feature"].to_pylist(), lost["failure"].to_pylist()))

    def why_none(self, feature: int) -> str:
        """Why a feature has no explanation."""
        return f"no explanation: {self._failures.get(feature)}"
