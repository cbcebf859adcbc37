"""Stage corpus: the text, tokenised once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes
from autointerp.engine.stage import Job, Stage, Use


def uses(config: Config) -> Iterator[Use]:
    text = {"seed": seed(config), "text": models.identity(config.corpus.source)}
    yield Use("corpus", (), config.corpus.model_dump() | text | subject_section(config))


def cached_by_delphi(config: Config) -> bool:
    """Whether corpus.source is a cache of delphi's, which holds the activations beside the tokens."""
    from autointerp.activations.delphi_cache import is_cache

    return config.sae.train is None and is_cache(config.corpus.source)


def seed(config: Config) -> int:
    """Of text that is sampled from a model."""
    return config.corpus.seed if config.corpus.seed is not None else config.seed


def subject_section(config: Config) -> dict[str, Any]:
    """What the section of a stage that asks for the subject's files holds of it."""
    return {"model": models.identity(config.subject.model, config.subject.revision)}


def weights_section(config: Config) -> dict[str, Any]:
    """What the section of a stage that reads the subject's weights holds of it."""
    redrawn = {} if config.subject.weights == "trained" else {"weights": config.subject.weights}
    return subject_section(config) | redrawn


def numbers_section(config: Config) -> dict[str, Any]:
    """What the section of a stage that runs the subject holds of it."""
    subject = config.subject
    return weights_section(config) | {"dtype": subject.dtype, "compile": subject.compile, "hook": subject.hook}


def work(job: Job) -> None:
    from autointerp.activations.delphi_cache import is_cache, read_corpus
    from autointerp.subject.corpus import build_corpus
    from autointerp.subject.tokens import bos_of, load_tokenizer

    wanted, folder = job.config.corpus, models.subject_folder(job.session)
    if is_cache(wanted.source):
        bos, cache = bos_of(load_tokenizer(folder), wanted.bos), Path(wanted.source).expanduser()
        read_corpus(cache, job.folder, tokenizer=folder.name, bos_id=bos, tokens=wanted.tokens)
    else:
        build_corpus(wanted, folder, job.folder, seed=seed(job.config))
    job.facts |= json.loads((job.folder / "corpus.json").read_text())


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    return Amount(sizes.tokens, "tokens", config.corpus.source, guess=1e-5, bytes=4 * sizes.tokens)


STAGE = Stage(
    "corpus",
    "the text, tokenised once; no row holds two documents; BOS as the subject was trained",
    uses,
    work,
    amount=amount,
)
