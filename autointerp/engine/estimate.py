"""Amounts for a plan: how much work a use of a stage will do, and which language model it asks.

A stage declares three functions for that (see `engine.stage.Stage`):

1. `amount`: what its time grows with.
2. `asks`: the language model that it asks, and about which features.
3. `rehearse`: its requests for one feature, made to a `Recorder`, which writes them down and answers nothing.

A stage's `work` reaches none of this, so a better estimate makes no artifact stale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from autointerp.composites.evidence import Pair
from autointerp.config import Config, ExecutorConfig, LLMConfig
from autointerp.records import (
    Capability,
    Choices,
    Completion,
    Constituent,
    Context,
    FeatureEvidence,
    Message,
    Neighbour,
    OutputEffects,
    Weight,
)

UNWRITTEN = "(the explanation, once it is written)"
MESSAGE_TOKENS = 4  # that a chat template puts around a message
PROMPT_TOKENS = 3  # and around the whole


@dataclass(frozen=True)
class Sizes:
    """How large a run is, as far as it is known; None where nothing tells it yet."""

    tokens: int  # of the corpus, at most
    latents: int | None = None  # of the SAE
    width: int | None = None  # of the vectors that the SAE reads
    active: float | None = None  # latents that fire on a token
    features: int | None = None  # that are explained
    composites: int | None = None  # among these


@dataclass(frozen=True)
class Amount:
    """What the time of a use grows with, and the disk space that it takes."""

    number: float
    unit: str  # for example "tokens"
    of: str = ""  # what its speed also depends on: the subject, the SAE
    guess: float = 0.0  # seconds for each on a usual core, where this machine's speed was never measured
    bytes: float = 0.0  # in all, that it writes
    shards: int = 1  # that workers can do side by side


@dataclass(frozen=True)
class Machines:
    """What a run is planned for: the nodes of a cluster, with a worker on each GPU, or on each node without one."""

    nodes: int
    gpus: int = 0  # of a node

    def workers(self, config: ExecutorConfig) -> int:
        room = self.nodes * max(1, int(self.gpus / (config.num_gpus or 1)))
        return min(room, config.max_workers or room)


def subject_of(config: Config) -> str:
    """The subject, as the speed of what runs it depends on it."""
    return f"{config.subject.model} {config.subject.dtype} {config.subject.hook or ''}".strip()


def sae_of(config: Config) -> str:
    """The SAE, as the speed of what encodes with it depends on it."""
    train = config.sae.train
    if train is None:
        return config.sae.load or f"neurons of {config.subject.hook}"
    return " ".join(f"{name} {train[name]}" for name in ("architecture", "d_sae", "k") if name in train)


Population = Literal["features", "composites"]


@dataclass(frozen=True)
class Asks:
    """Which language model a use asks, and whether about each feature or about composites alone, or `most` of them."""

    llm: LLMConfig
    about: Population = "features"
    most: int | None = None


Parts = Callable[[str, Pair], "tuple[Constituent, ...]"]  # explainer, pair -> a composite's constituents


def no_parts(explainer: str, pair: Pair) -> tuple[Constituent, ...]:
    return ()


@dataclass(frozen=True)
class Sample:
    """One feature as plug-ins will be given it, as far as it is known before the run.

    `texts`: by an explainer's key what it says of the feature, None where it has no explanation. An explainer that is
    missing has not run. `others`: how many features there are beside this one.
    """

    evidence: FeatureEvidence
    examples: Sequence[Context]  # of the test split
    texts: Mapping[str, str | None] = field(default_factory=dict)
    parts: Parts = no_parts
    neighbours: tuple[Neighbour, ...] = ()
    others: int = 1


@dataclass(frozen=True)
class Request:
    """A request that would be sent; `most` is the most tokens that its answer may have."""

    kind: Literal["complete", "choose", "fill", "weigh"]
    messages: tuple[Message, ...]
    most: int


@dataclass
class Recorder:
    """A language model that answers nothing and keeps every request."""

    model: str
    capabilities: frozenset[Capability]
    requests: list[Request] = field(default_factory=list)

    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 256, attempt: int = 0, **_: Any
    ) -> Completion:
        if attempt == 0:
            self.requests.append(Request("complete", tuple(messages), max_tokens))
        return Completion(None, failure="not sent")

    async def choose(self, messages: Sequence[Message], answers: Sequence[str]) -> Choices:
        self.requests.append(Request("choose", tuple(messages), 1))
        return Choices(None, failure="not sent")

    async def fill(
        self, messages: Sequence[Message], segments: Sequence[str], filler: str, answers: Sequence[str]
    ) -> Sequence[Choices]:
        turn = Message("assistant", "".join(segment + filler for segment in segments))
        self.requests.append(Request("fill", (*messages, turn), 1))
        return [Choices(None, failure="not sent") for _ in segments]

    async def weigh(self, messages: Sequence[Message], text: str) -> Weight:
        self.requests.append(Request("weigh", (*messages, Message("assistant", text)), 1))
        return Weight(None, failure="not sent")


def stand_ins(names: Iterable[str], sample: Sample) -> dict[str, Any]:
    """What a plug-in is given in a rehearsal for each thing that it asks for by name; nothing heavy is loaded."""
    evidence = sample.evidence
    values: dict[str, Any] = {
        "feature": evidence.feature,
        "sae": None,
        "subject": None,
        "activations": _silent,
        "logit_effects": _EFFECTS,
        "steered": _effects,
        "ablated": _effects,
        "embedder": _alike,
        "neighbours": sample.neighbours,
        "shown": (*evidence.activating, *evidence.random, *evidence.near),
        "token_table": evidence.token_stats,
        "calibration": (),
        "constituents": sample.parts("", "own"),
    }
    return {name: values.get(name) for name in names}


_EFFECTS = OutputEffects(("a few words",) * 10, (("a few words",) * 10,) * 12)


async def _effects() -> OutputEffects:
    return _EFFECTS


async def _silent(texts: Sequence[str]) -> list[tuple[float, ...]]:
    return [(0.0,) * len(text.split()) for text in texts]


def _alike(texts: Sequence[str]) -> Any:
    import numpy as np

    return np.ones((len(texts), 1))


# --- tokens -----------------------------------------------------------------------------------

Counter = Callable[[Sequence[Message]], float]

_PIECE = re.compile(r" ?[A-Za-z]+|\d{1,3}| ?[^\sA-Za-z\d]+|\s+")


def rough_tokens(text: str) -> float:
    """Tokens that a usual vocabulary of 50,000 to 150,000 makes of a text; within a tenth for English, JSON and code.

    A word of up to seven letters is one token, five letters more are another; so are three digits, two signs side by
    side, one sign alone, and a line break with what is blank around it.
    """
    total = 0.0
    for piece in _PIECE.findall(text):
        bare = piece.strip()
        if not bare:
            total += 1 if "\n" in piece or len(piece) > 1 else 0.3
        elif not bare.isascii():
            total += sum(0.6 if ord(letter) < 0x3000 else 1 for letter in bare)
        elif bare[0].isalpha():
            total += 1 + max(0, len(bare) - 7) / 5
        elif bare[0].isdigit():
            total += 1
        else:
            total += math.ceil(len(bare) / 2)
    return total


def rough_counter(messages: Sequence[Message]) -> float:
    return PROMPT_TOKENS + sum(rough_tokens(message.content) + MESSAGE_TOKENS for message in messages)


@cache
def token_counter(folder: Path | None) -> Counter:
    """Tokens of a prompt: by the tokenizer and chat template in the model's `folder`, else `rough_counter`."""
    if folder is None:
        return rough_counter
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def count(messages: Sequence[Message]) -> float:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return len(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))

    return count
