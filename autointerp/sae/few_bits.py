"""The k largest pre-activations by a product in bfloat16, which names candidates, and float32, which decides.

A processor with bfloat16 matrix units makes that product several times faster than the one in float32. With x = x̂ + δ
and a latent's w = ŵ + ε, x̂ and ŵ in few bits: |xw − x̂ŵ| ≤ ‖δ‖ ‖w‖ + ‖x̂‖ ‖ε‖, and the product itself is rounded to few
bits. So nothing that was no candidate can be larger than the least of them, plus that. Tokens for which this does not
settle what the k largest are get the whole product in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autointerp.sae import blocks, sparse

MARGIN = 32  # candidates beyond k
ROUNDED = 2.0**-8  # of a number in bfloat16, relative, with the sum before it in float32


def fast_on(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether products in bfloat16 are faster than those in `dtype`, on a CPU."""
    if device.type != "cpu" or dtype != torch.float32:
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class FewBits:
    """An encoder as it is needed for this, which takes one and a half times its own memory beside it."""

    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        """weights [d, n] and bias [n], in float32."""
        self.weights, self.bias, self.rows = weights, bias, weights.T.contiguous()
        self.few = torch.cat([weights, bias[None], (bias - bias.bfloat16())[None]]).bfloat16()
        self.longest = weights.norm(dim=0).amax()
        self.lost = (weights - self.few[:-2].float()).norm(dim=0).amax()
        self.bias_lost = (bias - self.few[-2:].float().sum(0)).abs().amax()

    def room(self, tokens: int) -> Tensor:
        """Memory for the product of so many tokens."""
        return self.few.new_empty(tokens, len(self.rows))

    def largest(self, x: Tensor, k: int, room: Tensor) -> tuple[Tensor, Tensor]:
        """The k largest of x W + b for each row of x [m, d], and their columns, in any order: [m, k] each."""
        n = len(self.rows)
        count, few = min(k + MARGIN, n), x.bfloat16()
        with_ones = torch.cat([few, few.new_ones(len(x), 2)], 1)
        named, columns = blocks.largest(torch.mm(with_ones, self.few, out=room[: len(x)]), count)
        values, places = (sparse.inner(x, self.rows, columns) + self.bias[columns]).topk(k)
        latents = columns.gather(1, places)
        if count < n:
            least = named.float().amin(1)
            error = (x - few).norm(dim=1) * self.longest + few.float().norm(dim=1) * self.lost + self.bias_lost
            unsure = (values[:, -1].relu() < least + least.abs() * ROUNDED + error).nonzero().squeeze(1)
            if len(unsure):
                whole = torch.addmm(self.bias, x[unsure], self.weights)
                values[unsure], latents[unsure] = blocks.largest(whole, k)
        return values, latents
