"""From an `llm` config to a client that can be asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autointerp.config import LLMConfig
from autointerp.llm.cache import RequestCache
from autointerp.llm.client import Client
from autointerp.llm.registry import backend_name, concurrency, open_backend, prices


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
    backend = open_backend(config, resolve_model)
    config = config.model_copy(update={"concurrency": concurrency(config)})
    if backend_name(config) == "local":
        # In-process, requests that wait cost nothing, and the more there are, the better they go together.
        config = config.model_copy(update={"concurrency": max(config.concurrency, 4 * config.batch)})
    return Client(
        backend,
        config,
        cache=RequestCache(cache),
        journal=journal,
        seed=seed,
        prices=prices(config),
    )
