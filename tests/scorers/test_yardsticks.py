"""What each scorer gives to judges whose knowledge is known: all of it, or none."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_features import OWN, Judge, know_nothing, neighbours, oracle, window, windows

from autointerp import stats
from autointerp.errors import AutointerpError, ConfigError
from autointerp.records import Completion, Context
from autointerp.scorers import detection, discrimination, fuzzing, generation, intruder
from autointerp.scorers.judging import Item, in_proportion, rng_of, summarise

modes = pytest.mark.parametrize("capabilities", [("choices", "slots"), ()])


def asked_with_a_judge():
    return {
        "detection": lambda judge, f: detection.score("dogs", windows(f), judge, seed=0),
        "fuzzing": lambda judge, f: fuzzing.score("dogs", windows(f), judge, seed=0),
        "discrimination": lambda judge, f: discrimination.score(
            "dogs", windows(f), judge, neighbours=neighbours(f), seed=0
        ),
        "intruder": lambda judge, f: intruder.score("dogs", windows(f), judge, seed=0),
    }


@modes
@pytest.mark.parametrize("name", asked_with_a_judge())
async def test_an_oracle_scores_1(name, capabilities):
    got = await asked_with_a_judge()[name](Judge(oracle, capabilities), 3)
    assert got.value == pytest.approx(1)
    assert got.corrected == pytest.approx(1)
    assert got.n_unscored == 0
    assert 0 < got.chance < 0.55
    assert got.low < 1 == got.high
    assert all(j.status == "ok" for j in got.judgements)


def _items(name, feature, n):
    rng = random.Random(feature)
    if name == "detection":
        items = [Item.window(context) for context in windows(feature, n)]
        return rng.sample(items, len(items))
    if name == "fuzzing":
        return fuzzing.marks(windows(feature, n), rng)
    return discrimination.against(windows(feature, n), neighbours(feature, n), n // 2, rng)


@pytest.mark.parametrize("n", [24, 40, 100])
@pytest.mark.parametrize("name", ["detection", "fuzzing", "discrimination"])
def test_judges_who_know_nothing_score_0_above_chance(name, n):
    sets = [_items(name, feature, n) for feature in range(200)]
    times = 240 // n  # of random ones, so that the mean is sharp
    for judge in know_nothing(0):
        corrected, above = [], []
        for feature, items in enumerate(sets):
            for again in range(times if judge.startswith("random") else 1):
                rule = know_nothing(f"{feature} {again}")[judge]
                truth, score = [item.truth for item in items], [rule(item.text) for item in items]
                base = sum(truth) / len(truth)
                value = stats.average_precision(truth, score)
                chance = stats.average_precision_chance(truth, score)
                corrected.append(stats.chance_corrected(value, chance))
                low, _ = stats.average_precision_interval(truth, score)
                above.append(low > base)
        error = np.std(corrected) / len(corrected) ** 0.5
        assert abs(np.mean(corrected)) < max(0.01, 3 * error), judge
        assert np.mean(above) <= 0.035 or np.sum(above) <= 0.035 * len(above) + 3, judge


async def test_guessing_finds_the_intruder_once_in_four():
    rng = random.Random(0)
    got = [await intruder.score("dogs", windows(f), Judge(lambda text: rng.random()), seed=f) for f in range(20)]
    assert np.mean([g.corrected for g in got]) == pytest.approx(0, abs=0.05)
    same = await intruder.score("dogs", windows(1), Judge(lambda text: 0.5), seed=0)
    assert same.value == same.chance == pytest.approx(0.25)
    with pytest.raises(ConfigError, match="one digit"):
        await intruder.score("dogs", windows(1), Judge(oracle), shown=10, seed=0)
    first = await intruder.score("dogs", windows(1), Judge(lambda text: 1.0, ()), seed=0)
    assert first.value == pytest.approx(0.25, abs=0.04)  # the first text is the intruder once in four


async def test_right_texts_stand_in_equally_many_questions_of_intruder():
    judge = Judge(oracle)
    got = await intruder.score("dogs", windows(1), judge, seed=0)
    times = Counter(text for prompt in judge.asked for text in judge._texts(prompt) if oracle(text))
    assert got.n_scored == len(judge.asked) > 20
    assert max(times.values()) - min(times.values()) <= 1


@modes
async def test_judges_see_marks_only_where_the_scorer_marks(capabilities):
    for name, score in asked_with_a_judge().items():
        judge = Judge(oracle, capabilities)
        await score(judge, 2)
        assert all(("«" in prompt) == (name != "detection") for prompt in judge.asked)


async def test_no_scorer_takes_train_windows():
    for score in (detection.score, fuzzing.score, intruder.score, discrimination.score):
        with pytest.raises(AutointerpError, match="train contexts"):
            await score("dogs", windows(1, split="train"), Judge(oracle), seed=0)


# --- what the summary holds -------------------------------------------------------------------


async def test_train_windows_of_other_features_make_precision_mean_something():
    def hasty(text):  # Yes to everything, a little more so where it is right
        return 0.8 + 0.15 * oracle(text)

    pairs = [
        pair
        for feature in range(3)
        for pair in await detection.pairs("dogs", windows(feature, split="train"), Judge(hasty), most=40, seed=0)
    ]
    assert Counter(truth for truth, _ in pairs) == {True: 60, False: 60}
    got = await detection.score("dogs", windows(9), Judge(hasty), calibration=pairs, natural_rate=0.02, seed=0)
    assert (got.yes_rate, got.metrics["precision"], got.metrics["precision_chance"]) == (1.0, 0.5, 0.5)
    assert got.metrics["precision_calibrated"] == got.metrics["recall_calibrated"] == 1.0
    assert got.metrics["ece_calibrated"] < 0.05 < got.ece
    assert got.metrics["precision_natural"] == pytest.approx(0.02)
    assert got.metrics["precision_natural_calibrated"] == got.metrics["recall_natural_calibrated"] == 1.0
    assert got.metrics["auprc_natural"] == 1.0


@pytest.mark.parametrize("n_true", [83, 84, 85])
async def test_a_judge_who_cannot_tell_train_windows_apart_gets_no_calibrated_answers(n_true):
    """With as many true pairs as false ones or one more all would be yes, with one less all no."""
    told = [(True, 0.0)] * 84 + [(False, 1.0)] * 84
    ranked = await detection.score("dogs", windows(9), Judge(oracle), calibration=told, natural_rate=0.02, seed=0)
    pairs = [(True, 1.0)] * n_true + [(False, 1.0)] * 84
    got = await detection.score("dogs", windows(9), Judge(oracle), calibration=pairs, natural_rate=0.02, seed=0)
    uncalibrated = {name for name, value in got.metrics.items() if name.endswith("_calibrated") and value is None}
    assert {"f1_calibrated", "yes_rate_calibrated", "ece_calibrated", "precision_natural_calibrated"} <= uncalibrated
    assert uncalibrated == {name for name in ranked.metrics if name.endswith("_calibrated")}
    assert ranked.metrics["f1_calibrated"] is None
    assert got.metrics["f1"] == got.metrics["recall_natural"] == 1.0
    assert not any(name.endswith("_calibrated") for name in (await detection.score(
        "dogs", windows(9), Judge(oracle), natural_rate=0.02, seed=0)).metrics)  # fmt: skip


@pytest.mark.parametrize("scorer", [detection, fuzzing, discrimination])
@pytest.mark.parametrize("capabilities", [("choices", "slots"), ()])
async def test_asking_stops_when_the_interval_is_narrow_enough(scorer, capabilities):
    more = {"neighbours": neighbours(2)} if scorer is discrimination else {}
    judge = Judge(oracle, capabilities)
    got = await scorer.score("dogs", windows(2), judge, stop_width=0.3, batch=10, seed=0, **more)
    assert got.value == 1.0
    assert got.high - got.low <= 0.3
    assert got.n_unscored == 0
    assert len(got.judgements) == got.n_scored < 60
    whole = await scorer.score("dogs", windows(2), Judge(oracle, capabilities), seed=0, **more)
    assert "n_saved" not in whole.metrics
    assert got.n_scored + got.metrics["n_saved"] == whole.n_scored
    never = await scorer.score("dogs", windows(2), Judge(oracle, capabilities), stop_width=0.001, seed=0, **more)
    assert never.n_scored == whole.n_scored


@given(st.integers(0, 99), st.integers(8, 100))
def test_every_beginning_of_a_sequential_judging_holds_each_kind_in_its_share(feature, n):
    items = [Item.window(context) for context in windows(feature, n)]
    order = in_proportion(items, random.Random(0))
    assert sorted(order) == list(range(len(items)))
    for cut in range(1, n):
        true = sum(items[i].truth for i in order[:cut])
        assert abs(true - cut / 2) <= 6  # one for each stratum but one, of which there are seven


async def test_scores_by_quantile_show_where_an_explanation_fails():
    examples = windows(4)
    weak = {Item.window(e).text for e in examples if e.fires and e.quantile == 0}
    got = await detection.score("dogs", examples, Judge(lambda text: oracle(text) * (text not in weak)), seed=0)
    assert (got.metrics["recall_q1"], got.metrics["recall_q5"]) == (0, 1)
    assert got.metrics["auroc_q1"] == 0.5 < got.metrics["auroc_q2"] == 1


def test_what_was_not_judged_is_counted_and_left_out():
    items = [Item.window(e) for e in windows(5)]
    verdicts = [(float(item.truth), None) if i % 2 else "HTTP 500" for i, item in enumerate(items)]
    got = summarise(items, verdicts)
    assert (got.value, got.n_scored, got.n_unscored) == (1.0, 50, 50)
    nothing = summarise(items, ["HTTP 500"] * 100)
    assert (nothing.value, nothing.corrected) == (None, None)
    assert "HTTP 500" in nothing.failure


# --- fuzzing's marks --------------------------------------------------------------------------


def _places(item):
    """The word places that are marked."""
    marked, places = False, []
    for i, word in enumerate(item.text.split()):
        marked |= word.startswith("«")
        places += [i] * marked
        marked &= not word.endswith("»")
    return tuple(places)


def test_wrong_marks_are_the_right_ones_exchanged():
    examples = windows(6)
    items = fuzzing.marks(examples, random.Random(0))
    right, wrong = [i for i in items if i.truth], [i for i in items if not i.truth]
    assert len({item.context.document for item in items}) == len(items) >= 45  # no text comes twice
    assert abs(len(right) - len(wrong)) <= 3
    own = {e.example: tuple(i for i, a in enumerate(e.activations) if a > 0) for e in examples}
    assert all(_places(item) == own[item.context.example] for item in right)
    assert sum(len(_places(item)) for item in wrong) == pytest.approx(
        sum(len(own[item.context.example]) for item in wrong), abs=3
    )
    assert not any(oracle(item.text) for item in wrong)


def test_wrong_marks_fall_on_words_that_look_like_the_right_ones():
    rng = random.Random(0)

    def sentence(example):
        tokens = [rng.choice([" a", ",", " of", "ing", " stone", " river"]) for _ in range(30)]
        place = rng.randrange(30)
        tokens[place] = " zebra"
        values = [float(i == place) for i in range(30)]
        return Context(1, example, "test", "activating", 0, example, 0, tuple(tokens), tuple(values))

    items = fuzzing.marks([sentence(i) for i in range(50)], rng)
    wrong = [item.text.split("«")[1].split("»")[0] for item in items if not item.truth]
    assert set(wrong) <= {"stone", "river"}


async def test_a_judge_who_hears_alike_of_both_windows_of_a_pair_but_knows_nothing_scores_0():
    rng = random.Random(0)
    scores = []
    for feature in range(250):
        examples = windows(feature, 40)
        of_pair = [rng.random() for _ in examples]
        heard = {item.text: of_pair[item.pair] for item in fuzzing.marks(examples, rng_of(examples, 0))}
        scores.append(await fuzzing.score("dogs", examples, Judge(heard.__getitem__), seed=0))
    error = np.std([s.corrected for s in scores]) / len(scores) ** 0.5
    assert abs(np.mean([s.corrected for s in scores])) < 3 * error
    by_item = [stats.average_precision_chance(*zip(*((j.truth, j.probability) for j in s.judgements))) for s in scores]
    assert np.mean([s.value - chance for s, chance in zip(scores, by_item)]) > 0.01
    assert np.mean([s.low > s.base_rate for s in scores]) <= 0.025
    assert all(s.low <= s.value <= s.high for s in scores)


def test_windows_that_fire_everywhere_have_no_wrong_marks():
    rng = random.Random(0)
    full = [window(rng, 1, i, "activating") for i in range(4)]
    full = [type(c)(*(c.feature, c.example, c.split, c.kind, c.quantile, c.document, c.position, c.tokens),
                    tuple(1.0 for _ in c.tokens)) for c in full]  # fmt: skip
    assert fuzzing.marks(full, rng) == []


async def test_a_feature_without_neighbours_is_not_told_from_any():
    got = await discrimination.score("dogs", windows(1), Judge(oracle), seed=0)
    assert (got.value, got.failure) == (None, "no windows of neighbours")


# --- generation -------------------------------------------------------------------------------


def fires_on_it(texts):
    return [[float(token == OWN) for token in text.split()] for text in texts]


async def test_texts_that_fire_count_and_chance_is_that_of_texts_about_anything():
    own = [f"a zebra number {i}" for i in range(20)]
    anything = [f"the tree number {i}" for i in range(19)] + ["one zebra"]
    got = await generation.score("dogs", [], Judge(oracle, writes=(own, anything)), activations=fires_on_it)
    assert (got.value, got.chance, got.n_scored) == (1.0, 0.05, 20)
    assert got.corrected == 1.0
    assert [j.kind for j in got.judgements] == ["generated"] * 20 + ["neutral"] * 20
    assert got.judgements[0].text == "a zebra number 0"


async def test_a_wrong_explanation_scores_chance_and_an_async_subject_works():
    async def later(texts):
        return fires_on_it(texts)

    anything = [f"a zebra {i}" if i % 2 else f"the tree {i}" for i in range(20)]
    got = await generation.score("x", [], Judge(oracle, writes=(anything, anything)), activations=later)
    assert (got.value, got.corrected) == (0.5, 0.0)


async def test_a_feature_that_fires_on_anything_has_no_room_above_chance_and_scores_0():
    texts = [f"a zebra {i}" for i in range(20)]
    got = await generation.score("x", [], Judge(oracle, writes=(texts, texts)), activations=fires_on_it)
    assert (got.value, got.chance, got.corrected, got.failure) == (1.0, 1.0, 0.0, None)
    assert got.metrics["corrected_low"] is got.metrics["corrected_high"] is None


async def test_the_interval_of_generation_above_chance_holds_the_error_of_chance():
    own = [f"a zebra {i}" if i < 12 else f"the house {i}" for i in range(20)]
    widths = []
    for fires in (0, 6):
        anything = [f"one zebra {i}" if i < fires else f"the tree {i}" for i in range(20)]
        got = await generation.score("x", [], Judge(oracle, writes=(own, anything)), activations=fires_on_it)
        low, high = got.metrics["corrected_low"], got.metrics["corrected_high"]
        assert low < got.corrected < high <= 1
        widths.append((high - low) / ((got.high - got.low) / (1 - got.chance)))
    assert 1 < widths[0] < 1.1  # that none of 20 texts fires says more of chance than that 6 do
    assert widths[1] > 1.2


async def test_nothing_written_is_a_failure_with_its_reason():
    got = await generation.score("x", [], Judge(oracle, writes=([], [])), activations=fires_on_it)
    assert got.value is None
    assert "no numbered line" in got.failure
    assert "SAE" in (await generation.score("x", [], Judge(oracle))).failure


async def test_lines_of_a_reasoning_model_s_thoughts_are_no_texts():
    judge = Judge(oracle)

    async def thinks(messages, **wanted):
        word = "the" if "anything" in messages[-1].content else OWN
        return Completion(f"<think>\n1. a draft without it\n2. another\n</think>\n1. {word} one\n2. {word} two")

    judge.complete = thinks
    got = await generation.score("x", [], judge, activations=fires_on_it, texts=2)
    assert (got.value, got.chance) == (1.0, 0.0)


# --- a judge who is sometimes wrong -----------------------------------------------------------


@pytest.mark.parametrize("flips", [0.0, 0.1, 0.2, 0.3, 0.4])
def test_a_noisy_oracle_scores_what_the_closed_form_says(flips):
    """Yes at a rate 1 − f where it is right and f where it is not: AP = (1 − f)² + f / 2 at a base rate of one half."""
    expected = (1 - flips) ** 2 + flips / 2
    items = [Item.window(context) for context in windows(7)]
    held = []
    for seed in range(200):
        rng = random.Random(seed)
        got = summarise(items, [(float((rng.random() < flips) != item.truth), None) for item in items])
        held.append(got.low <= expected <= got.high)
    assert np.mean(held) >= 0.93
