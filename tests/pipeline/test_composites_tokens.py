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
from autointerp.composites.activation_evidence import UnderTest, conclude, project, to_test
from autointerp.composites.evidence import nonnegative_fit
from autointerp.composites.io import save_composites
from autointerp.composites.union import lent, lent_sums
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

    def activations(tokens: torch.Tensor) -> torch.Tensor:
        widths.append(tokens.numel())
        return table[tokens]

    pairs = {"own": [3, 7], "swapped": [11, 2], "random": [20, 21, 5]}
    tested = {
        1: UnderTest(dict(pairs), positions=np.array([1, 4, 5, 30])),  # type: ignore[arg-type]
        9: UnderTest({"own": [4]}, positions=np.array([2, 4])),
    }
    subject: Any = SimpleNamespace(activations=activations)
    project(tested, corpus, sae, subject, batch_tokens=batch_tokens, device="cpu")

    assert sum(widths) <= corpus.info.n_tokens * 9
    for f, one in tested.items():
        assert set(one.projections) == set(one.parts)
        for pair, parts in one.parts.items():
            x = table[torch.from_numpy(corpus.tokens[one.positions].astype(np.int64))]
            codes = sae.encode(x)
            codes[:, [f, *parts]] = 0
            left = x - sae.decode(codes)
            assert one.projections[pair] == pytest.approx((left @ sae.W_dec[parts].T).numpy(), abs=1e-4), (f, pair)


def test_a_sum_of_two_parts_is_refitted_to_their_amounts() -> None:
    rng = np.random.default_rng(0)
    parts, amounts = rng.standard_normal((2, D)), rng.uniform(0, 3, (40, 2))
    assert nonnegative_fit(amounts @ parts @ parts.T, parts @ parts.T) == pytest.approx(amounts)


def row(feature: int, label: str, parts: list[int], union: list[int] | None = None) -> dict[str, Any]:
    figures = dict.fromkeys(("semantic", "reencode", "lift"), np.nan)
    named = {"constituents": parts, "coefficients": [1.0] * len(parts), "union_constituents": union or []}
    return {"feature": feature, "label": label, "failure": None} | named | figures


def test_what_is_tested_are_sums_of_harvested_latents_and_children_of_more_frequent_ones() -> None:
    counts = np.full(N, 100)
    counts[[4, 8]] = 500, 1
    table = pd.DataFrame(
        [row(0, "composite", [1, 2]), row(3, "split_child", [4]), row(4, "split_child", [3]), row(5, "atomic", []),
         row(6, "possible", [7], [2]), row(7, "possible", [8, 9, 10])]
    )  # fmt: skip
    tested = to_test(table, counts, seed=0)
    assert list(tested) == [0, 3, 7]
    assert set(tested[0].parts) == {"own", "random"}  # the other sum has three parts
    assert len(tested[7].parts["random"]) == 3
    assert tested[3].parts == {"own": [4]}


def test_a_child_whose_parent_is_silent_though_its_direction_is_there_has_absorbed_it(tmp_path) -> None:
    sae = make()
    square = float(sae.W_dec[4] @ sae.W_dec[4])

    def child(together: float, strength: float, tokens: int = 100) -> UnderTest:
        return UnderTest(
            {"own": [4]}, np.arange(tokens), {"own": np.full((tokens, 1), strength * square)}, {"own": np.array([1.0])},
            {"own": [together / 0.01]}, [together], mode="additive",
        )  # fmt: skip

    table = pd.DataFrame([*(row(f, "split_child", [4]) for f in (1, 2, 3, 6)), row(5, "composite", [1], [0])])
    children = {1: child(0.0, 1.0), 2: child(0.5, 1.0), 3: child(0.0, 0.1), 6: child(0.0, 1.0, tokens=99)}
    found = conclude(table, children, {5: {"cofire": 0.7}}, sae, None)
    assert found["label"].tolist() == ["absorption", *["split_child"] * 3, "composite"]
    assert found["absorbed"].tolist() == [[4], [], [], [], []]
    assert found["failure"][3] == "absorption: 99 strong tokens, 100 are needed"
    assert "union SAE" in found["failure"][4]
    assert found["cofire"].fillna(-1).tolist() == [-1, -1, -1, -1, 0.7]
    assert found["reencode"].isna().all()
    save_composites(found, tmp_path / "composites.parquet")
    again = pd.read_parquet(tmp_path / "composites.parquet")
    assert list(again.columns) == list(found.columns)
    assert again["swapped"].map(len).sum() == 0


def test_a_transcoder_is_not_reencoded_and_says_so() -> None:
    one = UnderTest({"own": [1, 2]}, np.arange(200), {}, {}, {"own": [3.0, 2.0]}, [0.0, 0.0], mode="replacing")
    found = conclude(pd.DataFrame([row(0, "composite", [1, 2])]), {0: one}, {}, make(d_out=5), None)
    assert found["label"][0] == "composite"
    assert found["lift"][0] == 2.0
    assert "transcoder" in found["failure"][0]


def test_parts_of_another_sae_that_fire_together_are_told_from_those_that_exclude_each_other(corpus: Corpus) -> None:
    tokens = corpus.tokens.astype(np.int64)
    left, right = tokens % 2 == 0, tokens % 2 == 1
    table = torch.zeros(50, D)
    table[:, 0], table[::2, 1], table[1::2, 2] = 1, 1, 1  # dimension 0: any token; 1: even ones; 2: odd ones

    def sae_of(rows: list[list[int]], **changes: Any) -> SAE:
        encoder = torch.stack([torch.eye(D)[dims].sum(0) for dims in rows])
        cfg = SAEConfig("relu", D, len(rows), "autointerp", "float32", False, **changes)
        tensors = {"W_enc": encoder.T.contiguous(), "W_dec": encoder, "b_enc": torch.zeros(len(rows))}
        return SAE(cfg, tensors | {"b_dec": torch.zeros(D)})

    sae, union = sae_of([[0], [0], [5]]), sae_of([[0], [0], [1], [2]])
    found = pd.DataFrame([row(0, "composite", [], [0, 1]), row(1, "possible", [], [2, 3]), row(2, "atomic", [])])
    everywhere = np.arange(len(tokens))
    fired = {0: (everywhere, np.ones(len(tokens))), 1: (everywhere, np.ones(len(tokens)))}
    firings: Any = SimpleNamespace(
        counts=np.array([len(tokens), len(tokens), 0]), of=lambda some: {f: fired[f] for f in some}
    )
    subject: Any = SimpleNamespace(activations=lambda tokens: table[tokens])
    turn = np.arange(corpus.info.n_rows)
    sums = lent_sums(found, sae.cfg.d_sae)
    of, _ = lent(
        sums, found, corpus, firings, sae, union, subject, turn, tokens=1000, seed=0, batch_tokens=20, device="cpu"
    )
    assert left.any()
    assert right.any()
    assert {f: (one["cofire"], one["cofire_swapped"], one["tokens"]) for f, one in of.items()} == {
        0: (1.0, 0.0, len(tokens)),
        1: (0.0, 1.0, len(tokens)),
    }


def test_an_empty_check_keeps_the_types_of_its_columns(tmp_path) -> None:
    table = find_composites(np.eye(4, dtype=np.float32))
    save_composites(conclude(table, {}, {}, make(), None), tmp_path / "composites.parquet")
    import pyarrow.parquet as pq

    schema = pq.read_schema(tmp_path / "composites.parquet")
    for name, kind in (("constituents", "int64"), ("coefficients", "double"), ("swapped", "int64")):
        assert str(schema.field(name).type) in (f"list<element: {kind}>", f"list<item: {kind}>")
    assert str(schema.field("mode").type) == "string"
