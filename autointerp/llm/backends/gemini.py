"""Backend gemini: Google's Gemini API through google-genai; text, and token probabilities where the model gives them.

The key is in $GEMINI_API_KEY unless `llm.api_key_env` names another variable. The package is the extra `gemini`.
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
from autointerp.llm.backend import (
    Choose,
    Complete,
    Fill,
    FinalFailure,
    Raw,
    Reply,
    Request,
    RequestFailed,
    RetryableFailure,
    Weigh,
)
from autointerp.llm.backends.failures import Failures, Refused
from autointerp.llm.backends.http import (
    QUESTION,
    asked_for,
    check_library,
    find_extra_body,
    find_headers,
    find_key,
    is_local,
    secrets_sent,
)
from autointerp.llm.backends.openai_read import alternatives, count_of, heard, read_choices, until
from autointerp.llm.prices import Prices, listed_prices
from autointerp.records import Capability
from autointerp.redact import public_url

GEMINI = "https://generativelanguage.googleapis.com"
_TOP = 20  # alternatives a token, the most that the API gives
_COUNTS = ("prompt_token_count", "cached_content_token_count", "candidates_token_count", "thoughts_token_count")
_THOUGHTS = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576}  # tokens, as Google maps them
_WITHHELD = ("SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "RECITATION", "SPII", "IMAGE_SAFETY")
_DROPPABLE = ("seed", "thinking_config", "stop_sequences", "temperature")


class GeminiBackend:
    """``gemini:MODEL``, asked in one attempt a call. `llm.extra_body` holds further keys of the generation config.

    `memory` holds what was found out: "choices", and the parameters that the model is asked without.
    """

    def __init__(self, config: LLMConfig) -> None:
        self._config = _with_key(config)
        self._model = _model(config)
        self.base_url = _base_url(config)
        self.memory: MutableMapping[str, Any] = {}
        self._client: Any = None
        self._failures: Failures | None = None

    # --- what is known before it is asked

    @classmethod
    def open(cls, config: LLMConfig, resolve_model: Callable[[str], Path] | None) -> GeminiBackend:
        return cls(config)

    @classmethod
    def identify(cls, config: LLMConfig, identify_model: Callable[[str], str]) -> dict[str, Any]:
        named = {"base_url": public_url(_base_url(config)), "model": _model(config)}
        return named | {"logprobs": config.logprobs} | asked_for(config)

    @classmethod
    def expected(cls, config: LLMConfig) -> frozenset[Capability]:
        return frozenset({"choices"}) if config.logprobs else frozenset()

    @classmethod
    def prices(cls, config: LLMConfig) -> Prices | None:
        return listed_prices(_model(config), _base_url(config))

    @classmethod
    def check(cls, config: LLMConfig, catalogue: Sequence[str]) -> None:
        check_library("google.genai", extra="gemini")
        find_key(_with_key(config), _base_url(config))
        find_headers(config)
        find_extra_body(config)
        if config.reasoning_effort is not None and config.reasoning_effort not in _THOUGHTS:
            raise ConfigError(f"llm.reasoning_effort: Gemini knows {', '.join(_THOUGHTS)}")

    # --- what it is

    @property
    def model(self) -> str:
        return self._model

    @property
    def identity(self) -> str:
        return f"gemini {public_url(self.base_url)} {self._model} {sorted(asked_for(self._config).items())}"

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({"choices"}) if self.memory.get("choices") else frozenset()

    async def start(self) -> None:
        """Connect; ask one short question and try token probabilities, once for all runs."""
        if self._client is None:
            await asyncio.to_thread(self._connect)
        if "choices" not in self.memory:
            able = self._config.logprobs is not False and await self._gives_probabilities()
            if not able:
                await self.probe()
            self.memory["choices"] = able
        if self._config.logprobs and not self.memory["choices"]:
            raise ConfigError(f"llm.logprobs: {self._model} gives no token probabilities, set it to null or false")

    def _connect(self) -> None:
        genai = importlib.import_module("google.genai")
        local = is_local(self.base_url)
        key, headers = find_key(self._config, self.base_url), find_headers(self._config)
        secrets = secrets_sent(key, headers, find_extra_body(self._config), self.base_url)
        self._failures = Failures(self.base_url, self._model, self._config.api_key_env, secrets)
        self._client = genai.Client(
            api_key=key,
            vertexai=False,
            http_options={
                "base_url": self.base_url,
                "headers": headers,
                "timeout": int(1000 * self._config.timeout),
                "async_client_args": {"follow_redirects": False, "trust_env": not local},
            },
        )

    async def close(self) -> None:
        self._client = None  # the library closes its connections with the last reference

    async def probe(self) -> None:
        """One short request. A refusal is an answer too."""
        try:
            await self._send(Complete(QUESTION, 1))
        except Refused:
            return

    async def _gives_probabilities(self) -> bool:
        question = Choose(QUESTION, ("Yes", "No"))
        try:
            raw = keep(await self._send(question))
        except FinalFailure:  # where the key or the model is wrong, what is asked next fails too
            return False
        if len(raw["tokens"]) < 2:
            return False
        return bool(self._config.logprobs) or heard(self.read(raw, question), self._model)

    # --- asking

    async def ask(self, request: Request) -> Raw:
        if isinstance(request, Fill | Weigh) or (isinstance(request, Choose) and not self.memory.get("choices")):
            raise FinalFailure(f"{public_url(self.base_url)} gives no such token probabilities")
        return keep(await self._send(request))

    def read(self, raw: Raw, request: Request) -> Reply:
        return read(raw, request)

    async def _send(self, request: Complete | Choose) -> dict[str, Any]:
        """Again without each parameter that the endpoint refuses; what helped is remembered."""
        assert self._client is not None, "ask after start"
        dropped: list[str] = []
        while True:
            body = {name: value for name, value in self._body(request).items() if name not in dropped}
            try:
                data = await self._once(request, body)
            except Refused as error:
                refused = next((name for name in _DROPPABLE if name in body and _names(error, name)), None)
                if refused is None:
                    raise
                dropped.append(refused)
                continue
            if dropped:
                self.memory["without"] = sorted({*self.memory.get("without", []), *dropped})
            return data

    def _body(self, request: Complete | Choose) -> dict[str, Any]:
        system = "\n\n".join(message.content for message in request.messages if message.role == "system")
        body: dict[str, Any] = {"temperature": 0.0, "max_output_tokens": 1}
        if isinstance(request, Choose):
            body |= {"response_logprobs": True, "logprobs": _TOP}
        else:
            body |= {"temperature": request.temperature, "max_output_tokens": request.max_tokens}
            body["seed"] = request.seed
            if request.stop:
                body["stop_sequences"] = list(request.stop)[:5]  # `read` cuts at the others
            if request.schema is not None:
                body["response_mime_type"] = "application/json"
        if self._config.reasoning_effort is not None:
            body["thinking_config"] = {"thinking_budget": _THOUGHTS[self._config.reasoning_effort]}
        without = self.memory.get("without", [])
        body = {name: value for name, value in body.items() if name not in without}
        return body | find_extra_body(self._config) | ({"system_instruction": system} if system else {})

    async def _once(self, request: Complete | Choose, body: dict[str, Any]) -> dict[str, Any]:
        assert self._failures is not None
        errors = importlib.import_module("google.genai.errors")
        turns = [
            {"role": "model" if m.role == "assistant" else "user", "parts": [{"text": m.content}]}
            for m in request.messages
            if m.role != "system"
        ]
        try:
            async with asyncio.timeout(self._config.timeout):
                answer = await self._client.aio.models.generate_content(model=self._model, contents=turns, config=body)
            return answer.model_dump(mode="json", exclude_none=True)
        except TimeoutError:
            raise RetryableFailure(f"{self._failures.where}: no answer within {self._config.timeout:g} s") from None
        except errors.APIError as error:
            raise _failure(self._failures, error) from None
        except Exception as error:  # of the connection, or an answer in a form that the library cannot read
            why = self._failures.clean(f"{type(error).__name__}: {error}")
            raise RetryableFailure(f"{self._failures.where}: {why}") from None


def _model(config: LLMConfig) -> str:
    return config.model.removeprefix("gemini:")


def _base_url(config: LLMConfig) -> str:
    return (config.base_url or GEMINI).rstrip("/")


def _with_key(config: LLMConfig) -> LLMConfig:
    if "api_key_env" in config.model_fields_set:
        return config
    either = "GOOGLE_API_KEY" if "GOOGLE_API_KEY" in os.environ else "GEMINI_API_KEY"
    return config.model_copy(update={"api_key_env": either})


def _names(error: Refused, parameter: str) -> bool:
    """Whether the refusal names the parameter, as it is called on the wire or here."""
    head, *rest = parameter.split("_")
    return error.names(parameter) or error.names(head + "".join(part.title() for part in rest))


def _failure(failures: Failures, error: Any) -> RequestFailed:
    """What an error of the library means. Its body may say how long to wait."""
    headers = dict(getattr(error.response, "headers", None) or {})
    if (delay := _delay(error.details)) is not None:
        headers.setdefault("retry-after", str(delay))
    return failures.of_status(int(error.code or 0), headers, error.message or error.status, None)


def _delay(details: Any) -> float | None:
    """Seconds of google.rpc.RetryInfo."""
    inner = details.get("error") if isinstance(details, Mapping) else None
    entries = inner.get("details") if isinstance(inner, Mapping) else None
    for entry in entries if isinstance(entries, list) else ():
        delay = entry.get("retryDelay") if isinstance(entry, Mapping) else None
        if isinstance(delay, str) and delay.removesuffix("s").replace(".", "", 1).isdigit():
            return float(delay.removesuffix("s"))
    return None


# --- reading what came back


def keep(data: Mapping[str, Any]) -> Raw:
    """The parts of an answer that `read` uses. Raises RetryableFailure for what is no answer."""
    try:
        return _kept(data)
    except (AttributeError, TypeError, LookupError):
        raise RetryableFailure("an answer in another form than Gemini's") from None


def _kept(data: Mapping[str, Any]) -> Raw:
    candidates = data.get("candidates") or []
    blocked = (data.get("prompt_feedback") or {}).get("block_reason")
    if not candidates and not blocked:
        raise RetryableFailure("an answer without candidates")
    first = candidates[0] if candidates else {}
    parts = (first.get("content") or {}).get("parts") or []
    usage = data.get("usage_metadata") or {}
    return {
        "texts": [
            part["text"] for part in parts if isinstance(part.get("text"), str) and part.get("thought") is not True
        ],
        "finish_reason": str(first.get("finish_reason") or "")[:100],
        "blocked": str(blocked)[:100] if blocked else None,
        "tokens": _kept_tokens(first.get("logprobs_result") or {}),
        "usage": {name: usage.get(name) for name in _COUNTS} if usage else None,
    }


def _kept_tokens(result: Mapping[str, Any]) -> list[list[Any]]:
    """The first token and its alternatives, each [text, log probability]; empty where they are not given."""
    chosen = (result.get("chosen_candidates") or [None])[:1]
    top = ((result.get("top_candidates") or [{}])[0]).get("candidates") or []
    known = [each for each in (*chosen, *top) if isinstance(each, Mapping) and each.get("log_probability") is not None]
    return [[str(each.get("token") or ""), each["log_probability"]] for each in known]


def read(raw: Raw, request: Request) -> Reply:
    """The text up to the first stop string, or the probabilities of the answers."""
    reason, counts = raw["finish_reason"], _counts(raw["usage"])
    if raw["blocked"]:
        return Reply(failure=f"the prompt was blocked ({raw['blocked']})", **counts)
    if reason in _WITHHELD:
        return Reply(failure=f"the answer was held back ({reason})", **counts)
    if isinstance(request, Choose):
        if not raw["tokens"]:
            return Reply(failure="an answer without token probabilities", retryable=True, **counts)
        return Reply(choices=(read_choices(alternatives(raw["tokens"]), request.answers),), **counts)
    assert isinstance(request, Complete)
    text, cut = "".join(raw["texts"]), reason == "MAX_TOKENS"
    if not text.strip() and cut:
        why = f"the model gave no text within {request.max_tokens} tokens: set llm.answer_tokens higher"
        return Reply(failure=why, **counts)
    if not text.strip():
        return Reply(failure=f"an answer without text ({reason or 'no reason given'})", retryable=True, **counts)
    text, stopped = until(text, request.stop)
    return Reply(text=text, truncated=cut and not stopped, **counts)


def _counts(usage: Mapping[str, Any] | None) -> dict[str, Any]:
    """Cached tokens are among those of the prompt; thoughts are paid for as answers are."""
    given = usage or {}
    numbers = [count_of(given.get(name)) for name in _COUNTS]
    prompt, cached, answered, thought = (n or 0 for n in numbers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered + thought,
        "cached_tokens": cached,
        "counted": numbers[0] is not None
        and all(n is not None or given.get(k) is None for n, k in zip(numbers, _COUNTS)),
    }
