"""Composites in a run: the check on the decoder, and what the harvest says of each latent that it flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from autointerp.config import FeaturesConfig
from autointerp.errors import AutointerpError
from autointerp.progress import progress
from autointerp.stats import paired_difference
from autointerp.tables import write_rows

if TYPE_CHECKING:
    import numpy as np

    from autointerp.artifacts import Corpus
    from autointerp.composites.evidence import Reencoding
    from autointerp.engine.dag import Job
    from autointerp.engine.session import Session
    from autointerp.sae import SAE
    from autointerp.subject import Subject

Frame: TypeAlias = Any  # a pandas.DataFrame: its own types call every second column an array
Pair = Literal["own", "swapped", "random"]  # a latent's own parts, another composite's, any that fire as often
PAIRS: tuple[Pair, ...] = ("own", "swapped", "random")
SHOWN = 3  # co-firing contexts kept of a latent


def check_stage(session: Session, job: Job) -> None:
    """Write composites.parquet: what the decoder says of every latent."""
    from autointerp.artifacts import Firings
    from autointerp.composites import find_composites

    config = session.config.composites
    sae = session.open_sae(job.inputs["sae"])
    union = session.load_sae(config.union).W_dec if config.union else None
    alive = Firings(job.inputs["harvest"]).counts > 0
    found = find_composites(sae.W_dec, union, neighbours=config.neighbours, alive=alive, device=session.device)
    save_composites(found, job.folder / "composites.parquet")
    job.facts |= {"labels": found["label"].value_counts().to_dict()}


def save_composites(table: Frame, path: Path) -> None:
    """As Parquet, with the type of a list column where all its lists are empty, too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = pa.Table.from_pandas(table, preserve_index=False)
    for i, column in enumerate(written.schema):
        if pa.types.is_list(column.type) and pa.types.is_null(column.type.value_type):
            of = pa.list_(pa.float64() if column.name.endswith("coefficients") else pa.int64())
            written = written.set_column(i, column.name, written[column.name].cast(of))
        elif pa.types.is_null(column.type):
            written = written.set_column(i, column.name, written[column.name].cast(pa.string()))
    pq.write_table(written, path)


# --- activation evidence ----------------------------------------------------------------------


@dataclass
class _Tested:
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


def evidence_stage(session: Session, job: Job) -> None:
    """Write composites.parquet again, with what the harvested tokens say, and cofiring.parquet.

    The subject runs once more, on the rows that hold a tested token; at most `composites.tokens` of a
    latent are tested. Beside each flagged latent's own parts stand two controls: another one's parts
    (swapped), and latents that fire as often as its own (random). Some latents that are no composites
    are put to the same test with their two nearest neighbours: `confirmed` is who does better than nine
    of ten of them. The stage's facts say how they did.
    """
    import numpy as np
    import pandas as pd

    from autointerp.activations.contexts import chunks
    from autointerp.artifacts import Corpus, Firings
    from autointerp.composites import FLAGGED
    from autointerp.composites.evidence import CONFIRM_TOKENS
    from autointerp.pipeline.union import lent
    from autointerp.subject import token_strings

    table: Frame = pd.read_parquet(job.inputs["composites"] / "composites.parquet")
    corpus, firings = Corpus(job.inputs["corpus"]), Firings(job.inputs["harvest"])
    sae = session.open_sae(job.inputs["sae"])
    seed = session.config.seed % 2**64
    tested = _to_test(table, firings.counts, seed)
    sums = set(table["feature"][table["label"].isin(FLAGGED)])
    plain = _no_sums(table, firings.counts, sae, seed) if sums else {}
    looked = dict(sorted((tested | plain).items()))
    turn = np.random.default_rng(seed).permutation(corpus.info.n_rows)
    strings = token_strings(session.subject_folder)
    windows: list[dict[str, Any]] = []
    near = {f: one.others for f, one in looked.items()}
    for chunk in chunks(list(looked), near, firings.counts):
        fired = firings.of(sorted({*chunk, *(other for f in chunk for other in near[f])}))
        for f in chunk:
            most = session.config.composites.tokens if f in sums else CONFIRM_TOKENS
            _look(f, looked[f], fired, corpus, firings.info.n_tokens, turn, most)
            if f in sums:
                windows += _windows(f, looked[f].parts["own"], fired, corpus, strings, session.config.contexts.window)
    if looked and not sae.is_transcoder:
        _project(session, looked, corpus, sae, session.subject(sae.cfg.hook_name))
    calibration = _calibration(plain, sae) if plain and not sae.is_transcoder else None
    borrowed, of_union = lent(session, table, corpus, firings, sae, turn)
    table = _conclude(table, tested, borrowed, sae, calibration["level"] if calibration else None)
    save_composites(table, job.folder / "composites.parquet")
    write_rows(job.folder / "cofiring.parquet", "cofiring", windows)
    job.facts |= _summary(table)
    if calibration:
        job.facts["reencode"]["no_sums"] = calibration
    if of_union:
        job.facts["union"] = of_union


def _to_test(table: Frame, counts: np.ndarray, seed: int) -> dict[int, _Tested]:
    """Flagged latents whose parts were harvested, with their controls; and split children of a more frequent latent,
    which may have absorbed it."""
    import numpy as np

    from autointerp.composites import FLAGGED
    from autointerp.composites.evidence import random_parts, swapped_parts

    harvested = table["union_constituents"].map(len) == 0
    rows = table[harvested & table["label"].isin(FLAGGED)]
    own = {f: [int(p) for p in parts] for f, parts in zip(rows["feature"], rows["constituents"])}
    swapped, alive = swapped_parts(own, seed), np.flatnonzero(counts > 0)
    found: dict[int, _Tested] = {}
    for f, parts in own.items():
        pairs = {"own": parts, "swapped": swapped.get(f), "random": random_parts(f, parts, alive, counts, seed)}
        found[f] = _Tested({pair: some for pair, some in pairs.items() if some})  # type: ignore[misc]
    children = table[harvested & (table["label"] == "split_child")]
    for f, parts in zip(children["feature"], children["constituents"]):
        if counts[parts[0]] > counts[f]:
            found[f] = _Tested({"own": [int(parts[0])]})
    return dict(sorted(found.items()))


def _no_sums(table: Frame, counts: np.ndarray, sae: SAE, seed: int) -> dict[int, _Tested]:
    """Some atomic latents as if each were the sum of its two nearest neighbours: how often would they pass?

    Swapped and random parts share no direction with the latent, so little of it can be refitted by them;
    neighbours do, and this is the harder comparison.
    """
    from autointerp.composites import top_neighbours
    from autointerp.composites.evidence import CONFIRM_TOKENS, some_atomic

    some = some_atomic(table["label"], counts, seed)
    if not len(some):
        return {}
    near, _ = top_neighbours(sae.W_dec, 2, queries=some, candidates=counts >= CONFIRM_TOKENS)
    pairs = ((int(f), pair) for f, pair in zip(some, near.tolist()))
    return {f: _Tested({"own": pair}) for f, pair in pairs if min(pair) >= 0}


def _calibration(plain: Mapping[int, _Tested], sae: SAE) -> dict[str, Any]:
    """The re-encode test on `_no_sums`: how many had tokens enough, the mean share and what nine of ten stay within,
    and how many pass."""
    import numpy as np

    from autointerp.composites.evidence import CONFIRM_TOKENS, plain_level

    W = sae.W_dec.detach().float().cpu().numpy()
    results = [_reencode(one, "own", W) for one in plain.values()]
    full = [one for one in results if one.tokens >= CONFIRM_TOKENS]
    shares = [one.share for one in full if one.share is not None]
    return {
        "n": len(full),
        "mean": float(np.mean(shares)) if shares else None,
        "level": plain_level(full),
        "pass": sum(one.passes for one in full),
    }


def _reencode(one: _Tested, pair: Pair, W: np.ndarray) -> Reencoding:
    from autointerp.composites.evidence import reencode

    parts = one.parts[pair]
    return reencode(one.projections[pair], W[parts] @ W[parts].T, one.typical[pair])


def _look(
    f: int,
    one: _Tested,
    fired: Mapping[int, tuple[np.ndarray, np.ndarray]],
    corpus: Corpus,
    n_tokens: int,
    turn: np.ndarray,
    most: int,
) -> None:
    """What positions and activations alone say of latent f, and which of its tokens are tested."""
    import numpy as np

    from autointerp.composites.evidence import draw, lift, mode, share_within, strong_tokens

    position, activation = fired[f]
    strong = position[strong_tokens(activation)]
    one.positions = strong[draw(corpus.row_of(strong), turn, most)]
    for pair, parts in one.parts.items():
        one.typical[pair] = np.array([np.median(fired[part][1]) if len(fired[part][1]) else 0.0 for part in parts])
        lifts = [lift(position, fired[part][0], n_tokens) for part in parts]
        one.lifts[pair] = [np.nan if x is None else x for x in lifts]
        if len(one.positions):
            on = np.all([np.isin(one.positions, fired[part][0]) for part in parts], axis=0)
            one.cofire[pair] = float(on.mean())
    own = [fired[part][0] for part in one.parts["own"]]
    one.together = [share_within(part, position) for part in own]
    one.mode = mode(position, own)


def _windows(
    f: int,
    parts: Sequence[int],
    fired: Mapping[int, tuple[np.ndarray, np.ndarray]],
    corpus: Corpus,
    strings: Callable[[Sequence[int]], list[str]],
    size: int,
) -> Iterator[dict[str, Any]]:
    """Windows of different rows around tokens on which f fires, with the most of its parts, and then strongest."""
    import numpy as np

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


def _project(session: Session, tested: Mapping[int, _Tested], corpus: Corpus, sae: SAE, subject: Subject) -> None:
    """Run the subject on the rows of the tested tokens, each once, and fill in the projections.

    x·g of `evidence.reencode`, where the parts whose place in the code x holds open are those of the pair.
    Memory: one batch, and 4 bytes for each tested token, pair and part.
    """
    import numpy as np
    import torch

    from autointerp.pipeline.codes import Codes, activations_at

    device, features = session.device, list(tested)
    width = max(len(parts) for one in tested.values() for parts in one.parts.values())
    parts = torch.full((len(features), len(PAIRS), width), -1, dtype=torch.long)
    for i, f in enumerate(features):
        for p, pair in enumerate(PAIRS):
            some = tested[f].parts.get(pair, [])
            parts[i, p, : len(some)] = torch.tensor(some, dtype=torch.long)
    positions = [one.positions for one in tested.values() if one.positions is not None]
    position = np.concatenate(positions)
    owner = np.repeat(np.arange(len(features)), list(map(len, positions)))
    projections = np.zeros((len(position), len(PAIRS), width), np.float32)
    rows, latents, parts = corpus.row_of(position), torch.tensor(features, device=device), parts.to(device)
    step = max(1, 16_000_000 // (parts[0].numel() * sae.W_dec.shape[1]))
    with progress("re-encode", len(position), "tokens") as bar, torch.inference_mode():
        for some, acts, of in activations_at(corpus, subject, position, rows, session.config.subject.batch_tokens, bar):
            code = Codes(sae, acts)
            for low in range(0, len(some), step):
                here, t = some[low : low + step], torch.from_numpy(of[low : low + step]).to(device)
                mine = torch.from_numpy(owner[here]).to(device)
                x = code.left[t] + code.value(t, latents[mine])[:, None] * sae.W_dec[latents[mine]]
                held = parts[mine]
                directions = sae.W_dec[held.clamp_min(0)] * (held >= 0)[..., None]
                open_ = code.value(t[:, None, None].expand_as(held), held)
                of_pair = x[:, None] + (open_[..., None] * directions).sum(2)
                projections[here] = torch.einsum("tpd,tpkd->tpk", of_pair, directions).float().cpu().numpy()
    at = 0
    for one, own in zip(tested.values(), positions):
        for pair, some in one.parts.items():
            one.projections[pair] = projections[at : at + len(own), PAIRS.index(pair), : len(some)]
        at += len(own)


def _column(name: str, pair: Pair) -> str:
    return name if pair == "own" else f"{name}_{pair}"


_FIGURES = (*(_column(name, pair) for name in ("reencode", "lift", "cofire") for pair in PAIRS), "tokens")
_LISTS = ("absorbed", "swapped", "random")


def _conclude(
    table: Frame,
    tested: Mapping[int, _Tested],
    borrowed: Mapping[int, dict[str, Any]],
    sae: SAE,
    plain: float | None,
) -> Frame:
    """`table` with what was found, and with the labels that it decides; `borrowed` is of `union.lent` and `plain` of
    `Reencoding.confirms`."""
    import numpy as np

    from autointerp.composites import FLAGGED

    W = sae.W_dec.detach().float().cpu().numpy()
    found: dict[int, dict[str, Any]] = {}
    for f, label in zip(table["feature"], table["label"]):
        if f in tested:
            found[f] = _verdict(label, tested[f], W, plain)
        elif label in FLAGGED:
            why = "re-encode: a constituent is of the union SAE, which cannot take f's place in this one"
            found[f] = {**borrowed.get(f, {}), "failure": why}
    features = table["feature"].tolist()
    for column in _FIGURES:
        table[column] = np.array([found.get(f, {}).get(column, np.nan) for f in features], float)
    table["tokens"] = table["tokens"].astype("Int64")
    table["mode"] = [found.get(f, {}).get("mode") for f in features]
    for column in _LISTS:
        table[column] = [found.get(f, {}).get(column, []) for f in features]
    for column in ("label", "failure"):
        table[column] = [found.get(f, {}).get(column, before) for f, before in zip(features, table[column])]
    last = ["semantic", "failure"]
    return table[[column for column in table.columns if column not in last] + last]


def _verdict(label: str, one: _Tested, W: np.ndarray, plain: float | None) -> dict[str, Any]:
    """What one tested latent's row says beside the decoder's figures."""
    import numpy as np

    from autointerp.composites import FLAGGED
    from autointerp.composites.evidence import CONFIRM_TOKENS, PLAIN_LEAST, absorbs

    assert one.positions is not None
    own = one.parts["own"]
    row: dict[str, Any] = {"mode": one.mode, "tokens": len(one.positions)}
    row |= {_column("lift", pair): float(np.min(lifts)) for pair, lifts in one.lifts.items()}
    row |= {_column("cofire", pair): share for pair, share in one.cofire.items()} if label in FLAGGED else {}
    row |= {pair: one.parts[pair] for pair in PAIRS[1:] if pair in one.parts}
    if not one.projections:
        return row | {"failure": "re-encode: a transcoder writes elsewhere than it reads"}
    strengths = [one.projections["own"][:, i] / float(W[part] @ W[part]) for i, part in enumerate(own)]
    if len(one.positions) < CONFIRM_TOKENS:
        few = f"{len(one.positions)} strong tokens, {CONFIRM_TOKENS} are needed"
        return row | {"failure": f"{'re-encode' if label in FLAGGED else 'absorption'}: {few}"}
    absorbed = map(absorbs, one.together, strengths, one.typical["own"].tolist())
    row["absorbed"] = [part for part, gone in zip(own, absorbed) if gone]
    if label not in FLAGGED:
        return row | ({"label": "absorption"} if row["absorbed"] else {})
    for pair in one.parts:
        result = _reencode(one, pair, W)
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


def _summary(table: Frame) -> dict[str, Any]:
    """Labels, and over the flagged latents the share that re-encodes, with its controls."""
    from autointerp.composites import FLAGGED

    flagged = table[table["label"].isin(FLAGGED)]
    facts: dict[str, Any] = {"labels": table["label"].value_counts().to_dict()}
    for name in ("reencode", "lift"):
        columns = {pair: flagged[_column(name, pair)] for pair in PAIRS}
        facts[name] = {pair: float(v.mean()) if v.notna().any() else None for pair, v in columns.items()}
        for pair in PAIRS[1:]:
            difference = paired_difference(columns["own"].tolist(), columns[pair].tolist())
            facts[name][f"above_{pair}"] = asdict(difference)
    return facts


# --- which features are explained -------------------------------------------------------------


def choose_features(table: Frame, composites: Frame, config: FeaturesConfig, seed: int) -> list[int]:
    """`features.select: composites`: confirmed ones, then composite, then possible, at random among each, `count` of
    those that fire often enough in `table` (of `firing_table`). AutointerpError where there is none."""
    import numpy as np

    from autointerp.composites import FLAGGED

    ok = set(table.loc[table["status"] == "ok", "feature"])
    turn = np.random.default_rng(seed % 2**64).permutation(len(composites)).tolist()
    rank = {label: place for place, label in enumerate(FLAGGED)}
    rows = zip(turn, composites["feature"].tolist(), composites["label"])
    order = sorted((rank[label], place, f) for place, f, label in rows if label in rank and f in ok)
    chosen = [f for *_, f in order]
    if not chosen:
        raise AutointerpError(
            f"features.select is composites, and no latent that fires {config.min_firings} times is flagged as one"
        )
    return chosen[: config.count]


def constituents_among(chosen: Sequence[int], composites: Frame) -> list[int]:
    """The constituents of the composites among the chosen features."""
    from autointerp.composites import FLAGGED

    rows = composites[composites["feature"].isin(chosen) & composites["label"].isin(FLAGGED)]
    return sorted({int(part) for parts in rows["constituents"] for part in parts})
