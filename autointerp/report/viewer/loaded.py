"""What needs a run's subject or SAE, which are loaded when first asked for: a text that is tried, a subspace drawn."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.artifacts import Corpus, Firings
from autointerp.config import parse_config
from autointerp.engine import models
from autointerp.engine.mirrored import open_store
from autointerp.engine.session import Session
from autointerp.errors import AutointerpError, ConfigError
from autointerp.report.feature import Window
from autointerp.report.folder import RunFolder

if TYPE_CHECKING:
    from autointerp.activations.texts import TextActivations
    from autointerp.sae.model import SAE

LONGEST = 4_000  # characters of a text


@dataclass(frozen=True)
class Fired:
    """A latent that fires in a text, with the text's tokens and its activation on each."""

    latent: int
    window: Window
    peak: float


class Loaded:
    """A run's subject and SAE. One request at a time uses them.

    Methods raise AutointerpError where the run does not say what it studied, or that is not on this machine any more.
    """

    def __init__(self, run: Path) -> None:
        self._path, self._lock = run, threading.Lock()

    @property
    def has_subject(self) -> bool:
        return "_on_text" in self.__dict__

    def read(self, text: str, also: int | None = None) -> tuple[list[str], list[Fired]]:
        """The tokens of `text`, and the latents that fire on any of them, the strongest first; `also` is among them
        though it is silent. Raises ConfigError for a text that is empty or too long."""
        if not text.strip():
            raise ConfigError("type a text first")
        if len(text) > LONGEST:
            raise ConfigError(f"the text has {len(text):,} characters, {LONGEST:,} are the most")
        with self._lock:
            tokens, by_latent = self._on_text.fired(text)
        if also is not None:
            by_latent.setdefault(also, [0.0] * len(tokens))
        fired = [
            Fired(latent, Window(0, "typed", "typed", None, tokens, values), max(values, default=0.0))
            for latent, values in by_latent.items()
        ]
        return tokens, sorted(fired, key=lambda each: (-each.peak, each.latent))

    @cached_property
    def _run(self) -> RunFolder:
        run = RunFolder(self._path)
        if not run.config:
            raise AutointerpError(f"{run.path} has no config.yaml: its subject and SAE are not known")
        return run

    @cached_property
    def _session(self) -> Session:
        return Session(parse_config(dict(self._run.config)), self._run.path / "usage.jsonl")

    @cached_property
    def _sae(self) -> SAE:
        return models.open_sae(self._session, self._artifact("sae"))

    @cached_property
    def _on_text(self) -> TextActivations:
        from autointerp.activations.texts import TextActivations

        subject = models.subject(self._session, self._sae.cfg.hook_name)
        harvest, corpus = self._artifact("harvest"), self._artifact("corpus")
        threshold = Firings(harvest).info.outlier_threshold if (harvest / "firings.json").is_file() else None
        bos = Corpus(corpus).info.bos_id if (corpus / "corpus.json").is_file() else subject.bos_id
        return TextActivations(subject, self._sae, bos, threshold)

    def _artifact(self, stage: str) -> Path:
        """The folder in the store of what a stage of the run wrote, fetched where a mirror alone has it; it may not be
        there."""
        key = ((self._run.info.get("stages") or {}).get(stage) or {}).get("key") or "unknown"
        store = open_store()
        if (there := store.find(stage, str(key))) is not None:
            store.bring(there)
        return store.folder(stage, str(key))
