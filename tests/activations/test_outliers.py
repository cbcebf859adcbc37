"""Attention sinks: rows of outlying norm are found whatever their size, and leave no firing behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from autointerp.activations import outliers
from autointerp.activations.dense import harvest_dense
from autointerp.activations.harvest import Harvest, harvest, harvest_shard, merge_shards, shard_path
from autointerp.activations.outliers import find_outliers, is_outlying
from autointerp.artifacts import Corpus, CorpusInfo, Firings
from autointerp.progress import Progress

LATENTS, SINK = 4, 9  # the token that is a sink wherever it stands


def corpus_of(folder: Path, rows: list[list[int]]) -> Corpus:
    lengths = [len(row) for row in rows]
    info = CorpusInfo("test", "test", None, 16, sum(lengths), len(rows), len(rows), "")
    folder.mkdir(parents=True, exist_ok=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    Corpus.save(folder, info, np.concatenate(rows), offsets, np.arange(len(rows)), np.zeros(len(rows)))
    return Corpus(folder)


def subject(tokens: torch.Tensor) -> torch.Tensor:
    """[b, s] -> [b, s, 2]: the token, and its place; a row's first token and SINK are a thousand times as long."""
    place = torch.arange(tokens.shape[1]).expand_as(tokens)
    x = torch.stack([1 + tokens % 3, place % 2], dim=-1).float()
    return torch.where(((place == 0) | (tokens == SINK))[..., None], 1000 * x, x)


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latent i < 3 fires on first coordinates that are i + 1 (times a thousand too), latent 3 on every row."""
    latent = (x[:, 0] - 1).long() % 3
    index = torch.arange(len(x))
    return torch.cat([index, index]), torch.cat([latent, latent * 0 + 3]), torch.cat([x[:, 0], 1 + x[:, 1]])


def run(corpus: Corpus, folder: Path, activations=subject, threshold: float | None = 50.0, shard: int = 12) -> Firings:
    harvest(
        corpus, activations, encode, LATENTS, folder, hook="h", skip_bos=False, batch_tokens=16, device="cpu",
        outlier_threshold=threshold, shard_tokens=shard, bar=Progress("harvest", None, "tokens"),
    )  # fmt: skip
    return Firings(folder)


def sinks(corpus: Corpus) -> list[int]:
    first = corpus.offsets[:-1][np.diff(corpus.offsets) > 0]
    return sorted({*first.tolist(), *np.flatnonzero(np.asarray(corpus.tokens) == SINK).tolist()})


text = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=15), min_size=1, max_size=10)


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 60), st.floats(1e3, 1e6), st.integers(1, 20), st.randoms(use_true_random=False))
def test_planted_sinks_are_found_whatever_their_size(n: int, size: float, at_once: int, random) -> None:
    rng = np.random.default_rng(random.randrange(1000))
    rows = rng.normal(size=(n, 5)) + 3
    planted = sorted(random.sample(range(n), k=random.randrange((n + 1) // 2)))
    rows[planted] *= size / np.linalg.norm(rows[planted], axis=1, keepdims=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outliers, "AT_ONCE", 5 * at_once)
        seen, index = find_outliers(rows.astype(np.float32), 20.0)
    assert index.tolist() == planted
    assert (seen.rows, seen.outlying) == (n, len(planted))
    assert seen.threshold == pytest.approx(20 * seen.median_norm)
    apart = np.square(rows - rows.mean(0)).sum(1)
    assert seen.variance_share == pytest.approx(apart[planted].sum() / apart.sum(), abs=1e-4)


def test_the_median_of_many_rows_is_that_of_rows_spread_over_all(monkeypatch) -> None:
    monkeypatch.setattr(outliers, "FOR_MEDIAN", 50)
    norms = np.linspace(1, 3, 1001)
    seen, index = find_outliers(norms[:, None].astype(np.float16), 10.0)
    assert seen.median_norm == pytest.approx(2, abs=0.05)
    assert not len(index)


def test_no_rows_have_no_outliers() -> None:
    assert find_outliers(np.zeros((0, 3), np.float32), 10.0)[0].outlying == 0
    assert find_outliers(np.zeros((4, 3), np.float32), 10.0)[0].outlying == 0


@settings(deadline=None, max_examples=40)
@given(text, st.integers(1, 60))
def test_nothing_fires_at_a_sink_and_all_else_as_before(tmp_path_factory, rows, shard) -> None:
    folder = tmp_path_factory.mktemp("sinks")
    corpus = corpus_of(folder / "corpus", rows)
    left, whole = run(corpus, folder / "left", shard=shard), run(corpus, folder / "all", threshold=None, shard=shard)
    apart = sinks(corpus)
    assert left.info.outlying == len(apart)
    assert left.info.n_tokens == corpus.info.n_tokens - len(apart)
    written = [load_file(path).get("outlying", np.zeros(0, np.int64)) for path in left.shards()]
    assert np.concatenate(written).tolist() == apart
    kept, everything = (firings.of(list(range(LATENTS))) for firings in (left, whole))
    for latent in range(LATENTS):
        position, activation = everything[latent]
        usual = ~np.isin(position, apart)
        np.testing.assert_array_equal(kept[latent][0], position[usual])
        np.testing.assert_array_equal(kept[latent][1], activation[usual])
        assert left.counts[latent] == usual.sum()
        assert left.peaks[latent] == activation[usual].max(initial=0)


@settings(deadline=None, max_examples=25)
@given(text, st.integers(1, 40), st.integers(0, 6))
def test_streamed_stored_and_resumed_harvests_agree(tmp_path_factory, rows, shard, after) -> None:
    folder = tmp_path_factory.mktemp("paths")
    corpus = corpus_of(folder / "corpus", rows)
    (folder / "dense").mkdir()
    harvest_dense(
        corpus, subject, 2, folder / "dense", batch_tokens=24, device="cpu", bar=Progress("dense", None, "tokens")
    )
    stored = np.load(folder / "dense" / "activations.npy", mmap_mode="r")
    assert find_outliers(stored, 1.001)[0].rows == corpus.info.n_tokens
    calls = iter(range(after + 1))

    def dying(tokens: torch.Tensor) -> torch.Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return subject(tokens)

    run(corpus, folder / "streamed", shard=shard)
    run(corpus, folder / "stored", stored, shard=shard)
    try:
        run(corpus, folder / "resumed", dying, shard=shard)
    except KeyboardInterrupt:
        run(corpus, folder / "resumed", shard=shard)
    for path in Firings(folder / "streamed").shards():
        assert path.read_bytes() == (folder / "stored" / path.name).read_bytes()
        assert path.read_bytes() == (folder / "resumed" / path.name).read_bytes()


@settings(deadline=None, max_examples=20)
@given(text)
def test_a_temporal_sae_reads_whole_rows_and_still_fires_at_no_sink(tmp_path_factory, rows) -> None:
    folder = tmp_path_factory.mktemp("temporal")
    corpus = corpus_of(folder / "corpus", rows)
    shapes: list[int] = []

    def encode_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shapes.append(x.ndim)
        return encode(x.flatten(0, 1))

    def harvested(encode_sparse, contextual: bool) -> Firings:
        out = folder / str(contextual)
        out.mkdir()
        wanted = Harvest(corpus, subject, encode_sparse, LATENTS, "h", False, 16, "cpu", contextual, 50.0)
        harvest_shard(wanted, 0, corpus.info.n_rows, shard_path(out, 0), Progress("harvest", None, "tokens"))
        merge_shards(wanted, out, 1)
        return Firings(out)

    whole, tokens = harvested(encode_rows, True), harvested(encode, False)
    assert set(shapes) == {3}
    assert whole.info == tokens.info
    for latent, (position, activation) in tokens.of(list(range(LATENTS))).items():
        assert whole.of([latent])[latent][0].tolist() == position.tolist()
        assert whole.of([latent])[latent][1].tolist() == activation.tolist()


def test_without_outliers_the_firings_are_those_of_a_harvest_that_does_not_look(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", [[1, 2, 3, 4], [5, 6, 7], [2, 2, 8, 1, 0]])
    looks, does_not = (run(corpus, tmp_path / str(t), threshold=t) for t in (1e6, None))
    for left, right in zip(looks.shards(), does_not.shards(), strict=True):
        one, other = load_file(left), load_file(right)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert looks.info.outlying == 0
    assert looks.info.n_tokens == does_not.info.n_tokens


def test_a_shard_of_another_threshold_is_made_again(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", [[1, 2, 9, 4], [5, 6, 7]])
    before = run(corpus, tmp_path / "firings", threshold=None).counts
    after = run(corpus, tmp_path / "firings", threshold=50.0)
    assert after.counts.sum() < before.sum()
    assert json.loads((tmp_path / "firings" / "firings.json").read_text())["outlier_threshold"] == 50.0


def test_a_case_on_the_threshold_is_not_outlying_in_any_batch() -> None:
    x = torch.tensor([[3.0, 4.0], [3.0, 4.0000005], [0.0, 0.0]])
    assert is_outlying(x, 5.0).tolist() == [False, True, False]
    assert [bool(is_outlying(row, 5.0)) for row in x] == [False, True, False]
