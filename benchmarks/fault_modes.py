"""What an endpoint can do wrong: the modes of `faults.py`, each a function of the answer that a well one would give.

A mode hits one request in three, the same each time, and its probes only where it is `dead`. `times` is how often it
hits one request: it then passes by itself. None: as long as the endpoint is bad.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

Reply = dict[str, Any]  # a chat completion
Bad = Callable[[Reply, dict[str, Any]], Response]  # of the well answer and the request's body


@dataclass(frozen=True)
class Mode:
    name: str
    group: str
    bad: Bad
    times: int | None = None
    dead: bool = False  # all requests, probes too
    ends: bool = False  # the run is stopped: no other request would fare better
    final: bool = False  # its rows stay failed until they are asked for again: the endpoint has answered
    usable: bool = False  # what it answers can be read
    probabilities: bool = False  # it changes token probabilities alone
    timeout: float | None = None


def modes() -> list[Mode]:
    made = [*statuses(), *limits(), *connections(), *bodies(), *texts(), *numbers(), *parameters(), *accounts()]
    assert len({mode.name for mode in made}) == len(made)
    return made


# --- statuses ---------------------------------------------------------------------------------

_PASSING = (300, 301, 302, 303, 304, 307, 308, 408, 409, 411, 412, 415, 416, 417, 418, 421, 423, 424, 425, 426, 428)
_PASSING += (
    499,
    500,
    501,
    502,
    503,
    504,
    505,
    506,
    507,
    508,
    510,
    511,
    520,
    521,
    522,
    523,
    524,
    525,
    526,
    529,
    530,
    599,
)
_FINAL = (400, 413, 414, 422, 431, 451)
_ENDING = (401, 402, 403, 404, 405, 407, 410)


def error(status: int, said: str = "no", **headers: str) -> Bad:
    def bad(reply: Reply, body: dict[str, Any]) -> Response:
        return JSONResponse({"error": {"message": said, "type": "error"}}, status, headers)

    return bad


def statuses() -> Iterator[Mode]:
    for status in _PASSING:
        headers = {"location": "http://127.0.0.1:9/login"} if status < 400 else {}
        yield Mode(f"HTTP {status}", "status", error(status, **headers))
    for status in (500, 502, 503, 529):
        yield Mode(f"HTTP {status} twice", "status", error(status), times=2)
    for status in _FINAL:  # a refusal is no answer: it is not kept, and a stage that failed for it is not made again
        yield Mode(f"HTTP {status}", "status", error(status, "too long"), final=True)
    for status in _ENDING:
        yield Mode(f"HTTP {status}", "status", error(status), ends=True)
    yield Mode("HTTP 500 to all", "status", error(500), dead=True, ends=True)
    yield Mode("HTTP 503 as a page", "status", page(503))
    yield Mode("HTTP 400 as a page", "status", page(400))
    yield Mode("HTTP 403 for its content", "status", error(403, "flagged by moderation"), final=True)


def page(status: int) -> Bad:
    return lambda reply, body: Response("<html>sorry</html>", status, media_type="text/html")


def limits() -> Iterator[Mode]:
    for said in ("0", "0.01", "86400", "inf", "nan", "-5", "soon", "Fri, 31 Dec 2100 00:00:00 GMT"):
        headers = {"retry-after": said}
        yield Mode(f"HTTP 429, Retry-After {said}", "limit", error(429, "slow down", **headers), times=2)
    yield Mode("HTTP 429 twice", "limit", error(429, "slow down"), times=2)
    yield Mode("HTTP 429 to all", "limit", error(429, "slow down"), dead=True, ends=True)
    yield Mode("HTTP 429, retry-after-ms", "limit", error(429, "slow down", **{"retry-after-ms": "20"}), times=1)


def accounts() -> Iterator[Mode]:
    yield Mode("spent credit", "account", error(400, "Your credit balance is too low"), ends=True)
    yield Mode("spent quota", "account", error(429, "insufficient_quota: billing"), ends=True)
    yield Mode("expired key", "account", error(400, "API key expired"), ends=True)


# --- connections ------------------------------------------------------------------------------


class Raw(Response):
    """`parts` with `pause` seconds before each; `length` of the header, None for chunks."""

    def __init__(self, parts: list[bytes], pause: float = 0.0, length: int | None = None, **headers: str) -> None:
        super().__init__(b"", headers=headers or {"content-type": "application/json"})
        self.parts, self.pause, self.length = parts, pause, length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]
        headers += [] if self.length is None else [(b"content-length", str(self.length).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in self.parts:
            await asyncio.sleep(self.pause)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if self.length is None:
            await send({"type": "http.response.body", "body": b""})


def connections() -> Iterator[Mode]:
    def dropped(reply: Reply, body: dict[str, Any]) -> Response:
        return Raw([b'{"choices": ['], length=999)

    def slow(reply: Reply, body: dict[str, Any]) -> Response:
        return Raw([json.dumps(reply).encode()], pause=5.0)

    def drips(reply: Reply, body: dict[str, Any]) -> Response:
        return Raw([bytes([byte]) for byte in json.dumps(reply).encode()], pause=0.05)

    def empty(reply: Reply, body: dict[str, Any]) -> Response:
        return Raw([], length=0)

    def gzip(reply: Reply, body: dict[str, Any]) -> Response:
        return Raw([json.dumps(reply).encode()], **{"content-encoding": "gzip", "content-type": "application/json"})

    yield Mode("dropped", "connection", dropped)
    yield Mode("dropped twice", "connection", dropped, times=2)
    yield Mode("dropped, all", "connection", dropped, dead=True, ends=True)
    yield Mode("slow", "connection", slow, times=1, timeout=2.0)
    yield Mode("drips", "connection", drips, times=1, timeout=2.0)
    yield Mode("nothing sent", "connection", empty)
    yield Mode("says gzip and is not", "connection", gzip)


# --- bodies -----------------------------------------------------------------------------------


def raw(text: str, media: str = "application/json") -> Bad:
    return lambda reply, body: Response(text.encode("utf-8", "surrogatepass"), media_type=media)


def changed(change: Callable[[Reply], Any]) -> Bad:
    """A well answer after `change`."""

    def bad(reply: Reply, body: dict[str, Any]) -> Response:
        reply = copy.deepcopy(reply)
        change(reply)
        return Response(json.dumps(reply), media_type="application/json")

    return bad


def message(**values: Any) -> Bad:
    return changed(lambda reply: reply["choices"][0]["message"].update(values))


def choice(**values: Any) -> Bad:
    return changed(lambda reply: reply["choices"][0].update(values))


def bodies() -> Iterator[Mode]:
    unreadable = {
        "no JSON": "So sorry",
        "cut JSON": '{"choices": [{"message": {"content": "EXPL',
        "null": "null",
        "a list": "[]",
        "a number": "17",
        "deep nesting": '{"choices":' + "[" * 100_000,
        "an empty object": "{}",
        "an error with HTTP 200": '{"error": {"message": "overloaded"}}',
        "no choices": '{"choices": []}',
        "null choices": '{"choices": null}',
        "a choice that is null": '{"choices": [null]}',
        "no message": '{"choices": [{"finish_reason": "stop"}]}',
        "a message that is a text": '{"choices": [{"message": "hello"}]}',
    }
    for name, text in unreadable.items():
        yield Mode(name, "body", raw(text))
    yield Mode("a page with HTTP 200", "body", raw("<html>maintenance", "text/html"))
    yield Mode("null content", "body", message(content=None))
    yield Mode("a number as content", "body", message(content=5))
    yield Mode("content in parts", "body", changed(_in_parts), usable=True)
    yield Mode("text/plain", "body", lambda r, b: Response(json.dumps(r), media_type="text/plain"), usable=True)
    yield Mode("a refusal", "body", message(content=None, refusal="I cannot"), final=True)
    yield Mode("held back by a filter", "body", choice(finish_reason="content_filter"), final=True)
    yield Mode("nine megabytes", "body", message(content="x" * 9_000_000), final=True)
    yield Mode("thoughts alone", "body", message(content="", reasoning_content="Let me see"), final=True)
    for name, usage in {
        "usage n/a": "n/a",
        "usage of nothing": None,
        "negative usage": {"prompt_tokens": -4, "completion_tokens": -4},
        "endless usage": {"prompt_tokens": 10**300, "completion_tokens": 1},
        "usage in texts": {"prompt_tokens": "4", "completion_tokens": []},
    }.items():
        yield Mode(name, "body", changed(lambda reply, usage=usage: reply.update(usage=usage)), usable=True)


def _in_parts(reply: Reply) -> None:
    told = reply["choices"][0]["message"]
    told["content"] = [{"type": "text", "text": told["content"]}]


# --- texts ------------------------------------------------------------------------------------


def said(change: Callable[[str], str]) -> Bad:
    def told(reply: Reply) -> None:
        reply["choices"][0]["message"]["content"] = change(reply["choices"][0]["message"]["content"] or "")

    return changed(told)


def texts() -> Iterator[Mode]:
    harmless: dict[str, Callable[[str], str]] = {
        "a fence": lambda text: f"```json\n{text}\n```",
        "thoughts before": lambda text: f"<think>Perhaps 1 or 0 … EXPLANATION: hm</think>\n{text}",
        "blanks around": lambda text: f"\n\n \t{text}\r\n  ",
        "a byte order mark": lambda text: f"\ufeff{text}",
    }
    for name, change in harmless.items():
        yield Mode(name, "text", said(change), usable=True)
    unreadable: dict[str, Callable[[str], str]] = {
        "prose": lambda text: "I would rather talk about the weather.",
        "half an answer": lambda text: text[: len(text) // 3],
        "an empty text": lambda text: "",
        "blanks alone": lambda text: " \n\t ",
        "unfinished thoughts": lambda text: "<think>Perhaps",
        "an apology": lambda text: "I'm sorry, but I cannot help with that.",
        "other labels": lambda text: '{"1": 7, "2": "maybe", "pairs": [["x", 99]]}',
        "counts from 0": lambda text: '{"0": 1, "1": 0, "2": 0}',
        "contradictions": lambda text: 'EXPLANATION: a\nEXPLANATION: b\n{"1": 1, "1": 0, "2": 1, "2": 0}',
        "lone surrogates": lambda text: "\ud800" * 9,
        "control characters": lambda text: "\x00\x1b[31m\x07" * 9,
        "right to left": lambda text: "\u202e\u2066" * 9,
        "a hundred thousand brackets": lambda text: "[" * 100_000,
        "ten thousand blanks": lambda text: '[["' + " " * 10_000,
        "a long text": lambda text: "word " * 90_000,
    }
    for name, change in unreadable.items():
        yield Mode(name, "text", said(change), final=True)
    yield Mode("cut at the limit", "text", _cut, final=True)
    yield Mode("twice prose, then well", "text", said(lambda text: "Well …"), times=2, final=True)


def _cut(reply: Reply, body: dict[str, Any]) -> Response:
    reply = copy.deepcopy(reply)
    told = reply["choices"][0]
    told["finish_reason"], told["message"]["content"] = "length", told["message"]["content"][:9]
    return JSONResponse(reply)


# --- token probabilities ----------------------------------------------------------------------


def numbers() -> Iterator[Mode]:
    for name, value in {
        "a positive log probability": 7.5,
        "an infinite one": float("inf"),
        "one that is no number": float("nan"),
        "one in words": "high",
        "one that is true": True,
        "one that is null": None,
    }.items():
        yield Mode(name, "number", changed(lambda reply, value=value: _logprobs(reply, value)), final=True,
                   probabilities=True)  # fmt: skip
    yield Mode("probabilities above 1", "number", changed(lambda reply: _logprobs(reply, 0.0)), final=True,
               probabilities=True)  # fmt: skip
    yield Mode("other tokens alone", "number", changed(_others), final=True, probabilities=True)
    yield Mode("no probabilities", "number", choice(logprobs=None), probabilities=True)
    yield Mode("an empty list of them", "number", choice(logprobs={"content": []}), probabilities=True)
    yield Mode("probabilities as a text", "number", choice(logprobs="none"), probabilities=True)


def _logprobs(reply: Reply, value: Any) -> None:
    for token in (reply["choices"][0].get("logprobs") or {}).get("content", []):
        token["logprob"] = value
        for other in token["top_logprobs"]:
            other["logprob"] = value


def _others(reply: Reply) -> None:
    for token in (reply["choices"][0].get("logprobs") or {}).get("content", []):
        token["token"], token["top_logprobs"] = "The", [{"token": "The", "logprob": -0.1}]


# --- parameters -------------------------------------------------------------------------------


def parameters() -> Iterator[Mode]:
    for name in ("temperature", "seed", "max_tokens", "response_format"):
        yield Mode(f"{name} refused", "parameter", _refusing(name), usable=True)
    yield Mode("twenty alternatives refused", "parameter", _refusing("top_logprobs", 5), usable=True)
    yield Mode("response_format breaks it", "parameter", _refusing("response_format", status=500), usable=True)


def _refusing(name: str, most: int = 0, status: int = 400) -> Bad:
    """To requests that have the parameter, and more of it than `most` where it is a number; others are answered."""
    hint = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
    text = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"

    def bad(reply: Reply, body: dict[str, Any]) -> Response:
        if name in body and not (most and body[name] <= most):
            return JSONResponse({"error": {"message": text, "param": name}}, status)
        return JSONResponse(reply)

    return bad
