"""Stage sae: the SAE that the run trains, or what the one it loads says of itself."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import Corpus
from autointerp.config import Config, RedrawnSae, problem
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes, sae_of, subject_of
from autointerp.engine.session import Session
from autointerp.engine.stage import RUN, Job, Stage, Use
from autointerp.errors import ConfigError
from autointerp.evaluation.rows import held_out_from, held_out_of
from autointerp.stages import outliers
from autointerp.stages.corpus import numbers_section

if TYPE_CHECKING:
    import torch

    from autointerp.activations.stream import CorpusStream
    from autointerp.sae.check import SaeCheck
    from autointerp.sae.source import ActivationSource, StreamSource
    from autointerp.sae.train_config import TrainConfig

log = logging.getLogger("autointerp")

DENSE = 0.1  # share of the neurons that fire on a token above which windows without any are rare
REDRAW_TOKENS = 16_384  # on which redrawn latents are made to fire as often as the SAE's own


def uses(config: Config) -> Iterator[Use]:
    asked = outliers.asked(config)
    if isinstance(config.sae, RedrawnSae):
        section = numbers_section(config) | {"redrawn": config.sae.seed}
        yield Use("sae", ("corpus", f"{RUN}sae", *asked), section, draw_anew, (draw_anew,))
    elif config.sae.train is not None and config.sae.stream:
        section = {"train": train_config(config).model_dump(), "stream": True} | numbers_section(config)
        yield Use("sae", ("corpus", *asked), section, train_streamed, (train_streamed,))
    elif config.sae.train is not None:
        section = {"train": train_config(config).model_dump()}
        yield Use("sae", ("corpus", "activations", *asked), section, train, (train,))
    elif config.sae.neurons is not None:
        section = {"neurons": config.sae.neurons.model_dump()} | numbers_section(config)
        yield Use("sae", ("corpus",), section, neurons, (neurons,))
    else:
        section = {"sae": models.identity(config.sae.load or ""), "format": config.sae.format}
        section |= numbers_section(config) | {"hook_out": config.subject.hook_out}
        yield Use("sae", ("corpus", *asked), section, load, (load,))


def train_config(config: Config) -> TrainConfig:
    """`sae.train` checked: unknown keys and values that cannot be are errors before anything runs."""
    from pydantic import ValidationError

    from autointerp.sae.train_config import TrainConfig

    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("start autointerp without torchrun: sae.train.ranks says how many processes it starts")
    tracking = config.tracking
    if tracking is not None:
        tracking = tracking.model_copy(update={"name": f"{tracking.name or config.name}-sae"})
    if config.subject.hook is None:
        raise ConfigError("subject.hook is missing: an SAE that the run trains needs to know what to read")
    try:
        wanted = TrainConfig.model_validate({"seed": config.seed, "tracking": tracking, **(config.sae.train or {})})
    except ValidationError as error:
        raise ConfigError("; ".join(problem(e, TrainConfig, "sae.train.") for e in error.errors())) from None
    if wanted.ranks != 1 and config.sae.stream and config.subject.device_map is not None:
        raise ConfigError(
            "sae.train.ranks with sae.stream loads the subject onto each GPU, and subject.device_map spreads it over"
            " all: leave out one of the three"
        )
    return wanted


def work(job: Job) -> None:
    job.use.given(job)  # train, neurons, load or draw_anew: none's code counts in another's key


def train(job: Job) -> None:
    """On the stored activations."""
    import numpy as np

    from autointerp.sae.source import ArraySource

    data = np.load(job.inputs["activations"] / "activations.npy", mmap_mode="r")
    left_out = np.load(job.inputs["outliers"] / "outlying.npy") if "outliers" in job.inputs else None
    source, held_out = ArraySource(data, left_out).hold_out(held_out_of(len(data)))
    _train_on(job, source, held_out)


def train_streamed(job: Job) -> None:
    """On activations that the subject makes as they are needed; the same documents are held out."""
    corpus, threshold = job.inputs["corpus"], outliers.threshold(job)
    source, stream = _stream(job.session, corpus, threshold)
    _train_on(job, source, stream.held_out(), partial(_stream_of_rank, job.config, corpus, threshold))


def _stream(session: Session, folder: Path, outlier_threshold: float | None) -> tuple[StreamSource, CorpusStream]:
    """Batches of the corpus in `folder` from the session's subject, and the stream that they are of."""
    from autointerp.activations.stream import BUFFER, CorpusStream
    from autointerp.sae.source import StreamSource

    corpus, subject = Corpus(folder), models.subject(session, None)
    tokens = corpus.info.n_tokens - corpus.info.n_rows * int(corpus.info.bos_id is not None)
    last = int(corpus.offsets.searchsorted(held_out_from(corpus, held_out_of(tokens))))
    stream = CorpusStream(
        corpus,
        subject.activations,
        last,
        seed=train_config(session.config).seed,
        batch_tokens=session.config.subject.batch_tokens,
        device=models.device(session),
    )
    source = StreamSource(
        stream.chunk,
        d_in=subject.d_hook,
        rows=stream.rows,
        buffer_chunks=max(1, BUFFER // stream.rows),
        outlier_threshold=outlier_threshold,
    )
    return source, stream


def _stream_of_rank(config: Config, folder: Path, outlier_threshold: float | None, device: str) -> StreamSource:
    """The same in a process of its own, which loads the subject on `device`."""
    config = config.model_copy(update={"subject": config.subject.model_copy(update={"device": device})})
    return _stream(Session(config, Path(os.devnull)), folder, outlier_threshold)[0]


def _train_on(
    job: Job,
    source: ActivationSource,
    held_out: torch.Tensor,
    opened: Callable[[str], ActivationSource] | None = None,
) -> None:
    from autointerp.sae.train import train_sae

    subject = models.subject(job.session, None)
    train_sae(
        source,
        train_config(job.config),
        job.folder,
        held_out=held_out.float(),
        outlier_threshold=outliers.threshold(job),
        hook_name=subject.hook.name,
        model_name=job.config.subject.model,
        context_size=job.config.corpus.context,
        prepend_bos=Corpus(job.inputs["corpus"]).info.bos_id is not None,
        device=models.device(job.session),
        opened=opened,
    )
    job.facts |= {"hook": subject.hook.name} | json.loads((job.folder / "train.json").read_text())["figures"]


def neurons(job: Job) -> None:
    """Keep what the neurons at subject.hook write, in the form of an SAE."""
    from autointerp.sae.neurons import save_neurons

    subject, corpus, wanted = models.subject(job.session, None), Corpus(job.inputs["corpus"]), job.config.sae.neurons
    assert wanted is not None
    save_neurons(
        subject,
        job.folder,
        signed=wanted.signed,
        k=wanted.k,
        model_name=job.config.subject.model,
        context_size=job.config.corpus.context,
        bos=corpus.info.bos_id is not None,
    )
    sae = models.load_sae(job.session, job.folder)
    codes = sae.encode(outliers.first_activations(job, corpus, subject))
    l0 = float((codes > 0).sum(1).double().mean())
    if l0 > DENSE * sae.cfg.d_sae:
        log.warning(
            "neurons: %.0f of %d fire on a token, so that few texts are silent: set sae.neurons.k, for example %d",
            *(l0, sae.cfg.d_sae, max(1, sae.cfg.d_sae // 50)),
        )
    job.facts |= {"hook": subject.hook.name, "l0": l0, "latents": sae.cfg.d_sae}


def load(job: Job) -> None:
    """Check the SAE against the subject; keep what it says of itself and a hash of it, not a copy."""
    from autointerp.sae.check import bos_warning, check_sae, require_width

    wanted = job.config.sae
    sae = models.load_sae(job.session, wanted.load or "", wanted.format)
    subject = models.subject(job.session, sae.cfg.hook_name)
    require_width(sae, subject.d_hook, subject.hook.name)
    warnings: list[str] = []
    if job.config.subject.hook and sae.cfg.hook_name and not subject.hook.means(sae.cfg.hook_name):
        warnings.append(f"it was trained on {sae.cfg.hook_name} and reads {subject.hook} here (subject.hook)")
    corpus, writes = Corpus(job.inputs["corpus"]), models.written(job.session, sae)
    if (other_bos := bos_warning(sae, corpus.info.bos_id)) is not None:
        warnings.append(other_bos)
    outputs = outliers.first_activations(job, corpus, writes) if writes is not subject else None
    inputs = outliers.first_activations(job, corpus, subject)
    check = check_sae(sae, inputs, outputs, outlier_threshold=outliers.threshold(job))
    warnings += check.warnings
    for warning in warnings:
        log.warning("SAE: %s", warning)
    about = {"cfg": asdict(sae.cfg), "content": models.identity(wanted.load or "")}
    (job.folder / "sae.json").write_text(json.dumps(about, indent=2, default=str))
    job.facts |= {"hook": subject.hook.name, **_facts(check), "warnings": warnings}


def _facts(check: SaeCheck) -> dict[str, Any]:
    facts: dict[str, Any] = {"l0": check.l0, "explained_variance": check.explained_variance}
    if check.outlying:
        log.info(
            "SAE: explained variance %.3f without the %d of %d activations of outlying norm, %.3f with them",
            check.explained_variance, check.outlying, check.tokens + check.outlying, check.with_outliers[1],
        )  # fmt: skip
        facts["l0_with_outliers"], facts["explained_variance_with_outliers"] = check.with_outliers
    return facts


def draw_anew(job: Job) -> None:
    """The run's own SAE with other directions, for the control `random_sae`."""
    from autointerp.activations.outliers import is_outlying
    from autointerp.sae.check import check_sae
    from autointerp.sae.redraw import redraw, save_redrawn

    assert isinstance(job.config.sae, RedrawnSae)
    sae = models.own_sae(job.session, job.inputs["sae"])
    subject = models.subject(job.session, sae.cfg.hook_name)
    activations = outliers.first_activations(job, Corpus(job.inputs["corpus"]), subject, REDRAW_TOKENS)
    if threshold := outliers.threshold(job):
        activations = activations[~is_outlying(activations, threshold)]
    redrawn, l0, own_l0 = redraw(sae, activations, job.config.sae.seed)
    save_redrawn(redrawn, job.folder)
    job.facts |= {"l0": l0, "own_l0": own_l0}
    if not sae.is_transcoder:
        checked = check_sae(redrawn, activations[: outliers.CHECK_TOKENS])
        job.facts |= {"explained_variance": checked.explained_variance}


TRAINED_PER_SECOND = 3e10  # multiplications of one core


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    if isinstance(config.sae, RedrawnSae):
        return Amount(REDRAW_TOKENS, "tokens", f"drawing {sae_of(config)} anew", guess=3e-3)
    if config.sae.train is None:
        return Amount(outliers.CHECK_TOKENS, "tokens", f"loading {sae_of(config)}", guess=1e-3)
    wanted = train_config(config)
    guess = 12 * (sizes.width or 512) * wanted.d_sae / TRAINED_PER_SECOND
    return Amount(wanted.tokens, "tokens", f"{subject_of(config)}, {sae_of(config)}", guess=guess)


STAGE = Stage(
    "sae",
    "the trained SAE in SAELens' format, or what the loaded one says of itself; its L0 and explained variance here",
    uses,
    work,
    resumable=True,
    apart=True,
    amount=amount,
)
