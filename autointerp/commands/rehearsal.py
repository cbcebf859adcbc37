"""Rehearse the requests that a use would make for one feature, and tell what is known of the model asked."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from autointerp.catalog import cached_folder
from autointerp.config import LLMConfig
from autointerp.engine.estimate import Counter, Recorder, Request, Sample, token_counter
from autointerp.engine.session import Session
from autointerp.engine.stage import Use
from autointerp.errors import AutointerpError, ConfigError
from autointerp.llm import registry
from autointerp.llm.cache import RequestCache
from autointerp.records import Capability
from autointerp.resources import cache_dir
from autointerp.stages import stage_of

log = logging.getLogger("autointerp")

EVERYTHING: frozenset[Capability] = frozenset({"choices", "slots", "schema"})


def rehearse(session: Session, use: Use, sample: Sample, llm: LLMConfig) -> list[Request]:
    """The requests for one feature. A plug-in that fails on the way has made those before.

    Where it is not known what the endpoint can do, a plug-in that refuses is asked again as if it could do everything.
    """
    capabilities = expected_capabilities(llm)
    try:
        return _rehearse(session, use, sample, Recorder(llm.model, capabilities))
    except ConfigError:
        if capabilities_known(llm):
            raise
        return _rehearse(session, use, sample, Recorder(llm.model, EVERYTHING))


def _rehearse(session: Session, use: Use, sample: Sample, recorder: Recorder) -> list[Request]:
    rehearsal = stage_of(use.name).rehearse
    if rehearsal is None:
        return []
    try:
        session.wait(_awaited(lambda: rehearsal(use, sample, recorder)))
    except AutointerpError:
        raise
    except Exception:
        log.debug("%s failed in its rehearsal", use.name, exc_info=True)
    return recorder.requests


async def _awaited(call: Callable[[], Awaitable[None]]) -> None:
    await call()


def expected_capabilities(llm: LLMConfig) -> frozenset[Capability]:
    """What the model can do, as an earlier run found out, else as far as the config tells without asking it."""
    return remembered_capabilities(llm) or registry.capabilities(llm)


def capabilities_known(llm: LLMConfig) -> bool:
    return registry.is_served_here(llm) or llm.logprobs is not None or remembered_capabilities(llm) is not None


def remembered_capabilities(llm: LLMConfig) -> frozenset[Capability] | None:
    """What the endpoint was found to be able to do; None where it was never asked, or runs here."""
    file = cache_dir() / "requests.sqlite"
    if registry.is_served_here(llm) or not file.exists():
        return None
    try:
        identity = registry.open_backend(llm).identity
        cache = RequestCache(file)
        try:
            kept = cache.memory(f"{identity} logprobs={llm.logprobs}").get("capabilities")
        finally:
            cache.close()
    except AutointerpError:
        return None
    return None if kept is None else frozenset(kept)


def counter(llm: LLMConfig) -> Counter:
    """Counts a prompt's tokens: exactly where the model's files are here."""
    return token_counter(own_folder(llm))


def own_folder(llm: LLMConfig) -> Path | None:
    """The folder of a model that runs here, where it is on this disk already."""
    prefix = f"{registry.backend_name(llm)}:"
    return cached_folder(llm.model.removeprefix(prefix)) if registry.is_served_here(llm) else None


def named(llm: LLMConfig) -> str:
    """A model as its speed depends on where it runs; no address with credentials."""
    if registry.is_served_here(llm):
        return llm.model
    parts = urlsplit(llm.base_url or "")
    place = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname or registry.backend_name(llm))
    return f"{llm.model} at {place}, {llm.concurrency} at a time"
