"""Prompt templates: files of ``prompts/``, jinja templates whose messages stand in call blocks.

    {% call system() %}You study one unit of a neural network.{% endcall %}
    {% call user() %}{% for context in contexts %}{{ loop.index }}: {{ context | marked }}
    {% endfor %}{% endcall %}
    {% call assistant() %}EXPLANATION: …{% endcall %}

A value cannot open a message, whatever it holds, and a name that is not given is an error.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from autointerp.errors import ConfigError
from autointerp.records import Context, Message, pieces
from autointerp.registry import did_you_mean
from autointerp.resources import folder

if TYPE_CHECKING:
    import jinja2

REPEAT_TEMPERATURE = 0.7  # of a question asked again: greedily, the same unreadable answer would come back
SCALE = 10  # activations are shown as whole numbers from 0 to this


def render(name: str, **values: object) -> list[Message]:
    """The messages of ``prompts/NAME.jinja``."""
    import jinja2

    messages: list[Message] = []

    def speaker(role: Literal["system", "user", "assistant"]) -> Callable[..., str]:
        def say(caller: Callable[[], str]) -> str:
            messages.append(Message(role, caller().strip()))
            return ""

        return say

    roles = {"system": speaker("system"), "user": speaker("user"), "assistant": speaker("assistant")}
    try:
        outside = _template(name).render(**values, **roles)
    except jinja2.UndefinedError as error:
        raise ConfigError(f"prompts/{name}.jinja: {error.message}") from None
    if outside.strip():
        raise ConfigError(f"prompts/{name}.jinja: text outside of a message: {outside.strip()[:60]!r}")
    return messages


def prompts_hash(names: Iterable[str]) -> str:
    """Of the templates' text and of all that they include: part of the key of a stage that uses them."""
    texts, pending = {}, [f"{name}.jinja" for name in names]
    while pending:
        file = pending.pop()
        if file not in texts:
            texts[file] = _source(file)
            pending += _included(texts[file])
    digest = hashlib.sha256()
    for file, text in sorted(texts.items()):
        digest.update(f"{file}\0{text}\0".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _included(text: str) -> tuple[str, ...]:
    """Files of the templates that a template's text includes by name."""
    from jinja2 import meta

    return tuple(name for name in meta.find_referenced_templates(_environment().parse(text)) if name)


def scaled(activation: float, maximum: float) -> int:
    """0 to 10 as a share of the feature's maximum; what fires at all is at least 1."""
    if activation <= 0 or maximum <= 0:
        return 0
    return min(SCALE, max(1, round(SCALE * min(1.0, activation / maximum))))


def on_one_line(text: str) -> str:
    """Line breaks, tabs and other control characters written out, as ``\\n``; all else unchanged."""
    return text if text.isprintable() else _NOT_PLAIN.sub(_written_out, text)


_NOT_PLAIN = re.compile("[^ -~]")


def _written_out(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else match[0].encode("unicode_escape").decode()


def plain(context: Context) -> str:
    """The text as a judge sees it: no mark says where, or whether, the feature fires."""
    return on_one_line(context.text).strip()


def marked(context: Context, left: str = "«", right: str = "»") -> str:
    """The text with each run of firing tokens between marks; leading white space stays outside. Marks that the text has
    itself, as French has, stand there as ‹ and ›."""
    parts: list[str] = []
    for firing, raw in _runs(context):
        text = raw.replace(left, "‹").replace(right, "›")
        bare = text.lstrip(" ") if firing else text
        parts += [text[: len(text) - len(bare)], left, bare, right] if firing else [bare]
    return on_one_line("".join(parts)).strip()


def activations(context: Context, maximum: float) -> str:
    """``dog 10, s 4``: each firing token with its activation in whole numbers up to 10."""
    fired = [(token, value) for token, value in pieces(context.tokens, context.activations) if value > 0]
    return ", ".join(f"{on_one_line(token.strip(' '))} {scaled(value, maximum)}" for token, value in fired)


def _runs(context: Context) -> list[tuple[bool, str]]:
    runs: list[tuple[bool, str]] = []
    for token, activation in pieces(context.tokens, context.activations):
        if runs and runs[-1][0] == (activation > 0):
            runs[-1] = (runs[-1][0], runs[-1][1] + token)
        else:
            runs.append((activation > 0, token))
    return runs


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Callable[..., Any]] = {
        "plain": plain,
        "marked": marked,
        "activations": activations,
        "on_one_line": on_one_line,
    }
    environment.filters.update(filters)
    return environment


def _template(name: str) -> jinja2.Template:
    import jinja2

    try:
        return _environment().get_template(f"{name}.jinja")
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"prompts/{error.name or name}, line {error.lineno}: {error.message}") from None


def _source(file: str) -> str:
    path = folder("prompts") / file
    if not path.is_file():
        known = (p.stem for p in folder("prompts").glob("*.jinja"))
        raise ConfigError(f"no prompt named {path.stem!r}{did_you_mean(path.stem, known)}")
    return path.read_text(encoding="utf-8")
