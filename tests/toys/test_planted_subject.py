"""A subject whose features are written by hand does what they say; steering and ablation see it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from autointerp.activations.steering import Steering
from autointerp.activations.texts import RUNNING, TextActivations
from autointerp.artifacts import Corpus
from autointerp.config import CorpusConfig, SubjectConfig
from autointerp.sae.load import load_sae
from autointerp.subject.corpus import build_corpus
from autointerp.subject.model import Subject, load_subject
from autointerp.toys.planted_subject import HOOK, PlantedFeature, PlantedSubject, oracle, plant_subject

FEATURES = 8
EACH = pytest.mark.parametrize("feature", range(FEATURES))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> PlantedSubject:
    return plant_subject(tmp_path_factory.mktemp("planted"), FEATURES, documents=40)


@pytest.fixture(scope="module")
def subject(planted: PlantedSubject) -> Subject:
    return load_subject(SubjectConfig(model=str(planted.model)), planted.model, HOOK)


@pytest.fixture(scope="module")
def corpus(planted: PlantedSubject, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    config = CorpusConfig(source=str(planted.text), context=64)
    return build_corpus(config, planted.model, tmp_path_factory.mktemp("corpus"), seed=0)


@pytest.fixture(scope="module")
def steering(planted: PlantedSubject, subject: Subject, corpus: Corpus) -> Steering:
    return Steering(subject, subject, load_sae(planted.sae), corpus, firing(planted))


def firing(planted: PlantedSubject) -> Callable[[int], list[str]]:
    return lambda feature: [sentence(planted, planted.features[feature], i) for i in range(4)]


def sentence(planted: PlantedSubject, feature: PlantedFeature, i: int) -> str:
    return " ".join([*planted.neutral[i : i + 5], feature.triggers[i % len(feature.triggers)], planted.neutral[i]])


@EACH
def test_a_feature_fires_on_its_triggers_and_nowhere_else(
    planted: PlantedSubject, subject: Subject, feature: int
) -> None:
    own = planted.features[feature]
    texts = [sentence(planted, own, i) for i in range(4)]
    for text, seen in zip(texts, TextActivations(subject, load_sae(planted.sae), subject.bos_id).of(feature)(texts)):
        assert [token.strip() for token in seen.tokens] == text.split()
        fired = [token.strip() in own.triggers for token in seen.tokens]
        assert [value > 0 for value in seen.activations] == fired
        assert max(seen.activations) == pytest.approx(1.0, abs=1e-4)


@EACH
def test_its_effects_are_likely_behind_a_trigger_and_unlikely_elsewhere(
    planted: PlantedSubject, subject: Subject, feature: int
) -> None:
    own = planted.features[feature]
    ids = subject.tokenizer.encode(f"{planted.neutral[0]} {own.triggers[0]}")
    odds = subject.logits(torch.tensor([ids]))[0][0].float().softmax(-1)
    effects = [subject.tokenizer.encode(word, add_special_tokens=False)[0] for word in own.effects]
    assert float(odds[2, effects].sum()) > 0.5
    assert float(odds[1, effects].sum()) < 0.2


@EACH
def test_the_unembedding_shows_a_direct_effect_and_no_later_one(
    planted: PlantedSubject, subject: Subject, feature: int
) -> None:
    own = planted.features[feature]
    weights = subject.logit_weights(load_sae(planted.sae).W_dec[[feature]])
    assert weights is not None
    raised = {subject.vocab_strings()[i].strip() for i in (weights[0] > 1e-3).nonzero().flatten().tolist()}
    assert raised == (set(own.effects) if own.path == "direct" else set())


@EACH
def test_a_steered_subject_writes_the_effects(planted: PlantedSubject, steering: Steering, feature: int) -> None:
    own = planted.features[feature]
    words = " ".join(steering.texts(feature)).split()
    assert sum(word in own.effects for word in words) / len(words) > 0.4
    assert len(steering.texts(feature)) == 8


@EACH
def test_ablation_takes_the_effects_away(planted: PlantedSubject, steering: Steering, feature: int) -> None:
    own = planted.features[feature]
    assert set(steering.lost(feature)[: len(own.effects)]) == set(own.effects)


def test_strength_is_as_much_as_moves_the_output_enough(steering: Steering) -> None:
    assert all(0 < steering.strength(feature) < 8 * steering._norm for feature in range(FEATURES))


def test_a_firing_at_an_attention_sink_is_not_ablated(
    planted: PlantedSubject, subject: Subject, corpus: Corpus
) -> None:
    sae = load_sae(planted.sae)
    all_are_sinks = Steering(subject, subject, sae, corpus, firing(planted), outlier_threshold=1e-6)
    none_is = Steering(subject, subject, sae, corpus, firing(planted), outlier_threshold=1e6)
    assert all_are_sinks.lost(0) == ()
    assert none_is.lost(0) != ()


def test_steering_runs_the_subject_alone(planted: PlantedSubject, steering: Steering, corpus: Corpus) -> None:
    free: list[bool] = []

    def firing(feature: int) -> list[str]:
        other = threading.Thread(target=lambda: free.append(RUNNING.acquire(blocking=False)))
        other.start()
        other.join()
        return []

    Steering(steering._reads, steering._reads, load_sae(planted.sae), corpus, firing).lost(0)
    assert free == [False]


def test_nothing_is_lost_of_a_feature_that_does_not_fire(
    planted: PlantedSubject, subject: Subject, corpus: Corpus
) -> None:
    silent = Steering(subject, subject, load_sae(planted.sae), corpus, lambda feature: [planted.neutral[0]])
    assert silent.lost(0) == ()


def test_the_oracle_goes_by_the_words_of_the_explanation(planted: PlantedSubject) -> None:
    own, other = planted.features[0], planted.features[1]
    prompt = f"Description: {own.explanation}\n\n1. {' '.join(other.effects)}\n2. {' '.join(own.effects)}\n\nNumber:"
    assert oracle(prompt, planted.neutral) == "2"
    written = oracle(f"Write 5 texts in each of which this occurs: {own.explanation}", planted.neutral)
    assert all(set(line.split()) & set(own.triggers) for line in written.splitlines())
