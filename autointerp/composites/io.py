"""Write composites.parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

Frame: TypeAlias = Any  # a pandas.DataFrame: its own types call every second column an array


def save_composites(table: Frame, path: Path) -> None:
    """Write `table` as Parquet; a list column whose lists are all empty keeps the type of its items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = pa.Table.from_pandas(table, preserve_index=False)
    for i, column in enumerate(written.schema):
        if pa.types.is_list(column.type) and pa.types.is_null(column.type.value_type):
            items = pa.list_(
                pa.float64() if column.name.endswith(("coefficients", "places", "cosines")) else pa.int64()
            )
            written = written.set_column(i, column.name, written[column.name].cast(items))
        elif pa.types.is_null(column.type):
            written = written.set_column(i, column.name, written[column.name].cast(pa.string()))
    pq.write_table(written, path)
