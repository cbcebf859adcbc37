"""The requests that a use would make for one feature, and what is known of the model that would answer them."""

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
from autointerp.records import Capability
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
    """What the model can do, as far as the config tells without asking it."""
    if llm.base_url is None:
        return frozenset({"choices", "slots"})
    return frozenset({"choices"}) if llm.logprobs else frozenset()


def capabilities_known(llm: LLMConfig) -> bool:
    return llm.base_url is None or llm.logprobs is False


def counter(llm: LLMConfig) -> Counter:
    """Counts a prompt's tokens: exactly where the model's files are here."""
    return token_counter(own_folder(llm))


def own_folder(llm: LLMConfig) -> Path | None:
    return cached_folder(llm.model.removeprefix("vllm:")) if llm.base_url is None else None


def named(llm: LLMConfig) -> str:
    """A model as its speed depends on where it runs; no address with credentials."""
    if llm.base_url is None:
        return llm.model
    parts = urlsplit(llm.base_url)
    place = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    return f"{llm.model} at {place}, {llm.concurrency} at a time"
