"""What may be written down of a config, a log line or an error: no secret in any text, an allow-list of values.

1. `hide` takes note of a secret when it is read from the environment or a config. `redact` takes those, and the values
   of environment variables whose name says that they are secret, out of a text.
2. `public_config` is a config as config.yaml has it. Of a language model's section only values of a known harmless form
   are written (numbers, switches, short words, names of variables); everywhere else what looks like a key is left out.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any
from urllib.parse import urlsplit

NOT_IN_KEYS = "it says what is shown of a value, and no result hangs on that"

HIDDEN = "hidden"
SHORTEST = 8  # characters of a secret that is taken out of texts; a shorter one stands in too many words

_hidden: set[str] = set()
_KEY = (
    r"(?:sk-[\w*.-]{8,}|(?:gsk_|hf_|ghp_|gho_)[A-Za-z0-9*]{12,}|github_pat_\w{12,}"
    r"|(?:AIza|AKIA|ASIA|xai-|glpat-)[\w*-]{12,})"
)
_WHOLE, _IN_TEXT = re.compile(_KEY), re.compile(rf"\b(?:{_KEY}|Bearer [\w*.-]{{4,}})")
_CREDENTIALS = re.compile(r"://[^/@\s]+@")
_QUERY = re.compile(r"([?&]([\w-]+)=)[^&\s\"']+")
VARIABLE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")  # stands for an environment variable in headers and extra_body
_WORD = re.compile(r"[a-z][a-z_]{0,15}")
# words of names of headers, options and variables
_SECRET = re.compile(
    r"auth|authorization|authentication|bearer|sig|signature|passwd"
    r"|\w*(password|passphrase|secret|credential|cookie)s?"
)
_KEY_OR_TOKEN = re.compile(r"\w*(?:keys?|token)")
_GIVES_ACCESS = frozenset(
    {"api", "access", "private", "session", "refresh", "client", "hub", "hf"}
)  # with one of these
_OF_TEXT = frozenset({"bos", "eos", "pad", "unk", "sep", "mask", "special", "first", "last", "next", "per", "each"})


def hide(*secrets: str) -> None:
    """Keep `secrets` out of every text that goes through `redact` from now on."""
    _hidden.update(secret for secret in secrets if len(secret) >= SHORTEST)


def redact(text: str) -> str:
    """`text` without hidden values, those of environment variables with a secret's name, and what looks like a key."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and value in text and secret_name(name, anywhere=True):
            text = text.replace(value, f"[{name}]")
    for secret in _hidden:
        text = text.replace(secret, "[key]")
    text = _QUERY.sub(_without_secret, _CREDENTIALS.sub("://hidden@", text))
    return _IN_TEXT.sub("[key]", text)


def _without_secret(pair: re.Match[str]) -> str:
    return f"{pair[1]}[key]" if secret_name(pair[2], anywhere=True) else pair[0]


def has_key_prefix(text: str) -> bool:
    """Whether `text` begins as API keys do, as no name of a model or a file does."""
    return _WHOLE.match(text) is not None


def looks_like_key(text: str) -> bool:
    """The same, or a long run of letters amid digits, as hashes and revisions have too."""
    if has_key_prefix(text):
        return True
    runs = re.findall(r"[A-Za-z0-9]{16,}", text)
    return any(re.search(r"\d", run) and re.search(r"[A-Za-z]", run) for run in runs)


@lru_cache(maxsize=1024)
def public_url(url: str) -> str:
    """The URL without user, password and query, and without parts of its path that look like keys."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no URL)"
    path = "/".join(_mark(part) if looks_like_key(part) else part for part in parts.path.split("/"))
    if not parts.scheme:
        return path
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}".rstrip("/")


def _mark(secret: str) -> str:
    """Stands for a key in a path, so that two of them can be told apart."""
    return f"key-{hashlib.sha256(secret.encode()).hexdigest()[:6]}"


def secrets_of(url: str) -> tuple[str, ...]:
    """The user, the password, the values of the query and keys in the path of a URL."""
    parts = urlsplit(url)
    values = [parts.username, parts.password, *(pair.partition("=")[2] for pair in parts.query.split("&"))]
    values += [part for part in parts.path.split("/") if looks_like_key(part)]
    return tuple(value for value in values if value and len(value) > 3)


# --- of a config ------------------------------------------------------------------------------


def public_config(value: Any, name: str = "") -> Any:
    """The config, or the part of it called `name`, as it may be written."""
    if isinstance(value, Mapping):
        if "api_key_env" in value and "model" in value:
            return _public_llm(value)
        return {key: public_config(part, name if secret_name(name) else str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [public_config(part, name) for part in value]
    if not isinstance(value, str):
        return HIDDEN if isinstance(value, int) and value >= 10 ** (SHORTEST - 1) and secret_name(name) else value
    if secret_name(name):
        return HIDDEN
    return HIDDEN if has_key_prefix(value) else redact(value)


@cache
def secret_name(name: str, *, anywhere: bool = False) -> bool:
    """Whether what is called so may be a secret, by the words of its name: ``X-Api-Key``, ``hfToken``, ``PASSWORD_2``.

    Words count, not letters: ``keywords``, ``author`` and ``tokenizer`` are no secrets. A key or a token is one where
    it is what the name stands for (``my_key``, ``api_key_of_x``), not where it says of what (``key_terms``,
    ``token_budget``); `anywhere`: there too, as in names of environment variables.
    """
    words = [word.casefold() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if not words or words[-1] == "env":  # the name of a variable
        return False
    if any(_SECRET.fullmatch(word) for word in words):
        return True
    for before, word, after in zip(["", *words], words, [*words[1:], ""]):
        if before in _GIVES_ACCESS and word == "tokens":
            return True
        if _KEY_OR_TOKEN.fullmatch(word) and (anywhere or before in _GIVES_ACCESS or not (after or before in _OF_TEXT)):
            return True
    return False


def names_in(value: Any) -> Iterator[str]:
    """Each name of a key, however deep."""
    if isinstance(value, Mapping):
        yield from map(str, value)
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from names_in(part)


def texts_in(value: Any, name: str = "", but: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """Each text in a section, with the name of its key; sections called as in `but` left out."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in but:
                yield from texts_in(part, name if secret_name(name) else str(key), but)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts_in(part, name, but)


def _public_llm(section: Mapping[str, Any]) -> dict[str, Any]:
    """Each value by a rule of its own; a key without a rule is written where it is a number, a switch or null."""
    kept = {}
    for key, value in section.items():
        rule = _RULES.get(key)
        if rule is not None and value is not None:
            kept[key] = rule(value)
        else:
            kept[key] = value if value is None or isinstance(value, bool | int | float) else HIDDEN
    return kept


def harmless(value: Any) -> Any:
    """Numbers, switches, null and short lower-case words; of lists and mappings what is harmless in them."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if secret_name(key) else harmless(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [harmless(part) for part in value]
    if isinstance(value, str) and not _WORD.fullmatch(value):
        return HIDDEN
    return value


def not_harmless(value: Any, name: str = "") -> Iterator[str]:
    """Each text that `harmless` hides."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from not_harmless(part, str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from not_harmless(part, name)
    elif isinstance(value, str) and (secret_name(name) or not _WORD.fullmatch(value)) and not VARIABLE.fullmatch(value):
        yield value


def public_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Those that name a variable, and short words."""
    return {name: value if VARIABLE.fullmatch(value) else harmless(value) for name, value in headers.items()}


# Options of a vLLM server whose value is no secret; of others only numbers and short words are written.
OPEN_OPTIONS = frozenset(
    f"--{name}"
    for name in (
        *("model", "tokenizer", "tokenizer-mode", "revision", "tokenizer-revision", "served-model-name", "dtype"),
        *("quantization", "load-format", "kv-cache-dtype", "chat-template", "distributed-executor-backend"),
        *("tool-call-parser", "reasoning-parser", "attention-backend"),
    )
)


def server_options(args: Sequence[str]) -> list[str]:
    """A server's arguments as they may be written: names of options, and values that are numbers, short words, or of
    `OPEN_OPTIONS`."""
    kept: list[str] = []
    option = ""
    for arg in args:
        name, equals, value = arg.partition("=")
        if arg.startswith("-"):
            option = name
            kept.append(f"{name}={_public_value(name, value)}" if equals else _name_alone(name))
        else:
            kept.append(_public_value(option, arg))
    return kept


def _name_alone(name: str) -> str:
    return name if re.fullmatch(r"--?[a-z][a-z0-9.-]*", name) else HIDDEN


def _public_value(option: str, value: str) -> str:
    if secret_name(option):
        return HIDDEN
    if option in OPEN_OPTIONS:
        return HIDDEN if has_key_prefix(value) else value
    return value if re.fullmatch(r"[0-9.eE+-]{1,20}", value) else harmless(value)


_RULES = {
    "model": lambda value: HIDDEN if has_key_prefix(value) else _CREDENTIALS.sub("://hidden@", value),
    "backend": str,
    "base_url": public_url,
    "replicas": lambda urls: [public_url(url) for url in urls],
    "api_key_env": str,  # checked to be a variable's name
    "headers": public_headers,
    "extra_body": harmless,
    "reasoning_effort": harmless,
    "device": str,
    "dtype": str,
    "server_args": server_options,
    "env": lambda value: dict.fromkeys(value, HIDDEN),
}
