"""Protocol of an LLM backend: it asks once and keeps the raw answer; what that answer says is read from it anew.

1. The client hands a request (`Complete`, `Choose`, `Fill` or `Weigh`) to `ask`, which returns a `Raw` or raises.
2. The raw answer goes into the cache of answered requests.
3. `read` makes a `Reply` of it, now and at each later run, so that a corrected reader corrects old answers.

Retries, limits, budget and the cache are the client's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from autointerp.config import LLMConfig
from autointerp.llm.prices import Prices
from autointerp.records import Capability, Choices, Message, Weight

Raw = dict[str, Any]  # JSON: what the endpoint said, as far as any reader uses it

# --- what is asked


@dataclass(frozen=True, slots=True)
class Complete:
    """A text that goes on from `messages`. `attempt` counts repeats of one question that want a fresh answer."""

    messages: Sequence[Message]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    schema: Mapping[str, object] | None = None
    stop: Sequence[str] = ()
    attempt: int = 0

    kind: ClassVar[Literal["complete"]] = "complete"


@dataclass(frozen=True, slots=True)
class Choose:
    """The probabilities of `answers` as the next thing said."""

    messages: Sequence[Message]
    answers: Sequence[str]

    kind: ClassVar[Literal["choose"]] = "choose"


@dataclass(frozen=True, slots=True)
class Fill:
    """The same at the place of each filler in the assistant's turn ``segments[0] + filler + segments[1] + …``."""

    messages: Sequence[Message]
    segments: Sequence[str]
    filler: str
    answers: Sequence[str]

    kind: ClassVar[Literal["fill"]] = "fill"

    @property
    def turn(self) -> str:
        return "".join(segment + self.filler for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Weigh:
    """The log probability of `turn` as the assistant's."""

    messages: Sequence[Message]
    turn: str

    kind: ClassVar[Literal["weigh"]] = "weigh"


Request = Complete | Choose | Fill | Weigh

# --- what comes back


@dataclass(frozen=True, slots=True)
class Reply:
    """What a raw answer says: the `text` of `Complete`, one `Choices` for `Choose`, one a segment for `Fill`,
    the `weight` of `Weigh`.

    `failure` says why an answer could not be read. It is `retryable` where asking again may give another answer.
    """

    text: str | None = None
    choices: tuple[Choices, ...] = ()
    weight: Weight | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens that a prefix cache served, where the backend says
    truncated: bool = False
    counted: bool = True  # False: the endpoint's count of tokens cannot be
    failure: str | None = None
    retryable: bool = False


class RequestFailed(Exception):
    """The reason in one line, without secrets."""


class RateLimited(RequestFailed):
    """HTTP 429. `retry_after` in seconds where the endpoint says."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class RetryableFailure(RequestFailed):
    """5xx, a dropped connection, a time-out: the same request may succeed later."""


class FinalFailure(RequestFailed):
    """The same request will not succeed in this run. `fatal` when no other will either (wrong key, no credit, no
    such model); `retryable` when it may in another run."""

    def __init__(self, reason: str, fatal: bool = False, retryable: bool = False) -> None:
        super().__init__(reason)
        self.fatal = fatal
        self.retryable = retryable


# --- who is asked


class Backend(Protocol):
    """Answers one request at a time, or many side by side."""

    @property
    def model(self) -> str: ...

    @property
    def identity(self) -> str:
        """What the answers depend on beside the request: endpoint and model, or weights' hash and dtype."""
        ...

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Known after `start`; may shrink when the endpoint refuses what it seemed to take."""
        ...

    async def start(self) -> None:
        """Load, connect, probe what it can; raises AutointerpError with one clear line."""
        ...

    async def close(self) -> None: ...

    async def ask(self, request: Request) -> Raw:
        """The endpoint's answer, in one attempt; raises RequestFailed."""
        ...

    def read(self, raw: Raw, request: Request) -> Reply:
        """What `raw` says. Depends on its arguments alone and never raises for an answer that came from `ask`."""
        ...

    async def probe(self) -> None:
        """A request of a few tokens, to see whether the endpoint lives; raises RequestFailed."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A backend that finds things out about its endpoint, to be kept from run to run."""

    memory: Any  # MutableMapping[str, JSON]


class BackendKind(Protocol):
    """The class of a backend, as the registry knows it: what can be said of a config before anything is asked.

    None of these may import torch, transformers or a provider's library.
    """

    @classmethod
    def open(cls, config: LLMConfig, resolve_model: Callable[[str], Path] | None) -> Backend:
        """`resolve_model` turns a name of the catalogue into a folder. Raises ConfigError."""
        ...

    @classmethod
    def identify(cls, config: LLMConfig, identify_model: Callable[[str], str]) -> dict[str, Any]:
        """JSON: what answers depend on beside the request. `identify_model` gives the pinned hash of a name."""
        ...

    @classmethod
    def expected(cls, config: LLMConfig) -> frozenset[Capability]:
        """What the model can do, as far as the config tells without asking it."""
        ...

    @classmethod
    def prices(cls, config: LLMConfig) -> Prices | None:
        """The listed ones, None where they are not known; the registry puts the config's own before them."""
        ...

    @classmethod
    def check(cls, config: LLMConfig, catalogue: Sequence[str]) -> None:
        """Raise ConfigError for what can be known wrong before anything is paid for."""
        ...
