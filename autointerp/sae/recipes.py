"""Losses and updates of each SAE architecture in training (topk, batchtopk, matryoshka, relu, gated, jumprelu …)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from autointerp.sae import blocks, sparse
from autointerp.sae.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from autointerp.sae.train_config import TrainConfig

_LEAST_LEFT = 1e-6  # of the input: AuxK does not weigh a smaller error as if it were all there is


class Outcome(NamedTuple):
    """Of the rows that this rank has of a batch."""

    loss: Tensor  # its part: the whole batch's is the sum over the ranks
    residual: Tensor  # Σ‖z − ẑ‖²
    active: Tensor  # latents active, summed over the rows
    fired: Tensor  # [d_sae] bool: fired in one of the rows


class Recipe:
    """Weights under training, with a unit-norm decoder."""

    result: ClassVar[str]  # the architecture of the finished SAE
    vectors: Mapping[str, float] = MappingProxyType({"b_enc": 0.0})  # [d_sae] parameters and where they start
    encoder_start: ClassVar[float] = 1.0  # length of the encoder's rows: shorter ones turn faster at first

    def __init__(self, config: TrainConfig, d_in: int) -> None:
        self.config, self.d_in = config, d_in
        self.ranks: Ranks = ALONE
        self.numbers = config.batch_size * d_in  # of a whole batch, which losses are over
        self.weights: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}  # changes from step to step without a gradient
        self.learning = slice(0, config.d_sae)  # latents; those before it are frozen, those after it not yet begun
        self.dtype: torch.dtype = getattr(torch, config.dtype)  # of the large products

    def initialise(self, generator: torch.Generator) -> None:
        n, d = self.config.d_sae, self.d_in
        decoder = torch.nn.functional.normalize(torch.randn(n, d, generator=generator))
        encoder = decoder if self.config.tied_start else torch.randn(n, d, generator=generator) / d**0.5
        self.weights = {"W_enc": self.encoder_start * encoder, "W_dec": decoder, "b_dec": torch.zeros(d)}
        self.weights |= {name: torch.full((n,), start) for name, start in self.vectors.items()}
        self.kept = self.keeps()

    def keeps(self) -> dict[str, Tensor]:
        return {}

    def to(self, device: torch.device) -> None:
        self.weights = {name: tensor.to(device).requires_grad_() for name, tensor in self.weights.items()}
        self.kept = {name: tensor.to(device) for name, tensor in self.kept.items()}

    def parameters(self) -> Iterator[Tensor]:
        return iter(self.weights.values())

    def groups(self) -> list[dict[str, Any]]:
        """For the optimiser: parameters that learn at `rate` times the learning rate.

        A step of Adam moves each of the d_in entries of an encoder row by about the rate, and with them the latent's
        pre-activation by √d_in of it or more, where a bias moves it by one: left at that, L1 kinds do not learn in
        time to be silent (stories15M, 1M tokens, L0 32: explained variance .54 without, .76 at ten times the rate).
        A scale is no bias: one logarithm moves all that a latent does. A threshold is one, though its logarithm is
        learnt: it moves where a pre-activation fires, and at the plain rate JumpReLU does not come down to its L0.
        """
        biased = self.vectors.keys() - {"r_mag"}
        biases = [tensor for name, tensor in self.weights.items() if name in biased]
        others = [tensor for name, tensor in self.weights.items() if name not in biased]
        return [{"params": others, "rate": 1.0}, {"params": biases, "rate": self.config.bias_lr or self.d_in**0.5}]

    def state(self) -> dict[str, Any]:
        return {"weights": {name: tensor.detach() for name, tensor in self.weights.items()}, "kept": self.kept}

    def load_state(self, state: dict[str, Any]) -> None:
        self.weights, self.kept = dict(state["weights"]), dict(state["kept"])

    def loss(self, z: Tensor, dead: Tensor, step: int) -> Outcome:
        """z [b, d_in]: this rank's rows of a batch. `dead` [d_sae] bool: latents that have not fired for long."""
        raise NotImplementedError

    @torch.no_grad()
    def before_step(self) -> None:
        """Take out the decoder gradient's part along each row, which the unit norm would undo, and frozen rows'."""
        decoder = self.weights["W_dec"]
        if decoder.grad is not None:
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
        if self.learning.start:
            for name, tensor in self.weights.items():
                if name != "b_dec" and tensor.grad is not None:
                    tensor.grad[: self.learning.start] = 0

    @torch.no_grad()
    def after_step(self) -> None:
        decoder = self.weights["W_dec"][self.learning]
        decoder /= decoder.norm(dim=1, keepdim=True).clamp_min(1e-8)

    def shift(self, tensors: dict[str, Tensor], by: Tensor) -> None:
        """Add `by` [d_sae] to every pre-activation."""
        tensors["b_enc"] = tensors["b_enc"] + by

    def result_tensors(self) -> dict[str, Tensor]:
        return {**self.weights, "W_enc": self.weights["W_enc"].T}

    def encoded(self, z: Tensor, bias: Tensor | None = None) -> Tensor:
        """z W_encᵀ + bias -> [b, d_sae], in the dtype of large products and with gradients. The bias is one more
        column of W_enc, as a pass over [b, d_sae] costs a CPU as much as the product."""
        encoder = self.weights["W_enc"]
        if bias is not None:
            z = torch.cat([z, z.new_ones(len(z), 1)], 1)
            encoder = torch.cat([encoder, bias[:, None]], 1)
        return z.to(self.dtype) @ encoder.to(self.dtype).T

    @torch.no_grad()
    def to_choose_by(self, z: Tensor, encoder: Tensor, bias: Tensor) -> Tensor:
        """z encoderᵀ + bias -> [b, n], in the dtype of large products: which latents fire, not how much."""
        return torch.addmm(bias.to(self.dtype), z.to(self.dtype), encoder.to(self.dtype).T)

    def decoded(self, codes: Tensor, decoder: Tensor) -> tuple[Tensor, Tensor]:
        """codes @ decoder, and the sum of all codes, which is one more column."""
        decoder = torch.cat([decoder, decoder.new_ones(len(decoder), 1)], 1)
        made = self.product(codes, decoder)
        return made[:, :-1], made[:, -1].sum()

    def product(self, rows: Tensor, matrix: Tensor) -> Tensor:
        """rows @ matrix, multiplied in the dtype of large products, with gradients."""
        return (rows.to(self.dtype) @ matrix.to(self.dtype)).float()

    def sparsity(self, step: int, usual: float) -> float:
        """Weight of the sparsity loss at a step: it rises linearly at the start."""
        weight = usual if self.config.sparsity is None else self.config.sparsity
        rising = self.config.sparsity_warmup * self.config.steps
        return weight * min((step + 1) / rising, 1.0) if rising else weight


class TopK(Recipe):
    """2406.04093: the k largest pre-activations, and AuxK: dead latents learn what the live ones leave over.

    In stages, the first latents are learned alone with a part of k; then they are frozen, and the next ones join
    them with the next part.
    """

    result = "topk"
    encoder_start = 0.3

    def loss(self, z: Tensor, dead: Tensor, step: int) -> Outcome:
        encoder, bias, decoder = (self._begun(name) for name in ("W_enc", "b_enc", "W_dec"))
        pre = self.to_choose_by(z, encoder, bias)
        k = max(1, round(self.config.k * self.learning.stop / self.config.d_sae))
        indices = sparse.topk(pre, k)
        values = sparse.encode(z, encoder, bias, indices, pre).relu()
        error = sparse.decode(values, indices, decoder, self.dtype) + self.weights["b_dec"] - z
        residual = error.square().sum()
        loss = residual / self.numbers
        loss = loss + self._aux(z, pre, dead, error.detach())
        on = values.detach() > 0
        fired = torch.zeros(len(dead) + 1, dtype=torch.bool, device=z.device)  # one more, for those that are off
        fired.index_fill_(0, torch.where(on, indices, len(dead)).flatten(), True)
        return Outcome(loss, residual.detach(), torch.count_nonzero(on), fired[:-1])

    def _begun(self, name: str) -> Tensor:
        tensor = self.weights[name]
        return tensor if self.learning.stop == len(tensor) else tensor[: self.learning.stop]

    def _aux(self, z: Tensor, pre: Tensor, dead: Tensor, error: Tensor) -> Tensor | float:
        """(error left − what the strongest dead latents make of it)², relative to that error's own square.

        The paper's formula leaves the scale open; its code divides by what is left (openai/sparse_autoencoder,
        train.py). Relative to the input AuxK would weigh the less, the better the live latents explain.
        """
        k = self.d_in // 2 if self.config.aux_k is None else self.config.aux_k
        if not (k and self.config.aux_coefficient):
            return 0.0
        latents = dead.nonzero().squeeze(1)
        if not len(latents):
            return 0.0
        encoder, bias, decoder = (self.weights[name].index_select(0, latents) for name in ("W_enc", "b_enc", "W_dec"))
        pre = pre.index_select(1, latents).to(self.dtype)
        chosen = sparse.topk(pre, min(k, len(latents)))
        values = sparse.encode(z, encoder, bias, chosen, pre).relu()
        made = sparse.decode(values, chosen, decoder, self.dtype)
        left = self.ranks.sum(error.square().sum()).clamp_min(_LEAST_LEFT * self.numbers)
        return self.config.aux_coefficient * (made + error).square().sum() / left


class BatchTopK(TopK):
    """2412.06410: the k·batch largest of a batch's pre-activations. At inference a threshold: the running mean of the
    smallest one chosen."""

    result = "jumprelu"

    def keeps(self) -> dict[str, Tensor]:
        return {"threshold": torch.tensor(0.0)}

    def loss(self, z: Tensor, dead: Tensor, step: int) -> Outcome:
        pairs, values, pre = self._chosen(z, step)
        error = self._decoded(values, pairs) + self.weights["b_dec"] - z
        residual = error.square().sum()
        loss = residual / self.numbers + self._aux(z, pre, dead, error.detach())
        return self._outcome(loss, residual, values, pairs)

    def _outcome(self, loss: Tensor, residual: Tensor, values: Tensor, pairs: sparse.Pairs) -> Outcome:
        on = values.detach() > 0
        return Outcome(loss, residual.detach(), torch.count_nonzero(on), pairs.fired(on))

    def _chosen(self, z: Tensor, step: int) -> tuple[sparse.Pairs, Tensor, Tensor]:
        """The batch's largest: where they are, their codes [m] with gradients, and all pre-activations [b, d_sae]."""
        encoder, bias = self.weights["W_enc"], self.weights["b_enc"]
        pre = self.to_choose_by(z, encoder, bias)
        pairs = sparse.Pairs.of(self._largest(pre, step), *pre.shape)
        if z.is_cuda:  # its dense products are faster than sparse ones
            made = self.product(z, encoder.T) + bias
            return pairs, made[pairs.token, pairs.latent].relu(), pre
        return pairs, sparse.encode_pairs(z, encoder, bias, pairs).relu(), pre

    def _decoded(self, values: Tensor, pairs: sparse.Pairs, first: int = 0, last: int | None = None) -> Tensor:
        """What the codes of the latents [first, last) add up to, [b, d_in]."""
        decoder = self.weights["W_dec"]
        if (first, last) != (0, None):
            pairs, here = pairs.within(first, pairs.n if last is None else last)
            values = values[here]
        if not values.is_cuda:
            return sparse.decode_pairs(values, decoder, pairs)
        codes = torch.zeros(pairs.b, pairs.n, device=values.device).index_put((pairs.token, pairs.latent), values)
        return self.product(codes[:, first:last], decoder[first:last])

    def _largest(self, pre: Tensor, step: int) -> Tensor:
        """Flat places of the whole batch's largest that are among [b, n], rising; the running threshold goes on."""
        # Entries somewhat below the usual threshold hold the largest, but for some early steps.
        wanted = self.config.k * self.config.batch_size
        flat = blocks.above(pre, (self.kept["threshold"] * 0.8).to(pre.dtype))
        if self.ranks.number(len(flat)) < wanted:
            flat = blocks.above(pre, 0.0)
        entries = pre.view(-1)[flat].float()
        least = self.kept["threshold"]
        if self.ranks.number(len(entries)):
            least = self.ranks.kth_largest(entries, wanted)
        keep = min(0.999, step / (step + 10))  # at first over fewer steps: the threshold still moves fast
        self.kept["threshold"] = torch.lerp(least, self.kept["threshold"], keep)
        return flat[entries >= least]

    def result_tensors(self) -> dict[str, Tensor]:
        return super().result_tensors() | {"threshold": self.kept["threshold"].expand(self.config.d_sae).clone()}


class Matryoshka(BatchTopK):
    """2503.17547: the first latents alone, and with each further group, must reconstruct the input."""

    def loss(self, z: Tensor, dead: Tensor, step: int) -> Outcome:
        pairs, values, pre = self._chosen(z, step)
        shares = torch.tensor(self.config.groups).cumsum(0)
        ends = (shares * self.config.d_sae).round().long().tolist()
        made: Tensor = self.weights["b_dec"]
        loss, start, error = torch.zeros((), device=z.device), 0, -z
        for end in ends:
            made = made + self._decoded(values, pairs, start, end)
            error, start = made - z, end
            loss = loss + error.square().sum() / self.numbers / len(ends)
        loss = loss + self._aux(z, pre, dead, error.detach())
        return self._outcome(loss, error.square().sum(), values, pairs)


class L1(Recipe):
    """A loss with λ · the sum of codes. For `target_l0` λ is steered by e, the logarithm of L0 over the target,
    smoothed: log λ is raised by e, by its sum over the steps, and by its change, for L0 goes on falling long after λ
    has risen."""

    at_once, summed, change = 1.0, 60.0, 20.0  # how much of each; the sum is over all steps

    def keeps(self) -> dict[str, Tensor]:
        return {} if self.config.target_l0 is None else {name: torch.zeros(()) for name in ("log", "sum", "e")}

    def weight(self, step: int) -> Tensor | float:
        weight = self.sparsity(step, 5.0)
        return weight * self.kept["log"].exp() if self.kept else weight

    def steer(self, active: Tensor, step: int) -> None:
        """After `active` latents were on over this rank's tokens."""
        if self.config.target_l0 is None:
            return
        before, l0 = self.kept["e"], self.ranks.sum(active) / self.config.batch_size
        e = torch.lerp(before, (l0 / self.config.target_l0).clamp_min(1e-3).log(), 0.1)
        near = e.clamp(-1, 1)
        total = self.kept["sum"]
        if step >= self.config.sparsity_warmup * self.config.steps:
            # On its way to the target it is let go.
            total = total + (self.summed / self.config.steps * near).where(e.abs() >= before.abs(), 0.0)
        log = self.at_once * near + total + self.change * (e - before).clamp(-0.1, 0.1)
        self.kept = {"e": e, "sum": total, "log": log}


class ReLU(L1):
    """‖z − ẑ‖² + λ Σ f with a unit-norm decoder."""

    result = "relu"

    def loss(self, z: Tensor, dead: Tensor, step: int) -> Outcome:
        codes = self.encoded(z, self.weights["b_enc"]).relu()
        made, total = self.decoded(codes, self.weights["W_dec"])
        residual = (made + self.weights["b_dec"] - z).square().sum()
        loss = (residual + self.weight(step) * total) / self.numbers
        on = codes.detach() > 0
        active = torch.count_nonzero(on)
        self.steer(active, step)
        return Outcome(loss, residual.detach(), active, on.any(0))


class Gated(L1):
    """2404.16014: which latents fire and how strongly are learned apart. The gate is taught by an L1 loss and by a
    reconstruction of its own through a frozen decoder."""

    result = "gated"
    vectors = MappingProxyType({"r_mag": 0.0, "b_mag": 0.0, "b_gate": 0.0})

    def loss(self, z: Tensor, dead: Tensor, step: int) -> Outcome:
        w = self.weights
        gate, codes = self._gate_and_codes(self.encoded(z))
        residual = (self.product(codes, w["W_dec"]) + w["b_dec"] - z).square().sum()
        made, total = self.decoded(gate, w["W_dec"].detach())
        alone = (made + w["b_dec"].detach() - z).square().sum()
        loss = (residual + alone + self.weight(step) * total) / self.numbers
        on = codes.detach() > 0
        active = torch.count_nonzero(on)
        self.steer(active, step)
        return Outcome(loss, residual.detach(), active, on.any(0))

    def _gate_and_codes(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift, by = (self.weights[name].to(shared.dtype) for name in ("r_mag", "b_mag", "b_gate"))
        gate = shared + by
        magnitude = (shared * scale.exp() + shift).relu()
        return gate.relu(), torch.where(gate > 0, magnitude, 0.0)

    def shift(self, tensors: dict[str, Tensor], by: Tensor) -> None:
        tensors["b_gate"] = tensors["b_gate"] + by
        tensors["b_mag"] = tensors["b_mag"] + by * tensors["r_mag"].exp()

    def result_tensors(self) -> dict[str, Tensor]:
        return super().result_tensors() | {"b_enc": torch.zeros_like(self.weights["b_mag"])}


class Rescaled(Gated):
    """Gated without its step: codes are the gate's ReLU times a learned scale of each latent, which undoes what L1
    shrinks. Scales fold into the encoder, so that the result is a plain ReLU SAE."""

    result = "relu"
    vectors = MappingProxyType({"r_mag": 0.0, "b_gate": 0.0})

    def _gate_and_codes(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        scale, by = (self.weights[name].to(shared.dtype) for name in ("r_mag", "b_gate"))
        gate = (shared + by).relu()
        return gate, gate * scale.exp()

    def shift(self, tensors: dict[str, Tensor], by: Tensor) -> None:
        Recipe.shift(self, tensors, by)

    def result_tensors(self) -> dict[str, Tensor]:
        w, scale = self.weights, self.weights["r_mag"].exp()
        return {
            "W_enc": w["W_enc"].T * scale,
            "b_enc": w["b_gate"] * scale,
            "W_dec": w["W_dec"],
            "b_dec": w["b_dec"],
        }


class JumpReLU(Recipe):
    """2407.14435: a threshold for each latent, learned through a rectangular kernel; the loss draws L0 to k."""

    result = "jumprelu"
    dense_from: ClassVar[float] = 1 / 16  # share of codes that are not zero from which dense products are faster
    # Where thresholds start; pre-activations have a spread of 1 then. From `bandwidth` half a short training goes by
    # before L0 is down at k (stories15M, 500k tokens: explained variance .895, from here .905; from 1 more are silent).
    start: ClassVar[float] = 0.4

    def __init__(self, config: TrainConfig, d_in: int) -> None:
        super().__init__(config, d_in)
        self.width = config.bandwidth * d_in**0.5  # inputs have the norm √d_in
        self.vectors = {"b_enc": 0.0, "log_threshold": math.log(self.start)}

    def loss(self, z: Tensor, dead: Tensor, step: int) -> Outcome:
        threshold = self.weights["log_threshold"].exp()
        pairs = None if z.is_cuda else self._near(z, threshold)
        if pairs is None:
            pre = self.product(z, self.weights["W_enc"].T) + self.weights["b_enc"]
            codes, gate = _Jump.apply(pre, threshold.expand_as(pre), self.width)  # type: ignore[misc]
            made, fired = self.product(codes, self.weights["W_dec"]), (codes.detach() > 0).any(0)
        else:
            pre = sparse.encode_pairs(z, self.weights["W_enc"], self.weights["b_enc"], pairs)
            codes, gate = _Jump.apply(pre, threshold[pairs.latent], self.width)  # type: ignore[misc]
            made, fired = sparse.decode_pairs(codes, self.weights["W_dec"], pairs), pairs.fired(codes.detach() > 0)
        residual = (made + self.weights["b_dec"] - z).square().sum()
        l0 = self.ranks.total(gate.sum()) / self.config.batch_size
        sparsity = self.sparsity(step, 1.0) * (l0 / self.config.k - 1).square()
        loss = residual / self.numbers + sparsity / self.ranks.count
        return Outcome(loss, residual.detach(), torch.count_nonzero(codes.detach()), fired)

    @torch.no_grad()
    def _near(self, z: Tensor, threshold: Tensor) -> sparse.Pairs | None:
        """What fires or is near enough to its threshold to move it; None where that is too much for sparse products."""
        pre = self.to_choose_by(z, self.weights["W_enc"], self.weights["b_enc"])
        nearest = (threshold - self.width / 2) * 0.99  # lower by more than few bits are rounded
        flat = blocks.above(pre, nearest.to(pre.dtype))
        if len(flat) > self.dense_from * pre.numel():
            return None
        return sparse.Pairs.of(flat, *pre.shape)

    def result_tensors(self) -> dict[str, Tensor]:
        tensors = super().result_tensors()
        return tensors | {"threshold": tensors.pop("log_threshold").exp()}


class _Jump(torch.autograd.Function):
    """(pre, threshold as large, width) -> codes and the step, with the paper's pseudo-derivatives for the threshold:
    −θ/ε and −1/ε where |pre − θ| < ε/2."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        ctx.width = width
        on = pre > threshold
        return torch.where(on, pre, 0.0), on.to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        for_codes, for_step = gradients
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.width / 2
        slope = torch.where(near, -(for_codes * threshold + for_step) / ctx.width, 0.0)
        return torch.where(pre > threshold, for_codes, 0.0), slope, None


RECIPES: dict[str, Callable[[TrainConfig, int], Recipe]] = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
    "jumprelu": JumpReLU,
    "relu": ReLU,
    "gated": Gated,
    "rescaled": Rescaled,
}
