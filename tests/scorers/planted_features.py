"""Features whose rule is known, windows of theirs, and judges who see what a judge sees."""

import random
import re
from itertools import count

from autointerp.records import Choices, Completion, Context, Neighbour

WORDS = ["trees", "house", "river", "walks", "green", "seven", "under", "stone", "paper", "cloud", "sings", "quiet"]
OWN, OTHER = "zebra", "camel"  # as long as the others


def window(rng, feature, example, kind, split="test", word=None):
    """10 to 30 tokens; a firing one holds the feature's word one to three times, a near one a neighbour's."""
    tokens = [f" {rng.choice(WORDS)}" for _ in range(rng.randint(10, 30))]
    activations = [0.0] * len(tokens)
    word = word or (OWN if kind == "activating" else OTHER if kind == "near" else None)
    for place in rng.sample(range(len(tokens)), rng.randint(1, 3)) if word else ():
        tokens[place] = f" {word}"
        activations[place] = rng.uniform(0.5, 5) * (kind == "activating")
    quantile = example % 5 if kind == "activating" else None
    place = rng.randrange(500)
    return Context(feature, example, split, kind, quantile, example, place, tuple(tokens), tuple(activations))


def windows(feature, n=100, split="test"):
    """Half firing, a quarter random, a quarter near."""
    rng = random.Random(f"{feature}:{split}")
    kinds = ["activating"] * (n // 2) + ["random"] * (n // 4) + ["near"] * (n - n // 2 - n // 4)
    return [window(rng, feature, i, kind, split) for i, kind in enumerate(kinds)]


def neighbours(feature, n=50):
    """Two features that fire on the other word, with half of `n` windows each."""
    rng = random.Random(f"{feature}:neighbours")
    return tuple(
        Neighbour(
            1000 + j,
            0.5,
            None,
            tuple(window(rng, 1000 + j, 200 + 100 * j + i, "activating", word=OTHER) for i in range(n // 2)),
        )
        for j in range(2)
    )


def oracle(text):
    """Knows the rule: the word is there; where words are marked, it is marked."""
    return float(OWN in (" ".join(re.findall("«(.*?)»", text)) if "«" in text else text))


def know_nothing(seed):
    """Judges who look at anything but the rule: name -> text -> P(Yes)."""
    rng, calls = random.Random(seed), count()
    return {
        "yes": lambda text: 1.0,
        "no": lambda text: 0.0,
        "random graded": lambda text: rng.random(),
        "random binary": lambda text: float(rng.random() < 0.5),
        "position": lambda text: (text.find("«") + 1) / 500,
        "length": lambda text: len(text) / 500,
        "alternate": lambda text: float(next(calls) % 2),
    }


class Judge:
    """A language model with a rule: P(Yes) of a text. In lists and questions it goes by the same rule."""

    model = "judge"

    def __init__(self, rule, capabilities=("choices", "slots"), writes=()):
        self.rule, self.capabilities, self.writes = rule, frozenset(capabilities), list(writes)
        self.asked = []

    def _texts(self, prompt):
        return re.findall(r"^\d+\. (.*)$", prompt, re.MULTILINE)

    async def choose(self, messages, answers):
        prompt = messages[-1].content
        self.asked.append(prompt)
        if answers[0] == "1":
            doubts = [1 - self.rule(text) + 1e-9 for text in self._texts(prompt)]
            return Choices(tuple(d / sum(doubts) for d in doubts), mass=0.9)
        p = self.rule(re.search(r'[Tt]ext: "(.*)"$', prompt, re.MULTILINE)[1])
        return Choices((p, 1 - p), mass=0.9)

    async def complete(self, messages, **wanted):
        prompt = messages[-1].content
        self.asked.append(prompt)
        if "Write" in prompt:
            return Completion(
                "\n".join(f"{i}. {text}" for i, text in enumerate(self.writes[bool("anything" in prompt)], 1))
            )
        labels = [self.rule(text) >= 0.5 for text in self._texts(prompt)]
        if "does not fit" in prompt:
            return Completion(str(labels.index(False) + 1 if False in labels else 1))
        return Completion("{" + ", ".join(f'"{i}": {int(label)}' for i, label in enumerate(labels, 1)) + "}")
