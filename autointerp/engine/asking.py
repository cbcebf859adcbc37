"""Language models of a run: one client for each distinct `llm` config, and what each feature's requests came to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autointerp.catalog import resolve
from autointerp.config import Config, LLMConfig, PluginConfig
from autointerp.engine.session import Session
from autointerp.errors import ConfigError
from autointerp.resources import cache_dir

if TYPE_CHECKING:
    from autointerp.llm.client import Client


MISSING = "add an llm section to the config"


@dataclass
class Asked:
    """What the requests for one explanation or score came to."""

    prompt_hash: str | None = None  # of the first prompt sent
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retryable_failures: int = 0


def llm_config(config: Config, plugin: PluginConfig) -> LLMConfig:
    chosen = plugin.llm or config.llm
    if chosen is None:
        raise ConfigError(f"{plugin.key!r} needs a language model: {MISSING}")
    return chosen


def client(session: Session, plugin: PluginConfig) -> Client:
    """The client for a plug-in's own `llm` or the run's; one client a distinct configuration."""
    from autointerp.llm.build import open_llm

    chosen = llm_config(session.config, plugin)

    def connect() -> Client:
        return session.enter(
            open_llm(
                chosen,
                cache=cache_dir() / "requests.sqlite",
                journal=session.journal,
                seed=session.config.seed,
                resolve_model=lambda model: resolve(model, "model"),
                shared=session.books,
            )
        )

    return session.once(f"llm {chosen.model_dump_json()}", connect)


def width(config: Config, plugin: PluginConfig) -> int:
    """Features in work at one time: enough to keep as many requests in flight as may be, while others are read, judged
    and written."""
    from autointerp.llm.registry import concurrency

    llm = plugin.llm or config.llm
    in_flight = 64 if llm is None else concurrency(llm)
    return in_flight + min(in_flight, 64)


@contextmanager
def asked(llm: Client | None, stage: str, feature: int) -> Iterator[Asked]:
    """Label the requests made inside and count them."""
    from autointerp.llm.usage import tag

    counts = Asked()
    if llm is None:
        yield counts
        return
    with tag(stage=stage, feature=feature), llm.meter() as meter:
        yield counts
        counts.prompt_hash = meter.prompt_hash
        counts.prompt_tokens, counts.completion_tokens = meter.prompt_tokens, meter.completion_tokens
        counts.retryable_failures = meter.retryable_failures
