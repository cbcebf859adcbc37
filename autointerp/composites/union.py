"""Union dictionary: do constituents that another SAE lends fire where the latent fires?

Directions alone cannot say. A wider SAE may hold a latent's two parts, which are both on where it is; or it may have
split the latent into two that exclude each other, and whose sum it is all the same.

1. `lent_sums`: the flagged latents with constituents of the union SAE. Where there is none, nothing need be loaded.
2. `lent`: beside them two controls, another such latent's parts and latents that are no sums with their nearest union
   rows; the subject runs once more, and both SAEs encode the tested tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from autointerp.activations.contexts import chunks
from autointerp.composites.check import DUPLICATE
from autointerp.composites.codes import Codes, activations_at
from autointerp.composites.evidence import (
    CONFIRM_SHARE,
    CONFIRM_TOKENS,
    draw,
    some_atomic,
    strong_tokens,
    swapped_parts,
)
from autointerp.composites.labels import FLAGGED
from autointerp.composites.neighbours import top_neighbours
from autointerp.progress import progress

if TYPE_CHECKING:
    from autointerp.artifacts import Corpus, Firings
    from autointerp.sae.model import SAE
    from autointerp.subject.model import Subject

Frame: TypeAlias = Any  # a pandas.DataFrame


def lent_sums(table: Frame, d_sae: int) -> dict[int, list[int]]:
    """Each flagged latent with constituents of the union SAE -> all its constituents: latents of this SAE, and
    ``d_sae + u`` for row u of the union."""
    rows = table[(table["union_constituents"].map(len) > 0) & table["label"].isin(FLAGGED)]
    return {
        int(f): [*map(int, mine), *(d_sae + int(u) for u in theirs)]
        for f, mine, theirs in zip(rows["feature"], rows["constituents"], rows["union_constituents"])
    }


def lent(
    sums: Mapping[int, list[int]],
    table: Frame,
    corpus: Corpus,
    firings: Firings,
    sae: SAE,
    union: SAE,
    subject: Subject,
    turn: np.ndarray,
    *,
    tokens: int,
    seed: int,
    batch_tokens: int,
    device: str,
) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """For each of `sums` (of `lent_sums`) on what share of its strong tokens all constituents fire, each in its own SAE
    (`cofire`), and another such latent's (`cofire_swapped`), over how many `tokens`.

    And figures over all: their means, and those of latents that are no sums with their two nearest union rows. At
    most `tokens` of a latent are looked at, of rows in the order `turn`; the subject runs on the rows that hold them.
    """
    seed %= 2**64
    swapped, plain = swapped_parts(sums, seed), _no_sums(table, firings.counts, sae, union, seed)
    asked = [(f, parts) for wanted in (sums, swapped, plain) for f, parts in wanted.items()]
    tested = _tested(sorted({f for f, _ in asked}), corpus, firings, turn, tokens)
    together = _together(asked, tested, corpus, sae, union, subject, batch_tokens, device)
    count = {f: len(positions) for f, positions in tested.items()}
    rows: dict[int, dict[str, Any]] = {f: {"cofire": x, "tokens": count[f]} for f, x in zip(sums, together)}
    for f, share in zip(swapped, together[len(sums) :]):
        rows[f]["cofire_swapped"] = share
    enough = [x for f, x in zip(plain, together[len(sums) + len(swapped) :]) if count[f] >= CONFIRM_TOKENS]
    shares = [row["cofire"] for row in rows.values() if row["tokens"] >= CONFIRM_TOKENS]
    return rows, {**_over_all(shares), "no_sums": _over_all(enough)}


def _over_all(shares: Sequence[float]) -> dict[str, Any]:
    return {
        "n": len(shares),
        "mean": float(np.mean(shares)) if shares else None,
        "pass": sum(share >= CONFIRM_SHARE for share in shares),
    }


def _no_sums(table: Frame, counts: np.ndarray, sae: SAE, union: SAE, seed: int) -> dict[int, list[int]]:
    """Some atomic latents, each with the two union rows nearest to it that are not itself."""
    drawn = some_atomic(table["label"], counts, seed)
    if not len(drawn):
        return {}
    both = torch.cat([sae.W_dec.detach().float().cpu(), union.W_dec.detach().float().cpu()])
    lender = np.arange(len(both)) >= sae.cfg.d_sae
    near, cosines = top_neighbours(both, 4, queries=drawn, candidates=lender)
    pairs = {}
    for f, parts, cosine in zip(drawn.tolist(), near.tolist(), cosines.tolist()):
        others = [part for part, value in zip(parts, cosine) if part >= 0 and value < DUPLICATE][:2]
        if len(others) == 2:
            pairs[f] = others
    return pairs


def _tested(
    features: Sequence[int], corpus: Corpus, firings: Firings, turn: np.ndarray, tokens: int
) -> dict[int, np.ndarray]:
    """The strong tokens [t] of each latent that are looked at."""
    tested: dict[int, np.ndarray] = {}
    for chunk in chunks(features, firings.counts):
        for f, (position, activation) in firings.of(chunk).items():
            strong = position[strong_tokens(activation)]
            tested[f] = strong[draw(corpus.row_of(strong), turn, tokens)]
    return tested


def _together(
    asked: Sequence[tuple[int, list[int]]],
    tested: Mapping[int, np.ndarray],
    corpus: Corpus,
    sae: SAE,
    union: SAE,
    subject: Subject,
    batch_tokens: int,
    device: str,
) -> list[float]:
    """For each latent and parts (rows of both SAEs, the union's last) the share of its tokens on which all parts
    fire."""
    n, width = sae.cfg.d_sae, max(len(parts) for _, parts in asked)
    wanted = torch.tensor([[*parts, *[-1] * (width - len(parts))] for _, parts in asked], device=device)
    position = np.concatenate([tested[f] for f, _ in asked])
    owner = np.repeat(np.arange(len(asked)), [len(tested[f]) for f, _ in asked])
    on = np.zeros(len(position), bool)
    rows = corpus.row_of(position)
    with progress("co-firing", len(position), "tokens") as bar, torch.inference_mode():
        for places, acts, token in activations_at(corpus, subject, position, rows, batch_tokens, bar):
            mine, theirs = Codes(sae, acts), Codes(union, acts)
            parts = wanted[torch.from_numpy(owner[places]).to(device)]
            at = torch.from_numpy(token).to(device)[:, None].expand_as(parts)
            value = torch.where(parts < n, mine.value(at, parts), theirs.value(at, parts - n))
            on[places] = ((value > 0) | (parts < 0)).all(1).cpu().numpy()
    counts = np.bincount(owner, minlength=len(asked))
    shares = np.bincount(owner, weights=on, minlength=len(asked)) / np.maximum(counts, 1)
    return shares.tolist()
