"""Constituents that another SAE lends: do they fire there where the latent fires here?

Directions alone cannot say. A wider SAE may hold a latent's two parts, which are both on where it is; or it may have
split the latent into two that exclude each other, and whose sum it is all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from autointerp.progress import progress

if TYPE_CHECKING:
    import numpy as np

    from autointerp.artifacts import Corpus, Firings
    from autointerp.engine.session import Session
    from autointerp.sae import SAE

Frame: TypeAlias = Any  # a pandas.DataFrame


def lent(
    session: Session, table: Frame, corpus: Corpus, firings: Firings, sae: SAE, turn: np.ndarray
) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """For each flagged latent with constituents of the union SAE: on what share of its strong tokens all constituents
    fire, each in its own SAE (`cofire`), and another such latent's (`cofire_swapped`), over how many `tokens`.

    And the stage's facts: their means, and those of latents that are no sums with their two nearest union rows. At
    most `composites.tokens` of a latent are looked at; the subject runs on the rows that hold them.
    """
    import numpy as np

    from autointerp.composites import FLAGGED
    from autointerp.composites.evidence import CONFIRM_SHARE, CONFIRM_TOKENS, swapped_parts

    if session.config.composites.union is None:
        return {}, {}
    n, seed = sae.cfg.d_sae, session.config.seed % 2**64
    rows = table[(table["union_constituents"].map(len) > 0) & table["label"].isin(FLAGGED)]
    own = {
        int(f): [*map(int, mine), *(n + int(u) for u in theirs)]
        for f, mine, theirs in zip(rows["feature"], rows["constituents"], rows["union_constituents"])
    }
    if not own:
        return {}, {}
    union = session.load_sae(session.config.composites.union)
    if sae.is_transcoder or union.is_transcoder:
        return {}, {}
    swapped, plain = swapped_parts(own, seed), _no_sums(table, firings.counts, sae, union, seed)
    asked = [(f, parts) for wanted in (own, swapped, plain) for f, parts in wanted.items()]
    together, tokens = _together(session, asked, corpus, firings, sae, union, turn)
    found: dict[int, dict[str, Any]] = {f: {"cofire": x, "tokens": tokens[f]} for f, x in zip(own, together)}
    for f, share in zip(swapped, together[len(own) :]):
        found[f]["cofire_swapped"] = share
    enough = [x for f, x in zip(plain, together[len(own) + len(swapped) :]) if tokens[f] >= CONFIRM_TOKENS]
    shares = [row["cofire"] for row in found.values() if row["tokens"] >= CONFIRM_TOKENS]
    facts = {
        "n": len(shares),
        "mean": float(np.mean(shares)) if shares else None,
        "pass": sum(share >= CONFIRM_SHARE for share in shares),
        "no_sums": {
            "n": len(enough),
            "mean": float(np.mean(enough)) if enough else None,
            "pass": sum(share >= CONFIRM_SHARE for share in enough),
        },
    }
    return found, facts


def _no_sums(table: Frame, counts: np.ndarray, sae: SAE, union: SAE, seed: int) -> dict[int, list[int]]:
    """Some atomic latents, each with the two union rows nearest to it that are not itself."""
    import numpy as np
    import torch

    from autointerp.composites import top_neighbours
    from autointerp.composites.check import DUPLICATE
    from autointerp.composites.evidence import some_atomic

    some = some_atomic(table["label"], counts, seed)
    if not len(some):
        return {}
    both = torch.cat([sae.W_dec.detach().float().cpu(), union.W_dec.detach().float().cpu()])
    lender = np.arange(len(both)) >= sae.cfg.d_sae
    near, cosines = top_neighbours(both, 4, queries=some, candidates=lender)
    found = {}
    for f, parts, cosine in zip(some.tolist(), near.tolist(), cosines.tolist()):
        others = [part for part, value in zip(parts, cosine) if part >= 0 and value < DUPLICATE][:2]
        if len(others) == 2:
            found[f] = others
    return found


def _together(
    session: Session,
    asked: list[tuple[int, list[int]]],
    corpus: Corpus,
    firings: Firings,
    sae: SAE,
    union: SAE,
    turn: np.ndarray,
) -> tuple[list[float], dict[int, int]]:
    """For each latent and parts (rows of both SAEs, the union's last) the share of its tokens on which all parts fire,
    and how many tokens of each latent were looked at."""
    import numpy as np
    import torch

    from autointerp.activations.contexts import chunks
    from autointerp.composites.evidence import draw, strong_tokens
    from autointerp.pipeline.codes import Codes, activations_at

    features = sorted({f for f, _ in asked})
    tested: dict[int, np.ndarray] = {}
    for chunk in chunks(features, {f: [] for f in features}, firings.counts):
        for f, (position, activation) in firings.of(chunk).items():
            strong = position[strong_tokens(activation)]
            tested[f] = strong[draw(corpus.row_of(strong), turn, session.config.composites.tokens)]
    device, n = session.device, sae.cfg.d_sae
    width = max(len(parts) for _, parts in asked)
    wanted = torch.tensor([[*parts, *[-1] * (width - len(parts))] for _, parts in asked], device=device)
    position = np.concatenate([tested[f] for f, _ in asked])
    owner = np.repeat(np.arange(len(asked)), [len(tested[f]) for f, _ in asked])
    on = np.zeros(len(position), bool)
    subject, rows = session.subject(sae.cfg.hook_name), corpus.row_of(position)
    with progress("co-firing", len(position), "tokens") as bar, torch.inference_mode():
        for some, acts, of in activations_at(corpus, subject, position, rows, session.config.subject.batch_tokens, bar):
            mine, theirs = Codes(sae, acts), Codes(union, acts)
            parts = wanted[torch.from_numpy(owner[some]).to(device)]
            at = torch.from_numpy(of).to(device)[:, None].expand_as(parts)
            value = torch.where(parts < n, mine.value(at, parts), theirs.value(at, parts - n))
            on[some] = ((value > 0) | (parts < 0)).all(1).cpu().numpy()
    counts = np.bincount(owner, minlength=len(asked))
    shares = np.bincount(owner, weights=on, minlength=len(asked)) / np.maximum(counts, 1)
    return shares.tolist(), {f: len(tested[f]) for f in features}
