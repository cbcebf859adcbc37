"""Sparse products: decode and encode with codes of which only k entries a token are not zero.

On a CPU they are sparse products in float32 (width 4,096, k 24: a tenth of the time of the dense ones); a GPU's dense
bfloat16 products are faster than its sparse ones, so there the codes are scattered and `dtype` is that of the products.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

GROUP = 8  # neighbours of which topk looks at the largest first


def topk(pre: Tensor, k: int) -> Tensor:
    """Columns of the k largest entries of each row of [b, n], unsorted -> [b, k].

    The k groups with the largest maxima hold them, so only n / GROUP + k · GROUP entries a row are selected from.
    """
    b, n = pre.shape
    if n % GROUP or n < 2 * GROUP * k:
        return pre.topk(k, sorted=False).indices
    groups = pre.view(b, GROUP, n // GROUP)  # of entries n / GROUP apart: their maximum is taken along memory
    chosen = groups.amax(1).topk(k, sorted=False).indices
    candidates = groups.gather(2, chosen[:, None].expand(-1, GROUP, -1)).flatten(1)
    best = candidates.topk(k, sorted=False).indices
    return best // k * groups.shape[2] + chosen.gather(1, best % k)


def decode(values: Tensor, indices: Tensor, weights: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """values [b, k] at latents [b, k], times weights [n, d] -> [b, d], with gradients for values and weights."""
    return _Decode.apply(values, indices, weights, dtype)  # type: ignore[return-value]


def encode(x: Tensor, weights: Tensor, bias: Tensor, indices: Tensor, pre: Tensor) -> Tensor:
    """x [b, d] times the rows `indices` [b, k] of weights [n, d], plus their bias [n] -> [b, k], with gradients for
    weights and bias.

    `pre` [b, n] is the whole product, in the dtype of large products. A GPU reads the result from it; a CPU makes
    the few entries again in float32.
    """
    return _Encode.apply(x, weights, bias, indices, pre)  # type: ignore[return-value]


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
        if values.is_cuda:
            codes, weights = _dense(values.to(dtype), indices, len(weights)), weights.to(dtype)
            ctx.save_for_backward(codes, indices, weights)
            return (codes @ weights).float()
        ctx.save_for_backward(values, indices, weights)
        return torch.nn.functional.embedding_bag(indices, weights, per_sample_weights=values, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (gradient,) = gradients
        values, indices, weights = ctx.saved_tensors
        if gradient.is_cuda:
            gradient = gradient.to(weights.dtype)
            for_values = (gradient @ weights.T).gather(1, indices).float()
            return for_values, None, (values.T @ gradient).float(), None
        return inner(gradient, weights, indices), None, transposed(values, indices, gradient, len(weights)), None


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, bias: Tensor, indices: Tensor, pre: Tensor) -> Tensor:
        ctx.save_for_backward(x, indices)
        ctx.n, ctx.dtype = len(weights), pre.dtype
        if x.is_cuda:
            return pre.gather(1, indices).float()
        return inner(x, weights, indices) + bias[indices]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, None, None]:
        (gradient,) = gradients
        x, indices = ctx.saved_tensors
        for_bias = gradient.new_zeros(ctx.n).index_add_(0, indices.flatten(), gradient.flatten())
        if x.is_cuda:
            codes = _dense(gradient.to(ctx.dtype), indices, ctx.n)
            return None, (codes.T @ x.to(ctx.dtype)).float(), for_bias, None, None
        return None, transposed(gradient, indices, x, ctx.n), for_bias, None, None


def inner(rows: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """Inner products of rows [b, d] with weights[indices], [b, k, d] -> [b, k]. On a CPU."""
    b, k = indices.shape
    starts = torch.arange(0, b * k + 1, k)
    zeros = torch.zeros(b * k, dtype=rows.dtype)
    pattern = torch.sparse_csr_tensor(
        starts, indices.reshape(-1), zeros, size=(b, len(weights)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, rows, weights.T, beta=0.0).values().view(b, k)


def transposed(values: Tensor, indices: Tensor, rows: Tensor, n: int) -> Tensor:
    """codesᵀ @ rows, [n, b] @ [b, d] -> [n, d]: the gradient of either weight matrix. On a CPU."""
    b, k = indices.shape
    flat = indices.reshape(-1)
    order = flat.argsort(stable=True)
    starts = _starts(flat, n)
    return torch.sparse_csr_tensor(starts, order // k, values.reshape(-1)[order], (n, b), check_invariants=False) @ rows


class Pairs(NamedTuple):
    """Entries of codes [b, n] that are not zero, any number of each token: [m] tokens, rising, and their latents."""

    token: Tensor
    latent: Tensor
    b: int
    n: int

    @staticmethod
    def of(flat: Tensor, b: int, n: int) -> Pairs:
        """Of flat places [m] in [b, n], rising."""
        token = flat.div(n, rounding_mode="floor")
        return Pairs(token, flat - token * n, b, n)

    def fired(self, on: Tensor) -> Tensor:
        """Which latents have an entry that is `on` [m] bool: [n] bool."""
        fired = torch.zeros(self.n, dtype=torch.bool, device=on.device)
        fired[self.latent[on]] = True
        return fired

    @property
    def starts(self) -> Tensor:
        """[b + 1]: token i has the entries starts[i]:starts[i + 1]."""
        return _starts(self.token, self.b)

    def within(self, first: int, last: int) -> tuple[Pairs, Tensor]:
        """Those of the latents [first, last), and which they are."""
        here = ((self.latent >= first) & (self.latent < last)).nonzero().squeeze(1)
        return self._replace(token=self.token[here], latent=self.latent[here]), here


def encode_pairs(x: Tensor, weights: Tensor, bias: Tensor, pairs: Pairs) -> Tensor:
    """x [b, d] times the rows of weights [n, d] that the pairs name, plus their bias [n] -> [m], with gradients for
    weights and bias. On a CPU."""
    return _EncodePairs.apply(x, weights, bias, pairs)  # type: ignore[return-value]


def decode_pairs(values: Tensor, weights: Tensor, pairs: Pairs) -> Tensor:
    """values [m] of the pairs, times weights [n, d] -> [b, d], with gradients for both. On a CPU."""
    return _DecodePairs.apply(values, weights, pairs)  # type: ignore[return-value]


class _EncodePairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, bias: Tensor, pairs: Pairs) -> Tensor:
        ctx.x, ctx.pairs = x, pairs
        return _inner_pairs(x, weights, pairs) + bias[pairs.latent]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, None]:
        (gradient,) = gradients
        for_bias = gradient.new_zeros(ctx.pairs.n).index_add_(0, ctx.pairs.latent, gradient)
        return None, _transposed_pairs(gradient, ctx.pairs, ctx.x), for_bias, None


class _DecodePairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(values, weights)
        ctx.pairs = pairs
        starts = pairs.starts[:-1]
        return torch.nn.functional.embedding_bag(pairs.latent, weights, starts, per_sample_weights=values, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        values, weights = ctx.saved_tensors
        return _inner_pairs(gradient, weights, ctx.pairs), _transposed_pairs(values, ctx.pairs, gradient), None


def _inner_pairs(rows: Tensor, weights: Tensor, pairs: Pairs) -> Tensor:
    zeros = torch.zeros(len(pairs.latent), dtype=rows.dtype)
    pattern = torch.sparse_csr_tensor(
        pairs.starts, pairs.latent, zeros, size=(pairs.b, pairs.n), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, rows, weights.T, beta=0.0).values()


def _transposed_pairs(values: Tensor, pairs: Pairs, rows: Tensor) -> Tensor:
    order = pairs.latent.argsort(stable=True)
    starts = _starts(pairs.latent, pairs.n)
    codes = torch.sparse_csr_tensor(
        starts, pairs.token[order], values[order], (pairs.n, pairs.b), check_invariants=False
    )
    return codes @ rows


def _starts(index: Tensor, count: int) -> Tensor:
    starts = torch.zeros(count + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(index, minlength=count), 0, out=starts[1:])
    return starts


def _dense(values: Tensor, indices: Tensor, n: int) -> Tensor:
    return torch.zeros(len(values), n, dtype=values.dtype, device=values.device).scatter_(1, indices, values)
