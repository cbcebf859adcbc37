"""A training straight from the subject: every token once an epoch, in an order that can be made again."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.activations import stream as streams
from autointerp.activations.dense import harvest_dense
from autointerp.activations.stream import CorpusStream
from autointerp.artifacts import Corpus, CorpusInfo
from autointerp.commands.train import train
from autointerp.config import parse_config
from autointerp.errors import AutointerpError, ConfigError
from autointerp.progress import Progress
from autointerp.sae import ArraySource, StreamSource, TrainConfig, load_sae, train_sae

BOS = 0


def corpus_of(folder: Path, rows: list[list[int]], bos: bool = True) -> Corpus:
    folder.mkdir()
    whole = [[BOS, *row] if bos else row for row in rows]
    lengths = [len(row) for row in whole]
    info = CorpusInfo("t", "t", BOS if bos else None, max(lengths), sum(lengths), len(rows), len(rows), "")
    flat = np.array([token for row in whole for token in row])
    Corpus.save(folder, info, flat, np.cumsum([0, *lengths]), np.arange(len(rows)), np.zeros(len(rows)))
    return Corpus(folder)


def ids(tokens: torch.Tensor) -> torch.Tensor:
    """Activations that are the token's own number."""
    return tokens[..., None].float()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(1, 20), st.booleans(), st.integers(1, 30))
def test_an_epoch_has_each_token_once_and_nothing_held_out(tmp_path_factory, lengths, size, bos, batch) -> None:
    numbers = iter(range(1, 1000))
    rows = [[next(numbers) for _ in range(length)] for length in lengths]
    corpus, last = corpus_of(tmp_path_factory.mktemp("stream") / "corpus", rows, bos), len(rows) - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", size)
        stream = CorpusStream(corpus, ids, last, seed=3, batch_tokens=batch, device="cpu")
    tokens = [token for row in rows[:last] for token in row]
    chunks = [stream.chunk(i) for i in range(len(tokens) // stream.rows)]
    seen = torch.cat(chunks).flatten().tolist()
    assert len(set(seen)) == len(seen) == len(tokens) // stream.rows * stream.rows
    assert set(seen) <= set(tokens)
    assert stream.held_out().flatten().tolist() == rows[last]
    again = CorpusStream(corpus, ids, last, seed=3, batch_tokens=batch, device="cpu")
    again.rows = stream.rows
    assert torch.equal(again.chunk(len(chunks) + 1), stream.chunk(len(chunks) + 1))  # of another epoch
    assert torch.equal(again.chunk(0), chunks[0])


def test_activations_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", [[1, 2, 3]])
    stream = CorpusStream(corpus, lambda tokens: ids(tokens) * 1e5, 1, seed=0, batch_tokens=8, device="cpu")
    with pytest.raises(AutointerpError, match="float16"):
        stream.chunk(0)
    with pytest.raises(AutointerpError, match=r"raise corpus\.tokens"):
        stream.held_out()


def test_bos_and_padding_are_no_activations_that_float16_has_to_hold(tmp_path: Path) -> None:
    """A BOS of the largest models is a hundred times as large as what comes after it, and is not stored."""

    def large_at_bos(tokens: torch.Tensor) -> torch.Tensor:
        return torch.where(tokens == BOS, 1e5, tokens)[..., None].float()

    corpus, bar = corpus_of(tmp_path / "corpus", [[1, 2, 3], [4], [5, 6]]), Progress("stored", None, "tokens")
    harvest_dense(corpus, large_at_bos, 1, tmp_path, batch_tokens=16, device="cpu", bar=bar)
    assert np.load(tmp_path / "activations.npy")[:, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_training_from_the_stream_explains_as_much_as_training_from_a_file(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(48, 16, generator=generator))
    codes = torch.rand(400, 48, generator=generator) * (torch.rand(400, 48, generator=generator) < 0.06)
    table = codes @ features
    text = np.random.default_rng(0).integers(1, 400, (160, 64))
    corpus = corpus_of(tmp_path / "corpus", text.tolist())
    (tmp_path / "file").mkdir()
    harvest_dense(
        corpus, lambda tokens: table[tokens], 16, tmp_path / "file",
        batch_tokens=4096, device="cpu", bar=Progress("activations", None, "tokens"),
    )  # fmt: skip
    stored = ArraySource(np.load(tmp_path / "file" / "activations.npy")[: 144 * 64])
    stream = CorpusStream(corpus, lambda tokens: table[tokens], 144, seed=0, batch_tokens=4096, device="cpu")
    streamed = StreamSource(stream.chunk, d_in=16, rows=stream.rows, buffer_chunks=1)
    config = TrainConfig.model_validate({"d_sae": 64, "k": 4, "tokens": 60_000, "batch_size": 256})
    explained = {}
    for name, source in (("stored", stored), ("streamed", streamed)):
        train_sae(source, config, tmp_path / name, held_out=stream.held_out().float())
        figures = json.loads((tmp_path / name / "train.json").read_text())["figures"]
        explained[name] = figures["held_out"]["explained_variance"]
    assert explained["stored"] > 0.6
    assert abs(explained["streamed"] - explained["stored"]) < 0.02  # benchmarks/training.py --stream has it at size


def test_a_run_that_streams_stores_no_activations_however_many_ranks_train(
    toy: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Once upon a time there was a cat number {n}, who sat on a mat." for n in range(60)))
    raw = {
        "name": "streamed",
        "subject": {"model": str(toy), "hook": "blocks.0.hook_resid_post", "device": "cpu"},
        "corpus": {"source": str(text), "tokens": 1000, "context": 32},
        "sae": {"stream": True, "train": {"d_sae": 32, "k": 4, "tokens": 2048, "batch_size": 128}},
    }
    folder, figures = train(parse_config(raw), out=tmp_path / "run")
    assert figures["held_out"]["tokens"] > 0
    assert (folder / "sae_weights.safetensors").exists()
    assert not list((tmp_path / "cache").rglob("activations.npy"))
    raw["sae"]["train"]["ranks"] = 2
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache of two"))
    begun: list[int] = []

    def a_rank(work: Callable[..., None], count: int, device: str, heard: Any) -> None:
        """What a process would be handed, done here: with a stream of its own, all batches by itself."""
        begun.append(count)
        pickle.loads(pickle.dumps(work))(device, lambda *_: None)

    monkeypatch.setattr("autointerp.sae.train.run_ranks", a_rank)
    by_two, of_two = train(parse_config(raw), out=tmp_path / "run of two")
    assert begun == [2]
    assert torch.equal(load_sae(by_two).W_dec, load_sae(folder).W_dec)
    assert of_two["held_out"] == figures["held_out"]
    del raw["sae"]["train"]["ranks"]
    made = (by_two / "sae_weights.safetensors").stat().st_mtime_ns
    train(parse_config(raw), out=tmp_path / "run of two")  # trained already: ranks are no part of a key
    assert (by_two / "sae_weights.safetensors").stat().st_mtime_ns == made


def test_a_stream_is_for_training() -> None:
    raw = {"name": "a", "subject": {"model": "m"}, "corpus": {"source": "t"}, "sae": {"load": "x", "stream": True}}
    with pytest.raises(ConfigError, match=r"sae.stream is of sae.train"):
        parse_config(raw)
