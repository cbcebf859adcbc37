"""The control that every score is read against: same judge, same examples, another feature's explanation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from autointerp.plugins import control


@control("other_feature")
def pick(features: Sequence[int], explanations: Mapping[int, str], *, seed: int) -> Mapping[int, str]:
    """Each feature with the explanation of another one whose text differs; every explanation is used once.

    Where more than half share a text no such exchange exists, and some explanations of the others are used again.
    Empty where all explanations are one text, or there are fewer than two.
    """
    rng = random.Random(seed)
    groups: dict[str, list[int]] = {}
    known = sorted(set(features) & set(explanations))
    for feature in rng.sample(known, len(known)):
        groups.setdefault(_same(explanations[feature]), []).append(feature)
    if len(groups) < 2:
        return {}
    # Equal texts stand together, the largest group first: a shift by its size then leaves no one within its own group.
    order = [f for group in sorted(groups.values(), key=len, reverse=True) for f in group]
    shift = max(map(len, groups.values()))
    picked = {f: order[(i + shift) % len(order)] for i, f in enumerate(order)}
    for f, other in picked.items():
        if _same(explanations[f]) == _same(explanations[other]):
            picked[f] = rng.choice([o for o in order if _same(explanations[o]) != _same(explanations[f])])
    return {f: explanations[picked[f]] for f in sorted(picked)}


def _same(text: str) -> str:
    return " ".join(text.casefold().split()).strip(".\"'")
