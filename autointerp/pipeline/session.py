"""What the stages of one run share: the config, and the models it names, loaded when first asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autointerp.config import Config, LLMConfig, PluginConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.resources import cache_dir

if TYPE_CHECKING:
    from autointerp.llm import Client
    from autointerp.sae.model import SAE
    from autointerp.subject import Subject

T = TypeVar("T")


@dataclass
class Asked:
    """What the requests for one explanation or score came to."""

    prompt_hash: str | None = None  # of the first prompt sent
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    passing_failures: int = 0


class Session:
    """Resources of a run; use as a context manager, it ends what it started (model servers, connections)."""

    def __init__(self, config: Config, journal: Path) -> None:
        self.config = config
        self.journal = journal  # usage, a line a request
        self._clients: dict[str, Client] = {}
        self._open = AsyncExitStack()
        self._runner: asyncio.Runner | None = None

    # --- the subject and its SAE

    @cached_property
    def subject_folder(self) -> Path:
        from autointerp.catalog import resolve

        return resolve(self.config.subject.model, "model", revision=self.config.subject.revision)

    @cached_property
    def sae_spec(self) -> str:
        if self.config.sae.load is None:
            raise AssertionError("asked for the path of an SAE that the run trains")
        return self.config.sae.load

    def load_sae(self, folder_or_spec: str | Path, *, format: str | None = None) -> SAE:
        from autointerp.sae import load_sae

        return load_sae(str(folder_or_spec), format=format, device=self.device)

    def open_sae(self, folder: Path) -> SAE:
        """The SAE that the run trained into `folder`, or the one that its config names."""
        if self.config.sae.load is None:
            return self.load_sae(folder)
        return self.load_sae(self.sae_spec, format=self.config.sae.format)

    @cached_property
    def device(self) -> str:
        return pick_device(self.config.subject.device)

    def subject(self, hook: str | None) -> Subject:
        """The subject with the hook of the config, or of the SAE (`hook`) where the config names none."""
        wanted = self.config.subject.hook or hook
        if wanted is None:
            raise ConfigError("subject.hook is missing, and the SAE's files do not say what it was trained on")
        if not hasattr(self, "_subject"):
            from autointerp.subject import load_subject

            self._subject = load_subject(self.config.subject, self.subject_folder, wanted)
        return self._subject

    def written(self, sae: SAE) -> Subject:
        """The subject where the SAE's output belongs: where it reads, or elsewhere for a transcoder.

        Raises ConfigError for a transcoder that does not say where, AutointerpError for one that does not fit there.
        """
        reads = self.subject(sae.cfg.hook_name)
        if sae.cfg.d_out is None:
            return reads
        wanted = self.config.subject.hook_out or sae.cfg.hook_name_out
        if wanted is None:
            raise ConfigError("subject.hook_out is missing, and the transcoder's files do not say where it writes")
        writes = reads.at(wanted)
        if writes.d_hook != sae.cfg.d_out:
            raise AutointerpError(
                f"the transcoder writes vectors of {sae.cfg.d_out} numbers, {writes.hook.name} of this model has"
                f" {writes.d_hook}: name the subject.model and subject.hook_out that it was trained on"
            )
        return writes

    # --- language models

    def check_keys(self) -> None:
        """Raise ConfigError for a key that is missing, before an hour of harvest rather than after it."""
        from autointerp.llm.backends.http import find_key
        from autointerp.plugins import explainers, needs_llm, scorers

        for registry, plugins in ((explainers, self.config.explainers), (scorers, self.config.scorers)):
            for plugin in plugins:
                chosen = llm_config(self.config, plugin) if needs_llm(registry.get(plugin.name)) else None
                if chosen is not None and chosen.base_url is not None:
                    find_key(chosen, chosen.base_url)
        semantic = self.config.composites.semantic
        judge = (semantic.llm or self.config.llm) if semantic else None
        if judge is not None and judge.base_url is not None:
            find_key(judge, judge.base_url)

    def llm(self, plugin: PluginConfig) -> Client:
        """The client for a plug-in's own `llm` or the run's; one client a distinct configuration."""
        chosen = llm_config(self.config, plugin)
        name = chosen.model_dump_json()
        if name not in self._clients:
            from autointerp.catalog import resolve
            from autointerp.llm import open_llm

            client = open_llm(
                chosen,
                cache=cache_dir() / "requests.sqlite",
                journal=self.journal,
                seed=self.config.seed,
                resolve_model=lambda model: resolve(model, "model"),
            )
            self._clients[name] = self.wait(self._open.enter_async_context(client))
        return self._clients[name]

    def width(self, plugin: PluginConfig) -> int:
        """Features in work at one time: enough to keep `concurrency` requests in flight."""
        llm = plugin.llm or self.config.llm
        return 64 if llm is None else max(2, llm.concurrency)

    @contextmanager
    def asked(self, llm: Client | None, stage: str, feature: int) -> Iterator[Asked]:
        """Label the requests made inside and count them."""
        asked = Asked()
        if llm is None:
            yield asked
            return
        from autointerp.llm import tag

        with tag(stage=stage, feature=feature), llm.meter() as meter:
            yield asked
            asked.prompt_hash = meter.prompt_hash
            asked.prompt_tokens, asked.completion_tokens = meter.prompt_tokens, meter.completion_tokens
            asked.passing_failures = meter.retryable_failures

    # --- the event loop: one for the whole run, so that connections outlive a stage

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(work)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait(self._open.aclose())
        assert self._runner is not None
        self._runner.close()


def llm_config(config: Config, plugin: PluginConfig) -> LLMConfig:
    chosen = plugin.llm or config.llm
    if chosen is None:
        raise ConfigError(f"{plugin.key!r} needs a language model: add an llm section to the config")
    return chosen


def pick_device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
