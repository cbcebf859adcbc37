"""Parse what a language model answered: explanations, yes or no, labels, activations; strict, nothing is guessed.

No parser raises, whatever the text, and none yields a value that does not stand in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autointerp.records import Choices, Explanation

# --- 0 or 1 for each numbered example ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Labels:
    """For every number 1 … n either a value, 0 or 1, or the reason why there is none."""

    values: Mapping[int, int]
    failures: Mapping[int, str]


_OBJECT = re.compile(r"\{([^{}]+)")
_ENTRY = re.compile(
    r"""(?:^|[,;\n])[ \t*"'-]*(?:example[ \t]+)?([0-9]{1,6})["'*]*[ \t]*[:=]["'*]*\s*([^,;\n]*)""", re.IGNORECASE
)
_CUT = "…"
_ARRAY = re.compile(r"\[([^\[\]{}]*)\]")


def parse_labels(text: str, n: int, *, truncated: bool = False) -> Labels:
    """Read ``{"1": 0, "2": 1, …}``, whole, cut off, fenced or amid prose; or, failing that, an array of exactly n.

    A number with another value than 0 or 1, or with two different ones, has no value; nor has any when the answer
    counts from 0. With `truncated`, an entry that touches the end of the text may have lost digits and is not read.
    """
    answer, unread = spoken(text)
    if unread:
        return Labels({}, dict.fromkeys(range(1, n + 1), unread))
    heard: dict[int, set[str]] = {}
    braced = [(match[1], match.start(1)) for match in _OBJECT.finditer(answer)]
    for region, start in braced if "{" in answer else [(answer, 0)]:
        for entry in _ENTRY.finditer(region):
            cut = truncated and start + entry.end() == len(answer)
            heard.setdefault(int(entry[1]), set()).add(_CUT if cut else entry[2].strip().strip("\"'*]").strip())
    if 0 in heard:
        return Labels({}, dict.fromkeys(range(1, n + 1), "the answer counts its examples from 0"))
    if not any(1 <= number <= n for number in heard):
        return _positional(answer, n)
    values: dict[int, int] = {}
    failures: dict[int, str] = {}
    for number in range(1, n + 1):
        given = heard.get(number, set())
        if len(given) == 1 and given <= {"0", "1"}:
            values[number] = int(next(iter(given)))
        elif len(given) > 1:
            failures[number] = f"the answer gives it several values: {_quote(' and '.join(sorted(given)))}"
        elif given == {_CUT}:
            failures[number] = "the answer is cut off there"
        elif given:
            failures[number] = f"the answer gives it {_quote(next(iter(given)))}, not 0 or 1"
        else:
            failures[number] = "the answer does not mention it"
    return Labels(values, failures)


def _positional(answer: str, n: int) -> Labels:
    """An array without numbers says which example is meant by its length alone, so all of it must be right."""
    arrays = {tuple(item.strip() for item in items.split(",")) for items in _ARRAY.findall(answer) if items.strip()}
    if len(arrays) != 1:
        why = "the answer holds several lists" if arrays else f"no labels in the answer {_quote(answer)}"
    else:
        array = next(iter(arrays))
        if len(array) == n and set(array) <= {"0", "1"}:
            return Labels({i: int(item) for i, item in enumerate(array, start=1)}, {})
        why = f"a list of {len(array)} for {n} examples" if len(array) != n else "a list with values other than 0 and 1"
    return Labels({}, dict.fromkeys(range(1, n + 1), why))


# --- an activation for each token -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Activations:
    """One value from 0 to 10 for every token sent, or None with the reason: half a sequence is not scored."""

    values: tuple[float, ...] | None
    failure: str | None = None


_PAIR = re.compile(r'\[\s*+("(?:[^"\\]|\\.){0,300}+")\s*+,([^\[\]",]*+)\]')  # possessive: no blank is tried twice
_NUMBER = re.compile(r"[0-9]{1,2}(?:\.[0-9]+)?", re.ASCII)


def parse_activations(text: str, tokens: Sequence[str]) -> Activations:
    """Read ``[["token", 0], ["token", 7], …]`` and check it token by token against `tokens`.

    White space around a token is forgiven; any other difference, a missing or an extra token fails the sequence.
    """
    answer, unread = spoken(text)
    pairs = [(quoted, number.strip()) for quoted, number in _PAIR.findall(answer)]
    if unread:
        return Activations(None, unread)
    if not pairs:
        return Activations(None, f"no token and activation pairs in the answer {_quote(text)}")
    values: list[float] = []
    for i, ((quoted, number), token) in enumerate(zip(pairs, tokens), start=1):
        try:
            said = json.loads(quoted, strict=False)
        except ValueError:
            said = quoted
        if said.strip() != token.strip():
            return Activations(None, f"token {i} is {_quote(token)}, the answer has {_quote(said)} there")
        if not _NUMBER.fullmatch(number) or float(number) > 10:
            return Activations(None, f"token {i}: {_quote(number)} is not a number from 0 to 10")
        values.append(float(number))
    if len(pairs) != len(tokens):
        return Activations(None, f"the answer has {len(pairs)} tokens, {len(tokens)} were sent")
    return Activations(tuple(values))


# --- yes or no --------------------------------------------------------------------------------

LEAST_MASS = 0.05  # of the answers among all next tokens; below it their odds say little


def too_little(heard: Sequence[Choices], answers: str) -> str | None:
    """Why the odds of `answers` say little: together they have less than `LEAST_MASS`, in the mean of `heard`."""
    masses = [each.mass for each in heard if each.mass is not None]
    mean = sum(masses) / len(masses) if masses else 1.0
    if mean >= LEAST_MASS:
        return None
    return f"the judge gave {answers} together a probability of {mean:.2g}: it wanted to say something else"


def read_yes_no(heard: Choices) -> tuple[float, float] | str:
    """(log odds of Yes, P(Yes)) from the probabilities of the answers ("Yes", "No"), or why there is neither."""
    if heard.probabilities is None:
        return heard.failure or "the judge gave no probabilities"
    if why := too_little([heard], "Yes and No"):
        return why
    yes, no = heard.probabilities
    if yes == no == 0:
        return "the judge gave neither Yes nor No any probability"
    # The log odds still rank where P(Yes) itself has rounded to 1.
    return math.inf if no == 0 else -math.inf if yes == 0 else math.log(yes) - math.log(no), yes / (yes + no)


_YES_NO = re.compile(
    r"\W*+(?:answer\W++)?(yes|no)\b(?!\W++(?:and|or)\W++(?:yes|no)\b)(?!\W++(?:idea|clue|answer|opinion)\b)",
    re.IGNORECASE,
)


def parse_yes_no(text: str) -> bool | str:
    """An answer that begins with Yes or No (``**Yes**, …``, ``Answer: no``); else why it is none, as "No idea" is."""
    answer, unread = spoken(text)
    if unread:
        return unread
    verdict = _YES_NO.match(answer)
    return verdict[1].casefold() == "yes" if verdict else f"the answer is neither Yes nor No: {_quote(answer)}"


# --- an explanation ---------------------------------------------------------------------------

_MARKER = re.compile(r"^[ \t>#*_`\"'{-]*explanation[ \t*_`\"']*:[ \t*_]*(.*)$", re.IGNORECASE | re.MULTILINE)
_REFUSAL = re.compile(
    r"(i['’ ]a?m (sorry|unable)|sorry\b\W*+(but\W++)?(i|there|this|these|the|it|we|no)\b"  # the word may be a topic
    r"|i (can ?not|can['’]t|could not|do not|don['’]t)|as an ai\b|unable to"
    r"|(none|unknown|unclear|n/?a|null|nothing"
    r"|no (clear |common |single |obvious )*(pattern|explanation|feature|answer))\W*$)",
    re.IGNORECASE,
)


def parse_explanation(text: str | None, *, truncated: bool = False) -> Explanation:
    """The line after ``EXPLANATION:``. An answer without it could be anything, so it is a failure.

    A long explanation is kept whole: the judge, not its length, decides. A cut, empty, refused or twice and
    differently given one is a failure; the raw answer is kept either way.
    """
    answer, unread = spoken(text or "")
    if unread:
        return Explanation(None, unread, text)
    marks = list(_MARKER.finditer(answer))
    if not marks:
        why = "has no line EXPLANATION: …" if answer else "is empty"
        return Explanation(None, f"the answer {why}", text)
    if len(marks) > MARKS:
        return Explanation(None, f"the answer gives {len(marks)} explanations", text)
    lines = [(m[1] or answer[m.end() :].lstrip().partition("\n")[0]) for m in marks]
    ends = marks[-1].end() == len(answer) or not marks[-1][1]
    phrases = list(dict.fromkeys(_bare(line) for line in lines))
    if len(phrases) > 1:
        return Explanation(None, f"the answer gives {len(phrases)} different explanations", text)
    phrase = phrases[0]
    if not any(c.isalnum() for c in phrase):
        return Explanation(None, "the explanation is empty", text)
    if _REFUSAL.match(phrase):
        return Explanation(None, f"the model declined: {_quote(phrase)}", text)
    if truncated and ends:
        return Explanation(None, "the explanation was cut off at the token limit", text)
    return Explanation(phrase, None, text)


def _bare(line: str) -> str:
    """Without the markdown and the quotes around it; a quoted word inside stays quoted."""
    line = line.strip().strip("*_`").strip()
    if line.endswith("}") and "{" not in line:  # the whole answer was an object
        line = line[:-1].strip()
    if len(line) > 1 and line[0] + line[-1] in ('""', "''", "“”", "«»", "[]", "<>"):
        inner = line[1:-1]
        line = inner if line[0] not in inner and line[-1] not in inner else line
    return line.strip()


# --- text from outside ------------------------------------------------------------------------

_UNSTORABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def clean(text: str) -> str:
    """Without what no file, table or terminal can hold: lone surrogates and control characters become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


# What ends or opens a turn in the chat templates of common models. A server reads it so wherever it stands.
_CONTROL = re.compile(r"<(?=[|｜]|/?s>|(?:start|end)_of_turn>|/?think>|<SYS>)|\[(?=/?INST\])", re.IGNORECASE)


def sendable(text: str) -> str:
    """As a message may say it: without lone surrogates, which have no bytes in UTF-8, and with a space in what a chat
    template would take for the end of the message (``< |im_end|>``), so that no text of a corpus ends its quotation."""
    return _CONTROL.sub(lambda start: f"{start[0]} ", _SURROGATE.sub("\ufffd", text))


# --- shared -----------------------------------------------------------------------------------


LONGEST_WITH_THOUGHTS = 1_000_000  # characters; more are not even looked through
LONGEST = 100_000  # characters after the thoughts; no list of labels or pairs is as long
_BEFORE = " \t\r\n\ufeff\u200b\u200e\u200f\u2060"  # an answer: blanks, a byte order mark, marks of direction
MARKS = 100  # lines EXPLANATION: that an answer may have; one that has more goes round in circles


def spoken(text: str) -> tuple[str, str | None]:
    """The answer after a reasoning model's thoughts, or "" with the reason why there is none to read."""
    if len(text) > LONGEST_WITH_THOUGHTS:
        return "", f"the answer has {len(text):,} characters, more than {LONGEST_WITH_THOUGHTS:,} are not read"
    _, end, answer = text.rpartition("</think>")
    if not end and "<think>" in text:
        return "", "the answer ends before it begins: only reasoning"
    answer = answer if end else text
    if len(answer) > LONGEST:
        return "", f"the answer has {len(answer):,} characters, more than {LONGEST:,} are not read"
    return answer.lstrip(_BEFORE).strip(), None


def _quote(text: str, limit: int = 60) -> str:
    """One short line of it, for a reason."""
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")
