"""An OpenAI-compatible endpoint on 127.0.0.1 for tests, that answers by a function and fails as it is told.

In a test:      with serving(answer, limit=0.3) as endpoint: …  endpoint.url, .requests, .max_in_flight
As a process:   python tests/endpoint.py --port 0 --log answered.jsonl --limit 0.3 --error 0.05
                prints its URL, then serves until it is killed.

What happens to a request hangs on its body, on how often this body came, and on the seed, not on the
order of arrival. Probes, by which a client finds out what the endpoint can do, are answered by the
endpoint itself and counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import inspect
import json
import math
import random
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from autointerp.llm.backend import FinalFailure, RateLimited, RequestFailed, RetryableFailure
from autointerp.llm.backends.failures import Refused
from autointerp.llm.backends.http import PROBE

Said = str | tuple[str, Mapping[str, float]]  # the text, and the probabilities of its first token
Answer = Callable[[list[dict[str, str]], dict[str, Any]], Said | Awaitable[Said]]
Slots = Callable[[list[dict[str, str]], str], Mapping[str, float]]  # messages, the assistant's turn so far


def yes(messages: list[dict[str, str]], body: dict[str, Any]) -> Said:
    return "Yes", {"Yes": 0.75, "No": 0.25}


class _Dropped(Response):
    """The connection ends in the middle of the answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"999")]})
        await send({"type": "http.response.body", "body": b'{"choices": [', "more_body": True})


class Drip(Response):
    """A whole answer, a byte at a time with `pause` seconds between."""

    def __init__(self, text: str, pause: float) -> None:
        super().__init__(text, media_type="application/json")
        self.pause = pause

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        for byte in bytes(self.body):
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
            await asyncio.sleep(self.pause)
        await send({"type": "http.response.body", "body": b""})


class Endpoint:
    """`limit`, `error`, `drop`, `broken`, `malformed` are shares of the requests: HTTP 429, HTTP 500, a connection
    lost, an answer that is no JSON, and an answer whose text is unreadable (half of it, or prose)."""

    def __init__(
        self,
        answer: Answer = yes,
        *,
        limit: float = 0.0,
        retry_after: float | None = None,
        error: float = 0.0,
        drop: float = 0.0,
        broken: float = 0.0,
        malformed: float = 0.0,
        latency: float = 0.0,
        hold: int = 0,
        seed: int = 0,
        log: str | Path | None = None,
        models: tuple[str, ...] | None = ("test-model",),
        key: str | None = None,
        logprobs: int = 20,
        slots: Slots | None = None,
        schema: int = 200,
        completion_tokens_only: bool = False,
        port: int = 0,
    ) -> None:
        """`hold`: answer none before so many are in flight; `models` None: no list of them; `logprobs`: most
        alternatives, 0 refuses; `schema`: HTTP status of a request with a schema."""
        self.answer, self.seed, self.latency, self.hold = answer, seed, latency, hold
        self.instead: Callable[[dict[str, Any]], Response | None] = lambda body: None  # of any answer but a probe's
        self.lists_with = 200  # HTTP status of the list of models
        self.at_probes = yes  # what is answered to a probe
        self.refuses: dict[str, str] = {}  # parameters of a request, and what is said of them …
        self.refuses_with = 400  # … with this HTTP status
        self.late_refusals = False  # to all but the first request only when two were answered in another form
        self._refused = False
        self._answered_twice = asyncio.Event()
        self.headers: list[Mapping[str, str]] = []  # of the requests received
        self.shares = {"limit": limit, "error": error, "drop": drop, "broken": broken}
        self.malformed, self.retry_after = malformed, retry_after
        self.models, self.key, self.logprobs, self.slots, self.schema = models, key, logprobs, slots, schema
        self.completion_tokens_only = completion_tokens_only
        self.requests: list[dict[str, Any]] = []  # bodies that were answered, probes left out
        self.probes = 0
        self.received = 0  # requests for completions, failed ones and probes included
        self.probe_attempts = 0  # failed ones too
        self.outcomes: Counter[str] = Counter()  # "ok" and the faults, probes included
        self.in_flight = self.max_in_flight = 0
        self.dying = False  # every connection is dropped
        self._seen: Counter[str] = Counter()
        self._held = asyncio.Event()
        self._changed = threading.Condition()
        self._log = open(log, "ab", buffering=0) if log else None  # noqa: SIM115 - lives as long as the endpoint
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        config = uvicorn.Config(
            Starlette(routes=self.routes()), log_level="critical", lifespan="off", timeout_keep_alive=60
        )
        self.server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/health", lambda request: Response()),
            Route("/v1/models", self._list),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/messages", self._chat, methods=["POST"]),  # Anthropic's form
            Route("/v1beta/models/{model}", self._chat, methods=["POST"]),  # Gemini's
        ]

    def run(self) -> None:
        self._socket.listen(2048)
        self.server.run(sockets=[self._socket])

    def start(self) -> None:
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()
        while not self.server.started and self._thread.is_alive():
            time.sleep(0.005)

    def until(self, holds: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait for something that changes with requests; blocks, so not in the loop that asks. Else TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(holds, timeout):
                raise TimeoutError

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Dead from now on: connections are refused."""
        self.dying = True
        self.server.should_exit = self.server.force_exit = True
        if self._thread:
            self._thread.join()
        self._socket.close()
        if self._log:
            self._log.close()

    # --- what it answers

    async def _list(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return failure(401, f"Incorrect API key provided: {request.headers.get('authorization')}")
        if self.models is None or self.lists_with != 200:
            return failure(404 if self.lists_with == 200 else self.lists_with, "no such page")
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _chat(self, request: Request) -> Response:
        raw = await request.body()
        self.received += 1
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        if self.in_flight >= self.hold:
            self._held.set()
        self._tell()
        try:
            return await self._one(request, _as_chat(request, json.loads(raw)))
        finally:
            self.in_flight -= 1
            self._tell()

    async def _one(self, request: Request, body: dict[str, Any]) -> Response:
        keys = tuple(request.headers.get(name) for name in ("authorization", "x-api-key", "x-goog-api-key"))
        if self.key and not {f"Bearer {self.key}", self.key}.intersection(keys):
            return failure(401, f"Incorrect API key provided: {request.headers.get('authorization')}")
        if self.models is not None and body["model"] not in self.models:
            return failure(404, f"The model {body['model']} does not exist", code="model_not_found")
        if refusal := self._refusal(body):
            first, self._refused = not self._refused, True
            if self.late_refusals and not first:
                await self._answered_twice.wait()  # one that was sent again is answered, and learnt from
            return refusal
        probe = any(message["content"] == PROBE for message in body["messages"])
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        self.probe_attempts += probe
        if not probe:
            if self.hold:
                await self._held.wait()
            if self.latency:
                await asyncio.sleep(self.latency)
            if given := self.instead(body):
                return given
        fault = self._fault(digest)
        self.outcomes[fault or "ok"] += 1
        if self.dying or fault == "drop":
            return _Dropped()
        if fault == "limit":
            headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
            return failure(429, "Rate limit reached", headers=headers)
        if fault == "error":
            return failure(500, "The server had an error")
        if fault == "broken":
            return Response('{"choices": [{"mess', media_type="application/json")
        if probe:
            self.probes += 1
            said: Said = '{"wet": true}' if "response_format" in body else self.at_probes([], body)
        else:
            given = self.answer(body["messages"], body)
            said = await given if inspect.isawaitable(given) else given
            self.requests.append(body)
            if len(self.requests) == 2:
                self._answered_twice.set()
        reply = self._reply(body, said, digest, probe)
        if request.url.path.endswith("/messages"):
            reply = as_messages(reply)
        if request.url.path.startswith("/v1beta"):
            reply = _as_gemini(reply)
        if self._log:  # before it is sent: what is sent is in the log, whoever is killed
            self._log.write(json.dumps({"hash": digest, "probe": probe}).encode() + b"\n")
        return JSONResponse(reply)

    def _fault(self, digest: str) -> str | None:
        self._seen[digest] += 1
        draw = random.Random(f"{self.seed} {digest} {self._seen[digest]}").random()
        for fault, share in self.shares.items():
            draw -= share
            if draw < 0:
                return fault
        return None

    def _refusal(self, body: dict[str, Any]) -> Response | None:
        for parameter, said in self.refuses.items():
            if body.get(parameter):
                self.outcomes[f"refused {parameter}"] += 1
                return failure(self.refuses_with, said, param=parameter)
        if self.completion_tokens_only and "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return failure(400, said, param="max_tokens", code="unsupported_parameter")
        if body.get("logprobs") and body.get("top_logprobs", 0) > self.logprobs:
            return failure(400, f"top_logprobs must be at most {self.logprobs}", param="top_logprobs")
        if "response_format" in body and self.schema != 200:
            return failure(self.schema, "response_format is not supported", param="response_format")
        return None

    def _reply(self, body: dict[str, Any], said: Said, digest: str, probe: bool) -> dict[str, Any]:
        text, likely = said if isinstance(said, tuple) else (said, {})
        draw = random.Random(f"{self.seed} {digest}").random()  # the same body is malformed each time, or never
        if not probe and draw < self.malformed:
            text = text[: len(text) // 2] if draw < self.malformed / 2 else "I would rather talk about the weather."
        tokens = _tokens(text)
        room = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        kept = tokens[:room]
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "length" if len(kept) < len(tokens) else "stop",
            "message": {"role": "assistant", "content": "".join(kept)},
        }
        if body.get("logprobs"):
            tops = [likely or {kept[0]: 0.9, "…": 0.1}, *({token: 1.0} for token in kept[1:])] if kept else []
            choice["logprobs"] = {"content": [_logprobs(top, body["top_logprobs"]) for top in tops]}
        prompt = [token for message in body["messages"] for token in _tokens(message["content"])]
        reply: dict[str, Any] = {
            "id": digest[:12],
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(kept),
                "total_tokens": len(prompt) + len(kept),
            },
        }
        if self.slots and body.get("prompt_logprobs"):
            slots: Slots = (lambda m, before: {"No": 0.6, "Yes": 0.4}) if probe else self.slots
            reply |= _prompt_logprobs(body, slots)
        return reply


def as_messages(reply: dict[str, Any]) -> dict[str, Any]:
    """A chat completion in Anthropic's form."""
    choice, usage = reply["choices"][0], reply["usage"]
    return {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": choice["message"]["content"]}],
        "stop_reason": "max_tokens" if choice["finish_reason"] == "length" else "end_turn",
        "usage": {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]},
    }


def _as_chat(request: Request, body: dict[str, Any]) -> dict[str, Any]:
    """A request in Gemini's form as one for a chat completion; any other as it is."""
    if not request.url.path.startswith("/v1beta"):
        return body
    asked, system = body.get("generationConfig", {}), body.get("systemInstruction", {}).get("parts", [])
    turns = [{"role": "system", "content": part["text"]} for part in system]
    for turn in body["contents"]:
        text = "".join(part["text"] for part in turn["parts"])
        turns.append({"role": {"model": "assistant"}.get(turn["role"], "user"), "content": text})
    names = {"maxOutputTokens": "max_tokens", "temperature": "temperature", "seed": "seed", "stopSequences": "stop"}
    made = {ours: asked[theirs] for theirs, ours in names.items() if theirs in asked}
    made |= {"model": request.path_params["model"].partition(":")[0], "messages": turns}
    if asked.get("responseLogprobs"):
        made |= {"logprobs": True, "top_logprobs": asked["logprobs"]}
    return made


def _as_gemini(reply: dict[str, Any]) -> dict[str, Any]:
    """A chat completion in Gemini's form."""
    choice, usage = reply["choices"][0], reply["usage"]
    candidate: dict[str, Any] = {
        "content": {"role": "model", "parts": [{"text": choice["message"]["content"]}]},
        "finishReason": "MAX_TOKENS" if choice["finish_reason"] == "length" else "STOP",
    }
    if "logprobs" in choice:
        tokens = choice["logprobs"]["content"]
        tops = [[_as_token(other) for other in token["top_logprobs"]] for token in tokens]
        candidate["logprobsResult"] = {
            "chosenCandidates": [_as_token(token) for token in tokens],
            "topCandidates": [{"candidates": top} for top in tops],
        }
    counts = {"promptTokenCount": usage["prompt_tokens"], "candidatesTokenCount": usage["completion_tokens"]}
    return {"candidates": [candidate], "usageMetadata": counts}


def _as_token(entry: dict[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "logProbability": entry["logprob"]}


def failure(status: int, said: str, *, headers: dict[str, str] | None = None, **more: str) -> Response:
    return JSONResponse({"error": {"message": said, "type": "error", **more}}, status, headers)


def _tokens(text: str) -> list[str]:
    """Words with the space before them, single other characters: joined, they are the text."""
    return re.findall(r" ?\w+|\W", text)


def _logprobs(likely: Mapping[str, float], top: int) -> dict[str, Any]:
    ranked = sorted(likely.items(), key=lambda pair: -pair[1])[:top]
    alternatives = [{"token": token, "logprob": math.log(max(p, 1e-30)), "bytes": None} for token, p in ranked]
    return {**alternatives[0], "top_logprobs": alternatives}


def _prompt_logprobs(body: dict[str, Any], slots: Slots) -> dict[str, Any]:
    """As vLLM gives them: an object a token by token id, that of the token itself first."""
    *before, turn = body["messages"]
    ids: dict[str, int] = {}

    def entry(token: str, p: float, rank: int) -> tuple[str, dict[str, Any]]:
        number = ids.setdefault(token, 100 + len(ids))
        return str(number), {"logprob": math.log(max(p, 1e-30)), "rank": rank, "decoded_token": token}

    head = "".join(f"<{message['role']}>\n{message['content']}\n" for message in before) + "<assistant>\n"
    given: list[dict[str, Any] | None] = [None]
    own = [1]
    for token in _tokens(head):
        number, alternative = entry(token, 0.5, 1)
        own.append(int(number))
        given.append({number: alternative})
    said = ""
    for token in _tokens(turn["content"]):
        likely = slots(before, said)
        number, alternative = entry(token, likely.get(token, 1e-6), 99)
        own.append(int(number))
        alternatives = [entry(other, p, rank) for rank, (other, p) in enumerate(likely.items(), 1)]
        given.append({number: alternative, **dict(alternatives)})
        said += token
    return {"prompt_logprobs": given, "prompt_token_ids": own}


@contextmanager
def serving(answer: Answer = yes, **options: Any) -> Iterator[Endpoint]:
    """An endpoint in a thread of its own; `options` are those of `Endpoint`."""
    endpoint = Endpoint(answer, **options)
    endpoint.start()
    try:
        yield endpoint
    finally:
        endpoint.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", help="file of a line for each request answered")
    parser.add_argument("--answer", help="module:function of (messages, body), importable from here")
    parser.add_argument("--models", help="comma-separated", default="test-model")
    parser.add_argument("--key")
    for share in ("limit", "error", "drop", "broken", "malformed", "latency"):
        parser.add_argument(f"--{share}", type=float, default=0.0)
    parser.add_argument("--retry-after", type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    name = options.pop("answer")
    if name:
        module, _, function = name.partition(":")
        options["answer"] = getattr(importlib.import_module(module), function)
    options["models"] = tuple(options["models"].split(","))
    endpoint = Endpoint(**options)
    print(endpoint.url, flush=True)
    endpoint.run()


if __name__ == "__main__":
    sys.exit(main())


def bodies(endpoint: Endpoint) -> list[str]:
    """What each request of the endpoint asked, as a hash."""
    return [hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest() for body in list(endpoint.requests)]


def kind_of(error: RequestFailed) -> str:
    """What a failure asks of who hears it."""
    match error:
        case RateLimited():
            return "wait"
        case RetryableFailure():
            return "retryable"
        case FinalFailure(fatal=True):
            return "stop"
    return "refused" if isinstance(error, Refused) else "final"
