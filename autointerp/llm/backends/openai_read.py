"""Read an OpenAI-compatible endpoint's raw answer: text, token probabilities, token counts; pure functions.

1. `keep` takes from an HTTP answer the parts that any reader uses; these go into the cache.
2. `read` makes a `Reply` of them: text, or the probabilities of the offered answers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autointerp.llm.backend import Choose, Complete, Fill, FinalFailure, Raw, Reply, Request, RetryableFailure, Weigh
from autointerp.records import Choices, Weight

log = logging.getLogger("autointerp.llm")

Token = tuple[str, float]  # its text and log probability

ROUNDING = 1e-3  # by which a log probability may exceed 0
TOO_MUCH = 1.05  # a sum of probabilities that is no rounding any more
THOUGHTLESS = 0.01  # of the answers to a probe, together; a weak model has more, one that thinks first far less
BROKEN_OFF = ("error", "insufficient_system_resource", "abort")  # as OpenRouter, DeepSeek and vLLM say it
MARGIN = 16  # tokens kept before the turn that is filled
MOST_CHARACTERS = 4_000_000  # of a text, whatever a later reader makes of it


class Unreadable(Exception):
    """Why an answer cannot be read, and whether another one may be readable."""

    def __init__(self, reason: str, retryable: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable


# --- what is kept


def keep(data: object, request: Request) -> Raw:
    """The parts of an answer's JSON that a reader uses. Raises RequestFailed for what is no answer."""
    choices = data.get("choices") if isinstance(data, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(data, dict) or not isinstance(choice, dict):
        raise RetryableFailure("an answer without choices")
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    raw: Raw = {"finish_reason": _text_or_none(choice.get("finish_reason")), "usage": _kept_usage(data.get("usage"))}
    raw["content"] = _kept_content(message.get("content"))
    raw["refusal"] = _text_or_none(message.get("refusal"))
    raw["reasoning"] = _text_or_none(message.get("reasoning_content")) or _text_or_none(message.get("reasoning"))
    if isinstance(request, Choose):
        raw["tokens"] = _kept_tokens(choice.get("logprobs"))
    if isinstance(request, Fill | Weigh):
        raw["prompt"] = _kept_prompt(data, request.turn)
    return raw


def _text_or_none(value: object) -> str | None:
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        raise FinalFailure(f"an answer of {len(value):,} characters")
    return value if isinstance(value, str) else None


def _kept_content(content: object) -> str | None:
    """Text; some endpoints give it in parts, of which those of the kind "text" are the answer."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str)) or None
    return _text_or_none(content)


def _kept_usage(usage: object) -> dict[str, Any] | None:
    if not isinstance(usage, dict):
        return None if usage is None else {"prompt_tokens": "?", "completion_tokens": "?"}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")} | {"cached_tokens": cached}
    return {name: n if n is None or isinstance(n, int | float) else "?" for name, n in counts.items()}


def _kept_tokens(logprobs: object) -> list[list[Any]]:
    """For the first two tokens of the answer: the one said and its alternatives, each [text, log probability]."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    kept: list[list[Any]] = []
    for spoken in content[:2] if isinstance(content, list) else ():
        top = spoken.get("top_logprobs") if isinstance(spoken, dict) else None
        try:
            kept.append([_pair(entry, "token") for entry in (spoken, *(top if isinstance(top, list) else ()))])
        except ValueError:
            break
    return kept


def _kept_prompt(data: Mapping[str, Any], turn: str) -> list[list[Any]]:
    """vLLM's `prompt_logprobs` from a little before `turn` on, a row a token: [which alternative the token is, the
    alternatives as [text, log probability]].

    vLLM gives one object a token, by token id, with `decoded_token` and `logprob`, the token's own first where it
    does not give the ids. null stands for the first token.
    """
    given, ids = data.get("prompt_logprobs"), data.get("prompt_token_ids")
    if not isinstance(given, list) or not given:
        raise FinalFailure("the endpoint gives no probabilities of prompt tokens")
    kept: list[list[Any]] = []
    left, margin = len(visible(turn)), MARGIN
    try:
        for index in range(len(given) - 1, -1, -1):
            if given[index] is None or margin == 0:
                break
            entries = given[index]
            own = list(entries).index(str(ids[index])) if isinstance(ids, list) else 0
            pairs = [_pair(entry, "decoded_token") for entry in entries.values()]
            kept.append([own, pairs])
            left -= len(visible(pairs[own][0]))
            margin -= left <= 0
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FinalFailure(f"the endpoint's prompt_logprobs have an unknown form ({type(error).__name__})") from error
    return kept[::-1]


def _pair(entry: object, name: str) -> list[Any]:
    """[text, log probability as it was given]. Raises ValueError where the entry has another form."""
    if not isinstance(entry, Mapping) or name not in entry or "logprob" not in entry:
        raise ValueError("no log probability")
    logprob = entry["logprob"]
    number = isinstance(logprob, int | float) and not isinstance(logprob, bool)
    return [str(entry[name] or ""), logprob if number else str(logprob)[:40]]


# --- what it says


def read(raw: Raw, request: Request) -> Reply:
    """What the kept answer says to `request`."""
    reply = _counted(raw.get("usage"))
    try:
        match request:
            case Complete():
                text, truncated = _text(raw, request)
                return replace(reply, text=text, truncated=truncated)
            case Choose():
                tokens = raw["tokens"]
                if not tokens:
                    raise Unreadable("an answer without token probabilities", retryable=True)
                after = alternatives(tokens[1]) if len(tokens) > 1 else ()
                return replace(reply, choices=(read_choices(alternatives(tokens[0]), request.answers, after),))
            case Fill():
                return replace(reply, choices=_filled(raw["prompt"], request))
            case Weigh():
                return replace(reply, weight=_weighed(raw["prompt"], request.turn))
    except Unreadable as error:
        return replace(reply, failure=str(error), retryable=error.retryable)


def _counted(usage: Mapping[str, Any] | None) -> Reply:
    """The tokens used; what was answered is put in by the caller."""
    given = [(usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")]
    counts = [count_of(value) for value in given]
    cannot_be = usage is None or any(value is not None and n is None for value, n in zip(given, counts))
    prompt, completion, cached = (n or 0 for n in counts)
    return Reply(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached, counted=not cannot_be)


def count_of(value: object) -> int | None:
    """A number of tokens; None for what can be none."""
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e9 else None


def _text(raw: Raw, request: Complete) -> tuple[str, bool]:
    """The text up to the first stop string, and whether it was cut at the limit of tokens."""
    content, cut = raw["content"], raw["finish_reason"] == "length"
    if raw["finish_reason"] == "content_filter":
        raise Unreadable("the endpoint's content filter held the answer back")
    if raw["finish_reason"] in BROKEN_OFF:
        raise Unreadable(f"the endpoint broke its answer off ({raw['finish_reason']})", retryable=True)
    if content is None and raw["refusal"]:
        raise Unreadable(f"the model refused: {' '.join(raw['refusal'].split())[:300]}")
    if not (content or "").strip() and (cut or raw["reasoning"]):
        thought = "only thought" if raw["reasoning"] else "gave no text"
        raise Unreadable(f"the model {thought} within {request.max_tokens} tokens: set llm.answer_tokens higher")
    if content is None:
        raise Unreadable("an answer without text", retryable=True)
    text, stopped = until(content, request.stop)
    return text, cut and not stopped


def until(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the first of `stops`, and whether it has one."""
    places = [place for place in (text.find(stop) for stop in stops if stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def alternatives(pairs: Sequence[Sequence[Any]]) -> list[Token]:
    """Alternatives at an answer token, the one said first and once."""
    own, *top = [(text, logprob) for text, logprob in pairs]
    return [own, *(token for token in top if token[0] != own[0])]


def _filled(rows: Sequence[Sequence[Any]], request: Fill) -> tuple[Choices, ...]:
    prompt = [(pairs[own][0], [(text, logprob) for text, logprob in pairs]) for own, pairs in rows]
    slots = find_slots(prompt, request.segments, request.filler)
    if cut := _cannot_tell(slots, request.answers):
        raise Unreadable(f"the model's tokens cannot tell {cut[1]!r} from {cut[0]!r}: use answers of one token")
    return tuple(read_choices(slot, request.answers) for slot in slots)


def _weighed(rows: Sequence[Sequence[Any]], turn: str) -> Weight:
    """The sum over the last tokens, which must spell `turn` in printable ASCII (see `find_slots`)."""
    wanted, spelt, total, tokens = visible(turn), "", 0.0, 0
    for own, pairs in reversed(rows):
        if len(spelt) >= len(wanted):
            break
        text, logprob = pairs[own]
        if cannot_be := _cannot_be([(text, logprob)]):
            raise Unreadable(cannot_be)
        spelt, total, tokens = visible(text) + spelt, total + min(logprob, 0.0), tokens + 1
    if not wanted or spelt != wanted:
        raise Unreadable("the endpoint's prompt does not end with the text that was to be weighed")
    return Weight(total, tokens)


def read_choices(tokens: Sequence[Token], answers: Sequence[str], after: Sequence[Token] = ()) -> Choices:
    """Probabilities of `answers` from the likeliest next tokens.

    A token counts for the answer that it spells, whatever its case and the space around it; where no token
    spells an answer whole, tokens of two letters or more that begin this answer and no other. An answer
    that begins a longer one ("1" and "10") shares with it by `after`, the tokens likely after the first,
    which is the shorter one. Numbers that cannot be log probabilities are a failure.
    """
    if cannot_be := _cannot_be(tokens) or _cannot_be(after):
        return Choices(None, failure=cannot_be)
    wanted = [answer.strip().casefold() for answer in answers]
    whole, begun = [0.0] * len(wanted), [0.0] * len(wanted)
    for text, logprob in tokens:
        spelt = text.strip().casefold()
        fits = [i for i, answer in enumerate(wanted) if answer == spelt]
        if fits:
            whole[fits[0]] += _probability(logprob)
        elif len(spelt) > 1 and len(fits := [i for i, answer in enumerate(wanted) if answer.startswith(spelt)]) == 1:
            begun[fits[0]] += _probability(logprob)
    shares = [w or b for w, b in zip(whole, begun)]
    if after and tokens:
        _share(shares, wanted, tokens[0][0].strip().casefold(), after)
    mass = sum(shares)
    if mass <= 0:
        return Choices(None, mass=0.0, failure=f"none of the answers is among the {len(tokens)} likeliest next tokens")
    return Choices(tuple(p / mass for p in shares), mass=min(mass, 1.0))


def heard(reply: Reply, model: str) -> bool:
    """Whether what is said to a probe for probabilities holds those of its answers; a model that thinks first begins
    with something else, and is better asked for text."""
    at_once = reply.failure is None and all((choices.mass or 0.0) >= THOUGHTLESS for choices in reply.choices)
    if not at_once:
        log.warning("%s does not begin with its answer, as a model that thinks first: its text is read instead", model)
    return at_once


def _cannot_be(tokens: Sequence[Token]) -> str | None:
    """Why these are no log probabilities."""
    for _, logprob in tokens:
        if not isinstance(logprob, int | float) or not logprob <= ROUNDING:
            return f"the endpoint gives a log probability of {logprob!s:.40}, which cannot be"
    total = sum(_probability(logprob) for _, logprob in tokens)
    return f"the endpoint gives probabilities that sum to {total:.3g}, which cannot be" if total > TOO_MUCH else None


def _probability(logprob: float) -> float:
    return math.exp(max(min(logprob, 0.0), -1e6))


def _share(shares: list[float], wanted: list[str], spoken: str, after: Sequence[Token]) -> None:
    if spoken not in wanted:
        return
    short = wanted.index(spoken)
    held = shares[short]
    for long, answer in enumerate(wanted):
        if answer != spoken and answer.startswith(spoken) and not shares[long]:
            rest = answer[len(spoken) :]
            share = sum(_probability(p) for text, p in after if text.rstrip().casefold() == rest)
            shares[long] = held * min(share, 1.0)
            shares[short] -= shares[long]


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

    `prompt` has, for each token of the prompt's end, its text and its alternatives. It must end as
    ``segments[0] + filler + segments[1] + …``. Texts of single tokens are not exact in white space and in
    characters that several tokens share, so the comparison is of the printable ASCII characters, all of which
    must agree, and each filler must begin with a token. Raises Unreadable where that is not so.
    """
    texts = [visible(text) for text, _ in prompt]
    starts: dict[int, int] = {}  # characters from the end of the prompt to the start of a token -> the token
    distance = 0
    for index in range(len(prompt) - 1, -1, -1):
        if texts[index]:
            distance += len(texts[index])
            starts[distance] = index
    turn = visible("".join(segment + filler for segment in segments))
    if not visible(filler) or not "".join(texts).endswith(turn):
        raise Unreadable("the endpoint's prompt does not end with the text that was to be filled")
    slots = []
    left = len(turn)
    for number, segment in enumerate(segments):
        left -= len(visible(segment))
        index = starts.get(left)
        text = "" if index is None else prompt[index][0].strip()
        if index is None or not filler.strip().startswith(text):
            raise Unreadable(f"the filler of segment {number} does not begin with a token of its own")
        slots.append(list(prompt[index][1]))
        left -= len(visible(filler))
    return slots


def visible(text: str) -> str:
    """Its printable ASCII characters."""
    return "".join(c for c in text if "!" <= c <= "~")
