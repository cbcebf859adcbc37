"""Decompose a decoder row: the best positive sum of two or three neighbours, found by trying all of them.

Two geometries, each for what it is good at:
- the unit rows as they are (Z), where isotropic noise is smallest: R², partial R² and coefficients;
- the rows after `nulls.whitener` (white), where unrelated directions are orthogonal: neighbours,
  significance, and the collider test V. In an anisotropic cone two unrelated parts may have a cosine
  of .5, in the white geometry about 0. f = a·g + b·h holds in both.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from autointerp.composites import nulls

if TYPE_CHECKING:
    import torch

    from autointerp.composites.neighbours import Rows
    from autointerp.progress import Progress

LEVEL = 1e-3  # chance flags fewer than this share of latents
PARTIAL = 0.3  # least partial R² of a term given the others
SHARE = 0.2  # least share of the smaller coefficient in the sum of the smaller and the largest
TRIPLE_GAIN = 0.05  # R² that a third term must add
EDGE = 1e-6  # thresholds sit beside round numbers, where hand-made rows fall and rounding would decide


@dataclass
class Fits:
    """For each of q latents; -1 and 0 where there is none. Partial R² is that of the weakest term."""

    # the best sum of two or three unrelated parts that passes every test but the label's R²
    parts: torch.Tensor  # [q, 3] rows, largest coefficient first
    coefficients: torch.Tensor  # [q, 3]
    r2: torch.Tensor
    partial: torch.Tensor
    white_r2: torch.Tensor
    white_partial: torch.Tensor
    # the best pair that is more than chance, but whose parts are related
    related: torch.Tensor  # [q, 2]
    related_coefficients: torch.Tensor  # [q, 2]
    related_r2: torch.Tensor
    related_partial: torch.Tensor
    related_white_r2: torch.Tensor
    related_white_partial: torch.Tensor
    # the nearest single row: in Z among those nearer than chance in the white geometry, else at all
    nearest: torch.Tensor
    nearest_cosine: torch.Tensor
    nearest_white: torch.Tensor
    highest: torch.Tensor  # cosine in Z with any candidate, -inf where there is none


@dataclass
class _Products:
    """Cosines of a block of latents with their candidates, and of these with each other, in one geometry."""

    c: torch.Tensor  # [b, m]
    G: torch.Tensor  # [b, m, m]

    @staticmethod
    def of(rows: Rows, queries: torch.Tensor, index: torch.Tensor) -> _Products:
        """For latents `queries` [b] and candidates `index` [b, m]."""
        import torch

        b, m = index.shape
        family = torch.cat([index, queries[:, None]], 1)
        gram = torch.empty(b, m + 1, m + 1, device=rows.device)
        # a processor wants the gathered rows to fit its cache, a GPU wants few large products
        room = 500_000 if rows.held is not None and rows.device.type == "cpu" else 50_000_000
        step = max(1, min(b, room // ((m + 1) * rows.shape[1])))
        buffer = torch.empty(step * (m + 1), rows.shape[1], device=rows.device)
        for start in range(0, b, step):
            some = family[start : start + step]
            held = buffer[: some.numel()]
            held = rows.take(some.flatten(), held.view(-1, rows.shape[1])).view(*some.shape, -1)
            torch.bmm(held, held.transpose(1, 2), out=gram[start : start + step])
        return _Products(gram[:, :m, m], gram[:, :m, :m])


def decompose(
    Z: Rows,
    white: Rows,
    queries: torch.Tensor,
    lists: torch.Tensor,
    candidates: int,
    block: int,
    bar: Progress | None = None,
) -> Fits:
    """Fit each latent of `queries` [q] by its candidates `lists` [q, m] (-1: none), rows of Z and white [n, d].

    `candidates` is how many rows the lists were chosen from: it sets what chance may reach. `bar` advances by latents.
    """
    import torch

    d = Z.shape[1]
    bars = {
        "one": nulls.threshold(LEVEL, 1, d, candidates),
        "two": nulls.threshold(LEVEL, 2, d, candidates),
        "next": nulls.threshold(LEVEL, 1, d - 1, candidates),
        "third": nulls.threshold(LEVEL, 1, d - 2, candidates),
    }
    step = max(1, min(block, 4_000_000 // lists.shape[1] ** 2))  # a dozen [b, m, m] tensors live at once
    done = []
    for start in range(0, max(len(queries), 1), step):
        some = queries[start : start + step]
        done.append(_fit_block(Z, white, some, lists[start : start + step], bars))
        if bar is not None:
            bar.advance(len(some))
    return Fits(**{field.name: torch.cat([getattr(part, field.name) for part in done]) for field in fields(Fits)})


def _fit_block(Z: Rows, white: Rows, queries: torch.Tensor, index: torch.Tensor, bars: dict[str, float]) -> Fits:
    import torch

    present = index >= 0
    safe = index.clamp_min(0)
    plain = _Products.of(Z, queries, safe)
    iso = _Products.of(white, queries, safe)
    m = index.shape[1]
    at = torch.arange(len(index), device=index.device)

    a, b, r2 = _pair(plain)
    partial = _partial(r2, plain)
    white_a, white_b, white_r2 = _pair(iso)
    white_partial = _partial(white_r2, iso)
    real = present & (plain.c > 0)
    sound = real[:, :, None] & real[:, None, :] & torch.ones(m, m, dtype=torch.bool, device=index.device).triu(1)
    sound &= (a > 0) & (b > 0) & (white_a > 0) & (white_b > 0)
    sound &= (white_r2 >= bars["two"]) & (white_partial >= bars["next"])
    unrelated = _unrelated(iso)
    even = torch.minimum(a, b) >= (SHARE - EDGE) * (a + b)

    # Of sums that fit equally well (2g + h is also a sum of g + h and g), the one of the least related parts; before
    # all, one to which both terms add enough: a better fit in which they do not would hide it.
    score = r2 - 1e-3 * iso.G.clamp_min(0) + 2 * (partial + EDGE >= PARTIAL)
    best, pair = torch.where(sound & unrelated & even, score, -torch.inf).flatten(1).max(1)
    p, q = pair // m, pair % m
    flagged = best > -torch.inf
    triple = _third(plain, iso, p, q, real & flagged[:, None], bars["third"])

    kin_best, kin = torch.where(sound & ~unrelated, r2, -torch.inf).flatten(1).max(1)
    kp, kq = kin // m, kin % m
    kinship = kin_best > -torch.inf

    near = torch.where(real & (iso.c.clamp_min(0) ** 2 >= bars["one"]), plain.c + 2, plain.c)
    nearest = torch.where(present, near, -torch.inf).argmax(1)
    some = present.any(1)

    parts = torch.stack([p, q, triple.third], 1)
    coefficients = torch.where(
        (triple.third >= 0)[:, None],
        triple.coefficients,
        torch.stack([a[at, p, q], b[at, p, q], torch.zeros_like(best)], 1),
    )
    coefficients = torch.where(flagged[:, None], coefficients, 0)
    order = coefficients.argsort(dim=1, descending=True, stable=True)
    parts = torch.where((parts >= 0) & flagged[:, None], index.gather(1, parts.clamp_min(0)), -1)
    three = triple.third >= 0

    def chosen(values: torch.Tensor, i: torch.Tensor, j: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.where(valid, values[at, i, j], 0)

    return Fits(
        parts=parts.gather(1, order),
        coefficients=coefficients.gather(1, order),
        r2=torch.where(three, triple.r2, chosen(r2, p, q, flagged)),
        partial=torch.where(three, triple.partial, chosen(partial, p, q, flagged)),
        white_r2=torch.where(three, triple.white_r2, chosen(white_r2, p, q, flagged)),
        white_partial=torch.where(three, triple.white_partial, chosen(white_partial, p, q, flagged)),
        related=torch.where(kinship[:, None], torch.stack([index[at, kp], index[at, kq]], 1), -1),
        related_coefficients=torch.stack([chosen(a, kp, kq, kinship), chosen(b, kp, kq, kinship)], 1),
        related_r2=chosen(r2, kp, kq, kinship),
        related_partial=chosen(partial, kp, kq, kinship),
        related_white_r2=chosen(white_r2, kp, kq, kinship),
        related_white_partial=chosen(white_partial, kp, kq, kinship),
        nearest=torch.where(some, index[at, nearest], -1),
        nearest_cosine=torch.where(some, plain.c[at, nearest], 0),
        nearest_white=torch.where(some, iso.c[at, nearest], 0),
        highest=torch.where(present, plain.c, -torch.inf).amax(1),
    )


def _pair(products: _Products) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Least-squares coefficients a, b and R² of every pair of candidates, each [b, m, m]."""
    G, cp, cq = products.G, products.c[:, :, None], products.c[:, None, :]
    left = (1 - G**2).clamp_min(1e-6)
    a, b = (cp - G * cq) / left, (cq - G * cp) / left
    return a, b, a * cp + b * cq


def _partial(r2: torch.Tensor, products: _Products) -> torch.Tensor:
    """(R²₂ − R²₁) / (1 − R²₁), where R²₁ is that of the better single term."""
    import torch

    one = torch.maximum(products.c[:, :, None], products.c[:, None, :]) ** 2
    return (r2 - one) / (1 - one).clamp_min(1e-6)


def _unrelated(white: _Products) -> torch.Tensor:
    """The collider test V: cos(g, h) ≤ ½ cos(f, g) cos(f, h). A parent's children fail it: theirs is about
    cos(f, g) cos(f, h), while the parts of a composite are related only through it."""
    return 0.5 * white.c[:, :, None] * white.c[:, None, :] + EDGE >= white.G


@dataclass
class _Triple:
    third: torch.Tensor  # [b] place in the list, -1 where two terms are enough
    coefficients: torch.Tensor  # [b, 3]
    r2: torch.Tensor
    partial: torch.Tensor
    white_r2: torch.Tensor
    white_partial: torch.Tensor


def _third(
    plain: _Products, white: _Products, p: torch.Tensor, q: torch.Tensor, allowed: torch.Tensor, bar: float
) -> _Triple:
    """The best third term for each latent's pair (p, q), if one passes the pair's own tests and adds enough."""
    import torch

    b, m = plain.c.shape
    at = torch.arange(b, device=p.device)

    def solve(products: _Products) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Coefficients [b, m, 3] and R² [b, m] with each third term, and R² without each term [b, m, 3]."""
        c, G = products.c, products.G
        gp, gq, pq = G[at, p], G[at, q], G[at, p, q][:, None].expand(b, m)
        cs = torch.stack([c[at, p][:, None].expand(b, m), c[at, q][:, None].expand(b, m), c], 2)
        one = torch.ones_like(pq)
        gram = torch.stack([one, pq, gp, pq, one, gq, gp, gq, one], 2).view(b, m, 3, 3).double()
        gram = gram + 1e-6 * torch.eye(3, dtype=gram.dtype, device=gram.device)
        x = torch.linalg.solve(gram, cs.double()[..., None])[..., 0].float()

        def two(i: torch.Tensor, j: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
            return (i**2 + j**2 - 2 * g * i * j) / (1 - g**2).clamp_min(1e-6)

        without = [two(cs[..., 1], cs[..., 2], gq), two(cs[..., 0], cs[..., 2], gp), two(cs[..., 0], cs[..., 1], pq)]
        return x, (x * cs).sum(2), torch.stack(without, 2)

    x, r2, without = solve(plain)
    white_x, white_r2, white_without = solve(white)
    partial = ((r2[..., None] - without) / (1 - without).clamp_min(1e-6)).amin(2)
    white_partial = ((white_r2[..., None] - white_without) / (1 - white_without).clamp_min(1e-6)).amin(2)
    apart = _unrelated(white)
    good = allowed & apart[at, p] & apart[at, q] & (x > 0).all(2) & (white_x > 0).all(2)
    good &= x.amin(2) >= (SHARE - EDGE) * (x.amin(2) + x.amax(2))
    good &= (r2 - without[..., 2] >= TRIPLE_GAIN - EDGE) & (partial + EDGE >= PARTIAL) & (white_partial >= bar)
    good &= torch.arange(m, device=p.device)[None] != p[:, None]
    good &= torch.arange(m, device=p.device)[None] != q[:, None]
    best, third = torch.where(good, r2, -torch.inf).max(1)
    return _Triple(
        torch.where(best > -torch.inf, third, -1),
        x[at, third],
        r2[at, third],
        partial[at, third],
        white_r2[at, third],
        white_partial[at, third],
    )
