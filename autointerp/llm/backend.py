"""What a backend is: it asks once and says how that went. Caching, retries and limits are the client's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from autointerp.records import Capability, Choices, Message


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: `text` of `complete`, or one `Choices` (`choose`) or one a slot (`fill`)."""

    text: str | None = None
    choices: tuple[Choices, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens that a prefix cache served, where the backend says
    truncated: bool = False


class RequestFailed(Exception):
    """The reason in one line, without secrets."""


class RateLimited(RequestFailed):
    """HTTP 429. `retry_after` in seconds where the endpoint says."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class PassingFailure(RequestFailed):
    """5xx, dropped connection, time-out: the same request may succeed later."""


class FinalFailure(RequestFailed):
    """4xx: the same request will not succeed. `fatal` when no other will either (wrong key, no such model)."""

    def __init__(self, reason: str, fatal: bool = False) -> None:
        super().__init__(reason)
        self.fatal = fatal


class Backend(Protocol):
    """Answers one request or raises `RequestFailed`."""

    @property
    def model(self) -> str: ...

    @property
    def identity(self) -> str:
        """What the answers depend on beside the request: endpoint and model, or weights' hash and dtype."""
        ...

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Known after `start`."""
        ...

    async def start(self) -> None:
        """Load, connect, probe what it can; raises AutointerpError with one clear line."""
        ...

    async def close(self) -> None: ...

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        schema: Mapping[str, object] | None,
        stop: Sequence[str],
    ) -> Reply: ...

    async def choose(self, messages: Sequence[Message], answers: Sequence[str]) -> Reply: ...

    async def fill(
        self, messages: Sequence[Message], segments: Sequence[str], filler: str, answers: Sequence[str]
    ) -> Reply: ...
