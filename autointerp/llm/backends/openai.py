"""Any OpenAI-compatible endpoint, as a backend."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.llm.backend import FinalFailure, PassingFailure, RateLimited, Reply, RequestFailed
from autointerp.records import Capability, Choices, Message
from autointerp.registry import did_you_mean

if TYPE_CHECKING:
    import openai

T = TypeVar("T")
log = logging.getLogger("autointerp.llm")

PROBE = "Is water wet? Answer Yes or No."  # what is asked to find out what an endpoint can do
_PROBE_SCHEMA = {
    "type": "object",
    "properties": {"wet": {"type": "boolean"}},
    "required": ["wet"],
    "additionalProperties": False,
}
_TOP = 20  # alternatives a token, the most that OpenAI's and vLLM's endpoints give


class _Refused(FinalFailure):
    """HTTP 400 or 422: what the server says, and the parameter it names."""

    def __init__(self, reason: str, said: str, parameter: str | None) -> None:
        super().__init__(reason)
        self.said = said
        self.parameter = parameter


class _ServerError(PassingFailure):
    """HTTP 500. Some servers answer it to what they do not know."""


class OpenAIBackend:
    """Chat completions over HTTP, one attempt a call; what the endpoint can do is tried in `start` and remembered.

    A subclass that starts its own server sets `base_url` before it calls `start` here.
    `memory` holds what was found out: "top_logprobs" (0: no token probabilities), "slots", "schema", and the
    parameters that the endpoint wants otherwise. The client hands in one that lasts.
    """

    def __init__(
        self, config: LLMConfig, *, model: str | None = None, base_url: str | None = None, api_key: str | None = None
    ) -> None:
        self._config = config
        self._model = model or config.model
        self.base_url = base_url or config.base_url or ""
        self._api_key = api_key
        self.memory: MutableMapping[str, Any] = {}
        self._client: openai.AsyncOpenAI | None = None
        self._refused_schemas: set[str] = set()
        self._server_errors: Counter[str] = Counter()  # HTTP 500 in a row, by schema

    @property
    def model(self) -> str:
        return self._model

    @property
    def identity(self) -> str:
        return f"{_public(self.base_url)} {self._model}"

    @property
    def capabilities(self) -> frozenset[Capability]:
        able: set[Capability] = set()
        if self.memory.get("top_logprobs"):
            able.add("choices")
        if self.memory.get("slots"):
            able.add("slots")
        if self.memory.get("schema"):
            able.add("schema")
        return frozenset(able)

    # --- starting

    async def start(self) -> None:
        """Connect, look for the model and try what it can do, a request of a few tokens each; may be called again
        after a RateLimited or PassingFailure and goes on where it was. Raises AutointerpError, ConfigError."""
        if self._client is None:
            await asyncio.to_thread(importlib.import_module, "openai")  # takes a second: others go on meanwhile
            self._client = self._connect()
        await self._find_model()
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

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _connect(self) -> openai.AsyncOpenAI:
        import openai

        if self._api_key is None:
            self._api_key = find_key(self._config, self.base_url)
        # openai 3 stands on another httpx than openai 2: take the one that its own client derives from
        base = next(each for each in openai.DefaultAsyncHttpxClient.__mro__ if each.__name__ == "AsyncClient")
        httpx = importlib.import_module(base.__module__.partition(".")[0])
        self._raw = httpx.Response
        many = max(100, self._config.concurrency)
        return openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._api_key or "none",  # the library wants one, servers of one's own do not
            max_retries=0,
            timeout=self._config.timeout,
            http_client=openai.DefaultAsyncHttpxClient(
                limits=httpx.Limits(max_connections=many, max_keepalive_connections=many),
                timeout=self._config.timeout,
                trust_env=not _local(self.base_url),  # a proxy for the outside world is none for this machine
            ),
        )

    async def _find_model(self) -> None:
        import openai

        assert self._client is not None
        try:
            response = await self._client.get("/models", cast_to=self._raw)
        except (openai.NotFoundError, openai.BadRequestError):
            return  # a server without the list
        except openai.APIStatusError as error:
            if error.status_code in (405, 501):
                return
            raise self._classified(error) from None
        except openai.APIConnectionError as error:
            if type(error.__cause__).__name__ == "ConnectError":
                raise AutointerpError(
                    f"no answer at {self._where} ({self._clean(error.__cause__)}): start it or set llm.base_url"
                ) from None
            raise self._classified(error) from None
        try:
            known = [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return
        if known and not any(name == self._model or name.endswith("/" + self._model) for name in known):
            raise AutointerpError(f"{self._where} has no model {self._model!r}{did_you_mean(self._model, known)}")

    async def _probe_logprobs(self) -> int:
        for top in (_TOP, 5):
            body = {**self._chat([Message("user", PROBE)], 1), "logprobs": True, "top_logprobs": top}
            data = await self._tried(lambda body=body: self._send(body))
            if data is not None:
                return top if len(_top_tokens(_choice(data), 0)) > 1 else 0
        return 0

    async def _probe_slots(self) -> bool:
        prompt = [Message("user", PROBE)]
        return await self._tried(lambda: self.fill(prompt, ["Water: ", "\nIce: "], "No", ["Yes", "No"])) is not None

    async def _probe_schema(self) -> bool:
        form = {"response_format": _form(_PROBE_SCHEMA)}
        data = await self._tried(lambda: self._send({**self._chat([Message("user", PROBE)], 32), **form}))
        if data is None:
            return False
        text = (_choice(data).get("message") or {}).get("content") or ""
        return text.lstrip()[:1] in ("{", "")  # some endpoints take the schema and heed it not

    async def _tried(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """The answer, or None where the endpoint refuses this kind of request, with HTTP 500 as some do, though it
        answers others."""
        for _ in range(3):
            try:
                return await ask()
            except _ServerError:
                continue
            except FinalFailure as error:
                if error.fatal:
                    raise
                return None
        await self._send(self._chat([Message("user", PROBE)], 1))
        return None

    # --- asking

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        schema: Mapping[str, object] | None,
        stop: Sequence[str],
    ) -> Reply:
        body = {**self._chat(messages, max_tokens), "temperature": temperature, "seed": seed}
        if stop:
            body["stop"] = list(stop)
        data = await self._send_with_schema(body, schema)
        choice = _choice(data)
        text = self._text(choice, max_tokens)
        return replace(_reply(data), text=text, truncated=choice.get("finish_reason") == "length")

    async def choose(self, messages: Sequence[Message], answers: Sequence[str]) -> Reply:
        """Answers are told apart by the next token; "1" and "10" also where a tokenizer writes "10" as two."""
        top = self.memory.get("top_logprobs", _TOP)
        if not top:
            raise FinalFailure(f"{self._where} gives no token probabilities for {self._model!r}")
        nested = any(a != b and b.startswith(a) for a in answers for b in answers)
        body = {**self._chat(messages, 2 if nested else 1), "temperature": 0.0, "logprobs": True, "top_logprobs": top}
        data = await self._send(body)
        choice = _choice(data)
        tokens = _top_tokens(choice, 0)
        if not tokens:
            raise PassingFailure(f"{self._where}: an answer without token probabilities")
        return replace(_reply(data), choices=(read_choices(tokens, answers, _top_tokens(choice, 1)),))

    async def fill(
        self, messages: Sequence[Message], segments: Sequence[str], filler: str, answers: Sequence[str]
    ) -> Reply:
        """Reads vLLM's `prompt_logprobs` where the fillers stand; FinalFailure where they cannot be found exactly."""
        turn = Message("assistant", "".join(segment + filler for segment in segments))
        body = {
            **self._chat([*messages, turn], 1),
            "temperature": 0.0,
            "prompt_logprobs": _TOP,
            "return_token_ids": True,
            "add_generation_prompt": False,
            "continue_final_message": True,
        }
        data = await self._send(body)
        slots = find_slots(_prompt_tokens(data), segments, filler)
        if cut := _cannot_tell(slots, answers):
            raise FinalFailure(f"the model's tokens cannot tell {cut[1]!r} from {cut[0]!r}: use answers of one token")
        return replace(_reply(data), choices=tuple(read_choices(slot, answers) for slot in slots))

    def _chat(self, messages: Sequence[Message], max_tokens: int) -> dict[str, Any]:
        said = [{"role": message.role, "content": message.content} for message in messages]
        return {"model": self._model, "messages": said, "max_tokens": max_tokens}

    async def _send_with_schema(self, body: dict[str, Any], schema: Mapping[str, object] | None) -> dict[str, Any]:
        """With structured output where the endpoint takes this schema. A refusal counts against the schema only
        when the same request without it is answered; HTTP 500 when it comes three times in a row."""
        name = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()
        if schema is None or self.memory.get("schema") is False or name in self._refused_schemas:
            return await self._send(body)
        try:
            data = await self._send({**body, "response_format": _form(schema)})
            self._server_errors.pop(name, None)
            return data
        except _ServerError:
            self._server_errors[name] += 1
            if self._server_errors[name] < 3:
                raise
        except _Refused:
            pass
        data = await self._send(body)
        self._refused_schemas.add(name)
        log.info("%s takes no structured output of this form: going on without", self._where)
        return data

    async def _send(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST, again without what the endpoint names as unknown; the answer's JSON object."""
        while True:
            try:
                return await self._post(self._shaped(body))
            except _Refused as error:
                if not self._adapt(error, body):
                    raise

    def _shaped(self, body: dict[str, Any]) -> dict[str, Any]:
        shaped = {name: value for name, value in body.items() if name not in self.memory.get("without", [])}
        if self.memory.get("max_completion_tokens"):
            shaped["max_completion_tokens"] = shaped.pop("max_tokens")
        return shaped

    def _adapt(self, error: _Refused, body: dict[str, Any]) -> bool:
        """Learn from a refusal; whether the request should be sent again in another shape."""
        if re.search(r"use\W+max_completion_tokens", error.said, re.IGNORECASE):
            if self.memory.get("max_completion_tokens"):
                return False
            self.memory["max_completion_tokens"] = True
            return True
        without = self.memory.get("without", [])
        for name in ("temperature", "seed"):
            unknown = error.parameter == name or ("extra_forbidden" in error.said and f'"{name}"' in error.said)
            if unknown and name in body and name not in without:
                log.warning("%s does not let %r be set for %s: going on without", self._where, name, self._model)
                self.memory["without"] = [*without, name]
                return True
        return False

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        import openai

        assert self._client is not None, "ask after start"
        try:
            response = await self._client.post("/chat/completions", cast_to=self._raw, body=body)
        except openai.APIError as error:
            raise self._classified(error) from None  # its chain holds the request and so the key
        try:
            data = response.json()
        except ValueError:
            raise PassingFailure(f"{self._where}: an answer that is no JSON") from None
        if not isinstance(data, dict) or not isinstance(data.get("choices"), list):
            said = data.get("error") if isinstance(data, dict) else None
            raise PassingFailure(f"{self._where}: an answer without choices{f' ({self._clean(said)})' if said else ''}")
        return data

    def _text(self, choice: dict[str, Any], max_tokens: int) -> str:
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        if choice.get("finish_reason") == "content_filter":
            raise FinalFailure("the endpoint's content filter held the answer back")
        text = message.get("content")
        if isinstance(text, str):
            return text
        if message.get("refusal"):
            raise FinalFailure(f"the model refused: {self._clean(message['refusal'])}")
        if choice.get("finish_reason") == "length":
            raise FinalFailure(f"no text within {max_tokens} tokens: the model may think longer than max_tokens allows")
        raise PassingFailure(f"{self._where}: an answer without text")

    # --- failures

    def _classified(self, error: openai.APIError) -> RequestFailed:
        import openai

        where = self._where
        if isinstance(error, openai.APITimeoutError):
            return PassingFailure(f"{where}: no answer within {self._config.timeout:g} s")
        if isinstance(error, openai.APIConnectionError):
            return PassingFailure(f"{where}: {self._clean(error.__cause__ or error)}")
        if not isinstance(error, openai.APIStatusError):
            return PassingFailure(f"{where}: {self._clean(error.message)}")
        status, said = error.status_code, self._clean(error.body if error.body else error.message)
        reason = f"{where}: HTTP {status}: {said}"
        if status == 401:
            variable = self._config.api_key_env
            return FinalFailure(
                f"{where} does not take the key in {variable} (HTTP 401): set the right one", fatal=True
            )
        if status == 403:
            return FinalFailure(f"{reason}; the key in {self._config.api_key_env} may not use this", fatal=True)
        if status == 404:
            return FinalFailure(f"{reason}; see llm.model {self._model!r} and llm.base_url", fatal=True)
        if status == 429:
            if "insufficient_quota" in (error.code, error.type) or "insufficient_quota" in said:
                return FinalFailure(
                    f"{where}: the account's quota is used up (HTTP 429, insufficient_quota)", fatal=True
                )
            return RateLimited(reason, _retry_after(error.response.headers))
        if status in (400, 422):
            return _Refused(reason, said, error.param)
        if status == 500:
            return _ServerError(reason)
        if status > 500 or status in (408, 409, 425):
            return PassingFailure(reason)
        return FinalFailure(reason)

    @property
    def _where(self) -> str:
        return _public(self.base_url)

    def _clean(self, said: object) -> str:
        """One line of at most 300 characters, without the key."""
        if isinstance(said, Mapping):
            said = said.get("message") or json.dumps(said, default=str)
        text = " ".join(str(said).split()) or type(said).__name__
        if self._api_key:
            text = text.replace(self._api_key, "[key]")
        text = re.sub(r"\b(sk-|Bearer )[\w*.-]{4,}", r"\1[key]", text)
        return text if len(text) <= 300 else text[:299] + "…"


def find_key(config: LLMConfig, base_url: str) -> str:
    """The key from the environment; servers of this machine need none. Raises ConfigError, naming the variable."""
    key = os.environ.get(config.api_key_env) if config.api_key_env else "none"
    if not key and not _local(base_url):
        raise ConfigError(f"{_public(base_url)} needs a key: set the environment variable {config.api_key_env}")
    return key or "none"


def _local(url: str) -> bool:
    return (urlsplit(url).hostname or "") in ("localhost", "127.0.0.1", "::1", "0.0.0.0")


# --- reading what came back -------------------------------------------------------------------


def _form(schema: Mapping[str, object]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


Token = tuple[str, float]  # its text and log probability


def read_choices(tokens: Sequence[Token], answers: Sequence[str], after: Sequence[Token] = ()) -> Choices:
    """Probabilities of `answers` from the likeliest next tokens.

    A token counts for the answer that it spells, whatever its case and the space around it; where no token
    spells an answer whole, tokens of two letters or more that begin this answer and no other. An answer
    that begins a longer one ("1" and "10") shares with it by `after`, the tokens likely after the first,
    which is the shorter one.
    """
    wanted = [answer.strip().casefold() for answer in answers]
    whole, begun = [0.0] * len(wanted), [0.0] * len(wanted)
    for text, logprob in tokens:
        spelt = text.strip().casefold()
        fits = [i for i, answer in enumerate(wanted) if answer == spelt]
        if fits:
            whole[fits[0]] += math.exp(logprob)
        elif len(spelt) > 1 and len(fits := [i for i, answer in enumerate(wanted) if answer.startswith(spelt)]) == 1:
            begun[fits[0]] += math.exp(logprob)
    found = [w or b for w, b in zip(whole, begun)]
    if after and tokens:
        _share(found, wanted, tokens[0][0].strip().casefold(), after)
    mass = sum(found)
    if mass <= 0:
        return Choices(None, mass=0.0, failure=f"none of the answers is among the {len(tokens)} likeliest next tokens")
    return Choices(tuple(p / mass for p in found), mass=min(mass, 1.0))


def _share(found: list[float], wanted: list[str], said: str, after: Sequence[Token]) -> None:
    if said not in wanted:
        return
    short = wanted.index(said)
    held = found[short]
    for long, answer in enumerate(wanted):
        if answer != said and answer.startswith(said) and not found[long]:
            rest = answer[len(said) :]
            share = sum(math.exp(p) for text, p in after if text.rstrip().casefold() == rest)
            found[long] = held * min(share, 1.0)
            found[short] -= found[long]


def _cannot_tell(slots: Sequence[Sequence[Token]], answers: Sequence[str]) -> tuple[str, str] | None:
    """An answer and a longer one that it begins, where no slot shows the longer as one token but some the shorter."""
    seen = {text.strip().casefold() for slot in slots for text, _ in slot}
    for short in answers:
        for long in answers:
            if short != long and long.startswith(short) and short.casefold() in seen and long.casefold() not in seen:
                return short, long
    return None


def find_slots(
    prompt: Sequence[tuple[str, Sequence[Token]]], segments: Sequence[str], filler: str
) -> list[list[Token]]:
    """The alternatives at the first token of each filler.

    `prompt` has, for each token of the prompt, its text and its alternatives. Its end must read as
    ``segments[0] + filler + segments[1] + …``. Texts of single tokens are not exact in white space and in
    characters that several tokens share, so the comparison is of the printable ASCII characters, all of which
    must agree, and each filler must begin with a token. Raises FinalFailure where that is not so.
    """
    visible = [_visible(text) for text, _ in prompt]
    starts: dict[int, int] = {}  # characters from the end of the prompt to the start of a token -> the token
    distance = 0
    for index in range(len(prompt) - 1, -1, -1):
        if visible[index]:
            distance += len(visible[index])
            starts[distance] = index
    turn = _visible("".join(segment + filler for segment in segments))
    if not _visible(filler) or not "".join(visible).endswith(turn):
        raise FinalFailure("the endpoint's prompt does not end with the text that was to be filled")
    slots = []
    left = len(turn)
    for number, segment in enumerate(segments):
        left -= len(_visible(segment))
        index = starts.get(left)
        text = "" if index is None else prompt[index][0].strip()
        if index is None or not filler.strip().startswith(text):
            raise FinalFailure(f"the filler of segment {number} does not begin with a token of its own")
        slots.append(list(prompt[index][1]))
        left -= len(_visible(filler))
    return slots


def _visible(text: str) -> str:
    return "".join(c for c in text if "!" <= c <= "~")


def _prompt_tokens(data: dict[str, Any]) -> list[tuple[str, list[Token]]]:
    """Text and alternatives of each prompt token from vLLM's `prompt_logprobs`: one object a token, by token id,
    with `decoded_token` and `logprob`; that of the token itself comes first, and null stands for the first token."""
    given, ids = data.get("prompt_logprobs"), data.get("prompt_token_ids")
    if not isinstance(given, list) or not given:
        raise FinalFailure("the endpoint gives no probabilities of prompt tokens")
    prompt: list[tuple[str, list[Token]]] = []
    try:
        for index, entry in enumerate(given):
            if entry is None:
                prompt.append(("", []))
                continue
            own = entry[str(ids[index])] if isinstance(ids, list) else next(iter(entry.values()))
            tokens = [(_token_text(each), float(each["logprob"])) for each in entry.values()]
            prompt.append((_token_text(own), tokens))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise FinalFailure(f"the endpoint's prompt_logprobs have an unknown form ({type(error).__name__})") from error
    return prompt


def _token_text(entry: Mapping[str, Any]) -> str:
    return str(entry.get("decoded_token") or "")


def _choice(data: dict[str, Any]) -> dict[str, Any]:
    choice = data["choices"][0] if data["choices"] else None
    if not isinstance(choice, dict):
        raise PassingFailure("an answer without choices")
    return choice


def _top_tokens(choice: dict[str, Any], position: int) -> list[Token]:
    """Alternatives at an answer token, the one said first; none where the endpoint gives none."""
    content = (choice.get("logprobs") or {}).get("content") or []
    if position >= len(content):
        return []
    try:
        said = content[position]
        top: Iterable[Any] = said.get("top_logprobs") or []
        tokens = [(str(each["token"]), float(each["logprob"])) for each in top]
        own = (str(said["token"]), float(said["logprob"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
    return [own, *(token for token in tokens if token[0] != own[0])]


def _reply(data: dict[str, Any]) -> Reply:
    """The tokens used; what was answered is put in by the caller."""
    usage = data.get("usage") or {}
    return Reply(
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` or `retry-after` (seconds or a date)."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        given = headers.get("retry-after")
        if given is None:
            return None
        if re.fullmatch(r"\s*[\d.]+\s*", given):
            return float(given)
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except ValueError:
        return None


def _public(url: str) -> str:
    """The URL without user, password and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}".rstrip("/")
