"""What a harvest says of the composites that the decoder check flags: re-encode test, co-firing, lift, absorption.

1. `gather`: choose the latents that are tested, each with its own parts and the controls' (`evidence.PAIRS`), and read
   from the harvest where they fire; the tokens of each latent that are tested; windows that a reader may look at.
2. `project`: run the subject once more on the rows that hold a tested token, for the vectors of the re-encode test.
3. `calibration`: how latents that are no sums do in the same test.
4. `conclude`: the table of the check again, with these figures and the labels that they decide.
5. `summary`: how the flagged latents did over all.

The figures themselves are `evidence`. Constituents that another SAE lends (`union`) are put to the same tests, and
compared with latents that are no sums and their two nearest rows of that SAE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from autointerp.activations.contexts import chunks
from autointerp.composites.codes import Codes, activations_at
from autointerp.composites.evidence import (
    CONFIRM_TOKENS,
    NO_SUMS,
    PAIRS,
    PLAIN_LEAST,
    Pair,
    Reencoding,
    StandIns,
    absorbs,
    draw,
    lift,
    mode,
    plain_level,
    random_parts,
    reencode,
    share_within,
    some_atomic,
    strong_tokens,
    swapped_parts,
)
from autointerp.composites.labels import FLAGGED
from autointerp.composites.neighbours import top_neighbours
from autointerp.composites.union import Harvested, fire_together, nearest_lent, parts_of, split_by_dictionary
from autointerp.progress import progress
from autointerp.stats import paired_difference

if TYPE_CHECKING:
    from autointerp.artifacts import Corpus
    from autointerp.sae.model import SAE
    from autointerp.subject.model import Subject

Frame: TypeAlias = Any  # a pandas.DataFrame: its own types call every second column an array
Fired: TypeAlias = Mapping[int, tuple[np.ndarray, np.ndarray]]  # latent -> positions and activations, [t] each
SHOWN = 3  # co-firing contexts kept of a latent
_AT_ONCE = 1 << 13  # rows of them in memory


@dataclass
class UnderTest:
    """A latent and the parts it is tested against; what the harvest says of them."""

    parts: dict[Pair, list[int]]
    positions: np.ndarray | None = None  # [t] of the strong tokens that are tested
    projections: dict[Pair, np.ndarray] = field(default_factory=dict)  # [t, parts]
    typical: dict[Pair, np.ndarray] = field(default_factory=dict)  # [parts] median activation
    lifts: dict[Pair, list[float]] = field(default_factory=dict)
    together: list[float | None] = field(default_factory=list)  # P(own part | f)
    cofire: dict[Pair, float] = field(default_factory=dict)  # share of the tested tokens on which all parts fire
    mode: str | None = None

    @property
    def others(self) -> list[int]:
        return sorted({part for parts in self.parts.values() for part in parts})


@dataclass(frozen=True)
class Gathered:
    """What the harvest says of the latents that are tested, by latent."""

    tested: dict[int, UnderTest]  # flagged latents, and split children that may have absorbed their parent
    no_sums: dict[int, UnderTest]  # latents that are no composites, put to the same test
    no_lent_sums: dict[int, UnderTest]  # others, with rows of the union dictionary

    @property
    def latents(self) -> dict[int, UnderTest]:
        return dict(sorted((self.tested | self.no_sums | self.no_lent_sums).items()))


def row_order(corpus: Corpus, seed: int) -> np.ndarray:
    """The order [n_rows] in which rows of text give the tokens that are tested: one for all latents, so that they share
    rows and the subject runs on few."""
    return np.random.default_rng(seed % 2**64).permutation(corpus.info.n_rows)


# --- step 1: what is tested, and what the harvest says of it


def gather(
    table: Frame,
    corpus: Corpus,
    firings: Harvested,
    W: torch.Tensor,
    strings: Callable[[Sequence[int]], list[str]],
    show: Callable[[list[dict[str, Any]]], None],
    *,
    tokens: int,
    window: int,
    seed: int,
) -> Gathered:
    """Choose what is tested and read it from the harvest, some latents at a time.

    Args:
        table: of `find_composites`.
        W: decoder rows [n, d] of the SAE, and of the union dictionary where that was harvested.
        strings: token ids -> their texts.
        show: is given the rows of cofiring.parquet, those of some latents at a time.
        tokens: that a flagged latent is tested on, at most.
        window: tokens of a window shown.
    """
    seed %= 2**64
    tested = to_test(table, firings.counts, seed)
    sums = set(table["feature"][table["label"].isin(FLAGGED)])
    gathered = Gathered(tested, *(_no_sums(table, firings.counts, W, seed) if sums else ({}, {})))
    latents, turn = gathered.latents, row_order(corpus, seed)
    near = {f: latent.others for f, latent in latents.items()}
    for chunk in chunks(list(latents), firings.counts, lambda latent: near.get(latent, ())):
        fired = firings.of(sorted({*chunk, *(other for f in chunk for other in near[f])}))
        shown: list[dict[str, Any]] = []
        for f in chunk:
            if len(shown) >= _AT_ONCE:
                show(shown)
                shown = []
            most = tokens if f in sums else CONFIRM_TOKENS
            _look(f, latents[f], fired, corpus, firings.info.n_tokens, turn, most)
            if f in sums:
                windows = _windows(f, latents[f].parts["own"], fired, corpus, strings, window)
                shown.extend(_named(windows, len(table)))
        if shown:
            show(shown)
    return gathered


def to_test(table: Frame, counts: np.ndarray, seed: int) -> dict[int, UnderTest]:
    """Flagged latents with their controls; and split children of a more frequent latent, which may have absorbed it.
    `counts` are the firings of the SAE's latents, and of the union dictionary's where a latent has parts of it."""
    n, rows = len(table), table[table["label"].isin(FLAGGED)].to_dict("records")
    own = {row["feature"]: parts_of(row, n) for row in rows}
    swapped, alive = swapped_parts(own, seed, n), StandIns(np.flatnonzero(counts > 0), counts, n)
    tested: dict[int, UnderTest] = {}
    for f, parts in own.items():
        pairs: dict[Pair, list[int] | None] = {
            "own": parts,
            "swapped": swapped.get(f),
            "random": random_parts(f, parts, alive, seed),
        }
        tested[f] = UnderTest({pair: members for pair, members in pairs.items() if members})
    own_parent = table["constituents"].map(len) > 0
    children = table[own_parent & (table["label"] == "split_child")]
    for f, parts in zip(children["feature"], children["constituents"]):
        if counts[parts[0]] > counts[f]:
            tested[f] = UnderTest({"own": [int(parts[0])]})
    return dict(sorted(tested.items()))


def _no_sums(
    table: Frame, counts: np.ndarray, W: torch.Tensor, seed: int
) -> tuple[dict[int, UnderTest], dict[int, UnderTest]]:
    """Some atomic latents as if each were the sum of its two nearest neighbours: how often would they pass? And as many
    others with their two nearest rows of the union dictionary, where that was harvested.

    Swapped and random parts share no direction with the latent, so little of it can be refitted by them;
    neighbours do, and this is the harder comparison.
    """
    n, enough = len(table), counts >= CONFIRM_TOKENS
    lent = len(W) > n
    drawn = some_atomic(table["label"], counts[:n], seed, (1 + lent) * NO_SUMS)
    mine, others = (drawn[::2], drawn[1::2]) if lent else (drawn, drawn[:0])
    near = top_neighbours(W[:n], 2, queries=mine, candidates=enough[:n])[0].tolist() if len(mine) else []
    pairs = nearest_lent(others, W, n, enough) if len(others) else {}
    return (
        {f: UnderTest({"own": pair}) for f, pair in zip(mine.tolist(), near) if min(pair) >= 0},
        {f: UnderTest({"own": pair}) for f, pair in pairs.items()},
    )


def _look(f: int, latent: UnderTest, fired: Fired, corpus: Corpus, n_tokens: int, turn: np.ndarray, most: int) -> None:
    """What positions and activations alone say of latent f, and which of its tokens are tested."""
    position, activation = fired[f]
    strong = position[strong_tokens(activation)]
    latent.positions = strong[draw(corpus.row_of(strong), turn, most)]
    for pair, parts in latent.parts.items():
        latent.typical[pair] = np.array([np.median(fired[part][1]) if len(fired[part][1]) else 0.0 for part in parts])
        lifts = [lift(position, fired[part][0], n_tokens) for part in parts]
        latent.lifts[pair] = [np.nan if x is None else x for x in lifts]
        if len(latent.positions):
            on = np.all([np.isin(latent.positions, fired[part][0]) for part in parts], axis=0)
            latent.cofire[pair] = float(on.mean())
    own = [fired[part][0] for part in latent.parts["own"]]
    latent.together = [share_within(part, position) for part in own]
    latent.mode = mode(position, own)


def _windows(
    f: int,
    parts: Sequence[int],
    fired: Fired,
    corpus: Corpus,
    strings: Callable[[Sequence[int]], list[str]],
    size: int,
) -> Iterator[dict[str, Any]]:
    """Windows of different rows around tokens on which f fires, with the most of its parts, and then strongest."""
    position, activation = fired[f]
    with_it = sum(np.isin(position, fired[part][0]).astype(int) for part in parts)
    rows = corpus.row_of(position)
    taken: set[int] = set()
    for i in np.lexsort((-activation, -np.asarray(with_it))).tolist():
        row = int(rows[i])
        if row in taken:
            continue
        taken.add(row)
        first = int(corpus.offsets[row]) + (corpus.info.bos_id is not None)
        last = int(corpus.offsets[row + 1])
        start = max(first, min(int(position[i]) - size * 2 // 3, last - size))
        stop = min(start + size, last)
        tokens = strings(corpus.tokens[start:stop].tolist())
        for member in (f, *parts):
            where, value = fired[member]
            low, high = np.searchsorted(where, (start, stop))
            dense = np.zeros(stop - start)
            dense[where[low:high] - start] = value[low:high]
            yield {
                "feature": f,
                "example": len(taken) - 1,
                "latent": member,
                "document": int(corpus.documents[row]),
                "position": int(corpus.starts[row]) + start - first,
                "tokens": tokens,
                "activations": dense.tolist(),
            }
        if len(taken) == SHOWN:
            return


def _named(rows: Iterable[dict[str, Any]], d_sae: int) -> Iterator[dict[str, Any]]:
    """Rows of cofiring.parquet with each latent's number in its own dictionary."""
    for row in rows:
        lent = row["latent"] >= d_sae
        yield row | {"latent": row["latent"] - d_sae * lent, "dictionary": "union" if lent else None}


# --- step 2: the subject, run again


def project(
    tested: Mapping[int, UnderTest],
    corpus: Corpus,
    sae: SAE,
    W: torch.Tensor,
    subject: Subject,
    *,
    batch_tokens: int,
    device: str,
) -> None:
    """Run the subject on the rows of the tested tokens, each once, and fill in the projections on rows of `W` (as of
    `gather`).

    x·g of `evidence.reencode`, where the parts whose place in the code x holds open are those of the pair; parts of the
    union dictionary have no place in it. Memory: one batch, and 4 bytes for each tested token, pair and part.
    """
    n, W = sae.cfg.d_sae, W.to(device)
    parts = _padded_parts(tested).to(device)
    width, latents = parts.shape[-1], torch.tensor(list(tested), device=device)
    positions = [latent.positions for latent in tested.values() if latent.positions is not None]
    position = np.concatenate(positions)
    owner = np.repeat(np.arange(len(latents)), list(map(len, positions)))
    projections = np.zeros((len(position), len(PAIRS), width), np.float32)
    rows = corpus.row_of(position)
    step = max(1, 16_000_000 // (parts[0].numel() * W.shape[1]))
    with progress("re-encode", len(position), "tokens") as bar, torch.inference_mode():
        for places, acts, token in activations_at(corpus, subject, position, rows, batch_tokens, bar):
            code = Codes(sae, acts)
            for low in range(0, len(places), step):
                here, t = places[low : low + step], torch.from_numpy(token[low : low + step]).to(device)
                mine = torch.from_numpy(owner[here]).to(device)
                x = code.left[t] + code.value(t, latents[mine])[:, None] * W[latents[mine]]
                held = parts[mine]
                directions = W[held.clamp_min(0)] * (held >= 0)[..., None]
                open_ = code.value(t[:, None, None].expand_as(held), held.masked_fill(held >= n, -1))
                of_pair = x[:, None] + (open_[..., None] * directions).sum(2)
                projections[here] = torch.einsum("tpd,tpkd->tpk", of_pair, directions).float().cpu().numpy()
    at = 0
    for latent, own in zip(tested.values(), positions):
        for pair, members in latent.parts.items():
            latent.projections[pair] = projections[at : at + len(own), PAIRS.index(pair), : len(members)]
        at += len(own)


def _padded_parts(tested: Mapping[int, UnderTest]) -> torch.Tensor:
    """[latents, pairs, most parts] int64 tensor, -1 where there is none."""
    width = max(len(parts) for latent in tested.values() for parts in latent.parts.values())
    padded = torch.full((len(tested), len(PAIRS), width), -1, dtype=torch.long)
    for i, latent in enumerate(tested.values()):
        for p, pair in enumerate(PAIRS):
            members = latent.parts.get(pair, [])
            padded[i, p, : len(members)] = torch.tensor(members, dtype=torch.long)
    return padded


# --- step 3: the test


def calibration(no_sums: Mapping[int, UnderTest], W: np.ndarray) -> dict[str, Any]:
    """The re-encode test on latents that are no sums, of `Gathered`: how many had tokens enough, the mean share and
    what nine of ten stay within, and how many pass."""
    results = [_reencode(latent, "own", W) for latent in no_sums.values()]
    full = [result for result in results if result.tokens >= CONFIRM_TOKENS]
    shares = [result.share for result in full if result.share is not None]
    return {
        "n": len(full),
        "mean": float(np.mean(shares)) if shares else None,
        "level": plain_level(full),
        "pass": sum(result.passes for result in full),
    }


def _reencode(latent: UnderTest, pair: Pair, W: np.ndarray) -> Reencoding:
    parts = latent.parts[pair]
    return reencode(latent.projections[pair], W[parts] @ W[parts].T, latent.typical[pair])


# --- step 4: the table


def _column(name: str, pair: Pair) -> str:
    return name if pair == "own" else f"{name}_{pair}"


_FIGURES = (*(_column(name, pair) for name in ("reencode", "lift", "cofire") for pair in PAIRS), "tokens")
_LISTS = ("absorbed", *PAIRS[1:], *(f"union_{pair}" for pair in PAIRS[1:]))


@dataclass(frozen=True)
class Levels:
    """`Reencoding.confirms`' level of latents that are no sums, by the dictionaries of the parts."""

    own: float | None = None
    union: float | None = None


def conclude(table: Frame, tested: Mapping[int, UnderTest], W: np.ndarray, levels: Levels) -> Frame:
    """`table` with what the harvest says, and with the labels that it decides; `W` are the rows as of `gather`."""
    verdicts: dict[int, dict[str, Any]] = {}
    for f, label in zip(table["feature"], table["label"]):
        if f in tested:
            verdicts[f] = _verdict(label, tested[f], W, levels, len(table))
    features = table["feature"].tolist()
    for column in _FIGURES:
        table[column] = np.array([verdicts.get(f, {}).get(column, np.nan) for f in features], float)
    table["tokens"] = table["tokens"].astype("Int64")
    table["mode"] = [verdicts.get(f, {}).get("mode") for f in features]
    for column in _LISTS:
        table[column] = [verdicts.get(f, {}).get(column, []) for f in features]
    for column in ("label", "failure"):
        table[column] = [verdicts.get(f, {}).get(column, before) for f, before in zip(features, table[column])]
    last = ["semantic", "failure"]
    return table[[column for column in table.columns if column not in last] + last]


def _verdict(label: str, latent: UnderTest, W: np.ndarray, levels: Levels, d_sae: int) -> dict[str, Any]:
    """What one tested latent's row says beside the decoder's figures."""
    assert latent.positions is not None
    own = latent.parts["own"]
    plain = levels.own if max(own) < d_sae else levels.union
    row: dict[str, Any] = {"mode": latent.mode, "tokens": len(latent.positions)}
    row |= {_column("lift", pair): float(np.min(lifts)) for pair, lifts in latent.lifts.items()}
    row |= {_column("cofire", pair): share for pair, share in latent.cofire.items()} if label in FLAGGED else {}
    for pair in PAIRS[1:]:
        row[pair], row[f"union_{pair}"] = split_by_dictionary(latent.parts.get(pair, ()), d_sae)
    if not latent.projections:
        return row | {"failure": "re-encode: a transcoder writes elsewhere than it reads"}
    strengths = [latent.projections["own"][:, i] / float(W[part] @ W[part]) for i, part in enumerate(own)]
    if len(latent.positions) < CONFIRM_TOKENS:
        few = f"{len(latent.positions)} strong tokens, {CONFIRM_TOKENS} are needed"
        return row | {"failure": f"{'re-encode' if label in FLAGGED else 'absorption'}: {few}"}
    absorbed = map(absorbs, latent.together, strengths, latent.typical["own"].tolist())
    row["absorbed"] = [part for part, gone in zip(own, absorbed) if gone and part < d_sae]
    if label not in FLAGGED:
        return row | ({"label": "absorption"} if row["absorbed"] else {})
    for pair in latent.parts:
        result = _reencode(latent, pair, W)
        row[_column("reencode", pair)] = result.share
        if pair == "own" and label == "composite" and result.confirms(plain):
            row["label"] = "confirmed"
        elif pair == "own" and label == "composite" and result.passes:
            row["failure"] = "not confirmed: " + (
                f"fewer than {PLAIN_LEAST} latents that are no sums to compare with"
                if plain is None
                else f"a tenth of the latents that are no sums re-encode at {plain:.2f} or more"
            )
    return row


# --- step 5: over all


def together(table: Frame, gathered: Gathered) -> dict[str, Any]:
    """How often the constituents of flagged latents fire together where some are of the union dictionary, and the
    nearest rows of it of latents that are no sums. `table` is of `conclude`."""
    rows = table[(table["union_constituents"].map(len) > 0) & table["label"].isin(FLAGGED) & table["tokens"].notna()]
    others = gathered.no_lent_sums.values()
    plain = [(each.cofire.get("own"), len(each.positions)) for each in others if each.positions is not None]
    shares = [(share, int(tokens)) for share, tokens in zip(rows["cofire"], rows["tokens"])]
    return {**fire_together(shares), "no_sums": fire_together(plain)}


def summary(table: Frame) -> dict[str, Any]:
    """Labels, and over the flagged latents the share that re-encodes, with its controls."""
    flagged = table[table["label"].isin(FLAGGED)]
    facts: dict[str, Any] = {"labels": table["label"].value_counts().to_dict()}
    for name in ("reencode", "lift"):
        columns = {pair: flagged[_column(name, pair)] for pair in PAIRS}
        facts[name] = {pair: float(v.mean()) if v.notna().any() else None for pair, v in columns.items()}
        for pair in PAIRS[1:]:
            difference = paired_difference(columns["own"].tolist(), columns[pair].tolist())
            facts[name][f"above_{pair}"] = asdict(difference)
    return facts
