"""Decompose a decoder row: the best positive sum of two to four neighbours, found by trying all pairs of them.

Two geometries, each for what it is good at:
- the unit rows as they are (Z), where isotropic noise is smallest: R², partial R² and coefficients;
- the rows after `nulls.whitener` (white), where unrelated directions are orthogonal: neighbours,
  significance, and the collider test V. In an anisotropic cone two unrelated parts may have a cosine
  of .5, in the white geometry about 0. f = a·g + b·h holds in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from autointerp.composites import nulls

if TYPE_CHECKING:
    import torch

    from autointerp.composites.neighbours import Rows
    from autointerp.progress import Progress

LEVEL = 1e-3  # chance flags fewer than this share of latents
PARTIAL = 0.3  # least partial R² of a term given the others
SHARE = 0.2  # least share of the smaller coefficient in the sum of the smaller and the largest
OPPOSED = 0.4, 4.0  # most negative white cosine of two terms: this, or so many standard deviations of a chance one
AWAY = 0.12  # least size of the negative partial correlation of two parts given their sum
TERMS = 4
TRIPLE_GAIN = 0.05  # R² that a third or fourth term must add
EDGE = 1e-6  # thresholds sit beside round numbers, where hand-made rows fall and rounding would decide


@dataclass
class Fits:
    """For each of q latents; -1 and 0 where there is none. Partial R² is that of the weakest term."""

    # the best sum of two to four unrelated parts that passes every test but the label's R²
    parts: torch.Tensor  # [q, TERMS] rows, largest coefficient first
    coefficients: torch.Tensor  # [q, TERMS]
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
    near: torch.Tensor  # [q, m] bool: candidates nearer than chance in the white geometry


@dataclass
class _Products:
    """Cosines of a block of latents with their candidates, and of these with each other, in one geometry."""

    c: torch.Tensor  # [b, m]
    G: torch.Tensor  # [b, m, m]
    d: int  # dimensions

    def beside(self, own: torch.Tensor, theirs: torch.Tensor) -> _Products:
        """Without a direction along which the latents have `own` [b], their candidates `theirs` [b, m]."""
        left = (1 - theirs**2).clamp_min(1e-6).sqrt()
        c = (self.c - own[:, None] * theirs) / left / (1 - own**2).clamp_min(1e-6).sqrt()[:, None]
        G = (self.G - theirs[:, :, None] * theirs[:, None, :]) / (left[:, :, None] * left[:, None, :])
        return _Products(c, G, self.d - 1)

    def at(self, rows: torch.Tensor) -> _Products:
        return _Products(self.c[rows], self.G[rows], self.d)

    @staticmethod
    def of(rows: Rows, queries: torch.Tensor, index: torch.Tensor) -> _Products:
        """For latents `queries` [b] and candidates `index` [b, m]."""
        m = index.shape[1]
        products = gram(rows, queries, index)
        return _Products(products[:, :m, m], products[:, :m, :m], rows.shape[1])


def gram(rows: Rows, queries: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[b, m + 1, m + 1] cosines among rows `index` [b, m] and `queries` [b], which come last."""
    import torch

    b, m = index.shape
    family = torch.cat([index, queries[:, None]], 1)
    products = torch.empty(b, m + 1, m + 1, device=rows.device)
    # a processor wants the gathered rows to fit its cache, a GPU wants few large products
    room = 500_000 if rows.held is not None and rows.device.type == "cpu" else 50_000_000
    step = max(1, min(b, room // ((m + 1) * rows.shape[1])))
    buffer = torch.empty(step * (m + 1), rows.shape[1], device=rows.device)
    for start in range(0, b, step):
        members = family[start : start + step]
        held = buffer[: members.numel()]
        held = rows.take(members.flatten(), held.view(-1, rows.shape[1])).view(*members.shape, -1)
        torch.bmm(held, held.transpose(1, 2), out=products[start : start + step])
    return products


def decompose(
    Z: Rows,
    white: Rows,
    along: torch.Tensor,
    queries: torch.Tensor,
    lists: torch.Tensor,
    candidates: int,
    d: int,
    block: int,
    bar: Progress | None = None,
) -> Fits:
    """Fit each latent of `queries` [q] by its candidates `lists` [q, m] (-1: none), rows of Z and white [n, d].

    `along` [n] is how much of each row of Z lies along their mean. `candidates` is how many rows the lists were chosen
    from, and `d` in how many dimensions white rows lie: they set what chance may reach. `bar` advances by latents.
    """
    import torch

    bars: dict[str, Any] = {
        "one": nulls.threshold(LEVEL, 1, d, candidates),
        "two": nulls.threshold(LEVEL, 2, d, candidates),
        "next": nulls.threshold(LEVEL, 1, d - 1, candidates),
        "more": [nulls.threshold(LEVEL, 1, d - k, candidates) for k in range(2, TERMS)],
    }
    step = max(1, min(block, 4_000_000 // lists.shape[1] ** 2))  # a dozen [b, m, m] tensors live at once
    done = []
    for start in range(0, max(len(queries), 1), step):
        asked = queries[start : start + step]
        done.append(_fit_block(Z, white, along, asked, lists[start : start + step], bars))
        if bar is not None:
            bar.advance(len(asked))
    return Fits(**{field.name: torch.cat([getattr(part, field.name) for part in done]) for field in fields(Fits)})


def _fit_block(
    Z: Rows, white: Rows, along: torch.Tensor, queries: torch.Tensor, index: torch.Tensor, bars: Mapping[str, Any]
) -> Fits:
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
    real = present & (iso.c > 0)
    sound = real[:, :, None] & real[:, None, :] & torch.ones(m, m, dtype=torch.bool, device=index.device).triu(1)
    sound &= (a > 0) & (b > 0) & (white_a > 0) & (white_b > 0)
    sound &= (white_r2 >= bars["two"]) & (white_partial >= bars["next"])
    unrelated = _unrelated(iso) & _explain_away(plain.beside(along[queries], along[safe]))
    even = torch.minimum(a, b) >= (SHARE - EDGE) * (a + b)

    # Of sums that fit equally well (2g + h is also a sum of g + h and g), the one of the least related parts; before
    # all, one to which both terms add enough: a better fit in which they do not would hide it.
    score = r2 - 1e-3 * iso.G.clamp_min(0) + 2 * (partial + EDGE >= PARTIAL)
    best, pair = torch.where(sound & unrelated & even, score, -torch.inf).flatten(1).max(1)
    p, q = pair // m, pair % m
    flagged = best > -torch.inf
    kin_best, kin = torch.where(sound & ~unrelated, r2, -torch.inf).flatten(1).max(1)
    kp, kq = kin // m, kin % m
    kinship = kin_best > -torch.inf

    near = present & (iso.c.clamp_min(0) ** 2 >= bars["one"])
    nearest = torch.where(present, torch.where(near & real, plain.c + 2, plain.c), -torch.inf).argmax(1)
    any_present = present.any(1)

    def chosen(values: torch.Tensor, i: torch.Tensor, j: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.where(valid, values[at, i, j], 0)

    pairs = _Sum(
        torch.where(flagged[:, None], torch.stack([p, q], 1), -1),
        torch.stack([chosen(a, p, q, flagged), chosen(b, p, q, flagged)], 1),
        *(chosen(values, p, q, flagged) for values in (r2, partial, white_r2, white_partial)),
    )
    whole = _more(plain, iso, pairs, real, bars["more"])
    order = whole.coefficients.argsort(dim=1, descending=True, stable=True)
    terms = whole.terms.gather(1, order)
    return Fits(
        parts=torch.where(terms >= 0, index.gather(1, terms.clamp_min(0)), -1),
        coefficients=whole.coefficients.gather(1, order),
        r2=whole.r2,
        partial=whole.partial,
        white_r2=whole.white_r2,
        white_partial=whole.white_partial,
        related=torch.where(kinship[:, None], torch.stack([index[at, kp], index[at, kq]], 1), -1),
        related_coefficients=torch.stack([chosen(a, kp, kq, kinship), chosen(b, kp, kq, kinship)], 1),
        related_r2=chosen(r2, kp, kq, kinship),
        related_partial=chosen(partial, kp, kq, kinship),
        related_white_r2=chosen(white_r2, kp, kq, kinship),
        related_white_partial=chosen(white_partial, kp, kq, kinship),
        nearest=torch.where(any_present, index[at, nearest], -1),
        nearest_cosine=torch.where(any_present, plain.c[at, nearest], 0),
        nearest_white=torch.where(any_present, iso.c[at, nearest], 0),
        highest=torch.where(present, plain.c, -torch.inf).amax(1),
        near=near,
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

    single = torch.maximum(products.c[:, :, None], products.c[:, None, :]) ** 2
    return (r2 - single) / (1 - single).clamp_min(1e-6)


def _unrelated(white: _Products) -> torch.Tensor:
    """The collider test V: cos(g, h) ≤ ½ cos(f, g) cos(f, h). A parent's children fail it: theirs is about
    cos(f, g) cos(f, h), while the parts of a composite are related only through it.

    Nor are they opposed: if f = g + h and there is a row near -g, h is f and that row. In a dictionary of few rows
    whitening alone sets g and h at -1/3 to each other, and f and the row near -g at -.47."""
    opposed = max(OPPOSED[0], OPPOSED[1] / white.d**0.5)
    return (0.5 * white.c[:, :, None] * white.c[:, None, :] + EDGE >= white.G) & (-opposed <= white.G)


def _explain_away(plain: _Products) -> torch.Tensor:
    """The partial correlation of g and h given f: parts of a sum explain each other away, a parent's children have none
    left. Isotropic residuals of children count for much after whitening, and hide there what they have in common."""
    left = (1 - plain.c**2).clamp_min(1e-6).sqrt()
    partial = plain.G - plain.c[:, :, None] * plain.c[:, None, :]
    return partial <= -AWAY * left[:, :, None] * left[:, None, :]


@dataclass
class _Sum:
    """The sum of k terms of each latent."""

    terms: torch.Tensor  # [b, k] places in the list, -1: no more
    coefficients: torch.Tensor  # [b, k]
    r2: torch.Tensor
    partial: torch.Tensor
    white_r2: torch.Tensor
    white_partial: torch.Tensor


def _more(plain: _Products, white: _Products, pairs: _Sum, allowed: torch.Tensor, bars: Sequence[float]) -> _Sum:
    """Each pair with a third term and a fourth, where one passes the pair's own tests and adds enough.

    `allowed` [b, m] are the candidates, `bars` the least partial R² of the third and fourth term in the white geometry.
    """
    import torch

    whole = pairs
    for bar in bars:
        k = whole.terms.shape[1]
        whole.terms = torch.nn.functional.pad(whole.terms, (0, 1), value=-1)
        whole.coefficients = torch.nn.functional.pad(whole.coefficients, (0, 1))
        at = (whole.terms[:, k - 1] >= 0).nonzero().squeeze(1)
        if not len(at):
            continue
        longer = _longer(plain.at(at), white.at(at), whole.terms[at, :k], allowed[at], bar)
        added = longer.terms[:, k] >= 0
        for field in fields(_Sum):
            getattr(whole, field.name)[at[added]] = getattr(longer, field.name)[added]
    return whole


def _longer(plain: _Products, white: _Products, terms: torch.Tensor, allowed: torch.Tensor, bar: float) -> _Sum:
    """The best further term for each latent's `terms` [b, k]; its place is -1 where none is good enough."""
    import torch

    apart = _unrelated(white)
    x, r2, partial = _with_each(plain, terms)
    white_x, white_r2, white_partial = _with_each(white, terms)
    good = allowed & (x > 0).all(2) & (white_x > 0).all(2)
    good &= apart.gather(1, terms[:, :, None].expand(-1, -1, apart.shape[2])).all(1)
    good &= x.amin(2) >= (SHARE - EDGE) * (x.amin(2) + x.amax(2))
    gain = (1 - r2) * partial[..., -1] / (1 - partial[..., -1]).clamp_min(1e-6)
    good &= (gain >= TRIPLE_GAIN - EDGE) & (partial.amin(2) + EDGE >= PARTIAL) & (white_partial.amin(2) >= bar)
    good.scatter_(1, terms, False)
    best, term = torch.where(good, r2, -torch.inf).max(1)
    at = torch.arange(len(terms), device=terms.device)
    return _Sum(
        torch.cat([terms, torch.where(best > -torch.inf, term, -1)[:, None]], 1),
        x[at, term],
        r2[at, term],
        partial[at, term].amin(1),
        white_r2[at, term],
        white_partial[at, term].amin(1),
    )


def _with_each(products: _Products, terms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Least squares by `terms` [b, k] and each candidate: coefficients [b, m, k + 1], that of the candidate last, R²
    [b, m], and the partial R² of each term given the others [b, m, k + 1].

    By the bordered inverse: with B = G⁻¹ of the terms and g their products with a candidate, s = 1 − gᵀBg.
    """
    import torch

    k, m = terms.shape[1], products.c.shape[1]
    c, G = products.c.double(), products.G.double()
    cross = G.gather(1, terms[:, :, None].expand(-1, -1, m))  # [b, k, m]
    base = cross.gather(2, terms[:, None, :].expand(-1, k, -1))
    inverse = torch.linalg.inv(base + 1e-6 * torch.eye(k, dtype=G.dtype, device=G.device))
    own = c.gather(1, terms)
    alone = (inverse @ own[..., None])[..., 0]  # [b, k]
    turned = inverse @ cross  # [b, k, m]
    s = (1 + 1e-6 - (cross * turned).sum(1)).clamp_min(1e-6)  # [b, m]
    last = (c - (cross * alone[..., None]).sum(1)) / s
    x = torch.cat([alone[..., None] - turned * last[:, None], last[:, None]], 1).mT
    r2 = (own * alone).sum(1)[:, None] + last**2 * s
    diagonal = inverse.diagonal(dim1=1, dim2=2)[..., None] + turned**2 / s[:, None]
    drop = x**2 / torch.cat([diagonal, 1 / s[:, None]], 1).mT
    partial = drop / (1 - r2[..., None] + drop).clamp_min(1e-6)
    return x.float(), r2.float(), partial.float()
