"""delphi's cache read as a corpus and a harvest: what was harvested and written in its form comes back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from autointerp.activations.delphi_cache import is_cache, read_corpus, read_firings
from autointerp.activations.harvest import Harvest
from autointerp.artifacts import Corpus, Firings
from autointerp.errors import AutointerpError

BOS = 1


def cache(folder: Path, tokens: np.ndarray, codes: np.ndarray, parts: int, kind: type = np.uint16) -> Path:
    """As delphi's save_splits leaves codes [rows, context, latents]: float16, latents counted from the file's first."""
    folder.mkdir(parents=True, exist_ok=True)
    edges = np.linspace(0, codes.shape[2], parts + 1).astype(int)
    for first, stop in pairwise(edges):
        where = np.argwhere(codes[:, :, first:stop] > 1e-5)
        values = codes[:, :, first:stop][tuple(where.T)].astype(np.float16)
        data = {"locations": np.ascontiguousarray(where, kind), "activations": values, "tokens": tokens}
        save_file(data, folder / f"{first}_{stop - 1}.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def wanted(corpus: Corpus, n: int) -> Harvest:
    def never(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the subject ran")

    return Harvest(corpus, never, lambda acts: never(acts), n, "h", corpus.info.bos_id is not None, 8, "cpu")  # type: ignore[arg-type,return-value]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 6),
    context=st.integers(2, 9),
    n=st.integers(2, 12),
    parts=st.integers(1, 3),
    bos=st.booleans(),
    kind=st.sampled_from([np.uint16, np.uint32, np.int64]),
    seed=st.integers(0, 99),
)
def test_the_firings_of_a_cache_are_those_of_a_harvest(tmp_path_factory, rows, context, n, parts, bos, kind, seed):
    folder, draw = tmp_path_factory.mktemp("cache"), np.random.default_rng(seed)
    tokens = draw.integers(2, 50, (rows, context))
    if bos:
        tokens[:, 0] = BOS
    codes = np.where(draw.random((rows, context, n)) < 0.3, draw.random((rows, context, n)) + 0.1, 0).astype(np.float32)
    source = cache(folder / "layers.3", tokens, codes, min(parts, n), kind)
    assert is_cache(str(source))
    corpus = read_corpus(source, folder / "corpus", tokenizer="t", bos_id=BOS, tokens=10**6)
    assert corpus.info.bos_id == (BOS if bos else None)
    assert np.array_equal(np.stack([corpus.row(r) for r in range(rows)]), tokens)
    read_firings(source, wanted(corpus, n), folder / "firings")
    firings = Firings(folder / "firings")
    if bos:
        codes[:, 0] = 0
    for latent, (positions, values) in firings.of(list(range(n))).items():
        flat = codes[:, :, latent].ravel()
        assert np.array_equal(positions, np.flatnonzero(flat))
        assert np.array_equal(values, flat[flat > 0].astype(np.float16).astype(np.float32))
    assert firings.info.n_tokens == rows * (context - bos)


def test_fewer_tokens_are_taken_where_fewer_are_asked_for(tmp_path: Path) -> None:
    source = cache(tmp_path / "hook", np.full((10, 8), 5), np.zeros((10, 8, 3), np.float32), 1)
    assert read_corpus(source, tmp_path / "corpus", tokenizer="t", bos_id=None, tokens=20).info.n_rows == 3


def test_a_cache_that_cannot_be_a_harvest_is_one_clear_line(tmp_path: Path) -> None:
    codes = np.ones((2, 4, 3), np.float32)
    source = cache(tmp_path / "hook", np.full((2, 4), 5), codes, 1)
    corpus = read_corpus(source, tmp_path / "corpus", tokenizer="t", bos_id=None, tokens=100)
    with pytest.raises(AutointerpError, match="name its own SAE"):
        read_firings(source, wanted(corpus, 2), tmp_path / "firings")
    whole = (source / "0_2.safetensors").read_bytes()
    (source / "0_2.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AutointerpError, match="cannot be read as safetensors"):
        read_corpus(source, tmp_path / "corpus", tokenizer="t", bos_id=None, tokens=100)
    save_file(
        {"locations": np.zeros((1, 3), np.uint16), "activations": np.ones(1, np.float16)}, source / "0_2.safetensors"
    )
    with pytest.raises(AutointerpError, match="save_tokens"):
        read_corpus(source, tmp_path / "corpus", tokenizer="t", bos_id=None, tokens=100)
    assert not is_cache(str(tmp_path / "corpus"))
    assert not is_cache("stories15m-samples")
