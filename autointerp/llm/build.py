"""From a config to a language model that can be asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autointerp.config import LLMConfig
from autointerp.errors import ConfigError
from autointerp.llm.backend import Backend
from autointerp.llm.cache import RequestCache
from autointerp.llm.client import Client


def open_llm(
    config: LLMConfig,
    *,
    cache: Path,
    journal: Path,
    seed: int,
    resolve_model: Callable[[str], Path] | None = None,
) -> Client:
    """``async with open_llm(...) as llm``: nothing is loaded or connected before it must be.

    `cache` is the SQLite file of answered requests, shared between runs; `journal` the run's usage rows;
    `resolve_model` turns a catalogue name into a folder. Raises ConfigError.
    """
    backend = _backend(config, resolve_model)
    if config.base_url is None and not config.model.startswith("vllm:"):
        # In-process, requests that wait cost nothing, and the more there are, the better they go together.
        config = config.model_copy(update={"concurrency": max(config.concurrency, 4 * config.batch)})
    return Client(backend, config, cache=RequestCache(cache), journal=journal, seed=seed)


def _backend(config: LLMConfig, resolve_model: Callable[[str], Path] | None) -> Backend:
    if config.base_url is not None:
        from autointerp.llm.backends.openai import OpenAIBackend

        return OpenAIBackend(config)
    if config.model.startswith("vllm:"):
        from autointerp.llm.backends.vllm import VllmBackend

        served = config.model.removeprefix("vllm:")
        if resolve_model is not None and "/" not in served:  # a hub id is vLLM's own to fetch
            config = config.model_copy(update={"model": f"vllm:{resolve_model(served)}"})
        return VllmBackend(config)
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        if resolve_model is None:
            raise ConfigError(f"llm.model {config.model!r} is no folder; a model behind an endpoint needs llm.base_url")
        folder = resolve_model(config.model)
    from autointerp.llm.backends.local import LocalBackend

    return LocalBackend(folder, config)
