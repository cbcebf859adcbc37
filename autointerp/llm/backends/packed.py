"""Shared prefixes of prompts: packed as one tree of tokens, and kept as a KV cache for the next pass.

A transformer's keys and values at a token depend on its ancestors only. So the prompts of a batch
become a tree whose shared beginnings are computed once, run as one row under an ancestor mask,
and any beginning of a kept prompt serves a later one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from autointerp.llm.backend import Raw

Tokens = tuple[int, ...]
T = TypeVar("T")


@dataclass(eq=False)
class Job:
    """A request in tokens. `reads`: positions after which the next-token distribution is wanted."""

    tokens: Tokens
    reads: tuple[int, ...]
    raw: asyncio.Future[Raw]
    answers: tuple[Tokens, ...] = ()  # of choose and fill; complete has none
    targets: Tokens = ()  # of weigh: the token that follows each read
    max_tokens: int = 0
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    cached: int = 0

    @property
    def judges(self) -> bool:
        """Whether it wants probabilities and no text; jobs of one kind run together."""
        return bool(self.answers or self.targets)


def follows(answers: Sequence[Tokens]) -> dict[Tokens, list[int]]:
    """The tokens by which the answers go on after each of their proper beginnings, shorter beginnings first."""
    beginnings = sorted({answer[:k] for answer in answers for k in range(len(answer))})
    return {p: sorted({a[len(p)] for a in answers if a != p and a[: len(p)] == p}) for p in beginnings}


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n  # a[:low] equal, a[:high] not; slices compare in C
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


class PrefixCache(Generic[T]):
    """Least recently used beginnings go when the values kept are larger than `max_bytes` together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[Tokens, tuple[T, int]] = OrderedDict()

    def match(self, tokens: Tokens) -> tuple[int, T | None]:
        """The kept value that shares most with `tokens`, and how many tokens it shares (0, None: nothing)."""
        best, length = max(
            ((key, common(key, tokens)) for key in self._entries), key=lambda pair: pair[1], default=(None, 0)
        )
        if best is None or length == 0:
            return 0, None
        self._entries.move_to_end(best)
        return length, self._entries[best][0]

    def put(self, tokens: Tokens, value: T, size: int) -> None:
        """Keep `value`; what it extends goes, and it is not kept where an entry extends it or it is too large."""
        if size > self.max_bytes or any(key[: len(tokens)] == tokens for key in self._entries):
            return
        for key in [key for key in self._entries if tokens[: len(key)] == key]:
            self._drop(key)
        self._entries[tokens] = (value, size)
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0

    def _drop(self, key: Tokens) -> None:
        self.bytes -= self._entries.pop(key)[1]


@dataclass(frozen=True)
class Packed:
    """Prompts as one row of Q new tokens after `base` tokens whose keys and values are known."""

    base: int
    tokens: np.ndarray  # int64 [Q]
    positions: np.ndarray  # int64 [Q], in its prompt
    mask: np.ndarray  # bool [Q, base + Q]: the token's ancestors and itself
    paths: list[np.ndarray]  # a prompt: the node in 0..Q-1 of each of its tokens from `base` on
    fresh: list[int]  # a prompt: how many of its nodes no earlier prompt had
    branches: list[dict[tuple[int, Tokens], int]]  # a prompt: (position, continuation) -> node


def pack(prompts: Sequence[Tokens], base: int, continuations: Sequence[Sequence[tuple[int, Tokens]]]) -> Packed:
    """Pack `prompts`, which all begin with the same `base` tokens; sorted ones share most.

    A continuation ``(position, tokens)`` is a side branch: what if, after the prompt's token at
    `position` (``>= base``), `tokens` had followed? One of k tokens needs the one of its first k - 1
    before it in the list. It adds one node.
    """
    tokens: list[int] = []
    positions: list[int] = []
    paths: list[np.ndarray] = []
    fresh: list[int] = []
    branches: list[dict[tuple[int, Tokens], int]] = []
    sides: list[tuple[int, int]] = []  # node, parent
    for i, prompt in enumerate(prompts):
        shared = max(common(prompts[i - 1], prompt), base) if i else base
        new = np.arange(len(tokens), len(tokens) + len(prompt) - shared)
        paths.append(np.concatenate([paths[-1][: shared - base], new]) if i else new)
        tokens += prompt[shared:]
        positions += range(shared, len(prompt))
        fresh.append(len(new))
        nodes: dict[tuple[int, Tokens], int] = {}
        for position, continuation in continuations[i]:
            before = continuation[:-1]
            parent = nodes[position, before] if before else int(paths[i][position - base])
            nodes[position, continuation] = len(tokens)
            sides.append((len(tokens), parent))
            tokens.append(continuation[-1])
            positions.append(position + len(continuation))
        branches.append(nodes)

    mask = np.zeros((len(tokens), base + len(tokens)), bool)
    mask[:, :base] = True
    for path, count in zip(paths, fresh):
        new = path[len(path) - count :]
        mask[np.ix_(new, base + path[: len(path) - count])] = True
        mask[np.ix_(new, base + new)] = np.tri(count, dtype=bool)
    for node, parent in sides:
        mask[node] = mask[parent]
        mask[node, base + node] = True
    return Packed(base, np.array(tokens, np.int64), np.array(positions, np.int64), mask, paths, fresh, branches)
