"""Stage evaluate: what the SAE keeps of the subject, and how its decoder lies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from autointerp.artifacts import Corpus
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes, sae_of, subject_of
from autointerp.engine.stage import Job, Stage, Use
from autointerp.progress import progress
from autointerp.stages import outliers
from autointerp.stages.corpus import numbers_section
from autointerp.tables import write_rows


def uses(config: Config) -> Iterator[Use]:
    section = config.evaluation.model_dump() | {"held_out": trained_here(config), "seed": config.seed}
    section |= numbers_section(config) | {"hook_out": config.subject.hook_out}
    yield Use("evaluate", ("corpus", "sae", *outliers.asked(config)), section)


def trained_here(config: Config) -> bool:
    """Whether the SAE is of the run or one that `autointerp train` left: the corpus' end was then held out from it,
    if it is the corpus it was trained on."""
    return config.sae.train is not None or (
        config.sae.load is not None and (Path(config.sae.load) / "train.json").is_file()
    )


def work(job: Job) -> None:
    """An SAE that this run trained is measured on whole documents that were held out from its training."""
    from autointerp.evaluation.figures import FIGURES
    from autointerp.evaluation.run import evaluate, wanted_rows
    from autointerp.evaluation.saebench import saebench_core

    config, corpus = job.config, Corpus(job.inputs["corpus"])
    sae, device = models.open_sae(job.session, job.inputs["sae"]), models.device(job.session)
    reads, writes = models.subject(job.session, sae.cfg.hook_name), models.written(job.session, sae)
    rows = wanted_rows(corpus, config.evaluation, reads.context, trained_here=trained_here(config))
    with progress("evaluate", sum(len(row.tokens) for row in rows), "tokens") as bar:
        evaluation = evaluate(
            rows,
            reads,
            writes,
            sae,
            skip=int(corpus.info.bos_id is not None),
            batch_tokens=config.subject.batch_tokens,
            seed=config.seed,
            device=device,
            outlier_threshold=outliers.threshold(job),
            bar=bar,
        )
    names, folder = [figure.name for figure in FIGURES], job.folder
    write_rows(folder / "evaluation.parquet", "evaluation", evaluation.figures)
    write_rows(folder / "evaluation_positions.parquet", "evaluation_positions", evaluation.positions, names)
    write_rows(folder / "evaluation_bands.parquet", "evaluation_positions", evaluation.bands, names)
    evaluation.latents.to_parquet(folder / "evaluation_features.parquet", index=False)
    if evaluation.cosines is not None:
        evaluation.cosines.to_parquet(folder / "evaluation_cosines.parquet", index=False)
    core = saebench_core(config, corpus, sae, evaluation, device)
    (folder / "saebench.json").write_text(json.dumps(core, indent=1))
    job.facts |= {row["metric"]: row.get("value") for row in evaluation.figures}
    job.facts |= {
        "hook": str(reads.hook),
        "hook_out": str(writes.hook) if writes is not reads else None,
        "documents": evaluation.documents,
        "trained_context": sae.cfg.context_size,
        "held_out": trained_here(config),
        "outlier_threshold": outliers.threshold(job),
    }


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    return Amount(config.evaluation.tokens, "tokens", f"{subject_of(config)}, {sae_of(config)}", guess=1e-3)


STAGE = Stage(
    "evaluate",
    "what the SAE keeps of the subject: reconstruction, the patched model, latents, interference; SAEBench's JSON",
    uses,
    work,
    apart=True,
    amount=amount,
)
