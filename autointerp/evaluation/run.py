"""Evaluate an SAE on a subject and a corpus: the steps, from held-out documents to tables.

1. `wanted_rows`: whole documents from the corpus' end; of an SAE that was trained on this corpus, those that were held
   out from its training.
2. `evaluate`: one pass over them for all sums (`sums`), the figures made of these (`figures`, `latents`), and how the
   decoder's directions lie (`interference`, `composites.geometry`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from autointerp.composites.geometry import geometry
from autointerp.composites.neighbours import top_neighbours
from autointerp.config import EvaluationConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.evaluation.figures import by_band, by_position, overall
from autointerp.evaluation.interference import interference_figures
from autointerp.evaluation.latents import latent_figures, latent_table, token_classes
from autointerp.evaluation.rows import Row, held_out_from, held_out_of, rows_of
from autointerp.evaluation.sums import measure

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from autointerp.artifacts import Corpus
    from autointerp.progress import Progress
    from autointerp.sae.model import SAE
    from autointerp.subject.model import Subject

log = logging.getLogger("autointerp")


class PatchedSubject:
    """`sums.PatchedModel`: the subject where the SAE reads and where its output belongs."""

    def __init__(self, reads: Subject, writes: Subject) -> None:
        self.reads, self.writes = reads, writes

    def ends(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hooks = [self.reads.hook] if self.writes is self.reads else [self.reads.hook, self.writes.hook]
        ends = self.reads.activations_at(tokens, hooks)
        return ends[0], ends[-1]

    def run(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        read, written = self.reads.hook.name, self.writes.hook.name
        logits, acts = self.reads.logits(tokens, read=list({read, written}))
        return logits, acts[read], acts[written]

    def patched(self, tokens: torch.Tensor, replaced: torch.Tensor) -> torch.Tensor:
        return self.writes.logits(tokens, patch={self.writes.hook.name: replaced})[0]


@dataclass(frozen=True)
class Evaluation:
    """The tables of an evaluation; `tables` says what their columns are."""

    figures: list[dict[str, Any]]  # rows of evaluation.parquet
    positions: list[dict[str, Any]]  # of evaluation_positions.parquet
    bands: list[dict[str, Any]]  # of evaluation_bands.parquet
    latents: pd.DataFrame  # a row a latent
    cosines: pd.DataFrame | None  # `Geometry.profile`; None where fewer than two latents that fire have a direction
    documents: int


def wanted_rows(corpus: Corpus, wanted: EvaluationConfig, subject_context: int, *, trained_here: bool) -> list[Row]:
    """The rows that an evaluation reads: `wanted.tokens` tokens, or all that there are, with a warning.

    Args:
        subject_context: tokens that the subject reads at most.
        trained_here: the SAE was trained on this corpus; only the documents held out from that are read.

    Raises:
        ConfigError: `wanted.context` is longer than `subject_context`.
        AutointerpError: no whole document was held out.
    """
    context = wanted.context or corpus.info.context
    if context > subject_context:
        raise ConfigError(f"evaluation.context is {context} and the model reads {subject_context} tokens at most")
    held_out = held_out_of(corpus.info.n_tokens - corpus.info.n_rows * int(corpus.info.bos_id is not None))
    first = held_out_from(corpus, held_out) if trained_here else 0
    rows = rows_of(corpus, wanted.tokens, context, first_token=first)
    count = sum(len(row.tokens) for row in rows)
    if not rows:
        raise AutointerpError(
            "the SAE was trained on all whole documents of the corpus: raise corpus.tokens, so that the tokens"
            f" held out from training ({held_out:,}) hold one"
        )
    if count < wanted.tokens:
        what = "what was held out from the SAE's training" if trained_here else "the corpus"
        log.warning("evaluate: %s holds %d tokens, fewer than the %d asked for", what, count, wanted.tokens)
    return rows


def evaluate(
    rows: Sequence[Row],
    reads: Subject,
    writes: Subject,
    sae: SAE,
    *,
    skip: int,
    batch_tokens: int,
    seed: int,
    device: str,
    outlier_threshold: float | None = None,
    bar: Progress,
) -> Evaluation:
    """Measure `sae` on `rows`.

    Args:
        reads: the subject where the SAE reads.
        writes: the subject where the SAE's output belongs: `reads`, or elsewhere for a transcoder.
        skip: tokens at the start of each row that nothing is replaced on: 1 for BOS, else 0.
        seed: of the bootstrap over documents and of the null dictionaries.
        outlier_threshold: the norm of what the SAE reads from which on nothing is replaced either.
        bar: advances by tokens.

    Raises AutointerpError for a temporal SAE: tokens are measured one by one.
    """
    if sae.is_contextual:
        raise AutointerpError("a temporal SAE's codes depend on the tokens before: evaluate measures tokens one by one")
    measured = measure(
        rows,
        PatchedSubject(reads, writes),
        sae,
        sae.cfg.d_sae,
        token_classes(reads.vocab_strings()),
        skip=skip,
        batch_tokens=batch_tokens,
        device=device,
        outlier_threshold=outlier_threshold,
        bar=bar,
    )
    figures = overall(measured, seed) + latent_figures(measured)
    directions, cosines = _directions(sae, measured.firings > 0, seed, device)
    nearest, cosine = _nearest(sae, device)
    return Evaluation(
        figures + directions,
        by_position(measured, sae.cfg.context_size),
        by_band(measured, sae.cfg.context_size),
        latent_table(measured, nearest, cosine),
        cosines,
        len(measured.by_document),
    )


def _directions(
    sae: SAE, fires: np.ndarray, seed: int, device: str
) -> tuple[list[dict[str, Any]], pd.DataFrame | None]:
    """Interference, and MMCS with its nulls, of the latents that fire [n] bool; and the profile of their cosines."""
    alive = torch.from_numpy(fires).to(sae.W_dec.device)
    rows = interference_figures(sae.W_dec, alive)
    W = sae.W_dec[alive & (sae.W_dec != 0).any(1)]  # a silent latent's direction is that of its start
    living = len(W)
    if living < 2:
        rows.append({"metric": "mmcs", "n": living, "note": "fewer than two of the latents that fire have a direction"})
        return rows, None
    shape = geometry(W, seed=seed, device=device)
    rows += [
        {"metric": "mmcs" if name == "dictionary" else f"mmcs_{name}", "value": value, "n": living}
        for name, value in shape.mmcs.items()
    ]
    return rows, shape.profile


def _nearest(sae: SAE, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Each latent's nearest by decoder cosine, -1 where it has none, and that cosine, [n] each."""
    nearest, cosine = top_neighbours(sae.W_dec, 1, device=device)
    nearest = nearest.masked_fill((sae.W_dec == 0).all(1, keepdim=True).to(nearest.device), -1)
    return nearest[:, 0].cpu().numpy(), cosine[:, 0].cpu().numpy()
