"""Backend litellm: whichever provider LiteLLM knows (Bedrock, Vertex, Groq, Mistral, Cohere …), by its name there.

The key is where LiteLLM looks for that provider's, unless `llm.api_key_env` names a variable. The package is an extra.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from autointerp.config import LLMConfig
from autointerp.errors import ConfigError
from autointerp.llm.backend import Choose, Complete, Fill, FinalFailure, Raw, Reply, Request, RetryableFailure, Weigh
from autointerp.llm.backends.failures import Failures, Refused
from autointerp.llm.backends.http import QUESTION, asked_for, check_library, find_extra_body, find_headers, secrets_sent
from autointerp.llm.backends.openai_read import alternatives, heard, keep, read
from autointerp.llm.prices import Prices, listed_prices
from autointerp.records import Capability, Message
from autointerp.redact import public_url

_TOP = 20  # alternatives a token; a provider that gives fewer is asked for five
_FEWER = 5


class LiteLLMBackend:
    """``litellm:PROVIDER/MODEL``, asked in one attempt a call. LiteLLM leaves out what the provider does not take,
    and follows redirects, without the key.

    `memory` holds what was found out: "top_logprobs" (0: no token probabilities).
    """

    def __init__(self, config: LLMConfig) -> None:
        self._config = config
        self._model = _model(config)
        self.memory: MutableMapping[str, Any] = {}
        self._library: Any = None
        self._options: dict[str, Any] = {}
        self._failures = Failures(config.base_url or "LiteLLM", self._model, _variable(config))

    # --- what is known before it is asked

    @classmethod
    def open(cls, config: LLMConfig, resolve_model: Callable[[str], Path] | None) -> LiteLLMBackend:
        return cls(config)

    @classmethod
    def identify(cls, config: LLMConfig, identify_model: Callable[[str], str]) -> dict[str, Any]:
        named = {"base_url": public_url(config.base_url or ""), "model": _model(config)}
        return named | {"logprobs": config.logprobs} | asked_for(config)

    @classmethod
    def expected(cls, config: LLMConfig) -> frozenset[Capability]:
        return frozenset({"choices"}) if config.logprobs else frozenset()

    @classmethod
    def prices(cls, config: LLMConfig) -> Prices | None:
        provider, slash, name = _model(config).partition("/")
        return listed_prices(name, None, provider) if slash else None

    @classmethod
    def check(cls, config: LLMConfig, catalogue: Sequence[str]) -> None:
        check_library("litellm")
        _key(config)
        find_headers(config)
        find_extra_body(config)

    # --- what it is

    @property
    def model(self) -> str:
        return self._model

    @property
    def identity(self) -> str:
        extras = sorted(asked_for(self._config).items())
        return f"litellm {public_url(self._config.base_url or '')} {self._model} {extras}"

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({"choices"}) if self.memory.get("top_logprobs") else frozenset()

    async def start(self) -> None:
        """Load the library and ask one short question; try token probabilities, once for all runs."""
        if self._library is None:
            await asyncio.to_thread(self._load)
        if "top_logprobs" not in self.memory:
            most = 0 if self._config.logprobs is False else await self._probe_logprobs()
            if not most:
                await self.probe()
            self.memory["top_logprobs"] = most
        if self._config.logprobs and not self.memory["top_logprobs"]:
            raise ConfigError(f"llm.logprobs: {self._model} gives no token probabilities, set it to null or false")

    def _load(self) -> None:
        check_library("litellm")
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a list when it is imported
        os.environ.setdefault("LITELLM_LOG", "ERROR")
        library: Any = importlib.import_module("litellm")
        library.suppress_debug_info = True
        library.telemetry = False
        library.drop_params = True
        key, headers = _key(self._config), find_headers(self._config)
        body = find_extra_body(self._config)
        secrets = secrets_sent(key or "", headers, body, self._config.base_url or "")
        self._failures = Failures(self._config.base_url or "LiteLLM", self._model, _variable(self._config), secrets)
        given = {"api_key": key, "api_base": self._config.base_url, "extra_headers": headers}
        given |= {"reasoning_effort": self._config.reasoning_effort, "extra_body": body}
        self._options = {name: value for name, value in given.items() if value}
        self._library = library

    async def close(self) -> None:
        library, self._library = self._library, None
        if library is not None:
            await library.close_litellm_async_clients()

    async def probe(self) -> None:
        """One short request. A refusal is an answer too."""
        try:
            await self._send(QUESTION, max_tokens=1)
        except Refused:
            return

    async def _probe_logprobs(self) -> int:
        question = Choose(QUESTION, ("Yes", "No"))
        for top in (_TOP, _FEWER):
            try:
                raw = keep(await self._send(QUESTION, max_tokens=1, logprobs=True, top_logprobs=top), question)
            except FinalFailure as error:
                if error.fatal:  # where the key or the model is wrong, what is asked next fails too
                    return 0
                continue
            if not raw["tokens"] or len(alternatives(raw["tokens"][0])) < 2:
                return 0
            return top if self._config.logprobs or heard(self.read(raw, question), self._model) else 0
        return 0

    # --- asking

    async def ask(self, request: Request) -> Raw:
        match request:
            case Complete():
                form = {"type": "json_object"} if request.schema is not None else None
                options = {"seed": request.seed, "stop": list(request.stop) or None, "response_format": form}
                options |= {"max_tokens": request.max_tokens, "temperature": request.temperature}
            case Choose() if self.memory.get("top_logprobs"):
                top = self.memory["top_logprobs"]
                options = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": top}
            case Choose() | Fill() | Weigh():
                raise FinalFailure(f"{self._model} gives no such token probabilities")
        options = {name: value for name, value in options.items() if value is not None}
        return keep(await self._send(request.messages, **options), request)

    def read(self, raw: Raw, request: Request) -> Reply:
        return read(raw, request)

    async def _send(self, messages: Sequence[Message], **options: Any) -> dict[str, Any]:
        assert self._library is not None, "ask after start"
        turns = [{"role": message.role, "content": message.content} for message in messages]
        limit = self._config.timeout
        try:
            async with asyncio.timeout(limit):
                answer = await self._library.acompletion(
                    model=self._model, messages=turns, timeout=limit, max_retries=0, **options, **self._options
                )
            return answer.model_dump()
        except TimeoutError:
            raise RetryableFailure(f"{self._failures.where}: no answer within {limit:g} s") from None
        except Exception as error:  # its own, those of a provider's library, or of a connection
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> Exception:
        status = getattr(error, "status_code", None)
        whole = str(getattr(error, "message", None) or f"{type(error).__name__}: {error}")
        text = whole.partition("Traceback (most recent")[0]
        headers = getattr(error, "litellm_response_headers", None)
        headers = headers or getattr(getattr(error, "response", None), "headers", None) or {}
        lost = (self._library.exceptions.APIConnectionError, self._library.exceptions.Timeout)
        said_well = status == 422 and not headers  # an error with HTTP 200, which LiteLLM gives this status
        if isinstance(error, lost) or not isinstance(status, int) or status < 300 or said_well:
            return RetryableFailure(f"{self._failures.where}: {self._failures.clean(text)}")
        if isinstance(error, self._library.exceptions.ContentPolicyViolationError):
            return FinalFailure(f"{self._failures.where}: {self._failures.clean(text)}")
        return self._failures.of_status(status, _lower(headers), text, None)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _model(config: LLMConfig) -> str:
    return config.model.removeprefix("litellm:")


def _variable(config: LLMConfig) -> str | None:
    """The variable that the config names; None where LiteLLM is left to look for its own."""
    return config.api_key_env if "api_key_env" in config.model_fields_set else None


def _key(config: LLMConfig) -> str | None:
    variable = _variable(config)
    if variable is not None and not os.environ.get(variable):
        raise ConfigError(f"{_model(config)} needs a key: set the environment variable {variable}")
    return os.environ[variable] if variable is not None else None
