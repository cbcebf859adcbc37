"""Windows of running text: the share that fires, and a sample of them, against a count by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_contexts import BOS, strings, world

from autointerp.activations.natural import RunningText
from autointerp.activations.splits import held_out


def by_hand(corpus, dense, window, seed):
    """(tokens, whether each latent fires) of every window of test documents."""
    test = held_out(corpus, 0.5, seed)
    for row in np.flatnonzero(test[corpus.documents]).tolist():
        low, high = int(corpus.offsets[row]) + (corpus.info.bos_id is not None), int(corpus.offsets[row + 1])
        for start in range(low, max(high - window, low) + 1, window):
            at = slice(start, min(start + window, high))
            if at.stop > at.start:
                yield tuple(strings(corpus.tokens[at].tolist())), dense[at].any(axis=0)


@settings(deadline=None, max_examples=20)
@given(
    documents=st.integers(1, 40),
    longest=st.integers(1, 50),
    window=st.integers(2, 20),
    seed=st.integers(-2, 3),
    bos=st.booleans(),
)
def test_rates_and_samples_are_those_of_the_windows(tmp_path_factory, documents, longest, window, seed, bos):
    folder = tmp_path_factory.mktemp("text")
    corpus, firings, dense = world(folder, documents=documents, longest=longest, rates=[0.0, 0.05, 0.5, 1.0], bos=bos)
    text = RunningText(corpus, firings, window=window, test_share=0.5, seed=seed)
    expected = list(by_hand(corpus, dense, window, seed))
    assert text.total == len(expected)
    rates, drawn = text.rates(range(4)), text.sampler(strings)(range(4))
    for latent in range(4):
        fires = [bool(fired[latent]) for _, fired in expected]
        assert rates[latent] == (pytest.approx(np.mean(fires)) if expected else None)
        assert list(drawn[latent].tokens) == [tokens for tokens, _ in expected]  # fewer than a thousand: all of them
        assert list(drawn[latent].fires) == fires
    assert not bos or f" {BOS}" not in {token for tokens in drawn[0].tokens for token in tokens}


def test_a_sample_is_a_thousand_windows_the_same_for_all_features(tmp_path):
    corpus, firings, _ = world(tmp_path, documents=4000, longest=40, rates=[0.01, 0.2])
    text = RunningText(corpus, firings, window=8, test_share=0.5, seed=0)
    sample = text.sampler(strings)
    drawn = sample([0, 1])
    assert len(drawn[0].tokens) == 1000
    assert drawn[0].tokens is drawn[1].tokens is sample([1])[1].tokens
    assert np.mean(drawn[1].fires) == pytest.approx(text.rates([1])[1], abs=0.05)
