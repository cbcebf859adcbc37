"""The keys of `sae.train`, what they may be, and the learning rate and frozen stages that follow from them."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from autointerp.config import Section, TrackingConfig


class PenaltyConfig(Section):
    """Which penalty, and how strongly. The loss it joins is the unexplained share of the inputs' variance."""

    kind: Literal["chunk_max", "all_pairs", "nearest", "threshold", "mean_max", "neighbours", "soft_orthonormal"] = (
        "chunk_max"  # which; each is a function of autointerp.sae.penalties
    )
    weight: float = 0.25  # negative: a positive control that makes composites on purpose
    every: int = Field(5, ge=1)  # steps; each then counts `every` times
    chunk: int = Field(8192, ge=2)  # chunk_max: latents compared with each other
    threshold: float = Field(0.3, ge=0, lt=1)  # threshold: cosine from which it counts; nearest: the sigmoid's middle
    shape: Literal["convex", "sigmoid"] = "convex"  # nearest
    neighbours: int = Field(32, ge=1)  # neighbours: length of each latent's list
    refresh: int = Field(500, ge=1)  # neighbours: steps after which the lists are made anew


class TrainConfig(Section):
    """How to train. Lengths are in tokens, each presentation of one counted."""

    # rescaled: gated without its step
    architecture: Literal["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated", "rescaled"] = "topk"
    d_sae: int = Field(4096, ge=2)  # latents
    k: int = Field(32, ge=1)  # active latents a token, of the topk kinds and jumprelu
    sparsity: float | None = Field(None, ge=0)  # weight of the sparsity loss; None: 5 for L1, 1 for jumprelu's L0
    target_l0: float | None = Field(None, gt=0)  # of the L1 kinds: steers the weight there; others have k
    sparsity_warmup: float = Field(0.05, ge=0, le=1)  # share of the steps over which that weight rises from 0
    bandwidth: float = Field(1e-3, gt=0)  # of jumprelu's step, in units of the inputs' root mean square norm
    groups: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)  # matryoshka: shares of the latents
    tokens: int = Field(10_000_000, ge=1)  # presentations: the source's epochs do not matter
    batch_size: int = Field(4096, ge=1)  # tokens in a step
    lr: float | None = Field(None, gt=0)  # None: that of the architecture, see peak_lr
    bias_lr: float | None = Field(None, gt=0)  # of biases and thresholds, over lr; None: √d_in
    betas: tuple[float, float] = (0.8, 0.95)  # of Adam: shorter memories than usual, for short trainings
    warmup: int = Field(0, ge=0)  # steps over which lr rises from 0
    decay: float = Field(0.2, ge=0, le=1)  # last share of the steps, over which lr falls to 0
    aux_k: int | None = Field(None, ge=0)  # dead latents that explain the residual; None: d_in / 2; 0: none
    aux_coefficient: float = Field(1 / 32, ge=0)  # weight of that AuxK loss, over the residual's square
    dead_after: int | None = Field(None, ge=1)  # tokens without firing; None: 10M or a twentieth of `tokens`
    stages: int = Field(1, ge=1)  # of topk: as many parts of the latents, each learned, then frozen, before the next
    penalty: PenaltyConfig | None = None  # on the decoder's geometry
    start: Literal["mean", "geometric_median"] = "mean"  # of the inputs: where b_dec starts
    centre: bool = True  # subtract that start for good: fewer latents die; b_dec then learns the rest
    tied_start: bool = True  # the encoder starts as the decoder transposed
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the large products; weights are float32
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the saved weights
    seed: int = 0  # of the initial weights and the order of tokens; a run's own, where the config names none
    checkpoint_every: int = Field(500, ge=1)  # steps
    log_every: int = Field(100, ge=1)  # steps
    # the log's rows go there too; None: as the run's. It is not what is trained: no part of a dump, so of no key
    tracking: TrackingConfig | None = Field(None, exclude=True)
    # processes that share each batch, each with a GPU of its own; auto: as many as there are GPUs, 1 on a CPU. No part
    # of a key either: the SAE is the same but for the order of sums
    ranks: int | Literal["auto"] = Field(1, exclude=True)

    @field_validator("ranks", mode="before")
    @classmethod
    def some_processes(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{value!r} is neither a number of processes nor auto")
        return value

    @model_validator(mode="after")
    def fits(self) -> TrainConfig:
        if self.k > self.d_sae:
            raise ValueError(f"k = {self.k} is more than d_sae = {self.d_sae}")
        if self.tokens < self.batch_size:
            raise ValueError(f"tokens = {self.tokens} is less than one batch of {self.batch_size}")
        if self.architecture == "matryoshka" and (min(self.groups) <= 0 or abs(sum(self.groups) - 1) > 1e-6):
            raise ValueError(f"groups are positive shares that add up to 1, these make {sum(self.groups):g}")
        if self.stages > 1 and (self.architecture != "topk" or self.stages > min(self.k, self.steps)):
            raise ValueError(f"stages = {self.stages} is for topk, with k and the number of steps at least as many")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {self.betas}: each is at least 0 and below 1")
        if self.target_l0 is not None and self.architecture not in ("relu", "gated", "rescaled"):
            raise ValueError(f"target_l0 is for relu, gated and rescaled; {self.architecture} has k")
        return self

    @property
    def peak_lr(self) -> float:
        """Given, or 3e-4 for the batchtopk kinds, 2e-4 for jumprelu, and 2406.04093's rule for others;
        in fewer than 40,000 steps more, up to 16 times: on stories15M a topk wants 6e-3 for 122 steps, 4e-3 for
        1,220 (benchmarks/training.py)."""
        usual = {"batchtopk": 3e-4, "matryoshka": 3e-4, "jumprelu": 2e-4}
        rule = usual.get(self.architecture, 2e-4 / math.sqrt(self.d_sae / 2**14))
        return self.lr or rule * min(max(40_000 / max(self.steps, 1), 1.0) ** 0.5, 16.0)

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_size

    @property
    def dead_after_tokens(self) -> int:
        return self.dead_after or min(10_000_000, max(self.tokens // 20, self.batch_size))

    def stage_at(self, step: int) -> tuple[int, int, int]:
        """(stage, its first step, the step after its last)."""
        stage = min(step * self.stages // self.steps, self.stages - 1)
        first, after = (-(-self.steps * i // self.stages) for i in (stage, stage + 1))
        return stage, first, after

    def latents_at(self, step: int) -> slice:
        """The latents that learn at a step; those before are frozen, those after have not begun."""
        stage = self.stage_at(step)[0]
        return slice(*(self.d_sae * i // self.stages for i in (stage, stage + 1)))

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, …: linear up, flat, linear down to 0 at the end, in each stage."""
        _, first, after = self.stage_at(step)
        rise = (step - first + 1) / self.warmup if step - first < self.warmup else 1.0
        falling = self.decay * (after - first)
        fall = min((after - step) / falling, 1.0) if falling else 1.0
        return self.peak_lr * min(rise, fall)
