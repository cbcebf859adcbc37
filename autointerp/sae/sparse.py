"""Products with codes of which only k entries a token are not zero: [b, k] values at [b, k] latents.

On a CPU they are sparse products (width 4,096, k 24: a tenth of the time of the dense ones); a GPU's dense
bfloat16 products are faster than its sparse ones, so there the codes are scattered.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def decode(values: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """values [b, k] at latents [b, k], times weights [n, d] -> [b, d], with gradients for values and weights."""
    return _Decode.apply(values, indices, weights)  # type: ignore[return-value]


def encode(x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """x [b, d] times the rows `indices` [b, k] of weights [n, d] -> [b, k], with a gradient for weights alone."""
    return _Encode.apply(x, weights, indices)  # type: ignore[return-value]


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, weights)
        if values.is_cuda:
            return (_dense(values, indices, len(weights)) @ weights.to(values.dtype)).float()
        return torch.nn.functional.embedding_bag(indices, weights, per_sample_weights=values, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        (gradient,) = gradients
        values, indices, weights = ctx.saved_tensors
        return _inner(gradient, weights, indices), None, _transposed(values, indices, gradient, len(weights))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(x, indices)
        ctx.n = len(weights)
        return _inner(x, weights, indices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = gradients
        x, indices = ctx.saved_tensors
        return None, _transposed(gradient, indices, x, ctx.n), None


def _inner(rows: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """Inner products of rows [b, d] with weights[indices], [b, k, d] -> [b, k]."""
    b, k = indices.shape
    if rows.is_cuda:
        return (rows.bfloat16() @ weights.bfloat16().T).gather(1, indices).float()
    pattern = _csr(torch.zeros(b * k, dtype=rows.dtype), indices.reshape(-1), k, (b, len(weights)))
    return torch.sparse.sampled_addmm(pattern, rows, weights.T, beta=0.0).values().view(b, k)


def _transposed(values: Tensor, indices: Tensor, rows: Tensor, n: int) -> Tensor:
    """codesᵀ @ rows, [n, b] @ [b, d] -> [n, d]: the gradient of either weight matrix."""
    if rows.is_cuda:
        return (_dense(values, indices, n).bfloat16().T @ rows.bfloat16()).float()
    b, k = indices.shape
    flat = indices.reshape(-1)
    order = flat.argsort(stable=True)
    starts = torch.zeros(n + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(flat, minlength=n), 0, out=starts[1:])
    return torch.sparse_csr_tensor(starts, order // k, values.reshape(-1)[order], (n, b), check_invariants=False) @ rows


def _csr(values: Tensor, columns: Tensor, k: int, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(torch.arange(0, len(values) + 1, k), columns, values, shape, check_invariants=False)


def _dense(values: Tensor, indices: Tensor, n: int) -> Tensor:
    return torch.zeros(len(values), n, dtype=values.dtype, device=values.device).scatter_(1, indices, values)
