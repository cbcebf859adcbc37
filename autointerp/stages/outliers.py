"""Stage outliers: from which norm on an activation is outlying (an attention sink); which of the stored ones are."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import Corpus
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes, subject_of
from autointerp.engine.stage import Job, Stage, Use
from autointerp.stages.corpus import cached_by_delphi, numbers_section

if TYPE_CHECKING:
    import torch

    from autointerp.subject.model import Subject

log = logging.getLogger("autointerp")

CHECK_TOKENS = 4096  # at the corpus' start; a loaded SAE's threshold, L0 and explained variance come from them


def uses(config: Config) -> Iterator[Use]:
    if not asked(config):
        return
    section: dict[str, Any] = {"outlier_norm": config.sae.outlier_norm}
    if config.sae.stores_activations:
        yield Use("outliers", ("activations",), section, of_stored, (of_stored,))
    else:
        section |= {"sae": models.identity(config.sae.load or ""), "format": config.sae.format}
        yield Use("outliers", ("corpus",), section | numbers_section(config), of_first, (of_first,))


def asked(config: Config) -> tuple[str, ...]:
    """Its use, for the stages that leave outlying rows out; none where the config switches that off."""
    # a cache of delphi's has no activations of which a norm could be taken
    return () if config.sae.outlier_norm is None or cached_by_delphi(config) else ("outliers",)


def threshold(job: Job) -> float | None:
    """The norm above which a row is outlying; None where none is left out."""
    if "outliers" not in job.inputs:
        return None
    return json.loads((job.inputs["outliers"] / "outliers.json").read_text())["threshold"]


def work(job: Job) -> None:
    job.use.given(job)


def of_stored(job: Job) -> None:
    """Of all stored activations; outlying.npy: [n] int64, which of them are outlying."""
    import numpy as np

    _find(job, np.load(job.inputs["activations"] / "activations.npy", mmap_mode="r"))


def of_first(job: Job) -> None:
    """Of the corpus' first tokens, as the SAE reads them; in the harvest the threshold decides of each row."""
    wanted = job.config.sae
    hook = job.config.subject.hook or models.load_sae(job.session, wanted.load or "", wanted.format).cfg.hook_name
    subject = models.subject(job.session, hook)
    _find(job, first_activations(job, Corpus(job.inputs["corpus"]), subject).cpu().numpy())


def _find(job: Job, rows: Any) -> None:
    import numpy as np

    from autointerp.activations.outliers import find_outliers

    outliers, index = find_outliers(rows, job.config.sae.outlier_norm or 0.0)
    np.save(job.folder / "outlying.npy", index)
    (job.folder / "outliers.json").write_text(json.dumps(asdict(outliers), indent=2))
    job.facts |= asdict(outliers)
    if outliers.outlying:
        log.info(
            "%s of %s activations have more than %g times the median norm (attention sinks) and %.1f %% of the"
            " variance: they are left out of training, harvest and explained variance (sae.outlier_norm)",
            f"{outliers.outlying:,}", f"{outliers.rows:,}", outliers.multiple, 100 * outliers.variance_share,
        )  # fmt: skip


def first_activations(job: Job, corpus: Corpus, subject: Subject, tokens: int = CHECK_TOKENS) -> torch.Tensor:
    """[n, d] activations of the first rows of the corpus, BOS left out as in the harvest; made once a run."""

    def make() -> torch.Tensor:
        import torch

        skip = int(corpus.info.bos_id is not None)
        parts: list[Any] = []
        for index in range(corpus.info.n_rows):
            row = torch.from_numpy(corpus.row(index).astype("int64"))
            parts.append(subject.activations(row[None])[0, skip:])
            if sum(map(len, parts)) >= tokens:
                break
        return torch.cat(parts)

    what = f"{Path(corpus.folder).name} at {subject.hook}, weights {job.config.subject.weights}"
    return job.session.once(f"first {tokens} activations of {what}", make)


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    if not config.sae.stores_activations:
        return Amount(CHECK_TOKENS, "tokens", subject_of(config), guess=1e-3)
    return Amount(sizes.tokens, "tokens", subject_of(config), guess=2e-6)


STAGE = Stage(
    "outliers",
    "from which norm on an activation is an attention sink, and which of the stored ones are: they are left out below",
    uses,
    work,
    apart=True,
    amount=amount,
)
