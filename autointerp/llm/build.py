"""From an `llm` config to a client that can be asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autointerp.config import LLMConfig
from autointerp.llm.books import Books, of_this_process
from autointerp.llm.client import Client
from autointerp.llm.registry import backend_name, concurrency, open_backend, prices


def open_llm(
    config: LLMConfig,
    *,
    cache: Path,
    journal: Path,
    seed: int,
    resolve_model: Callable[[str], Path] | None = None,
    shared: Callable[[LLMConfig, str], Books] | None = None,
) -> Client:
    """``async with open_llm(...) as llm``: nothing is loaded or connected before it must be.

    `cache` is the SQLite file of answered requests, shared between runs; `journal` the run's usage rows;
    `resolve_model` turns a catalogue name into a folder. `shared` gives the books of a config and a model where other
    processes ask too; `cache` and `journal` are theirs to write then. Raises ConfigError.
    """
    backend = open_backend(config, resolve_model)
    config = config.model_copy(update={"concurrency": concurrency(config)})
    if backend_name(config) == "local":
        # In-process, requests that wait cost nothing, and the more there are, the better they go together.
        config = config.model_copy(update={"concurrency": max(config.concurrency, 4 * config.batch)})
    make = shared or (lambda config, model: of_this_process(config, model, cache, journal, prices(config)))
    return Client(backend, config, make(config, backend.model), seed=seed)
