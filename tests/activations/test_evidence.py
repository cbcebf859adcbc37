"""What an explainer sees, counted by hand on a planted feature; and which features are chosen."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from autointerp.activations.contexts import sample_contexts
from autointerp.activations.evidence import EvidenceReader, firing_table, select_features
from autointerp.activations.harvest import harvest
from autointerp.activations.splits import held_out
from autointerp.artifacts import Corpus, CorpusInfo, Firings
from autointerp.config import ContextsConfig, FeaturesConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.progress import Progress

WORDS = ["<s>", " the", " cat", " dog", " runs", " sleeps", " red", " blue"]
FEATURES = {0: {2: 4.0, 3: 2.0}, 1: {6: 1.0}, 3: {5: 3.0}}  # latent -> token -> activation; latent 2 is dead


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Corpus, Firings]:
    """200 documents; animals fire latent 0, " red" latent 1, " sleeps" latent 3, which is rare."""
    rng = np.random.default_rng(0)
    chances = np.array([0, 0.3, 0.1, 0.1, 0.2, 0.002, 0.1, 0.198])
    rows = [[0, *rng.choice(8, 20, p=chances).tolist()] for _ in range(200)]
    offsets = np.arange(201) * 21
    folder = tmp_path / "corpus"
    folder.mkdir()
    info = CorpusInfo("test", "test", 0, 21, 4200, 200, 200, "")
    Corpus.save(folder, info, np.concatenate(rows), offsets, np.arange(200), np.zeros(200))
    table = torch.zeros(8, 4)
    for latent, tokens in FEATURES.items():
        for token, value in tokens.items():
            table[token, latent] = value

    def encode(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dense = h @ table
        index, latent = dense.nonzero(as_tuple=True)
        return index, latent, dense[index, latent]

    harvest(
        Corpus(folder),
        lambda tokens: torch.nn.functional.one_hot(tokens, 8).float(),
        encode,
        4,
        tmp_path / "firings",
        hook="h",
        skip_bos=True,
        batch_tokens=512,
        device="cpu",
        bar=Progress("harvest", 4200, "tokens"),
    )
    return Corpus(folder), Firings(tmp_path / "firings")


def words(ids) -> list[str]:
    return [WORDS[i] for i in ids]


def test_evidence_counts_train_documents_only_and_shows_no_test_context(planted):
    corpus, firings = planted
    config = ContextsConfig(window=5, train=10, test_activating=5, test_random=5, test_near=5)
    contexts: dict[int, list] = {0: [], 1: []}
    for context in sample_contexts(corpus, firings, [0, 1], {0: [1], 1: [0]}, words, config, 7):
        contexts[context.feature].append(context)
    up = {0: [(" cat", 1.5)]}
    first, second = EvidenceReader(firings, corpus, words, test_share=0.5, seed=7).read(contexts, logits_up=up)

    train = np.asarray(corpus.tokens).reshape(200, 21)[~held_out(corpus, 0.5, 7)]
    counted = {word: int((train == i).sum()) for i, word in enumerate(WORDS)}
    stats = {s.token: (s.fired, s.seen, s.mean) for s in first.token_stats}
    assert stats == {word: (counted[word], counted[word], mean) for word, mean in ((" cat", 4.0), (" dog", 2.0))}
    assert first.token_stats[0].fired >= first.token_stats[1].fired
    assert (first.feature, second.feature) == (0, 1)
    assert first.firings == int(np.isin(corpus.tokens, [2, 3]).sum())
    assert first.frequency == pytest.approx(first.firings / 4000)
    assert first.max_activation == 4.0
    shown = [*first.activating, *first.random, *first.near]
    assert len(first.activating) == 10
    assert {context.split for context in shown} == {"train"}
    assert [c.peak for c in first.activating] == sorted((c.peak for c in first.activating), reverse=True)
    assert first.logits_up == ((" cat", 1.5),)
    assert second.logits_up == ()


def test_an_explainer_sees_a_dead_feature_as_empty(planted):
    corpus, firings = planted
    (dead,) = EvidenceReader(firings, corpus, words, test_share=0.5, seed=7).read({2: []})
    assert (dead.firings, dead.max_activation, dead.activating, dead.token_stats) == (0, 0.0, (), ())


def test_firing_table_tells_dead_and_rare_from_ok(planted):
    table = firing_table(planted[1], 60)
    assert table["status"].tolist() == ["ok", "ok", "dead", "too_rare"]
    assert table["max_activation"].tolist() == [4.0, 1.0, 0.0, 3.0]
    assert table["firings"].sum() == pytest.approx(table["frequency"].sum() * 4000)


def test_features_are_selected_as_asked(planted):
    table = firing_table(planted[1], 1)  # all but the dead one

    def select(**options) -> list[int]:
        return select_features(table, FeaturesConfig(min_firings=1, **options), 3)

    assert select(select="all", count=1) == [0, 1, 3]
    assert select(select="first", count=2) == [0, 1]
    assert select(select="top", count=1) == [0]
    assert set(select(count=1)) < set(select(count=2)) < set(select(count=100)) == {0, 1, 3}
    assert select(ids=[3, 2, 3]) == [3, 2]
    with pytest.raises(ConfigError, match=r"features.ids.*0 to 3, not 4"):
        select(ids=[1, 4])


def test_a_feature_that_no_longer_fires_often_enough_exchanges_none_but_itself():
    table = pd.DataFrame({"feature": range(400), "firings": 9, "status": "ok"})
    config = FeaturesConfig(count=60)
    drawn = set(select_features(table, config, 3))
    for gone in [min(drawn), max(drawn), min(set(range(400)) - drawn)]:
        fewer = table.assign(status=["too_rare" if feature == gone else "ok" for feature in range(400)])
        assert drawn - set(select_features(fewer, config, 3)) == drawn & {gone}


def test_no_feature_that_fires_often_enough_is_one_clear_line(planted):
    table = firing_table(planted[1], 10**6)
    with pytest.raises(AutointerpError, match="no feature fires 1000000 times"):
        select_features(table, FeaturesConfig(min_firings=10**6), 0)
