"""Decoder neighbours: nearest rows by cosine, block by block; the n × n matrix is never in memory.

The search is exact and fast: cosines of all pairs in few bits name candidates, cosines in float32 of those
decide, and the rounding of the few bits, which is known, says for which rows that is not enough. Those are
searched again in float32. So neither the block size nor the device nor the number of threads matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from autointerp.progress import Progress

BLOCK = 512  # query rows at a time: 67 MB of cosines in bfloat16 against a chunk of candidates
MEMORY = 3 * 2**30  # bytes
_CHUNK = 65_536  # candidates at a time
_WITHIN = 2048  # rows on either side of a block of cosines in float32: 17 MB
_QUERIES = 32 * BLOCK  # query rows between two passes over a dictionary in memory: so many have candidates at once
_GROUP = 32  # columns whose maximum is compared first
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_BYTES = 10  # a number of a dictionary held: unit row and whitened row in float32, and a part in bfloat16


def as_matrix(rows: np.ndarray | torch.Tensor, name: str = "W_dec") -> np.ndarray | torch.Tensor:
    """`rows` [n, d] as they are, a map of a file too; an error in one line where it is no matrix of finite floats."""
    import numpy as np
    import torch

    matrix = rows.detach() if isinstance(rows, torch.Tensor) else np.asanyarray(rows)
    if isinstance(matrix, torch.Tensor):
        floats = str(matrix.dtype).removeprefix("torch.") in _FLOATS and matrix.layout == torch.strided
    else:
        floats = matrix.dtype.newbyteorder("=").name in _FLOATS
    if matrix.ndim != 2 or not floats:
        kind, shape = matrix.dtype, list(matrix.shape)
        sparse = " (sparse)" if isinstance(matrix, torch.Tensor) and matrix.layout != torch.strided else ""
        raise AutointerpError(f"{name} must be a matrix of floats [latents, d_model], this is {kind}{sparse} {shape}")
    if not matrix.shape[1]:
        raise AutointerpError(f"{name} has rows of width 0")
    for start in range(0, len(matrix), 4096):
        finite = torch.isfinite(_tensor(matrix[start : start + 4096])).all(1)
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise AutointerpError(f"{name} has NaN or infinite values, first in row {row}: is its file whole?")
    return matrix


def _tensor(part: np.ndarray | torch.Tensor) -> torch.Tensor:
    import numpy as np
    import torch

    if isinstance(part, torch.Tensor):
        return part
    part = np.asarray(part)
    if not part.dtype.isnative or not part.flags.writeable or min(part.strides, default=0) < 0:
        part = part.astype(part.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(part)


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of norm 1 in float32; a zero row stays zero."""
    import torch

    if rows.dtype != torch.float64:
        rows = rows.float()
    scale = rows.abs().amax(-1, keepdim=True)  # so that no square is 0 or infinite
    rows = (rows / scale.clamp_min(1e-300 if rows.dtype == torch.float64 else 1e-37)).float()
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)


class Rows:
    """Unit rows [n, d] in float32 on a device, indexed by a slice or a tensor of row numbers.

    They are held there where they fit in `memory` bytes; else they are read, from a file if they lie in one,
    and scaled each time they are asked for. `at_once` is how many may be asked for at a time.
    """

    def __init__(
        self,
        sources: Sequence[np.ndarray | torch.Tensor],
        device: str | torch.device,
        memory: int = MEMORY,
        by: torch.Tensor | None = None,
    ) -> None:
        import torch

        self.sources, self.by, self.memory = list(sources), by, memory
        self.device = torch.device(device)
        self.shape = (sum(map(len, sources)), sources[0].shape[1])
        self.held: torch.Tensor | None = None
        fits = len(self) * self.shape[1] * _BYTES <= memory
        self.at_once = 16_384 if fits else max(256, memory // (20 * self.shape[1] + 4096))
        if fits:
            self.held = self[:]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def room(self) -> int:
        """Bytes of `memory` that are left where these rows and two maps of them are held."""
        return self.memory if self.held is None else max(0, self.memory - 3 * 4 * self.held.numel())

    def __getitem__(self, at: slice | torch.Tensor) -> torch.Tensor:
        import torch

        if self.held is not None:
            return self.held[at]
        asked = range(*at.indices(len(self))) if isinstance(at, slice) else at.cpu()
        out = torch.empty(len(asked), self.shape[1], device=self.device)
        for start in range(0, len(asked), 4096):
            rows = unit(self._read(asked[start : start + 4096]).to(self.device))
            out[start : start + 4096] = rows if self.by is None else unit(rows @ self.by)
        return out

    def take(self, index: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Rows `index` [k] in `out` [k, d]: new memory would cost more than the rows."""
        import torch

        if self.held is None:
            return out.copy_(self[index])
        return torch.index_select(self.held, 0, index, out=out)

    def whitened(self, L: torch.Tensor) -> Rows:
        """Unit rows of these times L⁻ᵀ, see `nulls.whitener`; zero rows stay zero."""
        import torch

        inverse = torch.linalg.solve_triangular(L, torch.eye(len(L), dtype=L.dtype, device=L.device), upper=False)
        return self.mapped(inverse.T)

    def mapped(self, by: torch.Tensor) -> Rows:
        """Unit rows of these times `by` [d, d]; zero rows stay zero."""
        if self.held is not None:
            return Rows([self.held], self.device, self.memory, by.float().contiguous())
        whole = by if self.by is None else self.by.to(by.dtype) @ by
        return Rows(self.sources, self.device, self.memory, whole.float().contiguous())

    def _read(self, at: range | torch.Tensor) -> torch.Tensor:
        """These rows as they are, or scaled where they are of several sources."""
        import torch

        first = 0
        if isinstance(at, range):
            parts = []
            for source in self.sources:
                low, high = max(at.start - first, 0), min(at.stop - first, len(source))
                if low < high:
                    parts.append(_tensor(source[low:high]))
                first += len(source)
            return parts[0] if len(parts) == 1 else torch.cat([unit(part) for part in parts])
        out = torch.empty(len(at), self.shape[1])
        for source in self.sources:
            mine = ((at >= first) & (at < first + len(source))).nonzero().squeeze(1)
            if len(mine):
                local = at[mine] - first
                out[mine] = unit(_tensor(source[local if isinstance(source, torch.Tensor) else local.numpy()]))
            first += len(source)
        return out


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products that are float32, whatever the caller allows elsewhere; few bits are our own choice."""
    import torch

    cuda = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), cuda.allow_fp16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    cuda.allow_fp16_reduced_precision_reduction = False  # `_nearest` counts on float32 sums
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cuda.allow_fp16_reduced_precision_reduction = before[1]


def top_neighbours(
    W: np.ndarray | torch.Tensor,
    m: int = 32,
    *,
    queries: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    candidates: np.ndarray | torch.Tensor | None = None,
    block: int = BLOCK,
    device: str | torch.device = "cpu",
    memory: int = MEMORY,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `m` rows of highest cosine for each query row, itself left out.

    W [n, d]; `queries` are row numbers (None: all); `candidates` [n] bool says which rows may be
    neighbours; zero rows never are. Returns indices [q, m] int64 and cosines [q, m] float32 on
    `device`, highest first, of equal ones the lower row first; where there are fewer than `m`
    candidates, the rest is -1 and -inf. Rows that do not fit in `memory` bytes are read as needed.
    """
    import torch

    with full_precision(), torch.inference_mode():
        Z = Rows([as_matrix(W)], device, memory)
        allowed = not_zero(Z)
        if candidates is not None:
            allowed &= torch.as_tensor(candidates, dtype=torch.bool, device=Z.device)
        wanted = torch.arange(len(Z)) if queries is None else torch.as_tensor(queries)
        if wanted.dtype == torch.bool or wanted.is_floating_point() or not ((wanted >= 0) & (wanted < len(Z))).all():
            raise AutointerpError(f"queries must be row numbers from 0 to {len(Z) - 1}")
        index, cosines = search(Z, allowed, wanted.long().to(Z.device), m, block)
    return index.clone(), cosines.clone()  # outside of inference mode, so that they are as other tensors


def all_within(
    W: np.ndarray | torch.Tensor,
    least: float,
    among: Sequence[int],
    *,
    device: str | torch.device = "cpu",
    memory: int = MEMORY,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Each of the rows `among` of W [n, d] with all others among them at a cosine of `least` (above 0) or more: their
    row numbers [k] int64, in the order of `among`. A block of cosines at a time; zero rows are near none."""
    import torch

    wanted = torch.as_tensor(among, dtype=torch.long)
    with full_precision(), torch.inference_mode():
        Z = Rows([as_matrix(W)], device, memory)
        place = wanted.to(Z.device)
        for start in range(0, len(wanted), _WITHIN):
            rows, columns = [], []
            Q = Z[place[start : start + _WITHIN]]
            for first in range(0, len(wanted), _WITHIN):
                cosines = Q @ Z[place[first : first + _WITHIN]].T
                row, column = (cosines >= least).nonzero(as_tuple=True)
                other = row + start != column + first
                rows.append(row[other].cpu())
                columns.append(column[other].cpu() + first)
            row, order = torch.cat(rows).sort(stable=True)
            others = wanted[torch.cat(columns)[order]].split(row.bincount(minlength=len(Q)).tolist())
            yield from zip(wanted[start : start + _WITHIN].tolist(), others)


def not_zero(Z: Rows) -> torch.Tensor:
    """[n] bool: rows that are a direction."""
    import torch

    mask = torch.empty(len(Z), dtype=torch.bool, device=Z.device)  # parts of it, kept, would hold freed blocks apart
    for start in range(0, len(Z), 4096):
        mask[start : start + 4096] = (Z[start : start + 4096] != 0).any(1)
    return mask


def search(
    Z: Rows, allowed: torch.Tensor, queries: torch.Tensor, m: int, block: int, bar: Progress | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`top_neighbours` of unit rows that are at hand already; `bar` advances by queries."""
    import torch

    names = allowed.nonzero().squeeze(1)
    indices = torch.full((len(queries), m), -1, device=Z.device)
    cosines = torch.full((len(queries), m), -torch.inf, device=Z.device)
    dtype = _few_bits(Z.device) if len(queries) >= 256 else torch.float32
    most = max(Z.at_once // block, 1) * block
    if Z.held is not None:
        most = min(most, _QUERIES)
    start, step = 0, block  # the first block tells whether few bits are enough
    while start < len(queries) and len(names):
        rows = queries[start : start + step]
        index, cosine, sure = _nearest(Z, names, rows, m, block, dtype)
        unsure = (~sure).nonzero().squeeze(1)
        if dtype != torch.float32 and len(unsure):
            index[unsure], cosine[unsure], _ = _nearest(Z, names, rows[unsure], m, block, torch.float32)
            if 2 * len(unsure) > len(rows):
                dtype = torch.float32
        indices[start : start + step], cosines[start : start + step] = index, cosine
        if bar is not None:
            bar.advance(len(rows))
        start, step = start + step, most
    return indices, cosines


def _few_bits(device: torch.device) -> torch.dtype:
    """What the first product is fastest in: float16 on a GPU, bfloat16 on a processor that has it."""
    import torch

    from autointerp.sae.few_bits import fast_on

    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if fast_on(device) else torch.float32


@dataclass
class _Best:
    """The `keep` highest so far of each query, in any order, and the cosine that all others are below."""

    columns: torch.Tensor  # [q, keep] row numbers, -1: none
    values: torch.Tensor  # [q, keep]

    def merge(self, at: slice, columns: torch.Tensor, values: torch.Tensor) -> None:
        import torch

        both = torch.cat([self.values[at], values], 1)
        kept, places = both.topk(self.values.shape[1], 1)
        self.columns[at] = torch.cat([self.columns[at], columns], 1).gather(1, places)
        self.values[at] = kept


def _nearest(
    Z: Rows, names: torch.Tensor, queries: torch.Tensor, m: int, block: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The m nearest of rows `names` to each of `queries`: indices, float32 cosines, and [q] bool "these are they".

    With z = ẑ + δ and w = ŵ + ε, ẑ and ŵ in few bits: |zw − ẑŵ| ≤ ‖δ‖ + ‖ε‖ (1 + ‖δ‖), as ‖z‖ = ‖w‖ = 1.
    So nothing that was left out can be nearer than the least of those kept, plus that.
    """
    import torch

    few = dtype != torch.float32
    keep = 2 * m if few else m + 8
    block = block if few else max(1, block // 2)  # as many bytes of cosines either way
    Q = Z[queries]
    q = Q.to(dtype)
    best = _Best(
        torch.full((len(queries), keep), -1, device=Z.device),
        torch.full((len(queries), keep), -torch.inf, device=Z.device),
    )
    position = torch.full((len(Z),), -1, device=Z.device)
    position[names] = torch.arange(len(names), device=Z.device)
    own = position[queries]
    chunk = min(_CHUNK, Z.at_once) if Z.held is None else _CHUNK
    groups = -(-min(chunk, len(names)) // _GROUP)
    buffer = torch.empty(min(block, len(queries)), groups * _GROUP, dtype=dtype, device=Z.device)
    candidate_error = torch.zeros((), device=Z.device)
    for first in range(0, len(names), chunk):
        part = names[first : first + chunk]
        whole = len(names) == len(Z)
        C = Z[first : first + chunk] if whole else Z[part]
        c = C.to(dtype)
        if few:
            candidate_error = torch.maximum(candidate_error, _errors(C, c).max())
        del C
        width = -(-len(part) // _GROUP) * _GROUP
        for at in range(0, len(queries), block):
            here = slice(at, min(at + block, len(queries)))
            scores = buffer[: here.stop - at, :width]
            scores[:, len(part) :] = -torch.inf
            torch.mm(q[here], c.T, out=scores[:, : len(part)])
            mine = own[here] - first
            there = ((own[here] >= 0) & (mine >= 0) & (mine < len(part))).nonzero().squeeze(1)
            scores[there, mine[there]] = -torch.inf
            values, columns = _top(scores, min(keep, width))
            best.merge(here, torch.where(values > -torch.inf, part[columns.clamp_max(len(part) - 1)], -1), values)
    floor = best.values.amin(1)  # -inf where nothing was left out
    index, cosine = _in_float32(Z, Q, best.columns)
    rounding = floor.abs() * torch.finfo(dtype).eps + Z.shape[1] * torch.finfo(torch.float32).eps
    query_error = _errors(Q, q) if few else torch.zeros(len(Q), device=Z.device)
    bound = query_error + candidate_error * (1 + query_error) + rounding
    sure = (floor == -torch.inf) | (cosine[:, m - 1] > floor + bound)
    return index[:, :m], cosine[:, :m], sure


def _errors(rows: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    import torch

    norms = torch.empty(len(rows), device=rows.device)
    for start in range(0, len(rows), 4096):
        norms[start : start + 4096] = (rows[start : start + 4096] - rounded[start : start + 4096].float()).norm(dim=1)
    return norms


def _in_float32(Z: Rows, Q: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [q, k] (-1: none) by their cosine with Q [q, d], highest first, equal ones by number; and the cosines."""
    import torch

    columns = columns.sort(1).values
    cosines = torch.empty(columns.shape, device=Z.device)
    k, d = columns.shape[1], Z.shape[1]
    # one row's gathered candidates and their products fit a processor's cache; a GPU wants few large products
    step = max(1, (200_000 if Z.held is not None and Z.device.type == "cpu" else 20_000_000) // (k * d))
    buffer = torch.empty(min(step, len(Q)) * k, d, device=Z.device)
    for start in range(0, len(Q), step):
        index = columns[start : start + step].clamp_min(0)
        rows = Z.take(index.flatten(), buffer[: index.numel()]).view(*index.shape, d)
        cosines[start : start + step] = rows.mul_(Q[start : start + step, None]).sum(2)
    cosines[columns < 0] = -torch.inf
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    return columns.gather(1, order), cosines


def _top(scores: torch.Tensor, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact `scores.float().topk(m)`, several times faster: the top m lie in the m groups of highest maximum."""
    import torch

    rows, width = scores.shape
    groups = width // _GROUP
    if groups < 2 * m:
        return scores.float().topk(m, 1)
    best = scores.view(rows, _GROUP, groups).amax(1).float().topk(m, 1).indices
    columns = (best[:, None, :] + groups * torch.arange(_GROUP, device=scores.device)[None, :, None]).flatten(1)
    values, places = scores.gather(1, columns).float().topk(m, 1)
    return values, columns.gather(1, places)
