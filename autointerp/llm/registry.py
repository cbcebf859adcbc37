"""LLM backends by name, and what is known of a config before any is asked: identity, capabilities, prices, checks.

A backend is one file and at most one line here; a plug-in's needs no line, but the entry point group
`autointerp.backends` or a dotted path in `llm.backend`. Its class is a `BackendKind` (`autointerp.llm.backend`).
Nothing here imports torch, transformers or a provider's library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autointerp.config import LLMConfig
from autointerp.errors import ConfigError
from autointerp.llm.backend import Backend, BackendKind
from autointerp.llm.prices import Prices, check_limits, with_given
from autointerp.records import Capability
from autointerp.registry import Registry, did_you_mean

NOT_IN_KEYS = "a key holds the backend that was looked up, and what it answers of itself"

_ASKED = ("open", "identify", "expected", "prices", "check")  # what every class of a backend has


def _lacks(target: object) -> str | None:
    missing = [name for name in _ASKED if not callable(getattr(target, name, None))]
    return f"has no {missing[0]!r}" if missing else None


backends: Registry[type[BackendKind]] = Registry(
    "LLM backend",
    "autointerp.backends",
    {
        "openai": "autointerp.llm.backends.openai:OpenAIBackend",
        "openai-batch": "autointerp.llm.backends.openai_batch:OpenAIBatchBackend",
        "anthropic": "autointerp.llm.backends.anthropic:AnthropicBackend",
        "anthropic-batch": "autointerp.llm.backends.anthropic_batch:AnthropicBatchBackend",
        "gemini": "autointerp.llm.backends.gemini:GeminiBackend",
        "litellm": "autointerp.llm.backends.litellm:LiteLLMBackend",
        "vllm": "autointerp.llm.backends.vllm:VllmBackend",
        "local": "autointerp.llm.backends.local:LocalBackend",
    },
    _lacks,
)


def backend(name: str) -> Callable[[Any], Any]:
    """Decorator that adds a backend: ``@backend("mine")`` serves ``llm.backend: mine`` and ``llm.model: mine:NAME``."""
    return backends.register(name)


def backend_name(config: LLMConfig) -> str:
    """`llm.backend`, else the word before a colon in `llm.model` where it names a backend, else "openai" for a model
    behind `llm.base_url`, else "local"."""
    if config.backend is not None:
        return config.backend
    prefix, colon, _ = config.model.partition(":")
    if colon and prefix in backends.names():
        return prefix
    return "local" if config.base_url is None else "openai"


def backend_of(config: LLMConfig) -> type[BackendKind]:
    """The class that answers for `config`. Raises ConfigError for a name that no backend has."""
    return backends.get(backend_name(config))


def identity(config: LLMConfig, identify_model: Callable[[str], str]) -> dict[str, Any]:
    """JSON for a stage's key: what answers depend on beside the request.

    `identify_model` gives the pinned hash of a catalogue's name, the hash of a local folder, or the hub id.
    """
    kind = backend_of(config)
    return {"backend": backend_name(config), "answer_tokens": config.answer_tokens} | kind.identify(
        config, identify_model
    )


def capabilities(config: LLMConfig) -> frozenset[Capability]:
    """What the model can do, as far as the config tells without asking it."""
    return backend_of(config).expected(config)


def prices(config: LLMConfig) -> Prices | None:
    """Of a million tokens: the config's, else the listed ones; None where they are not known, 0 for models run here."""
    return with_given(config, backend_of(config).prices(config))


def is_served_here(config: LLMConfig) -> bool:
    """Whether this machine runs the model: in this process, or by a server that the run starts."""
    return backend_name(config) in ("local", "vllm")


COLLECTED = 10_000  # requests in flight at most of a backend that collects them: waiting costs nothing there


def concurrency(config: LLMConfig) -> int:
    """Requests in flight at most: the config's, and more for a backend that submits many together (`collects`)."""
    return max(config.concurrency, COLLECTED if getattr(backend_of(config), "collects", False) else 0)


def check(config: LLMConfig, catalogue: Sequence[str] = ()) -> None:
    """Raise ConfigError for what can be known wrong before anything is paid for: a key that is missing in the
    environment, a folder that is not there, a package that is not installed. `catalogue`: names of models it has."""
    word, colon, _ = config.model.partition(":")
    if colon and backend_name(config) == "local" and config.backend is None and not Path(config.model).exists():
        raise ConfigError(
            f"llm.model {config.model!r}: no LLM backend is named {word!r}{did_you_mean(word, backends.names())}"
        )
    if config.replicas and backend_name(config) not in ("openai", "anthropic"):
        raise ConfigError(f"llm.replicas: the backend {backend_name(config)} asks at one address; leave them out")
    backend_of(config).check(config, catalogue)
    check_limits(config, prices(config))


def open_backend(config: LLMConfig, resolve_model: Callable[[str], Path] | None = None) -> Backend:
    """The backend of `config`, not yet started. `resolve_model` turns a catalogue's name into a folder."""
    return backend_of(config).open(config, resolve_model)
