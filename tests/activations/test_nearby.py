"""Windows of a feature's neighbours: where they fire and it is silent, of the split asked for."""

from pathlib import Path

import numpy as np
import pytest

from autointerp.activations.nearby import NearbyWindows
from autointerp.activations.splits import held_out
from autointerp.artifacts import Corpus, CorpusInfo, Firings, save_shard
from autointerp.config import ContextsConfig
from autointerp.records import Context

WORDS = ["<s>", " the", " cat", " dog", " bird"]


@pytest.fixture
def windows(planted_firings: tuple[Corpus, Firings]) -> NearbyWindows:
    config = ContextsConfig(window=5, train=10, test_activating=20, neighbours=2)
    own = dict.fromkeys(range(4), ())
    return NearbyWindows(*planted_firings, lambda ids: [WORDS[i] for i in ids], config, 7, lambda _: own)


@pytest.fixture
def planted_firings(tmp_path: Path) -> tuple[Corpus, Firings]:
    """200 documents; latent 0 fires on " cat", 1 on " dog", 2 on " bird", and latent 3 never."""
    rng = np.random.default_rng(0)
    return planted(tmp_path, [[0, *rng.choice([1, 2, 3, 4], 20, p=[0.7, 0.1, 0.1, 0.1])] for _ in range(200)])


def planted(tmp_path: Path, rows: list[list[int]]) -> tuple[Corpus, Firings]:
    """Documents of 21 tokens; the latents 0, 1, 2 fire on the tokens 2, 3, 4, and latent 3 never."""
    import json

    tokens, n = np.concatenate(rows), len(rows)
    folder, fired = tmp_path / "corpus", tmp_path / "firings"
    folder.mkdir()
    fired.mkdir()
    info = CorpusInfo("test", "test", 0, 21, 21 * n, n, n, "")
    Corpus.save(folder, info, tokens, np.arange(n + 1) * 21, np.arange(n), np.zeros(n))
    position = [np.flatnonzero(tokens == word) for word in (2, 3, 4)] + [np.zeros(0, np.int64)]
    counts = np.array([len(each) for each in position])
    flat = np.concatenate(position).astype(np.int64)
    indptr = np.concatenate([[0], counts.cumsum()])
    save_shard(fired / "shard-00000.safetensors", indptr, flat, np.ones(len(flat), "f4"))
    np.save(fired / "counts.npy", counts)
    np.save(fired / "peaks.npy", (counts > 0).astype(np.float32))
    about = {"n_latents": 4, "n_tokens": 20 * n, "n_shards": 1, "hook": "h", "skip_bos": True}
    (fired / "firings.json").write_text(json.dumps(about))
    return Corpus(folder), Firings(fired)


@pytest.mark.parametrize("split", ["train", "test"])
def test_neighbours_fire_and_the_feature_is_silent_in_their_windows(
    windows: NearbyWindows, planted_firings: tuple[Corpus, Firings], split
) -> None:
    near = windows.of({0: [(2, 0.9), (1, 0.5)], 1: [(0, 0.5)]}, split, {2: "birds"})
    assert [(n.feature, n.similarity, n.explanation) for n in near[0]] == [(2, 0.9, "birds"), (1, 0.5, None)]
    test = held_out(planted_firings[0], 0.5, 7)
    for feature, own in ((0, " cat"), (1, " dog")):
        for neighbour in near[feature]:
            word = WORDS[2 + neighbour.feature]
            assert neighbour.contexts
            for context in neighbour.contexts:
                assert own not in context.tokens
                assert [a > 0 for a in context.activations] == [token == word for token in context.tokens]
                assert (context.split, bool(test[context.document])) == (split, split == "test")


def test_a_neighbour_that_never_fires_has_no_windows(windows: NearbyWindows) -> None:
    (dead,) = windows.of({0: [(3, 0.9)]}, "train")[0]
    assert dead.contexts == ()


def test_windows_are_the_same_whoever_else_is_asked_about(windows: NearbyWindows) -> None:
    alone = windows.of({0: [(1, 0.5)]}, "train")[0]
    assert alone == windows.of({2: [(0, 0.1), (1, 0.2)], 0: [(1, 0.5)]}, "train")[0]


def runs(*texts: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {text[i : i + 16] for text in texts for i in range(len(text) - 15)}


def test_what_a_neighbour_shows_of_one_split_stands_in_no_window_of_the_other(tmp_path: Path) -> None:
    """Half of the documents quote one text, in which the feature's neighbour fires."""
    rng = np.random.default_rng(0)
    quote = [3, *rng.integers(5, 50, 17)]
    rows = [[0, *rng.integers(5, 50, 2), *(quote if i % 2 else [3, *rng.integers(5, 50, 17)])] for i in range(200)]
    corpus, firings = planted(tmp_path, rows)
    words = [f" w{i}" for i in range(50)]
    quoted, other = tuple(words[i] for i in quote), tuple(words[i] for i in rows[0][3:])

    def near(split: str, own: dict[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
        mine = [Context(0, 0, of, "activating", 0, 0, 0, text, (1.0,) * len(text)) for of, text in own.items()]
        config = ContextsConfig(window=20, train=60, test_activating=60, neighbours=2)
        windows = NearbyWindows(corpus, firings, lambda ids: [words[i] for i in ids], config, 7, lambda _: {0: mine})
        return [context.tokens for context in windows.of({0: [(1, 0.5)]}, split)[0][0].contexts]

    shown = near("train", {"train": quoted, "test": other})
    assert runs(*shown) & runs(quoted)  # no window of test is like it, and it may be like another of its split
    for split, opposite in (("train", "test"), ("test", "train")):
        left = near(split, {opposite: quoted})
        assert len(left) > 5
        assert not runs(*left) & runs(quoted)
    scored = near("test", {})
    assert len(scored) > 5
    assert not runs(*scored) & runs(*shown)
