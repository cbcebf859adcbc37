"""Tables that are written in parts, and explanations read as a mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.config import parse_config
from autointerp.errors import ConfigError
from autointerp.stages import tables
from autointerp.stages.explained import Explained
from autointerp.tables import FeatureRows, concat, write_rows

TEXTS = st.none() | st.text(st.characters(codec="utf-8"), max_size=12)
STATUSES = st.sampled_from(["ok", "failed", "not_composite"])


def row(feature: int, text: str | None, status: str) -> dict[str, Any]:
    return {"feature": feature, "explainer": "default", "explanation": text, "status": status, "failure": None}


@given(st.dictionaries(st.integers(0, 10**6), st.tuples(TEXTS, STATUSES), max_size=30))
def test_explanations_read_as_a_mapping_are_those_of_the_table(tmp_path_factory: Any, told: Any):
    folder = tmp_path_factory.mktemp("explained")
    rows = [row(feature, *each) for feature, each in told.items()]
    write_rows(folder / "explanations.parquet", "explanations", rows)
    explained = Explained(folder)
    asked = {feature: text for feature, (text, status) in sorted(told.items()) if status != "not_composite"}
    assert explained.features == list(asked)
    assert dict(explained.texts) == {feature: text for feature, text in asked.items() if text}
    assert list(explained.texts) == sorted(explained.texts)
    assert all(feature not in explained.texts for feature in (-1, 10**6 + 1))


def test_a_feature_without_an_explanation_has_the_reason_of_its_row(tmp_path: Path):
    rows = [row(1, None, "failed") | {"failure": "it was cut"}, row(2, "the text a", "ok")]
    write_rows(tmp_path / "explanations.parquet", "explanations", rows)
    assert Explained(tmp_path).why_none(1) == "no explanation: it was cut"


@pytest.mark.parametrize("label", ["status", "explanation", "detection_low", "detection_q2", "detection_control"])
def test_a_scorer_named_like_another_column_is_refused_before_the_run(label: str):
    raw: dict[str, Any] = {"name": "n", "subject": {"model": "m"}, "corpus": {"source": "s"}, "sae": {"load": "x"}}
    scorers = [{"name": "lexical", "label": "detection"}, {"name": "lexical", "label": label}]
    config = parse_config(raw | {"explainers": ["token_stats"], "scorers": scorers, "controls": []})
    with pytest.raises(ConfigError, match=f"another column '{label}'"):
        list(tables.uses_of((), config))
    config = parse_config(raw | {"explainers": ["token_stats"], "scorers": scorers[1:], "controls": []})
    if label.startswith("detection"):
        assert list(tables.uses_of((), config))


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 60))
def test_parts_joined_hold_their_rows_in_order_in_few_row_groups(tmp_path_factory: Any, sizes: Any, group: int):
    folder = tmp_path_factory.mktemp("parts")
    features, files = iter(range(10**6)), []
    for number, size in enumerate(sizes):
        files.append(folder / f"part-{number:05d}.parquet")
        extra = {"recall": 0.5} if number % 2 else {}
        rows = [row(next(features), "x", "ok") | extra for _ in range(size)]
        write_rows(files[-1], "explanations", rows, extra)
    concat(files, "explanations", folder / "whole.parquet", group=group)
    whole = pq.ParquetFile(folder / "whole.parquet")
    assert whole.read(["feature"])["feature"].to_pylist() == list(range(sum(sizes)))
    groups = [whole.metadata.row_group(i).num_rows for i in range(whole.num_row_groups)]
    assert all(size >= group for size in groups[:-1])
    assert 0 not in groups[1:]
    wanted = {0, sum(sizes) // 2}
    read = FeatureRows(folder / "whole.parquet").read(wanted, ["feature"])["feature"].to_pylist()
    assert read == sorted(f for f in wanted if f < sum(sizes))


def test_a_column_that_only_a_later_part_has_is_in_the_whole_and_whole_numbers_stay_whole(tmp_path: Path):
    import pandas as pd

    first = pd.DataFrame({"feature": [0, 1], "n": pd.array([3, None], "Int64"), "why": [None, None]})
    second = pd.DataFrame({"feature": [2], "n": pd.array([5], "Int64"), "why": ["cut"], "recall": [0.5]})
    for name, frame in (("a", first), ("b", second)):
        frame.to_parquet(tmp_path / name, index=False)
    concat([tmp_path / "a", tmp_path / "b"], None, tmp_path / "whole.parquet")
    whole = pd.read_parquet(tmp_path / "whole.parquet")
    assert whole["n"].dtype == "Int64"
    assert whole["n"].dropna().tolist() == [3, 5]
    assert whole["why"].dropna().tolist() == ["cut"]
    assert whole["recall"].dropna().tolist() == [0.5]
