"""Whole words from a tokenizer's fragments, and what is known of the tokens on which a feature fires."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autointerp.prompting import on_one_line
from autointerp.records import Context, Explanation, FeatureEvidence, TokenStat

_LONGEST = 8  # tokens of a word; more is no word
_ONE = 0.7  # share of the firings from which a feature is one word's
_SEVERAL = 0.3  # share of the firings that specific words make up together, from which a feature is theirs
_SPECIFIC = 0.02  # share of a word's occurrences that fire, from which the word tells something


@dataclass(frozen=True, slots=True)
class TokenUse:
    """One token of a feature: how much of the feature it is, and how much of the token the feature is."""

    token: str
    share: float  # of the feature's firings in train documents
    fired: int
    seen: int  # occurrences of the token
    words: tuple[str, ...] = ()  # in which it stands, where it is a fragment: the most frequent first

    @property
    def specificity(self) -> float:
        """Share of the token's occurrences on which the feature fires."""
        return self.fired / self.seen if self.seen else 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The words that stand for it: its own text, or the whole words where it is a fragment."""
        return self.words or (self.token,)


def on_whole_words(context: Context) -> Context:
    """The context with every word that holds a firing token marked as a whole, as strongly as its strongest token."""
    values = list(context.activations)
    for low, high in word_spans(context.tokens):
        peak = max(context.activations[low:high])
        if peak > 0:
            values[low:high] = [peak] * (high - low)
    return replace(context, activations=tuple(values))


def word_spans(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """[low, high) of each word's tokens; what is no part of a longer word is a span of its own.

    Tokens belong together where letters or digits meet without a space between them, and an empty one, the beginning
    of a character, belongs to the next. Only letters that know upper and lower case are joined: scripts that write
    without spaces would come out as one word.
    """
    spans: list[tuple[int, int]] = []
    next_letter = [""] * (len(tokens) + 1)
    for place in reversed(range(len(tokens))):
        next_letter[place] = tokens[place][:1] or next_letter[place + 1]
    low = 0
    for place in range(1, len(tokens) + 1):
        before = tokens[place - 1]
        joined = place < len(tokens) and (not before or (_letter(before[-1]) and _letter(next_letter[place])))
        if not joined or place - low == _LONGEST:
            spans.append((low, place))
            low = place
    return spans


def token_uses(feature: FeatureEvidence, most_words: int = 3) -> list[TokenUse]:
    """The feature's tokens, those first that are much of the feature and of which the feature is much.

    Ranked by share · specificity, so that a frequent token on which it fires now and then does not stand before a
    rarer one on which it always fires. Fragments carry the whole words in which train windows show them firing; the
    beginning of a character is named by the first of these, and left out where there is none.
    """
    whole = _whole_words(feature.activating)
    uses: list[TokenUse] = []
    for stat, share in shares(feature):
        words = _fragment_of(stat.token, whole, most_words)
        if stat.token or words:
            uses.append(TokenUse(stat.token or words[0], share, stat.fired, stat.seen, words))
    return sorted(uses, key=lambda use: -use.share * use.specificity)


def typical_words(
    uses: Sequence[TokenUse], most: int, *, min_share: float = 0.05, min_specificity: float = _SPECIFIC
) -> list[str]:
    """The words of the first `most` tokens that are `min_share` of the firings and fire in `min_specificity` of their
    occurrences; of the first frequent token alone where none is so specific."""
    frequent = [use for use in uses if use.share >= min_share]
    named = [use for use in frequent if use.specificity >= min_specificity][:most] or frequent[:1]
    return [word for word in dict.fromkeys(on_one_line(name).strip() for use in named for name in use.names) if word]


Form = Literal["word", "when", "kind", "topic"]


def form_of(uses: Sequence[TokenUse]) -> Form:
    """Which form of explanation the token counts ask for.

    One word, upper and lower case together, that makes up `_ONE` of the firings is a ``word`` where at least half of
    its occurrences fire, else the question is ``when`` it fires. Several specific words (`typical_words`) that make up
    `_SEVERAL` are of a ``kind``. What else there is in common, a ``topic`` or a place, no count tells.
    """
    by_word: dict[str, list[TokenUse]] = {}
    for use in uses:
        by_word.setdefault(use.names[0].strip().casefold(), []).append(use)
    most = max(by_word.values(), key=lambda same: sum(use.share for use in same), default=[])
    if sum(use.share for use in most) >= _ONE:
        fired, seen = sum(use.fired for use in most), sum(use.seen for use in most)
        return "word" if 2 * fired >= seen else "when"
    specific = sum(use.share for use in uses if use.specificity >= _SPECIFIC)
    return "kind" if specific >= _SEVERAL else "topic"


def naming(explanation: Explanation, words: Sequence[str]) -> Explanation:
    """The explanation with these words behind it in parentheses, unless it has them all."""
    text = explanation.text
    if text is None or all(word.casefold() in text.casefold() for word in words):
        return explanation
    return replace(explanation, text=f"{text.rstrip('. ')} ({', '.join(words)})")


def shares(feature: FeatureEvidence) -> list[tuple[TokenStat, float]]:
    """Each listed token with its share of the firings in train documents, which is where tokens are counted."""
    total = feature.train_firings
    if total is None:
        total = sum(stat.fired for stat in feature.token_stats)
    return [(stat, stat.fired / total) for stat in feature.token_stats if total]


def _whole_words(contexts: Sequence[Context]) -> dict[str, Counter[str]]:
    """Firing token -> the words in which it stands."""
    words: dict[str, Counter[str]] = {}
    for context in contexts:
        for low, high in word_spans(context.tokens):
            word = "".join(context.tokens[low:high]).strip()
            for place in range(low, high):
                if context.activations[place] > 0:
                    words.setdefault(context.tokens[place], Counter())[word] += 1
    return words


def _fragment_of(token: str, words: dict[str, Counter[str]], most: int) -> tuple[str, ...]:
    """The words it is part of; empty where it stands for itself at least as often."""
    seen = words.get(token)
    if not seen or 2 * seen[token.strip()] >= seen.total():
        return ()
    return tuple(word for word, _ in seen.most_common(most + 1) if word != token.strip())[:most]


def _letter(character: str) -> bool:
    return character.lower() != character.upper() or (character.isascii() and character.isdigit())
