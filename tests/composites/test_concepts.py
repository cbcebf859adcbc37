"""Search by concept: explained latents that say what a composite's explanation says, beside its constituents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autointerp.composites.concepts import agreement, by_concept, nearest_texts, searched, with_search
from autointerp.composites.entailment import entailed
from autointerp.composites.flagged import Flagged
from autointerp.records import Completion

TEXTS = {0: "red cars", 1: "red", 2: "cars", 3: "songs", 4: "birds", 12: "blue"}


class Judge:
    """Says that a description entails another where it holds its words."""

    model, capabilities = "judge", frozenset()

    async def complete(self, messages, **_):
        prompt = messages[-1].content
        whole = "red cars" if "red cars" in prompt else "songs"
        last = [text for text in TEXTS.values() if text != whole and text in prompt.replace(whole, "", 1)]
        return Completion("Yes" if last and last[0] in whole else "No")


class Broken(Judge):
    async def complete(self, messages, **_):
        return Completion(None, failure="dead")


JUDGE: Any = Judge()
BROKEN: Any = Broken()


def embed(texts):
    """A place for each letter: texts that share letters are near."""
    rows = np.array([[text.count(chr(97 + i)) for i in range(26)] for text in texts], float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def flagged() -> Flagged:
    parts: Any = {"own": {0: [1, 2]}, "swapped": {0: [3, 4]}, "random": {0: [4, 12]}}
    return Flagged(parts, {0: [0.7, 0.7]}, dict(TEXTS), {}, {0: "composite"}, 10)


def test_the_nearest_explanations_come_first_and_its_own_never(flagged: Flagged):
    near = nearest_texts(flagged, embed)
    assert list(near) == [0]
    assert set(near[0][:2]) == {1, 2}
    assert 0 not in near[0]


async def test_the_judge_names_as_many_as_it_has_constituents(flagged: Flagged):
    rows = await searched(0, nearest_texts(flagged, embed), flagged, JUDGE)
    assert set(rows["own"]["by_concept"]) == {"1", "2"}
    assert {pair: row["agree"] for pair, row in rows.items()} == {"own": 1.0, "swapped": 0.0, "random": 0.0}


async def test_a_judge_that_fails_is_a_reason(flagged: Flagged):
    assert await by_concept("red cars", ["red"], 1, BROKEN) == ([], "dead")
    row = (await searched(0, {0: [1, 2]}, flagged, BROKEN))["own"]
    assert with_search({"feature": 0, "failure": "no part"}, row) == {"feature": 0, "failure": "no part; search: dead"}


async def test_a_constituent_without_a_text_is_a_reason_and_no_disagreement(flagged: Flagged):
    del flagged.texts[2]
    rows = await searched(0, nearest_texts(flagged, embed), flagged, JUDGE)
    assert "constituent 2" in rows["own"]["failure"]
    assert "agree" not in rows["own"]


def test_over_all_composites_it_stands_beside_the_controls():
    rows = [
        {"feature": f, "pair": pair, "agree": value, "semantic": None, "semantic_either": None}
        for f in range(3)
        for pair, value in (("own", 1.0), ("swapped", 0.5), ("random", None))
    ]
    search = entailed(rows)["search"]
    assert (search["judged"], search["own"], search["swapped"], search["random"]) == (3, 1.0, 0.5, None)
    assert search["above_swapped"]["mean"] == pytest.approx(0.5)
    assert "search" not in entailed([row | {"agree": None} for row in rows])
    assert agreement([1, 2], [1, 3]) == 0.5
