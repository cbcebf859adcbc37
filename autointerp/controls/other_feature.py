"""The control every score is read against: the same judge, the same examples, another feature's explanation.

1. Who may lend: features whose explanation differs, that are neither near nor part of this one, and whose explanation
   names none of its words. Words that a fifth of all explanations use ("words", "names of …") do not count.
2. Who lends: in each round every feature takes another's explanation and lends its own, to a feature of like frequency
   where frequencies are known; a matching with augmenting paths finds such an exchange where there is one.
3. Where there is none, some lend twice. Where nobody may lend, shared words are forgiven; else there is no control.
4. Each explanation is lent several times, so features' controls are not independent: scores.parquet says who lent
   (`lent_by_1`, `lent_by_2` …), and the interval of their mean allows for it (`stats.shared_interval`).
"""

from __future__ import annotations

import logging
import math
import random
import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence

from autointerp.errors import ConfigError
from autointerp.plugins import control

log = logging.getLogger("autointerp")

_CANDIDATES = 300  # lenders considered for a feature, so that the work grows with the features and not their square
_COMMON = 0.2  # share of explanations from which a word says nothing
_STOP = frozenset(
    re.findall(
        r"\w+",
        """a about after all an and any are as at be before by each either especially for from has have in into is it
        its like mainly mostly of often on one or other such than that the their them these this those to used usually
        when where which while who with within word words token tokens text texts phrase phrases term terms""",
    )
)
_NONE: Mapping[int, Sequence[int]] = {}


@control("other_feature", needs={"neighbours", "constituents", "frequencies"})
def pick(
    features: Sequence[int],
    explanations: Mapping[int, str],
    *,
    neighbours: Mapping[int, Sequence[int]] = _NONE,
    constituents: Mapping[int, Sequence[int]] = _NONE,
    frequencies: Mapping[int, float] | None = None,
    donors: int = 3,
    seed: int,
) -> Mapping[int, tuple[str, ...]]:
    """Each feature with the explanations of up to `donors` others, see `lenders`: the control is their mean."""
    if donors < 1:
        raise ConfigError(f"other_feature: donors is {donors}: at least one other feature has to lend")
    more = {"neighbours": neighbours, "constituents": constituents, "frequencies": frequencies, "seed": seed}
    lent = lenders(features, explanations, donors, **more)
    return {feature: tuple(explanations[other] for other in others) for feature, others in lent.items()}


def lenders(
    features: Sequence[int],
    explanations: Mapping[int, str],
    count: int = 3,
    *,
    neighbours: Mapping[int, Sequence[int]] = _NONE,
    constituents: Mapping[int, Sequence[int]] = _NONE,
    frequencies: Mapping[int, float] | None = None,
    seed: int,
) -> Mapping[int, tuple[int, ...]]:
    """Up to `count` other features for each feature, whose explanations it is scored with, no two of the same text.

    `neighbours` and `constituents` count both ways. A feature that nobody may lend to is left out; all are where all
    explanations are one text, or there are fewer than two.
    """
    rng = random.Random(seed)
    known = sorted(set(features) & set(explanations))
    texts = {feature: _same(explanations[feature]) for feature in known}
    candidates = _candidates(known, explanations, texts, (neighbours, constituents), frequencies or {}, rng)
    lent: dict[int, list[int]] = {feature: [] for feature in known}
    for _ in range(count):
        told = {f: {texts[o] for o in others} for f, others in lent.items()}
        open_to = {f: [o for o in candidates[f] if texts[o] not in told[f]] for f in known}
        matched = _match(rng.sample(known, len(known)), open_to)
        uses = Counter(matched.values())
        for feature in known:
            donor = matched.get(feature)
            if donor is None and open_to[feature]:
                donor = min(open_to[feature], key=lambda o: uses[o])
                uses[donor] += 1
            if donor is not None:
                lent[feature].append(donor)
    return {feature: tuple(others) for feature, others in lent.items() if others}


def _candidates(
    known: Sequence[int],
    explanations: Mapping[int, str],
    texts: Mapping[int, str],
    relations: Sequence[Mapping[int, Sequence[int]]],
    frequencies: Mapping[int, float],
    rng: random.Random,
) -> dict[int, list[int]]:
    """feature -> who may lend to it, best first; `texts` tells which explanations are the same."""
    named = dict(zip(known, _telling_words([explanations[f] for f in known])))
    order = sorted(rng.sample(known, len(known)), key=lambda f: frequencies.get(f) or 0.0)  # at random where unknown
    related = _related(relations, order)
    chosen: dict[int, list[int]] = {}
    forgiven = 0
    for place, feature in enumerate(order):
        first = min(max(place - _CANDIDATES // 2, 0), max(len(order) - _CANDIDATES, 0))
        others = [o for o in order[first : first + _CANDIDATES] if o not in related[feature]]
        others = [o for o in others if texts[o] != texts[feature]]
        apart = [o for o in others if not named[o] & named[feature]]
        forgiven += bool(others and not apart)
        others = apart or others
        rng.shuffle(others)
        others.sort(key=lambda o: _apart(frequencies.get(feature), frequencies.get(o)))
        chosen[feature] = others
    if forgiven:
        log.info(
            "other_feature: words in common are forgiven to %d of %d features, to which none may lend else",
            forgiven,
            len(known),
        )
    return chosen


def _related(relations: Sequence[Mapping[int, Sequence[int]]], order: Sequence[int]) -> dict[int, set[int]]:
    """feature -> itself and those that are related to it either way, of those that are so near in `order` that they are
    considered: a crowd of thousands takes no more memory than a few."""
    place = {feature: i for i, feature in enumerate(order)}
    related = {feature: {feature} for feature in order}
    for relation in relations:
        for feature, others in relation.items():
            for other in others if feature in place else ():
                if other in place and abs(place[feature] - place[other]) < _CANDIDATES:
                    related[feature].add(other)
                    related[other].add(feature)
    return related


def _match(features: Sequence[int], open_to: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """feature -> lender, every lender once: as many as can be, by augmenting paths, preferences first come."""
    taken_by: dict[int, int] = {}
    lender: dict[int, int] = {}
    for start in features:
        reached: dict[int, int] = {}  # lender -> the feature from which it was reached
        queue = deque([start])
        end = None
        while queue and end is None:
            feature = queue.popleft()
            for other in open_to[feature]:
                if other in reached:
                    continue
                reached[other] = feature
                if other not in taken_by:
                    end = other
                    break
                queue.append(taken_by[other])
        while end is not None:  # back along the path, everyone takes the lender that was reached from it
            feature = reached[end]
            before = lender.get(feature)
            lender[feature], taken_by[end] = end, feature
            end = before
    return lender


def _telling_words(texts: Sequence[str]) -> list[set[str]]:
    """The words of each text that fewer than a fifth of the texts use (of three at least), cut to their stems."""
    words = [
        {_stem(word) for word in re.findall(r"[^\W\d_]{2,}", text.casefold()) if word not in _STOP} for text in texts
    ]
    uses = Counter(word for each in words for word in each)
    most = max(_COMMON * len(texts), 2)
    return [{word for word in each if uses[word] <= most} for each in words]


def _stem(word: str) -> str:
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _apart(a: float | None, b: float | None) -> float:
    return abs(math.log(a / b)) if a and b else 0.0


def _same(text: str) -> str:
    return " ".join(text.casefold().split()).strip(".\"'")
