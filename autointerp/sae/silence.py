"""Why many latents of a finished training are silent: one warning that names the likely cause."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch

from autointerp.activations.outliers import find_outliers

if TYPE_CHECKING:
    from autointerp.sae.source import ActivationSource
    from autointerp.sae.train_config import TrainConfig

MANY = 0.3  # share of silent latents from which a training warns
SINKS = 0.2  # share of the variance from which outlying activations are named as the cause
MULTIPLE = 10.0  # of the median norm, from which they are outlying here
SAMPLE = 65_536  # activations looked at
FEW_STEPS = 250  # fewer leave AuxK and the falling rate no time: 1M tokens in batches of 4,096 are 244
HIGH_RATE = 4.0  # times the architecture's own learning rate


def silence_warning(source: ActivationSource, config: TrainConfig, silent: float) -> str | None:
    """None unless more than `MANY` of the latents, a share of `silent`, did not fire in the training's last tokens."""
    if not silent > MANY:
        return None
    last = f"{config.dead_after_tokens:,} tokens"
    return f"{silent:.0%} of the latents were silent on the last {last} of training; likely: {_cause(source, config)}"


def _cause(source: ActivationSource, config: TrainConfig) -> str:
    batches = source.batches(config.seed, 0, config.batch_size)
    sample = torch.cat([batch.float().cpu() for batch in islice(batches, max(1, SAMPLE // config.batch_size))])
    outliers, _ = find_outliers(sample.numpy(), MULTIPLE)
    if outliers.variance_share > SINKS:
        return (
            f"{outliers.outlying:,} of {outliers.rows:,} activations (attention sinks, of more than {MULTIPLE:g} times"
            f" the median norm) carry {outliers.variance_share:.1%} of the variance: leave them out (sae.outlier_norm)"
        )
    usual = config.model_copy(update={"lr": None}).peak_lr
    if config.peak_lr > HIGH_RATE * usual:
        return f"lr = {config.peak_lr:g} is {config.peak_lr / usual:.0f} times this architecture's own: lower it"
    if config.steps < FEW_STEPS:
        return f"too few tokens: {config.tokens:,} are {config.steps} steps of {config.batch_size:,}, raise tokens"
    if config.aux_k == 0 and config.architecture in ("topk", "batchtopk", "matryoshka"):
        return "aux_k = 0: nothing brings silent latents back"
    return (
        f"more latents (d_sae = {config.d_sae:,}) than so many tokens give work to: raise tokens or k, or lower d_sae"
    )
