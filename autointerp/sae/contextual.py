"""Parts of an encoder that are more than one product: matching pursuit, and attention over the tokens before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autointerp.errors import AutointerpError


@dataclass(frozen=True)
class Pursuit:
    """Matching pursuit (SAELens' ``matching_pursuit``): when it stops. The decoder is the encoder, transposed."""

    steps: int  # at most
    residual: float  # the norm of what is left below which a token is done; 0: it never is by this
    stop_when_stable: bool  # a token is done when a step adds no latent


@dataclass(frozen=True)
class Attention:
    """Temporal SAEs (2511.01836): layers that predict a token's codes from those of the tokens before it."""

    layers: int
    heads: int
    eps: float  # added to the norm of what is predicted


def pursue(x: Tensor, decoder: Tensor, pursuit: Pursuit) -> Tensor:
    """Codes [n, d_sae] of x [n, d_in]: at each step the latent that fits what is left best, by its inner product."""
    left = x.clone()
    codes = x.new_zeros(len(x), len(decoder))
    done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    before = torch.zeros_like(codes, dtype=torch.bool)
    for _ in range(pursuit.steps):
        latent = (left @ decoder.T).relu().max(1, keepdim=True).indices
        row = decoder[latent.squeeze(1)]
        value = (left * row).sum(1, keepdim=True).relu() * ~done[:, None]
        codes.scatter_add_(1, latent, value)
        left -= value * row
        if pursuit.stop_when_stable:
            fires = codes != 0
            done |= (fires == before).all(1)
            before = fires
        if pursuit.residual > 0:
            done |= left.norm(dim=1) < pursuit.residual
        if done.all():
            break
    return codes


class Predictor(nn.Module):
    """Attention layers over a row's codes [s, d_sae]: the `tensors` ``attn_layers.L.{k_ctx,q_target,v_ctx,c_proj}.*``.

    Raises AutointerpError where one is missing or of a shape that does not fit.
    """

    def __init__(self, attention: Attention, d_sae: int, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._attention = attention
        for layer in range(attention.layers):
            for part in ("k_ctx", "q_target", "v_ctx", "c_proj"):
                for kind in ("weight", "bias"):
                    tensor = tensors.get(name := f"attn_layers.{layer}.{part}.{kind}")
                    if tensor is None or (kind == "weight" and tensor.shape[-1] != d_sae):
                        raise AutointerpError(f"a temporal SAE of {d_sae} latents needs {name}; is the file whole?")
                    self.register_buffer(f"{layer}_{part}_{kind}", tensor.contiguous())

    def forward(self, x: Tensor, encoder: Tensor, decoder: Tensor) -> tuple[Tensor, Tensor]:
        """Centred x [b, s, d_in] -> what is predicted of it and what is left over, both [b, s, d_in].

        A token's prediction is scaled to leave the least of the token (a projection), layer after layer.
        """
        left, predicted = x, torch.zeros_like(x)
        for layer in range(self._attention.layers):
            codes = (left @ encoder).relu()
            past = torch.cat((torch.zeros_like(codes[:, :1]), codes[:, :-1]), 1)
            out = self._attend(layer, past, codes).relu() @ decoder
            norm = out.norm(dim=-1, keepdim=True) + self._attention.eps
            part = (out * left).sum(-1, keepdim=True) / norm.square() * out
            predicted, left = predicted + part, left - part
        return predicted, left

    def _attend(self, layer: int, past: Tensor, codes: Tensor) -> Tensor:
        """Causal attention from a token to the codes before it, [b, s, d_sae]."""
        q, k, v = (
            self._linear(layer, name, inputs).unflatten(-1, (self._attention.heads, -1)).transpose(1, 2)
            for name, inputs in (("q_target", codes), ("k_ctx", past), ("v_ctx", past))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._linear(layer, "c_proj", mixed.transpose(1, 2).flatten(-2))

    def _linear(self, layer: int, name: str, x: Tensor) -> Tensor:
        prefix = f"{layer}_{name}"
        return nn.functional.linear(x, self.get_buffer(f"{prefix}_weight"), self.get_buffer(f"{prefix}_bias"))
