"""Ceilings without a model: how well a table of token counts tells the windows in which the feature fires.

The evidence for a window is the largest P(fires | token) of its tokens. An explanation that scores below this has
said less than a list of words would, and a feature that scores near 1 here is told by one token.

Windows of equal evidence stand in a drawn order. Average precision takes equal scores for one threshold, which costs
a ranking that knows something: a ceiling with its ties would stand too low beside a judge, whose log odds have none.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from autointerp.plugins import scorer
from autointerp.records import Context, RandomWindows, Score, TokenStat
from autointerp.scorers.judging import Item, counted, failed, held_out, summarise

_TIE = 1e-12  # less than two shares of fewer than a million occurrences differ by


@scorer("lexical", needs={"token_table", "random_windows"})
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: None,
    *,
    token_table: Sequence[TokenStat] = (),
    random_windows: RandomWindows | None = None,
) -> Score:
    """Rank windows by the feature's whole token table, counted over train documents.

    `token_table` lists every token on which the feature fires there, with how often it fires and occurs; tokens
    that it lacks never fire.
    """
    held_out("lexical", examples)
    return _ranked(examples, token_table, random_windows, "no token table of the feature")


@scorer("lexical_shown", needs={"shown", "random_windows"})
async def score_shown(
    explanation: str,
    examples: Sequence[Context],
    llm: None,
    *,
    shown: Sequence[Context] = (),
    random_windows: RandomWindows | None = None,
) -> Score:
    """Rank windows by the token counts of `shown` alone, all train windows of the feature, firing and silent.

    An explainer is shown some of these and, with `token_stats`, what all train documents say of a few tokens; so this
    is a yardstick of about as much evidence, and no limit of what an explainer can know.
    """
    held_out("lexical_shown", examples)
    return _ranked(examples, _counted(shown), random_windows, "no train windows of the feature")


def _counted(windows: Iterable[Context]) -> list[TokenStat]:
    fired, seen = Counter[str](), Counter[str]()
    for window in windows:
        seen.update(window.tokens)
        fired.update(token for token, activation in zip(window.tokens, window.activations) if activation > 0)
    return [TokenStat(token, fired[token], seen[token], 0.0) for token in seen if fired[token]]


def _ranked(
    examples: Sequence[Context], table: Sequence[TokenStat], random_windows: RandomWindows | None, lacking: str
) -> Score:
    items = [Item.window(example) for example in examples]
    if not table:
        return failed(items, lacking)
    fired, seen = Counter[str](), Counter[str]()
    for stat in table:  # tokens of one string, such as parts of characters, cannot be told apart in a window
        fired[stat.token] += stat.fired
        seen[stat.token] += stat.seen
    # One occurrence more than was seen: 1 of 1 must not stand before 38 of 38.
    share = {token: fired[token] / (seen[token] + 1) for token in fired}

    def most(tokens: Sequence[str]) -> float:
        return max((share.get(token, 0.0) for token in tokens), default=0.0)

    rng = random.Random(f"{examples[0].feature if examples else ''}")
    got = summarise(items, [(value + _TIE * rng.random(), value) for value in map(most, (e.tokens for e in examples))])
    return counted(got, random_windows, most)
