"""Stage directions: decoder neighbours of each feature, and its logit effects (tokens that it raises and lowers)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes, subject_of
from autointerp.engine.stage import Job, Stage, Use
from autointerp.stages.corpus import weights_section
from autointerp.stages.select import ready
from autointerp.tables import write_stream

if TYPE_CHECKING:
    from autointerp.sae.model import SAE
    from autointerp.subject.model import Subject

LOGITS = 10  # tokens kept at each end of a feature's logit weights


def uses(config: Config) -> Iterator[Use]:
    near = {"neighbours": config.contexts.neighbours}
    yield Use("directions", ("sae", "select"), weights_section(config) | near)


def work(job: Job) -> None:
    sae = models.open_sae(job.session, job.inputs["sae"])
    features = ready(job.inputs["select"])
    wanted = min(job.config.contexts.neighbours, sae.cfg.d_sae - 1)
    write_stream(job.folder / "neighbours.parquet", "neighbours", _neighbours(sae, features, wanted))
    subject = models.subject(job.session, sae.cfg.hook_name)
    write_stream(job.folder / "logits.parquet", "logits", _logits(subject, sae, features))


def _neighbours(sae: SAE, features: Sequence[int], wanted: int) -> Iterator[dict[str, Any]]:
    """Rows of neighbours.parquet, up to `wanted` a feature."""
    from autointerp.composites.neighbours import top_neighbours

    near, cosine = top_neighbours(sae.W_dec, wanted, queries=features)  # -1 where there is none
    for feature, others, values in zip(features, near.numpy(), cosine.numpy()):
        for rank, (other, value) in enumerate(zip(others.tolist(), values.tolist())):
            if other >= 0:
                yield {"feature": feature, "rank": rank, "neighbour": other, "cosine": value}


def _logits(subject: Subject, sae: SAE, features: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rows of logits.parquet; none where the hook does not write into the residual stream."""
    vocabulary = subject.vocab_strings()
    for start in range(0, len(features), 64):
        batch = features[start : start + 64]
        weights = subject.logit_weights(sae.W_dec[batch])
        if weights is None:
            return
        for direction, sign in (("up", 1), ("down", -1)):
            top = weights.topk(LOGITS, dim=-1, largest=sign > 0)
            for feature, ids, values in zip(batch, top.indices.tolist(), top.values.tolist()):
                for rank, (token, value) in enumerate(zip(ids, values)):
                    place = {"feature": feature, "direction": direction, "rank": rank}
                    yield place | {"token": vocabulary[token], "weight": value}


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    return Amount(sizes.features or 0, "features", f"{subject_of(config)}, {sizes.latents} latents", guess=5e-3)


STAGE = Stage(
    "directions",
    "each feature's decoder neighbours, and its logit effects: tokens that it raises and lowers",
    uses,
    work,
    tables=("neighbours", "logits"),
    apart=True,
    amount=amount,
)
