"""The vectors that the re-encode test sees, against the same by hand; what is said where it cannot be made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from autointerp.artifacts import Corpus, CorpusInfo
from autointerp.composites import find_composites
from autointerp.composites.activation_evidence import Levels, UnderTest, conclude, project, to_test
from autointerp.composites.evidence import nonnegative_fit
from autointerp.composites.io import save_composites
from autointerp.composites.union import Harvested, nearest_lent
from autointerp.sae.model import SAE, SAEConfig

D, N = 8, 30


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 12)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    info = CorpusInfo("", "", 0, 9, int(offsets[-1]), 12, 12, "")
    Corpus.save(tmp_path, info, rng.integers(1, 50, offsets[-1]), offsets, np.arange(12), np.zeros(12))
    return Corpus(tmp_path)


def make(**changes: Any) -> SAE:
    torch.manual_seed(1)
    cfg = SAEConfig("relu", D, N, "autointerp", "float32", False, **changes)
    d_out = cfg.d_out or D
    shapes = {"W_enc": (D, N), "W_dec": (N, d_out), "b_enc": (N,), "b_dec": (d_out,)}
    return SAE(cfg, {name: torch.randn(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("batch_tokens", [1, 20, 1000])
def test_projections_are_of_what_f_and_its_parts_have_to_explain(corpus: Corpus, batch_tokens: int) -> None:
    sae, table, widths = make(), torch.randn(50, D), []
    rows = torch.cat([sae.W_dec, torch.randn(4, D)])  # 30 to 33 are of another SAE, and have no place in the code

    def activations(tokens: torch.Tensor) -> torch.Tensor:
        widths.append(tokens.numel())
        return table[tokens]

    pairs = {"own": [3, 7], "swapped": [11, 2], "random": [20, 21, 5]}
    tested = {
        1: UnderTest(dict(pairs), positions=np.array([1, 4, 5, 30])),  # type: ignore[arg-type]
        9: UnderTest({"own": [4]}, positions=np.array([2, 4])),
        12: UnderTest({"own": [5, 31]}, positions=np.array([2, 4, 9])),
    }
    subject: Any = SimpleNamespace(activations=activations)
    project(tested, corpus, sae, rows, subject, batch_tokens=batch_tokens, device="cpu")

    assert sum(widths) <= corpus.info.n_tokens * 9
    for f, one in tested.items():
        assert set(one.projections) == set(one.parts)
        for pair, parts in one.parts.items():
            x = table[torch.from_numpy(corpus.tokens[one.positions].astype(np.int64))]
            codes = sae.encode(x)
            codes[:, [f, *(part for part in parts if part < N)]] = 0
            left = x - sae.decode(codes)
            assert one.projections[pair] == pytest.approx((left @ rows[parts].T).numpy(), abs=1e-4), (f, pair)


def test_a_sum_of_two_parts_is_refitted_to_their_amounts() -> None:
    rng = np.random.default_rng(0)
    parts, amounts = rng.standard_normal((2, D)), rng.uniform(0, 3, (40, 2))
    assert nonnegative_fit(amounts @ parts @ parts.T, parts @ parts.T) == pytest.approx(amounts)


def row(feature: int, label: str, parts: list[int], union: list[int] | None = None) -> dict[str, Any]:
    figures = dict.fromkeys(("semantic", "reencode", "lift"), np.nan)
    named = {"constituents": parts, "coefficients": [1.0] * len(parts), "union_constituents": union or []}
    return {"feature": feature, "label": label, "failure": None} | named | figures


def test_what_is_tested_are_sums_and_children_of_more_frequent_latents() -> None:
    labels = {
        0: ("composite", [1, 2]), 3: ("split_child", [4]), 4: ("split_child", [3]), 6: ("possible", [7], [2]),
        7: ("possible", [8, 9, 10]), 11: ("composite", [12], [3]), 13: ("split_child", [], [1])
    }  # fmt: skip
    table = pd.DataFrame([row(f, *labels.get(f, ("atomic", []))) for f in range(N)])
    counts = np.full(N + 6, 100)
    counts[[4, 8]] = 500, 1
    tested = to_test(table, counts, seed=0)
    assert list(tested) == [0, 3, 6, 7, 11]
    assert tested[6].parts["own"] == [7, N + 2]
    assert tested[6].parts["swapped"] == [12, N + 3]  # what stands in for them is of the same dictionaries
    assert [part >= N for part in tested[6].parts["random"]] == [False, True]
    assert set(tested[0].parts) == {"own", "random"}  # the other sum has three parts
    assert len(tested[7].parts["random"]) == 3
    assert tested[3].parts == {"own": [4]}


def test_a_child_whose_parent_is_silent_though_its_direction_is_there_has_absorbed_it(tmp_path) -> None:
    W = np.random.default_rng(0).standard_normal((N, D))
    square = float(W[4] @ W[4])

    def child(together: float, strength: float, tokens: int = 100) -> UnderTest:
        return UnderTest(
            {"own": [4]}, np.arange(tokens), {"own": np.full((tokens, 1), strength * square)}, {"own": np.array([1.0])},
            {"own": [together / 0.01]}, [together], mode="additive",
        )  # fmt: skip

    table = pd.DataFrame([row(f, "split_child", [4]) for f in (1, 2, 3, 6)])
    children = {1: child(0.0, 1.0), 2: child(0.5, 1.0), 3: child(0.0, 0.1), 6: child(0.0, 1.0, tokens=99)}
    table.index = table["feature"]
    found = conclude(table.reindex(range(N)).assign(feature=range(N)), children, W, Levels()).loc[list(children)]
    assert found["label"].tolist() == ["absorption", *["split_child"] * 3]
    assert found["absorbed"].tolist() == [[4], [], [], []]
    assert found["failure"][6] == "absorption: 99 strong tokens, 100 are needed"
    assert found["reencode"].isna().all()
    save_composites(found, tmp_path / "composites.parquet")
    again = pd.read_parquet(tmp_path / "composites.parquet")
    assert list(again.columns) == list(found.columns)
    assert again["swapped"].map(len).sum() == 0


def test_a_transcoder_is_not_reencoded_and_says_so() -> None:
    one = UnderTest({"own": [1, 2]}, np.arange(200), {}, {}, {"own": [3.0, 2.0]}, [0.0, 0.0], mode="replacing")
    found = conclude(pd.DataFrame([row(0, "composite", [1, 2])]), {0: one}, np.eye(3, D), Levels())
    assert found["label"][0] == "composite"
    assert found["lift"][0] == 2.0
    assert "transcoder" in found["failure"][0]


class Fires:
    """Firings of latents that fire at these positions, with activation 1."""

    def __init__(self, *positions: list[int]) -> None:
        self.positions = list(map(np.array, positions))
        self.counts = np.array(list(map(len, positions)))
        self.info = SimpleNamespace(n_tokens=100)

    def of(self, latents: list[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {f: (self.positions[f], np.ones(len(self.positions[f]))) for f in latents}


def test_rows_of_the_union_dictionary_are_latents_behind_the_saes_own() -> None:
    own, union = Fires([1], [2, 3]), Fires([4], [5, 6, 7])
    both = Harvested(own, union)  # type: ignore[arg-type]
    assert both.counts.tolist() == [1, 2, 1, 3]
    assert {f: position.tolist() for f, (position, _) in both.of([1, 3]).items()} == {1: [2, 3], 3: [5, 6, 7]}
    assert Harvested(own).counts.tolist() == [1, 2]


def test_the_nearest_rows_of_the_union_dictionary_are_neither_the_latent_itself_nor_too_rare() -> None:
    x = torch.eye(4)
    W = torch.cat([x[:2], x[:1], x[:1] + x[1:2], x[:1] + x[2:3], x[:1] - x[1:2]])
    enough = np.array([True] * 5 + [False])
    assert nearest_lent(np.array([0]), W, 2, enough) == {0: [3, 4]}
    assert nearest_lent(np.array([0]), W, 2, np.array([True] * 4 + [False] * 2)) == {}


def test_an_empty_check_keeps_the_types_of_its_columns(tmp_path) -> None:
    table = find_composites(np.eye(4, dtype=np.float32))
    save_composites(conclude(table, {}, np.eye(4), Levels()), tmp_path / "composites.parquet")
    import pyarrow.parquet as pq

    schema = pq.read_schema(tmp_path / "composites.parquet")
    for name, kind in (("constituents", "int64"), ("coefficients", "double"), ("swapped", "int64")):
        assert str(schema.field(name).type) in (f"list<element: {kind}>", f"list<item: {kind}>")
    assert str(schema.field("mode").type) == "string"
