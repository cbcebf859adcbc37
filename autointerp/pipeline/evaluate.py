"""The stage `evaluate`: the room `evaluation` on the run's SAE, subject and corpus, and its decoder's geometry."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.errors import AutointerpError, ConfigError
from autointerp.hashing import digest
from autointerp.progress import progress
from autointerp.tables import write_rows

if TYPE_CHECKING:
    import torch

    from autointerp.artifacts import Corpus
    from autointerp.config import Config
    from autointerp.engine.dag import Job
    from autointerp.engine.session import Session
    from autointerp.sae import SAE
    from autointerp.subject import Subject

log = logging.getLogger("autointerp")

HELD_OUT = 50_000  # tokens at the corpus' end on which an SAE that the run trains is measured


def held_out_of(tokens: int) -> int:
    """How many of the corpus' last tokens, BOS not counted, an SAE that the run trains does not see."""
    return min(HELD_OUT, tokens // 10)


class _Patched:
    """`evaluation.PatchedModel`: the subject where the SAE reads and where its output belongs."""

    def __init__(self, reads: Subject, writes: Subject) -> None:
        self.reads, self.writes = reads, writes

    def written(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.writes.activations(tokens)

    def run(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        read, written = self.reads.hook.name, self.writes.hook.name
        logits, found = self.reads.logits(tokens, read=list({read, written}))
        return logits, found[read], found[written]

    def patched(self, tokens: torch.Tensor, replaced: torch.Tensor) -> torch.Tensor:
        return self.writes.logits(tokens, patch={self.writes.hook.name: replaced})[0]


def evaluate_stage(session: Session, job: Job) -> None:
    """An SAE that this run trained is measured on whole documents that were held out from its training."""
    from autointerp.artifacts import Corpus
    from autointerp.evaluation import (
        FIGURES,
        by_band,
        by_position,
        latent_figures,
        latent_table,
        measure,
        overall,
        token_classes,
    )

    config, corpus = session.config, Corpus(job.inputs["corpus"])
    sae = session.open_sae(job.inputs["sae"])
    reads, writes = session.subject(sae.cfg.hook_name), session.written(sae)
    rows = _rows(session, corpus, reads)
    skip = int(corpus.info.bos_id is not None)
    total = sum(len(row.tokens) for row in rows)
    with progress("evaluate", total, "tokens") as bar:
        measured = measure(
            rows,
            _Patched(reads, writes),
            sae,
            sae.cfg.d_sae,
            token_classes(reads.vocab_strings()),
            skip=skip,
            batch_tokens=config.subject.batch_tokens,
            device=session.device,
            bar=bar,
        )
    found = overall(measured, config.seed) + latent_figures(measured)
    directions, nearest, cosine = _directions(session, job, sae, measured.firings > 0)
    found += directions
    features = latent_table(measured, nearest, cosine)
    names = [figure.name for figure in FIGURES]
    write_rows(job.folder / "evaluation.parquet", "evaluation", found)
    for name, pooled in (("positions", by_position), ("bands", by_band)):
        pooled_rows = pooled(measured, sae.cfg.context_size)
        write_rows(job.folder / f"evaluation_{name}.parquet", "evaluation_positions", pooled_rows, names)
    features.to_parquet(job.folder / "evaluation_features.parquet", index=False)
    (job.folder / "saebench.json").write_text(json.dumps(_saebench(session, sae, found, features, corpus), indent=1))
    job.facts |= {row["metric"]: row.get("value") for row in found}
    job.facts |= {
        "hook": str(reads.hook),
        "hook_out": str(writes.hook) if writes is not reads else None,
        "documents": len(measured.by_document),
        "trained_context": sae.cfg.context_size,
        "held_out": trained_here(config),
    }


def trained_here(config: Config) -> bool:
    """Whether the SAE is of the run or one that `autointerp train` left: the corpus' end was then held out from it,
    if it is the corpus it was trained on."""
    return config.sae.train is not None or (Path(config.sae.load or "") / "train.json").is_file()


def _rows(session: Session, corpus: Corpus, subject: Subject) -> list[Any]:
    from autointerp.evaluation import rows_of

    wanted = session.config.evaluation
    context = wanted.context or corpus.info.context
    if context > subject.context:
        raise ConfigError(f"evaluation.context is {context} and the model reads {subject.context} tokens at most")
    trained = trained_here(session.config)
    held_out = held_out_of(corpus.info.n_tokens - corpus.info.n_rows * int(corpus.info.bos_id is not None))
    first = _held_out_from(corpus, held_out) if trained else 0
    rows = rows_of(corpus, wanted.tokens, context, first_token=first)
    count = sum(len(row.tokens) for row in rows)
    if not rows:
        raise AutointerpError(
            "the SAE was trained on all whole documents of the corpus: raise corpus.tokens, so that the tokens"
            f" held out from training ({held_out:,}) hold one"
        )
    if count < wanted.tokens:
        what = "what was held out from the SAE's training" if trained else "the corpus"
        log.warning("evaluate: %s holds %d tokens, fewer than the %d asked for", what, count, wanted.tokens)
    return rows


def _held_out_from(corpus: Corpus, count: int) -> int:
    """Flat position of the first row that lies wholly in the last `count` tokens, BOS not counted."""
    import numpy as np

    skip = int(corpus.info.bos_id is not None)
    begins = corpus.offsets - skip * np.arange(len(corpus.offsets))  # of each row among the activations
    return int(corpus.offsets[np.searchsorted(begins, begins[-1] - count)])


def _directions(session: Session, job: Job, sae: SAE, fires: Any) -> tuple[list[dict[str, Any]], Any, Any]:
    """Interference and MMCS with its nulls; and each latent's nearest by decoder cosine, -1 where it has none."""
    import torch

    from autointerp.composites import top_neighbours
    from autointerp.composites.geometry import geometry
    from autointerp.evaluation import interference_figures

    alive = torch.from_numpy(fires).to(sae.W_dec.device)
    rows = interference_figures(sae.W_dec, alive)
    W = sae.W_dec[alive & (sae.W_dec != 0).any(1)]  # a silent latent's direction is that of its start
    living = len(W)
    nearest, cosine = top_neighbours(sae.W_dec, 1, device=session.device)
    nearest = nearest.masked_fill((sae.W_dec == 0).all(1, keepdim=True).to(nearest.device), -1)
    if living < 2:
        rows.append({"metric": "mmcs", "n": living, "note": "fewer than two of the latents that fire have a direction"})
    else:
        shape = geometry(W, seed=session.config.seed, device=session.device)
        shape.profile.to_parquet(job.folder / "evaluation_cosines.parquet", index=False)
        rows += [
            {"metric": "mmcs" if name == "dictionary" else f"mmcs_{name}", "value": value, "n": living}
            for name, value in shape.mmcs.items()
        ]
    return rows, nearest[:, 0].cpu().numpy(), cosine[:, 0].cpu().numpy()


def _saebench(session: Session, sae: SAE, rows: list[dict[str, Any]], features: Any, corpus: Corpus) -> dict[str, Any]:
    import torch

    from autointerp.composites import top_neighbours
    from autointerp.evaluation import saebench

    config = session.config
    encoder = {
        "norm": sae.W_enc.norm(dim=0),
        "bias": sae.b_mag if sae.cfg.architecture == "gated" else sae.b_enc,
        "max_cosine": top_neighbours(sae.W_enc.T.contiguous(), 1, device=session.device)[1][:, 0],
    }
    if sae.cfg.d_out is None:
        encoder["cosine"] = torch.cosine_similarity(sae.W_enc.T, sae.W_dec, dim=1)
    context = config.evaluation.context or corpus.info.context
    batch = max(1, config.subject.batch_tokens // context)
    batches = -(-config.evaluation.tokens // (batch * context))
    settings = {
        "model_name": config.subject.model,
        "llm_dtype": config.subject.dtype,
        "batch_size_prompts": batch,
        "n_eval_reconstruction_batches": batches,
        "n_eval_sparsity_variance_batches": batches,
        "dataset": corpus.info.source,
        "context_size": context,
        "compute_kl": True,
        "compute_ce_loss": True,
        "compute_l2_norms": True,
        "compute_sparsity_metrics": True,
        "compute_variance_metrics": True,
        "compute_featurewise_density_statistics": True,
        "compute_featurewise_weight_based_metrics": True,
        "exclude_special_tokens_from_reconstruction": corpus.info.bos_id is not None,
        "verbose": False,
    }
    identity = {"settings": settings, "sae": asdict(sae.cfg), "text": corpus.info.text_sha256}
    about = {
        "eval_config": settings,
        "eval_id": digest(identity),
        "datetime_epoch_millis": round(time.time() * 1000),
        "sae_bench_commit_hash": f"autointerp {version('autointerp')}",  # which code measured; it is not SAEBench's
        "sae_lens_id": config.sae.load or "custom_sae",
        "sae_lens_release_id": config.name,
        "sae_lens_version": f"autointerp {version('autointerp')}",
        "sae_cfg_dict": {name: value for name, value in asdict(sae.cfg).items() if value is not None},
        "eval_result_unstructured": {
            row["metric"]: {name: row.get(name) for name in ("value", "low", "high", "n", "note")} for row in rows
        },
    }
    return saebench(rows, features, encoder, about)
