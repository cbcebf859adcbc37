"""What each architecture trains and by which loss. Inputs z have E‖z‖² = d_in; W_enc is kept as [d_sae, d_in]."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from autointerp.sae import sparse

if TYPE_CHECKING:
    from autointerp.sae.train import TrainConfig


class Outcome(NamedTuple):
    loss: Tensor
    residual: Tensor  # Σ‖z − ẑ‖² over the batch
    active: Tensor  # latents active, summed over the batch
    fired: Tensor  # [d_sae] bool: fired in this batch


class Recipe:
    """Weights under training, with a unit-norm decoder."""

    result: ClassVar[str]  # the architecture of the finished SAE
    vectors: ClassVar[dict[str, float]] = {"b_enc": 0.0}  # [d_sae] parameters and where they start

    def __init__(self, config: TrainConfig, d_in: int) -> None:
        self.config, self.d_in = config, d_in
        self.weights: dict[str, Tensor] = {}

    def initialise(self, generator: torch.Generator) -> None:
        n, d = self.config.d_sae, self.d_in
        decoder = torch.nn.functional.normalize(torch.randn(n, d, generator=generator))
        encoder = decoder if self.config.tied_start else torch.randn(n, d, generator=generator) / d**0.5
        self.weights = {"W_enc": encoder.clone(), "W_dec": decoder, "b_dec": torch.zeros(d)}
        self.weights |= {name: torch.full((n,), start) for name, start in self.vectors.items()}

    def to(self, device: torch.device) -> None:
        self.weights = {name: tensor.to(device).requires_grad_() for name, tensor in self.weights.items()}

    def parameters(self) -> Iterator[Tensor]:
        return iter(self.weights.values())

    def state(self) -> dict[str, Any]:
        return {name: tensor.detach() for name, tensor in self.weights.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.weights = dict(state)

    def loss(self, z: Tensor, dead: Tensor, step: int) -> Outcome:
        """`dead` [d_sae] bool: latents that have not fired for long."""
        raise NotImplementedError

    @torch.no_grad()
    def before_step(self) -> None:
        """Take out the decoder gradient's part along each row, which the unit norm would undo."""
        decoder = self.weights["W_dec"]
        if decoder.grad is not None:
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder

    @torch.no_grad()
    def after_step(self) -> None:
        decoder = self.weights["W_dec"]
        decoder /= decoder.norm(dim=1, keepdim=True).clamp_min(1e-8)

    def result_tensors(self) -> dict[str, Tensor]:
        return {**self.weights, "W_enc": self.weights["W_enc"].T}

    def pre_activations(self, z: Tensor) -> Tensor:
        """[b, d_in] -> [b, d_sae] in the dtype of large products, without a gradient: to choose latents by."""
        dtype = getattr(torch, self.config.dtype)
        with torch.no_grad():
            return torch.addmm(self.weights["b_enc"].to(dtype), z.to(dtype), self.weights["W_enc"].to(dtype).T)


class TopK(Recipe):
    """2406.04093: the k largest pre-activations, and AuxK: dead latents learn what the live ones leave over."""

    result = "topk"

    def loss(self, z: Tensor, dead: Tensor, step: int) -> Outcome:
        pre = self.pre_activations(z)
        indices = pre.topk(self.config.k, sorted=False).indices
        values = self._values(z, indices)
        error = sparse.decode(values, indices, self.weights["W_dec"]) + self.weights["b_dec"] - z
        residual = error.square().sum()
        loss = residual / z.numel()
        k = self.d_in // 2 if self.config.aux_k is None else self.config.aux_k
        if k and self.config.aux_coefficient and bool(dead.any()):
            loss = loss + self.config.aux_coefficient * self._aux(z, pre, dead, error.detach(), k)
        on = values.detach() > 0
        fired = torch.zeros_like(dead)
        fired[indices[on]] = True
        return Outcome(loss, residual.detach(), on.sum(), fired)

    def _values(self, z: Tensor, indices: Tensor) -> Tensor:
        bias = torch.nn.functional.embedding(indices, self.weights["b_enc"][:, None]).squeeze(-1)
        return (sparse.encode(z, self.weights["W_enc"], indices) + bias).relu()

    def _aux(self, z: Tensor, pre: Tensor, dead: Tensor, error: Tensor, k: int) -> Tensor:
        """Σ over d of (error left − what the k strongest dead latents make of it)², relative to the input's."""
        latents = dead.nonzero().squeeze(1)
        chosen = pre.index_select(1, latents).topk(min(k, len(latents)), sorted=False).indices
        indices = latents[chosen]
        made = sparse.decode(self._values(z, indices), indices, self.weights["W_dec"])
        return (made + error).square().sum() / z.numel()


RECIPES: dict[str, Callable[[TrainConfig, int], Recipe]] = {"topk": TopK}
