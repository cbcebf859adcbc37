"""Nearest rows by cosine, block by block: the n × n matrix is never in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np
    import torch

BLOCK = 512  # query rows at a time: 134 MB of cosines against 65,536 candidates
_GROUP = 32  # columns whose maximum is compared first


def as_tensor(rows: np.ndarray | torch.Tensor, name: str = "W_dec") -> torch.Tensor:
    """`rows` [n, d] as a tensor, shared where that can be; an error in one line where it is no finite matrix."""
    import warnings

    import numpy as np
    import torch

    if isinstance(rows, torch.Tensor):
        tensor = rows.detach()
    else:
        array = np.asarray(rows)
        if array.dtype.kind != "f" or array.ndim != 2:
            raise _no_matrix(name, array.dtype, array.shape)
        if not array.dtype.isnative or min(array.strides) < 0:
            array = array.astype(array.dtype.newbyteorder("="), order="C")
        with warnings.catch_warnings():  # of read-only arrays, such as a map of a file: nothing here writes
            warnings.simplefilter("ignore", UserWarning)
            tensor = torch.from_numpy(array)
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise _no_matrix(name, tensor.dtype, tensor.shape)
    for start in range(0, len(tensor), 8192):
        finite = torch.isfinite(tensor[start : start + 8192]).all(1)
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise AutointerpError(f"{name} has NaN or infinite values, first in row {row}: is its file whole?")
    return tensor


def _no_matrix(name: str, dtype: object, shape: Sequence[int]) -> AutointerpError:
    return AutointerpError(f"{name} must be a matrix of floats [latents, d_model], this is {dtype} {list(shape)}")


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of norm 1 in float32; a zero row stays zero."""
    rows = rows.float()
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-30)  # squares of tiny float16 rows would vanish
    rows = rows / scale
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)


def unit_rows(tensors: Sequence[torch.Tensor], device: str | torch.device, block: int = 4096) -> torch.Tensor:
    """The rows of all `tensors` after each other, each of norm 1, on `device`: one copy in memory."""
    import torch

    out = torch.empty(sum(map(len, tensors)), tensors[0].shape[1], device=device)
    at = 0
    for tensor in tensors:
        for start in range(0, len(tensor), block):
            rows = tensor[start : start + block]
            out[at : at + len(rows)] = unit(rows.to(device))
            at += len(rows)
    return out


def top_neighbours(
    W: np.ndarray | torch.Tensor,
    m: int = 32,
    *,
    queries: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    candidates: np.ndarray | torch.Tensor | None = None,
    block: int = BLOCK,
    device: str | torch.device = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `m` rows of highest cosine for each query row, itself left out.

    W [n, d]; `queries` are row numbers (None: all); `candidates` [n] bool says which rows may be
    neighbours; zero rows never are. Returns indices [q, m] int64 and cosines [q, m] float32 on
    `device`, highest first; where there are fewer than `m` candidates, the rest is -1 and -inf.
    """
    import torch

    Z = unit_rows([as_tensor(W)], device)
    allowed = (Z != 0).any(1)
    if candidates is not None:
        allowed &= torch.as_tensor(candidates, dtype=torch.bool, device=Z.device)
    wanted = torch.arange(len(Z)) if queries is None else torch.as_tensor(queries).long()
    return search(Z, allowed, wanted.to(Z.device), m, block)


def search(
    Z: torch.Tensor, allowed: torch.Tensor, queries: torch.Tensor, m: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`top_neighbours` over unit rows Z [n, d] that lie on the device already."""
    import torch

    held = allowed.nonzero().squeeze(1)  # row number of each candidate
    if len(held) < len(Z):
        position = torch.full((len(Z),), -1, device=Z.device)
        position[held] = torch.arange(len(held), device=Z.device)
        C = Z[held]
    else:
        position, C = held, Z
    count, kept = len(held), min(m, len(held))
    indices = torch.full((len(queries), m), -1, device=Z.device)
    cosines = torch.full((len(queries), m), -torch.inf, device=Z.device)
    if not kept:
        return indices, cosines
    groups = -(-count // _GROUP)
    buffer = torch.full((min(block, max(len(queries), 1)), groups * _GROUP), -torch.inf, device=Z.device)
    for start in range(0, len(queries), block):
        rows = queries[start : start + block]
        scores = buffer[: len(rows)]
        torch.mm(Z[rows], C.T, out=scores[:, :count])
        own = position[rows]
        there = (own >= 0).nonzero().squeeze(1)
        scores[there, own[there]] = -torch.inf
        values, columns = _top(scores, kept)
        found = values > -torch.inf
        indices[start : start + block, :kept] = torch.where(found, held[columns.clamp_max(count - 1)], -1)
        cosines[start : start + block, :kept] = values
    return indices, cosines


def _top(scores: torch.Tensor, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact `scores.topk(m)`, several times faster: the top m lie in the m groups of highest maximum."""
    import torch

    rows, width = scores.shape
    groups = width // _GROUP
    if groups < 2 * m:
        return scores.topk(m, 1)
    best = scores.view(rows, _GROUP, groups).amax(1).topk(m, 1).indices
    columns = (best[:, None, :] + groups * torch.arange(_GROUP, device=scores.device)[None, :, None]).flatten(1)
    values, places = scores.gather(1, columns).topk(m, 1)
    return values, columns.gather(1, places)
