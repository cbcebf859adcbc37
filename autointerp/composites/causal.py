"""Is a composite used as the sum of its constituents? What it does to the subject, beside what they do.

1. `divide`: the latent's direction as a sum of vectors, one along each constituent. Two controls have the same sizes:
   another composite's constituents (swapped), and other directions that add up to the same (`turned`).
2. Ablated: on tokens where the latent fires, what the SAE decodes from it is taken off; in other passes its shares,
   all together and each alone. Steered: where it is silent, as much is added as it usually has, or that of its shares.
3. An effect is what that changes, on the token and those behind it: of the log probabilities (the output); and of what
   later layers write, or of the latents of an SAE there.
4. The agreement of two effects u and v is 2⟨u, v⟩ / (‖u‖² + ‖v‖²): 1 where they are the same, 0 where they have
   nothing in common or one is none. For the sum of what the shares do *each alone* (`added`) it says whether the
   model reads the parts one by one. Together they are nearly the latent itself, whatever the model reads.

A subject that is linear in what is taken off or added agrees with any division of it, the turned one too: it then uses
every direction as a sum. The comparison with that control says whether *these* parts are what it reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from autointerp.activations.steering import decoded
from autointerp.composites.causes import HOW, How
from autointerp.composites.evidence import draw, nonnegative_fit, strong_tokens
from autointerp.composites.labels import FLAGGED
from autointerp.composites.union import name_of, parts_of
from autointerp.stats import ratio_interval

if TYPE_CHECKING:
    from autointerp.artifacts import Corpus, Firings
    from autointerp.sae.model import SAE
    from autointerp.subject.model import Subject

BEFORE, AFTER = 128, 3  # tokens before a place that the subject reads; behind it on which effects are looked at
TOP = 10  # tokens that an effect raises most, in the overlap
LEAST = 8  # tokens on which effects must be known
Frame: TypeAlias = Any  # a pandas.DataFrame: its own types call every second column an array
_NUMBERS = 1 << 26  # log probabilities of a batch, in float32
Shares: TypeAlias = torch.Tensor  # [parts, d], whose sum stands for a direction of length 1


def divide(direction: torch.Tensor, parts: torch.Tensor) -> Shares:
    """`direction` [d] of length 1 as a sum of vectors along the rows of `parts` [k, d]: non-negative least squares."""
    rows = parts / parts.norm(dim=1, keepdim=True).clamp_min(1e-12)
    weights = nonnegative_fit((rows @ direction)[None].numpy(), (rows @ rows.T).numpy())[0]
    return torch.from_numpy(weights).to(rows)[:, None] * rows


def swapped(own: Shares, others: torch.Tensor) -> Shares:
    """Vectors along `others` [k, d], as long as those of `own`."""
    rows = others / others.norm(dim=1, keepdim=True).clamp_min(1e-12)
    sizes = own.norm(dim=1).sort(descending=True).values
    return sizes[:, None] * rows


def turned(own: Shares, seed: Sequence[int]) -> Shares:
    """Other vectors of the same lengths and angles, and with the same sum: `own` turned about it at random."""
    whole = own.sum(0)
    whole = whole / whole.norm().clamp_min(1e-12)
    along = own @ whole
    _, sizes, axes = torch.linalg.svd(own - along[:, None] * whole, full_matrices=False)
    generator = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
    drawn = torch.randn(own.shape[1], 1 + len(axes), generator=generator)
    drawn[:, 0] = whole
    fresh = torch.linalg.qr(drawn).Q[:, 1:].T  # orthonormal, and orthogonal to the sum
    beside = (own - along[:, None] * whole) @ axes.T
    return along[:, None] * whole + torch.where(sizes > 1e-6, beside, 0) @ fresh


@dataclass(frozen=True)
class Later:
    """Where effects are looked at inside the subject: a hook point, and an SAE of it, or None for the activations."""

    hook: str
    sae: SAE | None = None


@dataclass(frozen=True)
class Outcome:
    """At the tokens looked at: log probabilities [..., b, a, v], and what is later [..., b, a, e]."""

    output: torch.Tensor
    later: torch.Tensor

    def __getitem__(self, i: int | slice) -> Outcome:
        return Outcome(self.output[i], self.later[i])

    def less(self, clean: Outcome) -> Outcome:
        return Outcome(self.output - clean.output, self.later - clean.later)

    def total(self) -> Outcome:
        return Outcome(self.output.sum(0), self.later.sum(0))


@dataclass(frozen=True)
class Places:
    """Tokens [b, s] padded on the right, the place of each row that is changed [b], and which tokens from there on are
    looked at: `seen` [b, a] places, `real` [b, a] bool; and the documents [b]."""

    tokens: torch.Tensor
    at: torch.Tensor
    seen: torch.Tensor
    real: torch.Tensor
    documents: tuple[int, ...]

    def only(self, kept: torch.Tensor) -> Places:
        """Those rows that are `kept` [b] bool."""
        kept = kept.to(self.at.device)
        documents = tuple(document for document, keep in zip(self.documents, kept.tolist()) if keep)
        return Places(self.tokens[kept], self.at[kept], self.seen[kept], self.real[kept], documents)

    @staticmethod
    def of(corpus: Corpus, positions: Sequence[int]) -> Places:
        bos = int(corpus.info.bos_id is not None)
        rows = corpus.row_of(np.asarray(positions))
        cut, at, behind = [], [], []
        for position, row in zip(positions, rows.tolist()):
            ids, place = corpus.row(row), int(position - corpus.offsets[row])
            start = max(bos, place - BEFORE)
            stop = min(place + AFTER + 1, len(ids))
            cut.append([*ids[:bos].tolist(), *ids[start:stop].tolist()])
            at.append(bos + place - start)
            behind.append(stop - place)
        tokens = torch.zeros(len(cut), max(map(len, cut)), dtype=torch.long)
        for i, ids in enumerate(cut):
            tokens[i, : len(ids)] = torch.tensor(ids)
        steps = torch.arange(AFTER + 1)
        real = steps < torch.tensor(behind)[:, None]
        seen = torch.where(real, torch.tensor(at)[:, None] + steps, 0)
        return Places(tokens, torch.tensor(at), seen, real, tuple(int(corpus.documents[row]) for row in rows))


class Subjects:
    """The subject, changed at chosen tokens. `reads` and `writes`: where the SAE reads, where its output belongs."""

    def __init__(self, reads: Subject, writes: Subject, sae: SAE, corpus: Corpus, later: Later) -> None:
        self.reads, self.writes, self.sae, self.corpus, self.later = reads, writes, sae, corpus, later

    def batches(self, positions: Sequence[int]) -> Iterator[Places]:
        for start in range(0, len(positions), self._rows):
            yield Places.of(self.corpus, positions[start : start + self._rows])

    @property
    def _rows(self) -> int:
        """Of text in one pass."""
        return max(1, _NUMBERS // ((BEFORE + AFTER + 2) * self.reads.bridge.cfg.d_vocab))

    def decoded(self, feature: int, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
        """What the SAE decodes from a latent at the places, [b, d], and where it fires there, [b]."""
        x, at = self.reads.activations(places.tokens), places.at.to(self.reads.device)
        rows = torch.arange(len(at), device=at.device)
        if not self.sae.is_contextual:
            share, fires = decoded(self.sae, feature, x[rows, at][:, None])
            return share[:, 0], fires[:, 0]
        share, fires = decoded(self.sae, feature, x)
        return share[rows, at], fires[rows, at]

    def outcomes(self, places: Places, changes: torch.Tensor) -> Outcome:
        """With each of `changes` [m, b, d] added at the places: [m, b, a, …]."""
        m, b = changes.shape[:2]
        at_once = max(1, self._rows // b)
        parts = [self._outcomes(places, changes[i : i + at_once]) for i in range(0, m, at_once)]
        return Outcome(torch.cat([part.output for part in parts]), torch.cat([part.later for part in parts]))

    def _outcomes(self, places: Places, changes: torch.Tensor) -> Outcome:
        m, b, d = changes.shape
        tokens, device = places.tokens.repeat(m, 1), changes.device
        rows, seen = torch.arange(m * b, device=device), places.seen.to(device).repeat(m, 1)
        put = torch.zeros(*tokens.shape, d, device=device)
        put[rows, places.at.to(device).repeat(m)] = changes.flatten(0, 1)
        hook = self.later.hook
        logits, read = self.writes.logits(tokens, read=[hook], add={self.writes.hook.name: put}, at=seen)
        later = read[hook]
        if self.later.sae is not None:
            later = self.later.sae.encode(later)
        elif later.shape[-1] == d:
            later = later - put  # what later layers make of it, without what was put there
        later = later[rows[:, None], seen]
        return Outcome(logits.float().log_softmax(-1).unflatten(0, (m, b)), later.unflatten(0, (m, b)))


# --- one latent -------------------------------------------------------------------------------


class _Arm:
    """The effect v of an arm beside the latent's effect u, token by token."""

    def __init__(self) -> None:
        self.figures: list[np.ndarray] = []  # [7, b]: ⟨u, v⟩, ‖u‖², ‖v‖² of the output, of what is later; the KL
        self.wanted, self.raised = torch.zeros(0), torch.zeros(0)  # [v] sums of u and v over the tokens

    def add(self, u: Outcome, v: Outcome, clean: Outcome, real: torch.Tensor) -> None:
        """`u` and `v` are differences from `clean`; `real` [b, a]."""
        rows = []
        for x, y in ((_centred(u.output), _centred(v.output)), (u.later, v.later)):
            rows += [((a * b).sum(-1) * real).sum(1) for a, b in ((x, y), (x, x), (y, y))]
        ours, theirs = ((clean.output + effect.output).log_softmax(-1) for effect in (u, v))
        rows.append(((ours.exp() * (ours - theirs)).sum(-1) * real).sum(1) / real.sum(1))
        self.figures.append(torch.stack(rows).double().cpu().numpy())
        sums = [(effect.output * real[..., None]).sum((0, 1)) for effect in (u, v)]
        if self.figures[1:]:
            sums = [self.wanted + sums[0], self.raised + sums[1]]
        self.wanted, self.raised = sums


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(-1, keepdim=True)


@dataclass(frozen=True)
class Question:
    """A composite, the sums that its direction is compared with, and where it fires strongly.

    `divided`: own shares first, turned ones last; swapped ones between them where there are any. `names` are those of
    its own parts.
    """

    feature: int
    divided: Mapping[str, Shares]
    names: Sequence[str]
    positions: Sequence[int]


def effects(subjects: Subjects, question: Question, silent: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of causal.parquet of one composite, which is steered at the positions `silent`, where it is so."""
    rows, sizes = _ablated(subjects, question)
    if not len(sizes):
        why = "it fires on none of its strong tokens when the subject reads no more than the text just before them"
        return [{"feature": question.feature, "how": how, "arm": "added", "tokens": 0, "failure": why} for how in HOW]
    return [*rows, *_steered(subjects, question, silent, float(np.median(sizes)))]


def _ablated(subjects: Subjects, question: Question) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rows, and the sizes [n] of what the SAE decodes from the latent."""
    arms, sizes, documents = _arms(question), [], []
    for places in subjects.batches(question.positions):
        share, fires = subjects.decoded(question.feature, places)
        if fires.any():
            kept = places.only(fires)
            _add(arms, subjects, kept, -share[fires], question.divided)
            sizes.append(share[fires].norm(dim=1).cpu().numpy())
            documents += kept.documents
    return _rows(question, "ablated", arms, documents), np.concatenate(sizes) if sizes else np.zeros(0)


def _steered(subjects: Subjects, question: Question, silent: Sequence[int], size: float) -> list[dict[str, Any]]:
    arms, documents = _arms(question), []
    direction = subjects.sae.W_dec[question.feature].float()
    for places in subjects.batches(silent):
        _, fires = subjects.decoded(question.feature, places)
        if not fires.all():
            kept = places.only(~fires)
            whole = (size * direction / direction.norm()).expand(len(kept.at), -1)
            _add(arms, subjects, kept, whole, question.divided)
            documents += kept.documents
    return _rows(question, "steered", arms, documents)


def _arms(question: Question) -> dict[str, _Arm]:
    names = ["clean", "together", "added", *question.names]
    if "swapped" in question.divided:
        names += ["swapped together", "swapped"]
    return {name: _Arm() for name in (*names, "turned")}


def _add(
    arms: Mapping[str, _Arm],
    subjects: Subjects,
    places: Places,
    whole: torch.Tensor,
    divided: Mapping[str, Shares],
) -> None:
    """`whole` [b, d] is the change by the latent; those by shares of its direction are as large."""
    own, real = divided["own"].to(whole), places.real.to(whole.device)
    size = whole.norm(dim=1, keepdim=True) * (whole @ own.sum(0)).sign()[:, None]
    vectors = torch.cat([shares.to(whole) for shares in divided.values()])
    sums = torch.stack([shares.to(whole).sum(0) for pair, shares in divided.items() if pair != "turned"])
    nothing = torch.zeros_like(whole)[None]
    changes = torch.cat([nothing, whole[None], size * vectors[:, None], size * sums[:, None]])
    after = subjects.outcomes(places, changes)
    clean, u = after[0], after[1].less(after[0])
    alone, both = after[2 : 2 + len(vectors)].less(clean), after[2 + len(vectors) :].less(clean)
    arms["clean"].add(u, clean.less(clean), clean, real)
    for name, i in zip(list(arms)[3:], range(len(own))):
        arms[name].add(u, alone[i], clean, real)
    first = 0
    for i, (pair, shares) in enumerate(divided.items()):
        arms["added" if pair == "own" else pair].add(u, alone[first : first + len(shares)].total(), clean, real)
        first += len(shares)
        if pair != "turned":  # whose sum is the own one, and which comes last
            arms["together" if pair == "own" else f"{pair} together"].add(u, both[i], clean, real)


def _rows(question: Question, how: How, arms: Mapping[str, _Arm], documents: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for name, arm in arms.items():
        row: dict[str, Any] = {"feature": question.feature, "how": how, "arm": name, "tokens": len(documents)}
        if len(documents) < LEAST:
            rows.append(row | {"failure": f"{len(documents)} tokens, {LEAST} are needed"})
            continue
        figures = np.concatenate(arm.figures, axis=1)
        row |= _agreement("output", figures[:3], documents) | _agreement("later", figures[3:6], documents)
        row |= {
            "kl": float(figures[6].mean()),
            "top": _overlap(arm, 1.0 if how == "steered" else -1.0),
            "documents": len({*documents}),
        }
        rows.append(row | ({} if row["later"] is not None else {"failure": "later layers make nothing of it"}))
    return rows


def _agreement(what: str, figures: np.ndarray, documents: Sequence[int]) -> dict[str, Any]:
    """Over all tokens, with its interval over documents, and the cosine; None where both effects are none."""
    uv, uu, vv = figures
    value = ratio_interval(2 * uv, uu + vv, documents) if uu.sum() > 1e-8 * len(uu) else (None, None, None)
    both = float(np.sqrt(uu.sum() * vv.sum()))
    cosine = float(uv.sum()) / both if value[0] is not None and both > 0 else None
    return {what: value[0], f"{what}_low": value[1], f"{what}_high": value[2], f"{what}_cosine": cosine}


def _overlap(arm: _Arm, sign: float) -> float | None:
    """Share of the `TOP` tokens that the latent makes likelier which the arm does too; what an ablation takes away
    the latent had made likelier."""
    k = min(TOP, len(arm.wanted))
    ours, theirs = ((sign * each).topk(k) for each in (arm.wanted, arm.raised))
    shared = np.isin(ours.indices[ours.values > 0].cpu(), theirs.indices[theirs.values > 0].cpu())
    return float(shared.mean()) if len(shared) else None


# --- what is asked ----------------------------------------------------------------------------


def first(table: Frame, count: int) -> list[int]:
    """The `count` composites of `table` (of `activation_evidence.conclude`) that are tried: confirmed ones first, and
    those of higher R² before others."""
    rows = table[table["label"].isin(FLAGGED)].to_dict("records")
    rows = sorted(rows, key=lambda row: (FLAGGED.index(row["label"]), -row["r2"], row["feature"]))
    return sorted(row["feature"] for row in rows[:count])


def questions(
    table: Frame, chosen: Sequence[int], W: torch.Tensor, corpus: Corpus, firings: Firings, *, tokens: int, seed: int
) -> dict[int, Question]:
    """For each of the `chosen` composites of `table`, with up to `tokens` of its strong tokens. `W` [n + u, d] are the
    rows of the SAE, and of the union dictionary where it lends."""
    seed, n = seed % 2**64, len(table)
    rows = table[table["feature"].isin(chosen)].to_dict("records")
    fired = firings.of([row["feature"] for row in rows])
    turn = np.random.default_rng(seed).permutation(corpus.info.n_rows)
    asked = {}
    for row in rows:
        feature, parts = row["feature"], parts_of(row, n)
        own = divide(W[feature] / W[feature].norm(), W[parts])
        divided = {"own": own}
        others = [*row["swapped"], *(n + part for part in row["union_swapped"])]
        if len(others) == len(parts):
            divided["swapped"] = swapped(own, W[others])
        divided["turned"] = turned(own, (seed, feature))
        strong = fired[feature][0][strong_tokens(fired[feature][1])]
        positions = strong[draw(corpus.row_of(strong), turn, tokens)].tolist()
        asked[feature] = Question(feature, divided, [name_of(part, n) for part in parts], positions)
    return asked


def silent_places(corpus: Corpus, tokens: int, seed: int) -> list[int]:
    """Flat positions of `tokens` tokens on which all composites are steered, of rows drawn at random; no BOS."""
    rng = np.random.default_rng([seed % 2**64, 1])
    first = int(corpus.info.bos_id is not None)
    lengths = np.diff(corpus.offsets)
    rows = rng.permutation(np.flatnonzero(lengths > first))[:tokens]
    return [int(corpus.offsets[row] + rng.integers(first, lengths[row])) for row in np.sort(rows)]
