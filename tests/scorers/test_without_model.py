"""Ceilings and floors: scorers that ask no model."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from planted_features import OWN, windows

from autointerp import stats
from autointerp.plugins import bind_options, needs, scorers
from autointerp.records import Context, RandomWindows, TokenStat
from autointerp.scorers import embedding, floors, lexical


async def test_a_token_table_tells_a_one_word_feature_wholly():
    table = [TokenStat(f" {OWN}", 38, 38, 1.0), TokenStat(" tree", 3, 900, 1.0)]
    got = await lexical.score("", windows(1), None, token_table=table)
    assert (got.value, got.corrected) == (1.0, 1.0)


async def test_one_occurrence_does_not_stand_before_thirty_eight():
    table = [TokenStat(f" {OWN}", 38, 39, 1.0), TokenStat(" tree", 1, 1, 1.0)]
    assert (await lexical.score("", windows(1), None, token_table=table)).value > 0.99


async def test_tokens_that_read_the_same_are_counted_as_one():
    """Parts of characters all read alike; the rarest of them must not stand for the others."""
    table = [TokenStat("\ufffd", 60, 79, 1.0), TokenStat("\ufffd", 30, 29, 1.0), TokenStat("\ufffd", 1, 1, 1.0)]
    examples = [replace(window, tokens=("\ufffd",)) for window in windows(1)]
    got = await lexical.score("", examples, None, token_table=table)
    assert {j.probability for j in got.judgements} == {91 / 110}


async def test_windows_of_equal_evidence_stand_in_a_drawn_order():
    """Else a count would rank lower than a judge who knows as much and whose log odds have no ties."""
    table, rng = [TokenStat("hit", 9, 9, 1.0)], np.random.default_rng(0)

    def told(feature: int) -> list[Context]:
        """The token stands in three of four firing windows, and in one of four silent ones."""
        seen, held = Counter(), []
        for window in windows(feature):
            seen[window.fires] += 1
            hit = seen[window.fires] % 4 < 1 + 2 * window.fires
            held.append(replace(window, tokens=("hit" if hit else "none",)))
        return held

    got = [await lexical.score("", told(f), None, token_table=table) for f in range(300)]
    truth = [window.fires for window in told(0)]
    hit = np.array([window.tokens == ("hit",) for window in told(0)])
    untied = [stats.average_precision(truth, hit + 1e-3 * rng.random(len(hit))) for _ in range(2000)]
    assert np.mean([g.value for g in got]) == pytest.approx(np.mean(untied), abs=0.01)
    assert {j.probability for g in got for j in g.judgements} == {0.0, 0.9}


async def test_the_windows_shown_make_a_table_of_their_own():
    got = await lexical.score_shown("", windows(1), None, shown=windows(1, 48, split="train"))
    assert got.value > 0.99


async def test_a_ceiling_without_counts_is_a_failure():
    assert "no token table" in (await lexical.score("", windows(1), None)).failure
    assert "no train windows" in (await lexical.score_shown("", windows(1), None)).failure


async def test_constant_and_position_know_nothing():
    got = [await floors.constant("", windows(f), None) for f in range(3)]
    assert [(g.value, g.corrected) for g in got] == [(0.5, 0.0)] * 3
    only_ranks = await floors.position("", windows(1), None)
    assert (only_ranks.yes_rate, only_ranks.ece, only_ranks.metrics.get("f1")) == (None, None, None)
    assert only_ranks.judgements[0].prediction == -windows(1)[0].position
    placed = [(await floors.position("", windows(f), None)).corrected for f in range(200)]
    assert np.mean(placed) == pytest.approx(0, abs=0.02)


async def test_precision_is_counted_on_running_text():
    tokens = [(f" {OWN}", " a"), (" b", f" {OWN}"), (" a", " b"), (" c", " a")]
    text = RandomWindows(tokens, (True, False, False, True))
    table = [TokenStat(f" {OWN}", 38, 39, 1.0)]
    got = (await lexical.score("", windows(1), None, token_table=table, random_windows=text)).metrics
    assert (got["precision_counted"], got["recall_counted"], got["n_counted"], got["n_firing_counted"]) == (
        0.5,
        0.5,
        4,
        2,
    )
    always = (await floors.constant("", windows(1), None, random_windows=text)).metrics
    assert (always["precision_counted"], always["recall_counted"], always["auprc_counted"]) == (0.5, 1.0, 0.5)


async def test_an_embedding_that_sees_the_word_ranks_by_it():
    def embedder(texts):
        rows = np.array([[float(OWN in text), 1.0] for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    assert (await embedding.score(OWN, windows(1), None, embedder=embedder)).value == 1.0
    assert (await embedding.score(OWN, windows(1), None)).failure == "no embedding model"


async def test_a_window_whose_evidence_is_no_number_is_unscored():
    def embedder(texts):
        rows = np.array([[float(OWN in text), 1.0] for text in texts])
        rows[7] = np.nan
        return rows

    got = await embedding.score(OWN, windows(1), None, embedder=embedder)
    assert (got.value, got.n_scored, got.n_unscored) == (1.0, 99, 1)
    assert [j.failure for j in got.judgements if j.status == "failed"] == ["its evidence is not a number"]


@pytest.mark.parametrize("name", ["lexical", "lexical_shown", "position", "constant", "embedding"])
def test_they_are_registered_and_need_no_model(name):
    assert "llm" not in needs(scorers.get(name))
    assert bind_options("scorer", name, scorers.get(name), {}, 0) == {}


@pytest.mark.parametrize("name", ["detection", "fuzzing", "intruder", "discrimination", "generation"])
def test_scorers_with_a_judge_take_their_options_from_a_config(name):
    assert "llm" in needs(scorers.get(name))
    assert bind_options("scorer", name, scorers.get(name), {"reask": 2}, 0)["reask"] == 2
