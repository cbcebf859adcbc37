"""A comparison as a table of pandas that a notebook shows as the viewer does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from autointerp.report.compare import COLUMNS
from autointerp.report.html import comparison_table


class ComparisonFrame(pd.DataFrame):
    """The rows of `report.compare.compare`. What is made of it (a part, a sum) is a table of pandas like any other."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> ComparisonFrame:
        whole = [name for name, kind in COLUMNS.items() if kind == "int64"]
        frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(whole, "Int64"))
        return cls(frame)

    def _repr_html_(self) -> str:
        rows = self.astype(object).where(self.notna(), None).to_dict("records")
        return comparison_table(rows)
