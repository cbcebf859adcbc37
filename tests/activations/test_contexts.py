"""Contexts are what they say: split, kind, quantile and activations, checked against the firings themselves."""

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.activations.contexts import apart, read_contexts, sample_contexts, write_contexts
from autointerp.activations.splits import held_out, token_counts
from autointerp.artifacts import Corpus, CorpusInfo, Firings, save_shard
from autointerp.config import ContextsConfig
from autointerp.records import Context

BOS, VOCAB = 0, 5000


def world(
    folder: Path,
    *,
    documents: int,
    longest: int,
    rates: list[float],
    seed: int = 0,
    bos: bool = True,
    vocab: int = VOCAB,
) -> tuple[Corpus, Firings, np.ndarray]:
    """Random documents in rows of at most 17 tokens, and latents that fire at the given rates."""
    rng = np.random.default_rng(0)
    rows: list[list[int]] = []
    of: list[int] = []
    starts: list[int] = []
    for document in range(documents):
        tokens = rng.integers(1, vocab, rng.integers(1, longest + 1)).tolist()
        for start in range(0, len(tokens), 16):
            rows.append([BOS] * bos + tokens[start : start + 16])
            of.append(document)
            starts.append(start)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    info = CorpusInfo("test", "test", BOS if bos else None, 17, int(offsets[-1]), len(rows), documents, "")
    folder.mkdir(parents=True, exist_ok=True)
    Corpus.save(folder, info, np.concatenate(rows), offsets, np.array(of), np.array(starts))
    dense = np.where(rng.random((int(offsets[-1]), len(rates))) < rates, rng.random((int(offsets[-1]), len(rates))), 0)
    dense = dense.astype(np.float16)
    return Corpus(folder), plant(folder, dense), dense.astype(np.float32)


def plant(folder: Path, dense: np.ndarray) -> Firings:
    """Firings on disk from dense activations [tokens, latents]."""
    latent, position = np.nonzero(dense.T)
    indptr = np.searchsorted(latent, np.arange(dense.shape[1] + 1)).astype(np.int64)
    save_shard(folder / "shard-00000.safetensors", indptr, position, dense.T[latent, position])
    np.save(folder / "counts.npy", np.diff(indptr))
    np.save(folder / "peaks.npy", dense.max(0).astype(np.float32))
    (folder / "firings.json").write_text(
        f'{{"n_latents": {dense.shape[1]}, "n_tokens": {len(dense)}, "n_shards": 1, "hook": "h", "skip_bos": false}}'
    )
    return Firings(folder)


def strings(ids) -> list[str]:
    return [f" {i}" for i in ids]


CONFIG = ContextsConfig(window=6, quantiles=4, train=8, test_activating=12, test_random=6, test_near=6, neighbours=2)
NEAR = {0: [1, 2], 1: [0], 2: [0, 1, 3], 3: [2]}


def sample(corpus, firings, latents=(0, 1, 2, 3), config=CONFIG, seed=0, near=NEAR) -> list[Context]:
    return list(sample_contexts(corpus, firings, latents, near, strings, config, seed))


def span(corpus: Corpus, context: Context) -> slice:
    """The flat positions of a context, found by its document and position."""
    bos = corpus.info.bos_id is not None
    for row in np.flatnonzero(corpus.documents == context.document):
        into = context.position - corpus.starts[row]
        begin = corpus.offsets[row] + bos + into
        if into >= 0 and begin + len(context.tokens) <= corpus.offsets[row + 1]:
            return slice(int(begin), int(begin) + len(context.tokens))
    raise AssertionError("the context lies in no row of its document")


@settings(deadline=None, max_examples=30)
@given(
    documents=st.integers(1, 60),
    longest=st.integers(1, 60),
    rates=st.lists(st.sampled_from([0.0, 0.003, 0.05, 0.3, 0.9, 1.0]), min_size=4, max_size=4),
    seed=st.integers(-3, 5),
    bos=st.booleans(),
    vocab=st.sampled_from([2, 4, VOCAB]),
)
def test_contexts_are_what_they_say(tmp_path_factory, documents, longest, rates, seed, bos, vocab):
    folder = tmp_path_factory.mktemp("world")
    corpus, firings, dense = world(folder, documents=documents, longest=longest, rates=rates, bos=bos, vocab=vocab)
    found = sample(corpus, firings, seed=seed)
    in_test = held_out(corpus, CONFIG.test_share, seed)
    for context in found:
        at = span(corpus, context)
        assert (context.split == "test") == in_test[context.document]
        assert context.tokens == tuple(strings(corpus.tokens[at].tolist()))
        assert not bos or f" {BOS}" not in context.tokens
        assert 1 <= len(context.tokens) <= CONFIG.window
        np.testing.assert_array_equal(context.activations, dense[at, context.feature])
        assert (context.peak > 0) == (context.kind == "activating") == (context.quantile is not None)
        if context.kind == "near":
            assert any(dense[at, other].any() for other in NEAR[context.feature][: CONFIG.neighbours])
    for feature in range(4):
        mine = [context for context in found if context.feature == feature]
        assert [context.example for context in mine] == list(range(len(mine)))
        assert len({context.tokens for context in mine}) == len(mine)
        spans = sorted((s.start, s.stop) for s in (span(corpus, c) for c in mine))
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), "windows overlap"
        by_quantile = defaultdict(list)
        for context in mine:
            if context.quantile is not None:
                by_quantile[context.quantile].append(context.peak)
        assert set(by_quantile) <= set(range(CONFIG.quantiles))
        ordered = [by_quantile[q] for q in sorted(by_quantile)]
        assert all(max(low) <= min(high) for low, high in pairwise(ordered)), "quantiles overlap"


@settings(deadline=None, max_examples=20)
@given(
    documents=st.integers(20, 60),
    rates=st.lists(st.sampled_from([0.01, 0.05, 0.3]), min_size=4, max_size=4),
    same=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_nothing_shown_is_scored(tmp_path_factory, documents, rates, same, seed):
    """Neither by document nor by 16 tokens in a row, where documents quote each other at length."""
    rng = np.random.default_rng(seed)
    quoted = rng.integers(1, VOCAB, 24).tolist()
    rows = [
        [BOS, *rng.integers(1, VOCAB, 8).tolist(), *(quoted if rng.random() < same else rng.integers(1, VOCAB, 24))]
        for _ in range(documents)
    ]
    folder = tmp_path_factory.mktemp("quoted")
    info = CorpusInfo("test", "test", BOS, 33, 33 * documents, documents, documents, "")
    offsets, starts = np.arange(documents + 1) * 33, np.zeros(documents, int)
    Corpus.save(folder, info, np.concatenate(rows), offsets, np.arange(documents), starts)
    dense = np.where(rng.random((33 * documents, 4)) < rates, 1, 0).astype(np.float16)
    config = CONFIG.model_copy(update={"window": 20})
    drawn = sample(Corpus(folder), plant(folder, dense), config=config, seed=seed)
    for feature in range(4):
        runs, read = {"train": set(), "test": set()}, {"train": set(), "test": set()}
        for context in (c for c in drawn if c.feature == feature):
            runs[context.split] |= {context.tokens[i : i + 16] for i in range(len(context.tokens) - 15)}
            read[context.split].add(context.document)
        assert runs["train"].isdisjoint(runs["test"])
        assert read["train"].isdisjoint(read["test"])


def test_enough_text_gives_what_the_config_asks_with_one_window_a_document(tmp_path):
    corpus, firings, _ = world(tmp_path, documents=800, longest=60, rates=[0.02, 0.02, 0.02, 0.02])
    found = sample(corpus, firings)
    for feature in range(4):
        mine = [context for context in found if context.feature == feature]
        assert Counter((context.split, context.kind) for context in mine) == {
            ("train", "activating"): 8,
            ("train", "random"): 4,
            ("train", "near"): 4,
            ("test", "activating"): 12,
            ("test", "random"): 6,
            ("test", "near"): 6,
        }
        active = [context for context in mine if context.fires]
        assert len({context.document for context in active}) == len(active)
        assert Counter(c.quantile for c in active if c.split == "test") == {0: 3, 1: 3, 2: 3, 3: 3}
        assert Counter(c.quantile for c in active if c.split == "train") == {0: 2, 1: 2, 2: 2, 3: 2}


def test_a_features_contexts_depend_on_the_seed_and_on_no_other_feature(tmp_path):
    corpus, firings, _ = world(tmp_path, documents=120, longest=40, rates=[0.02, 0.1, 0.05, 0.01])
    together = sample(corpus, firings)
    assert sample(corpus, firings) == together
    for feature in range(4):
        assert sample(corpus, firings, [feature]) == [c for c in together if c.feature == feature]
    backwards = sample(corpus, firings, [3, 2, 1, 0])
    assert sorted(backwards, key=lambda c: (c.feature, c.example)) == together
    assert sample(corpus, firings, seed=1) != together


def test_the_firing_lies_anywhere_in_the_window_and_random_windows_lie_where_activating_ones_do(tmp_path):
    corpus, _, dense = world(tmp_path, documents=4000, longest=64, rates=[0.0])
    inner = np.setdiff1d(np.arange(len(dense)), (corpus.offsets[:-1, None] + [0, 1]).ravel())
    inner = inner[corpus.starts[corpus.row_of(inner)] == 16]  # fires in the second row of documents only
    fires = np.random.default_rng(1).choice(inner, 900, replace=False)
    dense[fires, 0] = 1
    config = ContextsConfig(window=8, train=200, test_activating=200, test_random=200, test_near=0)
    found = sample(corpus, plant(tmp_path, dense.astype(np.float16)), [0], config, near={})
    active = [c for c in found if c.kind == "activating"]
    silent = [c for c in found if c.kind == "random"]
    assert len(active) == 400
    assert len(silent) == 300  # half of 200 in train, for the near ones that do not exist
    places = np.bincount([c.activations.index(1) for c in active], minlength=8) / len(active)
    assert places.min() > 0.03  # the first place is rare, 1 / 16: in rows of 15 only 7 of 14 firings can stand there
    assert places.max() < 0.25
    assert {c.position for c in silent} <= set(range(16, 32))
    mean = [np.mean([c.position for c in some]) for some in (active, silent)]
    assert mean[0] == pytest.approx(mean[1], abs=0.8)


def test_splits_follow_the_share_and_the_seed(tmp_path):
    corpus, _, _ = world(tmp_path, documents=8000, longest=20, rates=[0.0])
    first, second = held_out(corpus, 0.3, 0), held_out(corpus, 0.3, 1)
    assert first.mean() == pytest.approx(0.3, abs=0.02)
    assert (first & second).mean() == pytest.approx(0.09, abs=0.02)


@settings(deadline=None, max_examples=30)
@given(texts=st.lists(st.lists(st.integers(1, 3), max_size=9), min_size=1, max_size=40), cut=st.integers(1, 5))
def test_documents_of_the_same_tokens_share_a_split_wherever_they_stand(tmp_path_factory, texts, cut):
    rows = [
        (n, at, [BOS, *text[at : at + cut]]) for n, text in enumerate(texts) for at in range(0, len(text) or 1, cut)
    ]
    offsets = np.cumsum([0, *(len(tokens) for _, _, tokens in rows)])
    folder = tmp_path_factory.mktemp("same")
    info = CorpusInfo("test", "test", BOS, cut + 1, int(offsets[-1]), len(rows), len(texts), "")
    flat = np.concatenate([tokens for _, _, tokens in rows])
    Corpus.save(folder, info, flat, offsets, np.array([n for n, _, _ in rows]), np.array([at for _, at, _ in rows]))
    test = held_out(Corpus(folder), 0.5, 3)
    by_text = defaultdict(set)
    for text, side in zip(texts, test.tolist()):
        by_text[tuple(text)].add(side)
    assert all(len(sides) == 1 for sides in by_text.values())


def test_token_counts_leave_out_bos_and_other_documents(tmp_path):
    corpus, _, _ = world(tmp_path, documents=30, longest=40, rates=[0.1], vocab=9)
    mask = held_out(corpus, 0.5, 0)
    expected = np.zeros(9, np.int64)
    for row in range(corpus.info.n_rows):
        if mask[corpus.documents[row]]:
            np.add.at(expected, corpus.row(row)[1:], 1)
    np.testing.assert_array_equal(token_counts(corpus, mask), expected)
    assert token_counts(corpus).sum() == corpus.info.n_tokens - corpus.info.n_rows


floats = st.floats(0, 2.0**20, width=32)
context_lists = st.dictionaries(
    st.integers(0, 10**6),
    st.lists(
        st.tuples(
            st.sampled_from(["train", "test"]),
            st.sampled_from(["activating", "random", "near"]),
            st.none() | st.integers(0, 9),
            st.integers(0, 10**6),
            st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=5), floats), max_size=6),
        ),
        min_size=1,
        max_size=5,
    ),
    max_size=5,
).map(
    lambda features: [
        Context(feature, i, split, kind, quantile, document, 3, tuple(t for t, _ in line), tuple(a for _, a in line))
        for feature, found in features.items()
        for i, (split, kind, quantile, document, line) in enumerate(found)
    ]
)


@settings(deadline=None, max_examples=40)
@given(context_lists)
def test_contexts_read_back_as_written(tmp_path_factory, contexts):
    path = tmp_path_factory.mktemp("parquet") / "contexts.parquet"
    write_contexts(iter(contexts), path)
    expected = defaultdict(list)
    for context in contexts:
        expected[context.feature].append(context)
    assert read_contexts(path) == expected
    for feature in expected:
        assert read_contexts(path, [feature, -1]) == {feature: expected[feature], -1: []}
    assert read_contexts(path, []) == {}


def test_contexts_parquet_has_the_promised_columns_and_whole_features_in_a_row_group(tmp_path):
    path = tmp_path / "contexts.parquet"
    lines = [Context(f, e, "test", "near", None, 5, 7, (" a", "b"), (0.0, 0.0)) for f in range(50) for e in range(100)]
    write_contexts(lines, path)
    file = pq.ParquetFile(path)
    assert file.schema_arrow.names == (
        ["feature", "example", "split", "kind", "quantile", "document", "position", "tokens", "activations"]
    )
    groups = [set(file.read_row_group(i, ["feature"])["feature"].to_pylist()) for i in range(file.num_row_groups)]
    assert len(groups) > 1
    assert sum(map(len, groups)) == 50
    import pandas as pd

    frame = pd.read_parquet(path)
    assert frame.loc[0].drop(["tokens", "activations", "quantile"]).to_dict() == {
        "feature": 0,
        "example": 0,
        "split": "test",
        "kind": "near",
        "document": 5,
        "position": 7,
    }
    assert list(frame.loc[0, "tokens"]) == [" a", "b"]
    assert frame["quantile"].isna().all()


def test_a_failing_sampler_leaves_no_contexts_behind(tmp_path):
    def failing():
        yield Context(0, 0, "test", "near", None, 5, 7, (" a",), (0.0,))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_contexts(failing(), tmp_path / "contexts.parquet")
    assert not list(tmp_path.iterdir())


def test_windows_of_others_that_share_16_tokens_with_the_other_split_are_left_out():
    def window(text: list[int]) -> Context:
        return Context(0, 0, "train", "activating", 0, 0, 0, tuple(map(str, text)), (1.0,) * len(text))

    scored = [window([*range(100, 120)]), window([*range(5)])]
    near, far, short = window([1, 2, *range(104, 120), 3]), window([*range(105, 120), 1, 2]), window([*range(5)])
    assert apart([near, far, short], scored) == (far, short)
    assert apart([near], []) == (near,)
