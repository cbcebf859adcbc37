"""The harvest finds exactly what was planted, whatever the batches, the shards and the interruptions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.activations.dense import harvest_dense
from autointerp.activations.harvest import Harvest, harvest, harvest_shard, merge_shards, shard_path, text_shards
from autointerp.artifacts import Corpus, CorpusInfo, Firings
from autointerp.engine.executor import Shard
from autointerp.engine.session import Session
from autointerp.engine.stage import Job, Use
from autointerp.errors import AutointerpError
from autointerp.progress import Progress
from autointerp.stages.harvest import harvest_shards

VOCAB, LATENTS, BOS = 11, 7, 1


def corpus_of(folder: Path, rows: list[list[int]], bos: bool) -> Corpus:
    rows = [[BOS, *row] if bos else row for row in rows]
    lengths = [len(row) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    info = CorpusInfo("test", "test", BOS if bos else None, 16, sum(lengths), len(rows), len(rows), "")
    folder.mkdir(parents=True, exist_ok=True)
    Corpus.save(folder, info, np.concatenate(rows), offsets, np.arange(len(rows)), np.zeros(len(rows)))
    return Corpus(folder)


def subject(tokens: torch.Tensor) -> torch.Tensor:
    """The token and the sum of all tokens before it and itself: causal, and wrong if rows are misplaced."""
    return torch.stack([tokens, tokens.cumsum(1)], dim=-1).float()


def values(token: np.ndarray, total: np.ndarray, scale: float) -> np.ndarray:
    """Planted: latent i < 5 fires on tokens 2i and 2i + 1, latent 5 on sums divisible by 3, latent 6 never."""
    out = np.zeros((len(token), LATENTS))
    out[np.arange(len(token)), np.minimum(token // 2, 4)] = 1 + token / 4
    out[:, 5] = np.where(total % 3 == 0, 1 + total % 7, 0)
    return (out * scale).astype(np.float32)


def encoder(scale: float = 1.0):
    def encode(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dense = torch.from_numpy(values(h[:, 0].numpy().astype(int), h[:, 1].numpy().astype(int), scale))
        index, latent = dense.nonzero(as_tuple=True)
        zero = torch.zeros(1, dtype=index.dtype)  # a top-k encoder also returns latents at 0
        return torch.cat([index, zero]), torch.cat([latent, zero + 6]), torch.cat([dense[index, latent], zero.float()])

    return encode


def planted(corpus: Corpus, skip_bos: bool, scale: float = 1.0) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    total = np.concatenate([np.cumsum(corpus.row(r)) for r in range(corpus.info.n_rows)])
    dense = values(np.asarray(corpus.tokens), total, scale)
    if skip_bos and corpus.info.bos_id is not None:
        dense[corpus.offsets[:-1]] = 0
    return {i: (np.flatnonzero(dense[:, i]), dense[dense[:, i] > 0, i]) for i in range(LATENTS)}


def run(corpus: Corpus, folder: Path, *, activations=subject, scale=1.0, skip_bos=True, batch=24, shard=20) -> Progress:
    bar = Progress("harvest", corpus.info.n_tokens, "tokens")
    harvest(
        corpus,
        activations,
        encoder(scale),
        LATENTS,
        folder,
        hook="h",
        skip_bos=skip_bos,
        batch_tokens=batch,
        device="cpu",
        shard_tokens=shard,
        bar=bar,
    )
    return bar


def assert_planted(corpus: Corpus, folder: Path, skip_bos: bool = True, scale: float = 1.0) -> None:
    firings = Firings(folder)
    expected = planted(corpus, skip_bos, scale)
    found = firings.of(list(range(LATENTS)))
    for latent, (positions, activations) in expected.items():
        np.testing.assert_array_equal(found[latent][0], positions)
        np.testing.assert_array_equal(found[latent][1], activations)
        assert firings.counts[latent] == len(positions)
        assert firings.peaks[latent] == activations.max(initial=0)
    skipped = corpus.info.n_rows if skip_bos and corpus.info.bos_id is not None else 0
    assert firings.info.n_tokens == corpus.info.n_tokens - skipped


rows_of_tokens = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=0, max_size=15), min_size=1, max_size=12).filter(
    lambda rows: any(rows)
)
ROWS = [[2, 3, 4, 5, 6], [7], [8, 9, 10, 0, 2, 3, 4], [5, 5, 5], [], [6, 7, 8, 9, 10, 3, 2, 1, 4], [2, 2]]


class Killed(BaseException):
    pass


def dying(after: int):
    """A subject whose process ends at its call number `after`."""
    calls = 0

    def activations(tokens: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        if calls == after:
            raise Killed
        calls += 1
        return subject(tokens)

    return activations


@settings(max_examples=25, deadline=None)
@given(rows=rows_of_tokens, bos=st.booleans(), skip_bos=st.booleans(), batch=st.integers(1, 60))
def test_an_sae_that_reads_whole_rows_is_given_them(tmp_path_factory, rows, bos, skip_bos, batch) -> None:
    folder = tmp_path_factory.mktemp("harvest")
    corpus = corpus_of(folder / "corpus", rows, bos)

    def encode(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return encoder()(torch.stack([h, h.cumsum(1)], -1).flatten(0, 1))  # the sums are the encoder's own work

    wanted = Harvest(corpus, lambda tokens: tokens.float(), encode, LATENTS, "h", skip_bos, batch, "cpu", True)
    shards = text_shards(corpus, 20)
    for number, (first, last) in enumerate(shards):
        harvest_shard(wanted, first, last, shard_path(folder, number), Progress("harvest", 1, "tokens"))
    merge_shards(wanted, folder, len(shards))
    assert_planted(corpus, folder, skip_bos)


@settings(deadline=None, max_examples=60)
@given(rows_of_tokens, st.booleans(), st.booleans(), st.integers(1, 64), st.integers(1, 80))
def test_planted_firings_come_back_for_any_batch_and_shard(tmp_path_factory, rows, bos, skip_bos, batch, shard):
    folder = tmp_path_factory.mktemp("harvest")
    corpus = corpus_of(folder / "corpus", rows, bos)
    bar = run(corpus, folder / "firings", skip_bos=skip_bos, batch=batch, shard=shard)
    assert_planted(corpus, folder / "firings", skip_bos)
    assert bar.done == corpus.info.n_tokens


@settings(deadline=None, max_examples=30)
@given(rows_of_tokens, st.integers(0, 12), st.integers(1, 40))
def test_a_killed_harvest_goes_on_where_it_was(tmp_path_factory, rows, after, shard):
    folder = tmp_path_factory.mktemp("harvest")
    corpus = corpus_of(folder / "corpus", rows, bos=True)
    try:
        run(corpus, folder / "firings", activations=dying(after), shard=shard)
    except Killed:
        assert not (folder / "firings" / "firings.json").exists()
    bar = run(corpus, folder / "firings", shard=shard)
    assert_planted(corpus, folder / "firings")
    assert bar.done == corpus.info.n_tokens


@settings(max_examples=25, deadline=None)
@given(rows_of_tokens, st.booleans(), st.integers(1, 40), st.integers(1, 60))
def test_stored_activations_give_the_same_firings_without_a_model(tmp_path_factory, rows, bos, batch, shard):
    folder = tmp_path_factory.mktemp("stored")
    corpus = corpus_of(folder / "corpus", rows, bos)
    harvest_dense(
        corpus,
        subject,
        2,
        folder,
        batch_tokens=24,
        device="cpu",
        bar=Progress("stored", corpus.info.n_tokens, "tokens"),
    )
    stored = np.load(folder / "activations.npy", mmap_mode="r")
    run(corpus, folder / "out", activations=stored, batch=batch, shard=shard)
    assert_planted(corpus, folder / "out")


@pytest.mark.parametrize("file", ["activations.npy", "log/rows.json"])
def test_stored_activations_that_were_damaged_are_made_again(tmp_path, monkeypatch, file):
    monkeypatch.setattr("autointerp.activations.dense.SAVE_EVERY", 4)
    corpus = corpus_of(tmp_path / "corpus", ROWS, bos=True)

    def store(folder, activations):
        folder.mkdir(exist_ok=True)
        bar = Progress("stored", corpus.info.n_tokens, "tokens")
        harvest_dense(corpus, activations, 2, folder, batch_tokens=8, device="cpu", bar=bar)
        return bar.skipped

    with pytest.raises(Killed):
        store(tmp_path / "killed", dying(2))
    store(tmp_path / "whole", subject)
    kept = tmp_path / "killed" / file
    raw = bytearray(kept.read_bytes())
    raw[130 if file == "activations.npy" else 12] ^= 1
    kept.write_bytes(raw)
    assert store(tmp_path / "killed", subject) == 0
    left, right = (np.load(tmp_path / name / "activations.npy") for name in ("killed", "whole"))
    assert np.array_equal(left, right)


def test_finished_shards_are_not_computed_again(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", ROWS, bos=True)
    with pytest.raises(Killed):
        run(corpus, tmp_path / "firings", activations=dying(3), shard=8)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "firings").glob("shard-*")}
    assert kept
    bar = run(corpus, tmp_path / "firings", shard=8)
    assert bar.skipped > 0
    assert all((tmp_path / "firings" / name).stat().st_mtime_ns == time for name, time in kept.items())
    again = run(corpus, tmp_path / "firings", activations=dying(0), shard=8)
    assert again.skipped == corpus.info.n_tokens
    assert_planted(corpus, tmp_path / "firings")


def test_torn_files_and_shards_of_other_rows_are_replaced(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", ROWS, bos=True)
    folder = tmp_path / "firings"
    run(corpus, folder, shard=8)
    (folder / "firings.json").unlink()
    (folder / ".shard-00001.safetensors.99.tmp").write_bytes(b"\x10half a shard")
    run(corpus, folder, shard=20)  # cuts the corpus elsewhere: shards of 8 tokens must not be counted with these
    assert_planted(corpus, folder)
    assert not list(folder.glob(".*"))


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_shard_that_was_damaged_is_made_again_with_the_bytes_it_had(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("harvest")
    corpus, firings = corpus_of(folder / "corpus", ROWS, bos=True), folder / "firings"
    firings.mkdir()
    wanted = Harvest(corpus, subject, encoder(), LATENTS, "h", True, 24, "cpu")
    job = Job(Session(None, folder / "usage.jsonl"), Use("harvest"), firings, {})  # type: ignore[arg-type]
    shards = [Shard(number, rows) for number, rows in enumerate(text_shards(corpus, 8))]
    harvest_shards(job, corpus, shards, lambda: wanted, Progress("harvest", None, "tokens"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(firings.glob("shard-*"))}

    damaged = data.draw(st.sampled_from(sorted(before)))
    content = bytearray(before[damaged][0])
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    damaged.write_bytes(content[: data.draw(st.sampled_from([place, len(content)]))])  # cut there, or one byte changed
    bar = Progress("harvest", None, "tokens")
    harvest_shards(job, corpus, shards, lambda: wanted, bar)

    for path, (bytes_before, time) in before.items():
        assert path.read_bytes() == bytes_before
        assert path == damaged or path.stat().st_mtime_ns == time
    assert bar.done - bar.skipped <= max(8, *(len(row) + 1 for row in ROWS))
    merge_shards(wanted, firings, len(shards))
    assert_planted(corpus, firings)


def test_a_shard_whose_header_is_damaged_is_made_again_without_a_record(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", ROWS, bos=True)
    run(corpus, tmp_path / "firings", shard=8)
    shard = tmp_path / "firings" / "shard-00001.safetensors"
    before = shard.read_bytes()
    shard.write_bytes(b"\xff" * 20)
    run(corpus, tmp_path / "firings", shard=8)
    assert shard.read_bytes() == before
    assert_planted(corpus, tmp_path / "firings")


def test_format_is_as_documented_and_small(tmp_path):
    from safetensors.numpy import load_file

    corpus = corpus_of(tmp_path / "corpus", [[4, 2, 5], [2]], bos=True)
    run(corpus, tmp_path / "firings", shard=100)
    shard = load_file(tmp_path / "firings" / "shard-00000.safetensors")
    assert {name: (str(array.dtype), array.tolist()) for name, array in shard.items()} == {
        "start": ("int64", [0]),
        "indptr": ("int64", [0, 0, 2, 4, 4, 4, 6, 6]),
        "gap": ("uint16", [2, 3, 1, 2, 3, 2]),
        "activation": ("float16", [1.5, 1.5, 2.0, 2.25, 6.0, 4.0]),
    }
    assert json.loads((tmp_path / "firings" / "firings.json").read_text()) == {
        "n_latents": 7,
        "n_tokens": 4,
        "n_shards": 1,
        "hook": "h",
        "skip_bos": True,
        "outlier_threshold": None,
        "outlying": 0,
    }


def test_values_that_overflow_float16_are_kept_as_they_are(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", ROWS, bos=True)
    run(corpus, tmp_path / "firings", scale=32_768.0)
    assert_planted(corpus, tmp_path / "firings", scale=32_768.0)


def test_values_below_float16_still_fire(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", ROWS, bos=True)
    run(corpus, tmp_path / "firings", scale=1e-12)
    for latent, (positions, activations) in Firings(tmp_path / "firings").of([0, 1, 5]).items():
        np.testing.assert_array_equal(positions, planted(corpus, True)[latent][0])
        assert (activations > 0).all()


def test_activations_that_are_not_finite_are_one_clear_line(tmp_path):
    corpus = corpus_of(tmp_path / "corpus", ROWS, bos=True)
    with pytest.raises(AutointerpError, match=r"h are not finite.*float32"):
        run(corpus, tmp_path / "firings", activations=lambda tokens: subject(tokens) / 0)
