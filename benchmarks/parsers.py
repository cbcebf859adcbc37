"""20,000 generated answers for each parser and each reader of a backend: no crash, nothing silently scored, none slow.

    python benchmarks/parsers.py [--answers 20000] [--out results/reference/parsers.json]

1. A right answer is made, and up to three changes to it: prose, fences, thoughts, a cut, unicode noise, blanks, deep
   nesting, repetition; one answer in a thousand is ten megabytes long.
2. The parser reads it. What it gives must be what the right answer said (where no change touches digits or words) or a
   reason. Each example of a list has a value or a reason, never both and never neither.
3. Readers of backends are given JSON of the provider's form in which values are replaced by others.

Time is that of the processor, so that other programs do not count. They do empty its caches: an answer that takes more
than half the bar is read again, and the shortest of three times counts. Bars: no exception, nothing wrong, nothing
without a reason, at most 50 ms an answer. Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autointerp.answers import parse_activations, parse_explanation, parse_labels, parse_yes_no
from autointerp.llm.backend import Choose, Complete, RequestFailed
from autointerp.llm.backends import anthropic, gemini, openai_read
from autointerp.records import Message

MOST_MS = 50.0
NOISE = "\ud800\udfff\x00\x07\x1b\u202e\u2066\ufeff\u200b\u2028é😀İ\t \n\"'`*_{}[]:,;<>"
PROSE = (
    "Sure!",
    "Here is what I think:",
    "I would say so, but 2 of them are hard.",
    "```json",
    "```",
    "**Answer**",
    "---",
)
WORDS = ("dog", "tree", "the", "run", "Ångström", '"quoted"', "a-b", "x" * 40)

Change = Callable[[str, random.Random], str]


def prose(text: str, chance: random.Random) -> str:
    return f"{chance.choice(PROSE)}\n{text}\n{chance.choice(PROSE)}"


def thoughts(text: str, chance: random.Random) -> str:
    return f'<think>{chance.choice(PROSE)} 1: 0, Yes, EXPLANATION: hm [["x", 3]]</think>\n{text}'


def unfinished(text: str, chance: random.Random) -> str:
    return f"<think>{text}"


def cut(text: str, chance: random.Random) -> str:
    return text[: chance.randrange(len(text) + 1)]


def noise(text: str, chance: random.Random) -> str:
    for _ in range(chance.randrange(1, 9)):
        place = chance.randrange(len(text) + 1)
        text = text[:place] + chance.choice(NOISE) * chance.choice((1, 1, 1, 500)) + text[place:]
    return text


def nesting(text: str, chance: random.Random) -> str:
    return chance.choice("[{(<") * chance.choice((1, 100, 40_000)) + text


def repeated(text: str, chance: random.Random) -> str:
    return text * chance.randrange(1, 30)


def blanks(text: str, chance: random.Random) -> str:
    return text.replace(",", "," + " \t\n"[chance.randrange(3)] * chance.choice((1, 10, 3000)))


CHANGES: tuple[Change, ...] = (prose, thoughts, unfinished, cut, noise, nesting, repeated, blanks)
SAYS_OTHERWISE = (cut, noise)  # what is left may say another thing: a digit is lost, a word parted


def changed(text: str, chance: random.Random) -> tuple[str, tuple[Change, ...]]:
    applied = tuple(chance.choice(CHANGES) for _ in range(chance.randrange(4)))
    for change in applied:
        text = change(text, chance)
    if chance.random() < 0.001:
        text += chance.choice(("x", "[", '{"1": 0, ', "EXPLANATION: a\n", " ")) * 10_000_000
        text = text[:10_000_000]
    return text, applied


# --- parsers: the problem with what one gives, None where there is none ---------------------------


def labels(chance: random.Random) -> tuple[Callable[[], Any], Callable[[Any], str | None]]:
    n = chance.randrange(1, 30)
    truth = {i: chance.randrange(2) for i in range(1, n + 1)}
    shown = (
        json.dumps({str(i): v for i, v in truth.items()}) if chance.random() < 0.8 else json.dumps(list(truth.values()))
    )
    text, applied = changed(shown, chance)
    truncated = cut in applied or chance.random() < 0.2

    def wrong(given: Any) -> str | None:
        if set(given.values) | set(given.failures) != set(truth) or set(given.values) & set(given.failures):
            return "an example without a value and a reason"
        if not all(given.failures.values()) or not set(given.values.values()) <= {0, 1}:
            return "a value that is none, or no reason"
        if not set(applied) & set(SAYS_OTHERWISE) and any(truth[i] != v for i, v in given.values.items()):
            return "another value than was said"
        return None

    return lambda: parse_labels(text, n, truncated=truncated), wrong


def activations(chance: random.Random) -> tuple[Callable[[], Any], Callable[[Any], str | None]]:
    tokens = [chance.choice(WORDS) for _ in range(chance.randrange(1, 40))]
    values = [float(chance.randrange(11)) for _ in tokens]
    pairs = json.dumps({"pairs": [[t, v] for t, v in zip(tokens, values)]}, ensure_ascii=chance.random() < 0.5)
    text, applied = changed(pairs, chance)

    def wrong(given: Any) -> str | None:
        if (given.values is None) != (given.failure is not None):
            return "neither values nor a reason"
        if given.values is None:
            return None
        if len(given.values) != len(tokens) or not all(0 <= value <= 10 for value in given.values):
            return "values that cannot be"
        if not set(applied) & set(SAYS_OTHERWISE) and list(given.values) != values:
            return "other values than were said"
        return None

    return lambda: parse_activations(text, tokens), wrong


def explanation(chance: random.Random) -> tuple[Callable[[], Any], Callable[[Any], str | None]]:
    phrase = " ".join(chance.choice(WORDS) for _ in range(chance.randrange(1, 9)))
    text, _ = changed(f"EXPLANATION: {phrase}", chance)

    def wrong(given: Any) -> str | None:
        if (given.text is None) != (given.failure is not None):
            return "neither a text nor a reason"
        return "a text that does not stand there" if given.text is not None and given.text not in text else None

    return lambda: parse_explanation(text, truncated=chance.random() < 0.5), wrong


def yes_no(chance: random.Random) -> tuple[Callable[[], Any], Callable[[Any], str | None]]:
    truth = chance.random() < 0.5
    text, applied = changed(("Yes" if truth else "No") + chance.choice((".", ", it does", "", "\n")), chance)

    def wrong(given: Any) -> str | None:
        if isinstance(given, str):
            return None if given else "no reason"
        return (
            "another answer than was given" if given is not truth and not set(applied) & set(SAYS_OTHERWISE) else None
        )

    return lambda: parse_yes_no(text), wrong


# --- readers ----------------------------------------------------------------------------------

COMPLETE = Complete((Message("user", "?"),), 20, stop=("\n\n",))
CHOOSE = Choose((Message("user", "?"),), ("Yes", "No"))
STRANGE = (
    None,
    True,
    -1,
    0,
    10**400,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "n/a",
    "\ud800",
    [],
    [None],
    {},
    {"a": 1},
)

OPENAI = {
    "choices": [
        {
            "finish_reason": "stop",
            "message": {"content": "Yes", "refusal": None, "reasoning_content": None},
            "logprobs": {
                "content": [{"token": "Yes", "logprob": -0.1, "top_logprobs": [{"token": "No", "logprob": -3}]}]
            },
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}},
}
ANTHROPIC = {
    "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Yes"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 5, "output_tokens": 1, "cache_read_input_tokens": 2},
}
GEMINI = {
    "candidates": [
        {
            "content": {"parts": [{"text": "Yes"}, {"text": "hm", "thought": True}]},
            "finish_reason": "STOP",
            "logprobs_result": {
                "chosen_candidates": [{"token": "Yes", "log_probability": -0.1}],
                "top_candidates": [{"candidates": [{"token": "No", "log_probability": -3.0}]}],
            },
        }
    ],
    "usage_metadata": {"prompt_token_count": 5, "candidates_token_count": 1},
}


def strange(data: Any, chance: random.Random) -> Any:
    """With about one value in twelve replaced."""
    if chance.random() < 0.08:
        return chance.choice(STRANGE)
    if isinstance(data, dict):
        return {key: strange(value, chance) for key, value in data.items() if chance.random() > 0.03}
    if isinstance(data, list):
        return [strange(value, chance) for value in data] * chance.choice((1, 1, 1, 2))
    return data


def reader(form: Any, read: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def made(chance: random.Random) -> tuple[Callable[[], Any], Callable[[Any], str | None]]:
        data, request = strange(form, chance), chance.choice((COMPLETE, CHOOSE))

        def wrong(reply: Any) -> str | None:
            if isinstance(reply, RequestFailed):
                return None if str(reply) else "no reason"
            choices = reply.choices and reply.choices[0]
            if reply.failure is None and reply.text is None and not choices:
                return "neither an answer nor a reason"
            if choices and (choices.probabilities is None) != (choices.failure is not None):
                return "neither probabilities nor a reason"
            if choices and choices.probabilities and not all(0 <= p <= 1 for p in choices.probabilities):
                return "probabilities that cannot be"
            counts = (reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens)
            return "a count that cannot be" if min(counts) < 0 or max(counts) > 1e9 else None

        def call() -> Any:
            try:
                return read(data, request)
            except RequestFailed as error:
                return error

        return call, wrong

    return made


PARSERS: dict[str, Callable[..., Any]] = {
    "labels": labels,
    "activations": activations,
    "explanation": explanation,
    "yes or no": yes_no,
    "reader openai": reader(OPENAI, lambda data, request: openai_read.read(openai_read.keep(data, request), request)),
    "reader anthropic": reader(ANTHROPIC, lambda data, _: anthropic.read(anthropic.keep(data), COMPLETE)),
    "reader gemini": reader(GEMINI, lambda data, request: gemini.read(gemini.keep(data), request)),
}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.thread_time()
    given = call()
    return time.thread_time() - begun, given


def measure(name: str, answers: int, seed: int = 0) -> dict[str, Any]:
    chance = random.Random(f"{name} {seed}")
    wrong: Counter[str] = Counter()
    longest = 0.0
    for number in range(answers):
        call, problem = PARSERS[name](chance)
        try:
            seconds, given = timed(call)
            if seconds > MOST_MS / 2000:
                seconds = min(seconds, timed(call)[0], timed(call)[0])
            longest = max(longest, seconds)
            found_wrong = problem(given)
        except Exception as error:
            found_wrong = f"{type(error).__name__}: {error}"[:200]
        if found_wrong:
            wrong[f"{found_wrong} (answer {number})"] += 1
    return {"parser": name, "answers": answers, "wrong": sum(wrong.values()), "longest_ms": round(1e3 * longest, 2),
            "examples": list(wrong)[:3]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--parsers", nargs="*", default=list(PARSERS))
    parser.add_argument("--out", type=Path, default=Path("results/reference/parsers.json"))
    options = parser.parse_args()
    rows = []
    for name in options.parsers:
        rows.append(measure(name, options.answers))
        print(json.dumps(rows[-1]), flush=True)
    options.out.write_text(json.dumps({"command": "python benchmarks/parsers.py", "parsers": rows}, indent=1) + "\n")
    sys.exit(any(row["wrong"] or row["longest_ms"] > MOST_MS for row in rows))


if __name__ == "__main__":
    main()
