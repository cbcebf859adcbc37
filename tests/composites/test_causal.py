"""Composites on a planted subject: what they do beside what their constituents do, and beside the controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autointerp.artifacts import Corpus, CorpusInfo
from autointerp.composites.causal import (
    BEFORE,
    Later,
    Places,
    Question,
    Subjects,
    divide,
    effects,
    silent_places,
    swapped,
    turned,
)
from autointerp.composites.causes import columns_of, summary
from autointerp.config import CorpusConfig, SubjectConfig
from autointerp.sae.load import load_sae
from autointerp.subject.corpus import build_corpus
from autointerp.subject.model import load_subject
from autointerp.toys.planted_subject import HOOK, PlantedSubject, plant_subject

SUMS = 4
LAST = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> PlantedSubject:
    return plant_subject(tmp_path_factory.mktemp("planted"), 2 * SUMS + 4, sums=SUMS, documents=100)


@pytest.fixture(scope="module")
def subjects(planted: PlantedSubject, tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    folder = tmp_path_factory.mktemp("corpus")
    build_corpus(CorpusConfig(source=str(planted.text), context=64), planted.model, folder, seed=0)
    subject = load_subject(SubjectConfig(model=str(planted.model)), planted.model, HOOK)
    return Subjects(subject, subject, load_sae(planted.sae), Corpus(folder), Later(LAST))


@pytest.fixture(scope="module")
def tried(planted: PlantedSubject, subjects: Subjects) -> list[dict[str, Any]]:
    silent = silent_places(subjects.corpus, 12, 0)
    return [
        row
        for each in planted.features
        if each.parts
        for row in effects(subjects, ask(planted, subjects, each.feature), silent)
    ]


def ask(planted: PlantedSubject, subjects: Subjects, feature: int, tokens: int = 12) -> Question:
    W, each = subjects.sae.W_dec, planted.features[feature]
    other = next(o for o in planted.features if o.parts and o is not each)
    own = divide(W[feature], W[list(each.parts)])
    divided = {"own": own, "swapped": swapped(own, W[list(other.parts)]), "turned": turned(own, (0, feature))}
    words = subjects.reads.vocab_strings()
    triggers = [i for i, word in enumerate(words) if word.strip() in each.triggers]
    positions = np.flatnonzero(np.isin(subjects.corpus.tokens, triggers))[:tokens].tolist()
    return Question(feature, divided, [str(part) for part in each.parts], positions)


def test_the_column_tells_sums_that_are_used_so_from_those_that_only_lie_so(
    planted: PlantedSubject, tried: list[dict[str, Any]]
) -> None:
    columns = columns_of(tried)
    used = {each.feature for each in planted.features if each.path == "sum"}
    assert len(columns) == SUMS
    assert all((row["causal"] > 0.7) == (feature in used) for feature, row in columns.items())
    assert all(abs(row["causal_swapped"]) < 0.2 for row in columns.values())
    assert all(row["causal_low"] <= row["causal"] <= row["causal_high"] for row in columns.values())


def test_a_part_of_a_sum_does_a_part_of_what_it_does(planted: PlantedSubject, tried: list[dict[str, Any]]) -> None:
    used = {each.feature: each for each in planted.features if each.path == "sum"}
    rows = [row for row in tried if row["feature"] in used and row["how"] == "steered"]
    for feature, each in used.items():
        arms = {row["arm"]: row for row in rows if row["feature"] == feature}
        each_alone = [arms[str(part)]["output"] for part in each.parts]
        assert 0 < min(each_alone) < arms["added"]["output"] - 0.1
        assert arms["added"]["kl"] < arms["clean"]["kl"]
        assert arms["added"]["top"] > 0.7
        assert arms["clean"]["output"] == 0.0


def test_what_the_means_are_over_is_counted(tried: list[dict[str, Any]]) -> None:
    facts = summary(tried)
    assert (facts["composites"], facts["known"]) == (SUMS, SUMS)
    assert facts["above_swapped"]["n"] == SUMS
    assert facts["own"] > facts["swapped"]


def test_too_few_tokens_are_a_reason_and_no_figure(planted: PlantedSubject, subjects: Subjects) -> None:
    feature = next(each.feature for each in planted.features if each.parts)
    rows = effects(subjects, ask(planted, subjects, feature, tokens=3), silent_places(subjects.corpus, 12, 0))
    column = columns_of(rows)[feature]
    assert column["causal"] is None
    assert column["failure"] == "3 tokens, 8 are needed"


def test_a_latent_that_never_fires_is_a_reason(planted: PlantedSubject, subjects: Subjects) -> None:
    whole = ask(planted, subjects, next(each.feature for each in planted.features if each.parts))
    silent = silent_places(subjects.corpus, 12, 0)
    rows = effects(subjects, Question(whole.feature, whole.divided, whole.names, silent[:2]), silent)
    assert "fires on none" in columns_of(rows)[whole.feature]["failure"]


@given(st.integers(2, 4), st.integers(0, 1000))
def test_turned_parts_are_others_of_the_same_lengths_angles_and_sum(parts: int, seed: int) -> None:
    rows = torch.randn(parts, 24, generator=torch.Generator().manual_seed(seed))
    other = turned(rows, (seed,))
    assert torch.allclose(other.sum(0), rows.sum(0), atol=1e-4)
    assert torch.allclose(other @ other.T, rows @ rows.T, atol=1e-3)
    assert not torch.allclose(other, rows, atol=0.1)


@given(st.integers(0, 1000))
def test_a_direction_is_divided_along_its_parts(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(3, 24, generator=generator)
    weights = torch.rand(3, generator=generator) + 0.1
    direction = weights @ parts
    direction = direction / direction.norm()
    own = divide(direction, parts)
    assert torch.allclose(own.sum(0), direction, atol=1e-4)
    other = swapped(own, torch.randn(3, 24, generator=generator))
    assert torch.allclose(other.norm(dim=1), own.norm(dim=1).sort(descending=True).values, atol=1e-5)


@pytest.mark.parametrize("bos", [None, 7])
def test_what_is_cut_around_a_place_begins_as_the_rows_of_the_corpus_do(tmp_path: Path, bos: int | None) -> None:
    head = [] if bos is None else [bos]
    row = [*head, *range(100, 100 + 2 * BEFORE)]
    info = CorpusInfo("t", "t", bos, len(row), len(row), 1, 1, "")
    Corpus.save(tmp_path, info, np.array(row), np.array([0, len(row)]), np.zeros(1), np.zeros(1))
    corpus, positions = Corpus(tmp_path), [len(head), len(row) - 1]
    places = Places.of(corpus, positions)
    assert [int(line[at]) for line, at in zip(places.tokens, places.at)] == [row[position] for position in positions]
    assert places.tokens[:, : len(head)].tolist() == [head, head]
    assert places.tokens[1, len(head)] == row[len(row) - 1 - BEFORE]
