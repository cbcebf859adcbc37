"""Who is near whom among the explained features, and that a crowd of near-duplicates lends nothing among itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.composites import neighbours
from autointerp.composites.neighbours import all_within
from autointerp.controls.other_feature import lenders
from autointerp.engine import models
from autointerp.engine.stage import Job, Use
from autointerp.stages import near, outputs
from autointerp.stages.near import NEAR, Near


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def crowd(n: int = 160, alike: int = 40, d: int = 256) -> np.ndarray:
    """Directions of which the first `alike` are nearly one; the last is zero."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, d))
    rows[:alike] = rows[0] + 0.5 * rng.normal(size=(alike, d))
    rows[-1] = 0
    return rows.astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 159), unique=True, max_size=60), st.sampled_from([3, 7, 64]), st.sampled_from([0, 1 << 30])
)
def test_all_who_are_near_are_found_in_blocks_of_any_size(among: list[int], block: int, memory: int) -> None:
    rows = crowd()
    cosines = unit(rows) @ unit(rows).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_WITHIN", block)
        got = {feature: others.tolist() for feature, others in all_within(rows, NEAR, among, memory=memory)}
    assert got == {f: [o for o in among if o != f and cosines[f, o] >= NEAR] for f in among}


def worked(folder: Path, rows: np.ndarray, statuses: list[str], monkeypatch: pytest.MonkeyPatch) -> Near:
    select, out = folder / "select", folder / "near"
    select.mkdir()
    out.mkdir()
    pq.write_table(pa.table({"feature": range(len(statuses)), "status": statuses}), select / "selection.parquet")
    monkeypatch.setattr(models, "open_sae", lambda *_: SimpleNamespace(W_dec=rows))
    monkeypatch.setattr(models, "device", lambda _: "cpu")
    session: Any = None
    near.work(Job(session, Use("near"), out, {"sae": folder, "select": select}))
    return Near(out)


def test_a_crowd_larger_than_the_neighbours_kept_lends_nothing_among_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = crowd()
    statuses = ["dead" if i == 7 else "ok" for i in range(len(rows))]
    known = worked(tmp_path, rows, statuses, monkeypatch)
    features = sorted(known)
    assert 7 not in features
    assert len(known[0]) == 38  # the whole crowd but itself and the one that is not explained
    assert known[159] == []
    lent = lenders(features, {f: f"text {f}" for f in features}, neighbours=known, seed=0)
    cosines = unit(rows) @ unit(rows).T
    assert all(cosines[f, other] < NEAR for f, others in lent.items() for other in others)
    assert sum(f < 40 for f in lent) == 39


def test_effects_stand_beside_those_of_features_outside_the_crowd_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = crowd()
    known = worked(tmp_path, rows, ["ok"] * len(rows), monkeypatch)
    tokens = [f"t{feature}" for feature in range(len(rows))]
    raised = {"feature": range(len(rows)), "direction": ["up"] * len(rows), "token": tokens}
    pq.write_table(pa.table(raised), tmp_path / "logits.parquet")
    config: Any = SimpleNamespace(seed=0)
    job = Job(SimpleNamespace(config=config), Use("score"), tmp_path, {"directions": tmp_path})  # type: ignore[arg-type]
    effects = outputs.direct(job, range(len(rows)), known)(range(40))
    for feature, effect in effects.items():
        beside = {int(token[1:]) for (token,) in effect.others}
        assert effect.own == (f"t{feature}",)
        assert beside
        assert not beside & set(range(40))


def test_where_none_is_near_another_all_may_lend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = worked(tmp_path, np.eye(3, dtype=np.float32), ["ok"] * 3, monkeypatch)
    assert dict(known) == {0: [], 1: [], 2: []}
