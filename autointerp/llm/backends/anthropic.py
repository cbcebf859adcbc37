"""Backend anthropic: Anthropic's messages API; text alone, for it gives no token probabilities.

The key is in $ANTHROPIC_API_KEY unless `llm.api_key_env` names another variable. The package `anthropic` is an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autointerp.config import LLMConfig
from autointerp.errors import ConfigError
from autointerp.llm.backend import Complete, FinalFailure, Raw, Reply, Request, RetryableFailure
from autointerp.llm.backends.failures import Refused
from autointerp.llm.backends.http import (
    QUESTION,
    HttpBackend,
    asked_for,
    check_library,
    find_extra_body,
    find_headers,
    find_key,
)
from autointerp.llm.backends.openai_read import count_of, until
from autointerp.llm.prices import Prices, listed_prices
from autointerp.records import Capability
from autointerp.redact import public_url

ANTHROPIC = "https://api.anthropic.com"
MOST_BYTES = 8 << 20
_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")


class AnthropicBackend(HttpBackend):
    """``anthropic:MODEL``, asked in one attempt a call. A schema and a seed are ignored: the API has neither here."""

    library, client, path, models_path = "anthropic", "AsyncAnthropic", "/v1/messages", "/v1/models"

    def __init__(self, config: LLMConfig) -> None:
        super().__init__(_with_key(config), model=_model(config), base_url=_base_url(config))

    # --- what is known before it is asked

    @classmethod
    def open(cls, config: LLMConfig, resolve_model: Callable[[str], Path] | None) -> AnthropicBackend:
        return cls(config)

    @classmethod
    def identify(cls, config: LLMConfig, identify_model: Callable[[str], str]) -> dict[str, Any]:
        return {"base_url": public_url(_base_url(config)), "model": _model(config)} | asked_for(config)

    @classmethod
    def expected(cls, config: LLMConfig) -> frozenset[Capability]:
        return frozenset()

    @classmethod
    def prices(cls, config: LLMConfig) -> Prices | None:
        return listed_prices(_model(config), _base_url(config))

    @classmethod
    def check(cls, config: LLMConfig, catalogue: Sequence[str]) -> None:
        check_library(cls.library)
        find_key(_with_key(config), _base_url(config))
        find_headers(config)
        find_extra_body(config)
        if config.logprobs:
            raise ConfigError("llm.logprobs: Anthropic's API gives no token probabilities, set it to null or false")

    # --- what it is

    @property
    def identity(self) -> str:
        return f"anthropic {public_url(self.base_url)} {self._model} {sorted(asked_for(self._config).items())}"

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    async def start(self) -> None:
        """Connect and ask one short question, once for all runs. Raises AutointerpError, ConfigError, RequestFailed."""
        await self.connect()
        if not self.memory.get("answers"):
            await self.probe()
            self.memory["answers"] = True

    async def probe(self) -> None:
        """One short request. A refusal is an answer too."""
        try:
            await self._send(self._body(Complete(QUESTION, 1)), MOST_BYTES)
        except Refused:
            return

    # --- asking

    async def ask(self, request: Request) -> Raw:
        if not isinstance(request, Complete):
            raise FinalFailure(f"{self._where} gives no token probabilities")
        return keep(await self._send(self._body(request), MOST_BYTES))

    def read(self, raw: Raw, request: Request) -> Reply:
        return read(raw, request)

    def _body(self, request: Complete) -> dict[str, Any]:
        system = "\n\n".join(message.content for message in request.messages if message.role == "system")
        turns = [{"role": m.role, "content": m.content} for m in request.messages if m.role != "system"]
        body: dict[str, Any] = {"model": self._model, "max_tokens": request.max_tokens, "messages": turns}
        body["temperature"] = min(request.temperature, 1.0)
        if system:
            body["system"] = system
        if stop := [text for text in request.stop if text.strip()]:  # others are refused; `read` cuts at them
            body["stop_sequences"] = stop
        if self._config.reasoning_effort is not None:
            body["output_config"] = {"effort": self._config.reasoning_effort}
        return body


def _model(config: LLMConfig) -> str:
    return config.model.removeprefix("anthropic:")


def _base_url(config: LLMConfig) -> str:
    return (config.base_url or ANTHROPIC).rstrip("/").removesuffix("/v1")


def _with_key(config: LLMConfig) -> LLMConfig:
    if "api_key_env" in config.model_fields_set:
        return config
    return config.model_copy(update={"api_key_env": "ANTHROPIC_API_KEY"})


# --- reading what came back


def keep(data: object) -> Raw:
    """The parts of an answer's JSON that `read` uses. Raises RetryableFailure for what is no answer."""
    content = data.get("content") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(content, list):
        raise RetryableFailure("an answer without content")
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    usage = data.get("usage")
    counts = {name: usage.get(name) if isinstance(usage, dict) else None for name in _COUNTS}
    return {
        "texts": [text for text in texts if isinstance(text, str)],
        "thought": any(isinstance(part, dict) and part.get("type") == "thinking" for part in content),
        "stop_reason": str(data.get("stop_reason"))[:100],
        "usage": {name: n if n is None or isinstance(n, int | float) else "?" for name, n in counts.items()},
    }


def read(raw: Raw, request: Request) -> Reply:
    """The text up to the first stop string; thoughts are no part of it."""
    assert isinstance(request, Complete)
    counts = _counts(raw["usage"])
    reason = raw["stop_reason"]
    if reason == "refusal":
        return Reply(failure="the model refused", **counts)
    text, cut = "".join(raw["texts"]), reason == "max_tokens"
    if not text.strip() and (cut or raw["thought"]):
        why = f"the model gave no text within {request.max_tokens} tokens: set llm.answer_tokens higher"
        return Reply(failure=why, **counts)
    text, stopped = until(text, request.stop)
    return Reply(text=text, truncated=cut and not stopped, **counts)


def _counts(usage: Mapping[str, Any]) -> dict[str, Any]:
    numbers = [usage.get(name) for name in _COUNTS]
    fresh, written, cached, answered = map(count_of, numbers)
    known = [fresh, answered, *(n for n, given in ((written, numbers[1]), (cached, numbers[2])) if given is not None)]
    return {
        "prompt_tokens": (fresh or 0) + (written or 0) + (cached or 0),
        "completion_tokens": answered or 0,
        "cached_tokens": cached or 0,
        "counted": None not in known,
    }
