"""Backend openai: any OpenAI-compatible endpoint, and what it turns out to support.

1. `start` connects, looks for the model and tries what the endpoint can do, a request of a few tokens each.
2. `ask` sends a request in the form that the endpoint takes; a parameter that it refuses is learnt.
3. `read` is in `openai_read`, sending in `http`, the meaning of a status in `failures`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError
from autointerp.llm.backend import Choose, Complete, Fill, FinalFailure, Raw, Reply, Request, Weigh
from autointerp.llm.backends.failures import Refused, ServerError
from autointerp.llm.backends.http import QUESTION, HttpBackend, asked_for, find_extra_body, find_headers, find_key
from autointerp.llm.backends.openai_read import alternatives, heard, keep, read
from autointerp.llm.prices import Prices, listed_prices
from autointerp.records import Capability, Message
from autointerp.redact import public_url
from autointerp.registry import did_you_mean

T = TypeVar("T")
log = logging.getLogger("autointerp.llm")

OPENAI = "https://api.openai.com/v1"  # where `openai:MODEL` is, when llm.base_url does not say otherwise
_PROBE_SCHEMA = {
    "type": "object",
    "properties": {"wet": {"type": "boolean"}},
    "required": ["wet"],
    "additionalProperties": False,
}
_TOP = 20  # alternatives a token, the most that OpenAI's and vLLM's endpoints give
_FEWER = 5
MOST_BYTES = 8 << 20  # of an answer
_MOST_FILLED = 256 << 20  # with twenty alternatives at each token of the prompt


class OpenAIBackend(HttpBackend):
    """Chat completions over HTTP, one attempt a call; what the endpoint can do is tried in `start` and remembered.

    A subclass that starts its own server sets `base_url` before it calls `start` here.
    `memory` holds what was found out: "top_logprobs" (0: no token probabilities), "at_once" (whether an answer begins
    with its first token, and not a model's thoughts), "slots", "schema", and the parameters that the endpoint wants
    otherwise. The client hands in one that lasts.
    """

    library, client, path, models_path = "openai", "AsyncOpenAI", "/chat/completions", "/models"

    def __init__(
        self, config: LLMConfig, *, model: str | None = None, base_url: str | None = None, api_key: str | None = None
    ) -> None:
        super().__init__(
            config,
            model=model or config.model.removeprefix("openai:"),
            base_url=base_url or config.base_url or OPENAI,
            api_key=api_key,
        )
        self._refused_schemas: set[str] = set()
        self._server_errors: Counter[str] = Counter()  # HTTP 500 in a row, by schema

    # --- what is known before it is asked

    @classmethod
    def open(cls, config: LLMConfig, resolve_model: Callable[[str], Path] | None) -> OpenAIBackend:
        return cls(config)

    @classmethod
    def identify(cls, config: LLMConfig, identify_model: Callable[[str], str]) -> dict[str, Any]:
        named = {"base_url": public_url(config.base_url or OPENAI), "model": config.model.removeprefix("openai:")}
        return named | {"logprobs": config.logprobs} | asked_for(config)

    @classmethod
    def expected(cls, config: LLMConfig) -> frozenset[Capability]:
        return frozenset({"choices"}) if config.logprobs else frozenset()

    @classmethod
    def prices(cls, config: LLMConfig) -> Prices | None:
        return listed_prices(config.model.removeprefix("openai:"), config.base_url or OPENAI)

    @classmethod
    def check(cls, config: LLMConfig, catalogue: Sequence[str]) -> None:
        find_key(config, config.base_url or OPENAI)
        find_headers(config)
        find_extra_body(config)

    # --- what it is

    @property
    def identity(self) -> str:
        extras = asked_for(self._config)
        return f"{public_url(self.base_url)} {self._model}" + (
            f" {json.dumps(extras, sort_keys=True)}" if extras else ""
        )

    @property
    def capabilities(self) -> frozenset[Capability]:
        able: set[Capability] = set()
        if self.memory.get("top_logprobs") and self.memory.get("at_once", True):
            able.add("choices")
        if self.memory.get("slots"):
            able.add("slots")
        if self.memory.get("schema"):
            able.add("schema")
        return frozenset(able)

    # --- starting

    async def start(self) -> None:
        """Connect, look for the model and try what it can do, a request of a few tokens each; may be called again
        after a RateLimited or RetryableFailure and goes on where it was. Raises AutointerpError, ConfigError."""
        known = await (await self.connect()).models(self.models_path)
        if known and not any(_means(self._model, name) for name in known):
            raise AutointerpError(f"{self._where} has no model {self._model!r}{did_you_mean(self._model, known)}")
        if "top_logprobs" not in self.memory:
            self.memory["top_logprobs"] = 0 if self._config.logprobs is False else await self._probe_logprobs()
        if self._config.logprobs and not self.memory["top_logprobs"]:
            raise AutointerpError(
                f"{self._where} gives no token probabilities for {self._model!r}: set llm.logprobs to null or false"
            )
        if "slots" not in self.memory:
            self.memory["slots"] = bool(self.memory["top_logprobs"]) and await self._probe_slots()
        if "schema" not in self.memory:
            self.memory["schema"] = await self._probe_schema()

    # --- trying what it can do

    async def probe(self) -> None:
        """One short request. A refusal is an answer too."""
        try:
            await self._send(self._chat(QUESTION, 1), MOST_BYTES)
        except Refused:
            return

    async def _probe_logprobs(self) -> int:
        question = Choose(QUESTION, ("Yes", "No"))
        for top in (_TOP, _FEWER):
            body = {**self._chat(QUESTION, 1), "logprobs": True, "top_logprobs": top}
            data = await self._tried(lambda body=body: self._send(body, MOST_BYTES))
            if data is not None:
                raw = keep(data, question)
                if not raw["tokens"] or len(alternatives(raw["tokens"][0])) < 2:
                    return 0
                self.memory["at_once"] = bool(self._config.logprobs) or heard(self.read(raw, question), self._model)
                return top
        return 0

    async def _probe_slots(self) -> bool:
        question = Fill(QUESTION, ("Water: ", "\nIce: "), "No", ("Yes", "No"))

        async def ask() -> Reply:
            return self.read(await self.ask(question), question)

        reply = await self._tried(ask)
        return reply is not None and reply.failure is None

    async def _probe_schema(self) -> bool:
        body = {**self._chat(QUESTION, 32), "response_format": _form(_PROBE_SCHEMA)}
        data = await self._tried(lambda: self._send(body, MOST_BYTES))
        if data is None:
            return False
        text = keep(data, Complete(QUESTION, 32))["content"] or ""
        return text.lstrip()[:1] in ("{", "")  # some endpoints take the schema and heed it not

    async def _tried(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """The answer, or None where the endpoint refuses this kind of request, with HTTP 500 or 403 as some do, though
        it answers others. Raises RequestFailed where it does not."""
        for _ in range(3):
            try:
                return await ask()
            except ServerError:
                continue
            except FinalFailure as error:
                if not error.fatal:
                    return None
                break
        await self.probe()
        return None

    # --- asking

    async def ask(self, request: Request) -> Raw:
        match request:
            case Complete():
                data = await self._complete(request)
            case Choose():
                data = await self._choose(request)
            case Fill():
                data = await self._send(self._turn(request, _TOP), _MOST_FILLED)
            case Weigh():
                data = await self._send(self._turn(request, 1), _MOST_FILLED)
        return keep(data, request)

    def read(self, raw: Raw, request: Request) -> Reply:
        return read(raw, request)

    async def _complete(self, request: Complete) -> dict[str, Any]:
        body = {**self._chat(request.messages, request.max_tokens), "temperature": request.temperature}
        body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop)
        return await self._send_with_schema(body, request.schema)

    async def _choose(self, request: Choose) -> dict[str, Any]:
        """Answers are told apart by the next token; "1" and "10" also where a tokenizer writes "10" as two."""
        nested = any(a != b and b.startswith(a) for a in request.answers for b in request.answers)
        body = {**self._chat(request.messages, 2 if nested else 1), "temperature": 0.0, "logprobs": True}
        while top := self.memory.get("top_logprobs", _TOP):
            try:
                return await self._send({**body, "top_logprobs": top}, MOST_BYTES)
            except Refused as error:
                if not (error.names("logprobs") or error.names("top_logprobs")):
                    raise
                log.warning("%s refuses %d token probabilities for %s", self._where, top, self._model)
                fewer = _FEWER if top > _FEWER else 0
                self.memory["top_logprobs"] = min(fewer, self.memory.get("top_logprobs", _TOP))
                if not self.memory["top_logprobs"]:
                    self.memory["slots"] = False
        raise FinalFailure(f"{self._where} gives no token probabilities for {self._model!r}", retryable=True)

    def _turn(self, request: Fill | Weigh, alternatives: int) -> dict[str, Any]:
        """vLLM's `prompt_logprobs` show what the model would have said at each token of the assistant's turn, and how
        likely that token was; one alternative is the least that it gives."""
        return {
            **self._chat([*request.messages, Message("assistant", request.turn)], 1),
            "temperature": 0.0,
            "prompt_logprobs": alternatives,
            "return_token_ids": True,
            "add_generation_prompt": False,
            "continue_final_message": True,
        }

    def _chat(self, messages: Sequence[Message], max_tokens: int) -> dict[str, Any]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        body: dict[str, Any] = {"model": self._model, "messages": turns, "max_tokens": max_tokens}
        if self._config.reasoning_effort is not None:
            body["reasoning_effort"] = self._config.reasoning_effort
        return body

    async def _send_with_schema(self, body: dict[str, Any], schema: Mapping[str, object] | None) -> dict[str, Any]:
        """With structured output where the endpoint takes this schema. A refusal counts against the schema only
        when the same request without it is answered; HTTP 500 when it comes three times in a row."""
        name = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()
        if schema is None or self.memory.get("schema") is False or name in self._refused_schemas:
            return await self._send(body, MOST_BYTES)
        try:
            data = await self._send({**body, "response_format": _form(schema)}, MOST_BYTES)
            self._server_errors.pop(name, None)
            return data
        except ServerError:
            self._server_errors[name] += 1
            if self._server_errors[name] < 3:
                raise
        except Refused:
            pass
        data = await self._send(body, MOST_BYTES)
        self._refused_schemas.add(name)
        log.info("%s takes no structured output of this form: going on without", self._where)
        return data


def _means(model: str, listed: str) -> bool:
    """Whether `model` asks for `listed`: by the end of its path, and with a tag or without one (Ollama's ``:latest``,
    OpenRouter's ``:nitro``, which no list has)."""
    return listed in (model, f"{model}:latest", model.rpartition(":")[0]) or listed.endswith(f"/{model}")


def _form(schema: Mapping[str, object]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}
