"""Training on several ranks: the SAE of one, whatever ends on the way and however many there were before."""

from __future__ import annotations

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_sae_train import Stops, planted, small

from autointerp.errors import AutointerpError, ConfigError
from autointerp.sae import SAE, ArraySource, StreamSource, TrainConfig, load_sae, train_sae
from autointerp.sae.ranks import ALONE, Group, Ranks
from autointerp.sae.recipes import RECIPES
from autointerp.sae.source import batches_of
from autointerp.sae.spawn import Tell, ranks_wanted, run_ranks

# Weights of length 1 that were trained in 32 bits for some steps: sums in another order, and what Adam makes of it.
# A latent whose gradient is next to nothing moves by a whole step either way.
CLOSE = {"atol": 2e-4, "rtol": 1e-3}

WAYS = {architecture: {"architecture": architecture} for architecture in RECIPES} | {
    "steered": {"architecture": "relu", "target_l0": 4.0},
    "in stages": {"stages": 2, "k": 8, "start": "geometric_median"},
    "chunk_max": {"penalty": {"weight": 0.5, "every": 2}},
    "soft_orthonormal": {"penalty": {"kind": "soft_orthonormal", "weight": 0.5, "every": 2}},
    "nearest": {"penalty": {"kind": "nearest", "weight": 0.5, "every": 2}, "dtype": "bfloat16"},
    "streamed": {},
}


def tiny(**options: object) -> TrainConfig:
    return small(**{"d_sae": 64, "tokens": 250 * 16, "batch_size": 250, "log_every": 4, "dead_after": 1000} | options)


def source() -> ArraySource:
    return ArraySource(planted(1000, d=16)[0])


def same(a: SAE, b: SAE) -> None:
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(tensor, b.state_dict()[name], **CLOSE)


def read_by(way: str) -> ArraySource | StreamSource:
    if way != "streamed":
        return source()
    rows = torch.from_numpy(source().rows).half()
    rows[::50] *= 100  # outlying, on either rank
    return StreamSource(lambda i: rows[i % 4 * 250 :][:250], d_in=16, rows=250, buffer_chunks=4, outlier_threshold=50.0)


def train_each_way(folder: Path, device: str, tell: Tell) -> None:
    for way, options in WAYS.items():
        sae = train_sae(read_by(way), tiny(**options), folder / way, device=device)
        torch.save(sae.state_dict(), folder / f"{way}.{dist.get_rank()}.pt")
    train_sae(ArraySource(np.full((600, 4), np.nan, np.float32)), tiny(), folder / "nan", device=device)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that a script has begun, as under torchrun, train in every way; at last on nothing but NaN, which is
    said as by one process."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.raises(AutointerpError, match=r"^the activations hold NaN or infinite numbers"):
        run_ranks(partial(train_each_way, folder), 2, "cpu", lambda *_: None)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_ranks_train_the_sae_of_one(together: Path, tmp_path: Path, way: str) -> None:
    alone = train_sae(read_by(way), tiny(**WAYS[way]), tmp_path)
    same(alone, load_sae(together / way))
    logs = [list(csv.DictReader((folder / "log.csv").open())) for folder in (tmp_path, together / way)]
    assert len(logs[0]) == len(logs[1]) == 4
    for one, two in zip(*logs):
        for figure in one.keys() - {"seconds"}:
            assert float(one[figure] or 0) == pytest.approx(float(two[figure] or 0), rel=1e-3, abs=1e-4), figure
    figures = [json.loads((folder / "train.json").read_text())["figures"] for folder in (tmp_path, together / way)]
    assert figures[0]["dead_fraction"] == figures[1]["dead_fraction"]
    assert figures[0].keys() == figures[1].keys()


@pytest.mark.parametrize("way", WAYS)
def test_every_rank_has_the_same_weights_bit_for_bit(together: Path, way: str) -> None:
    first, second = (torch.load(together / f"{way}.{rank}.pt") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


class Kills(ArraySource):
    """Its second rank is killed at a step."""

    at = 9

    def batches_of(self, ranks: Ranks, seed: int, start_step: int, batch_size: int) -> Iterator[torch.Tensor]:
        for step, batch in enumerate(super().batches_of(ranks, seed, start_step, batch_size), start_step):
            if ranks.rank == 1 and step == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def test_a_training_goes_on_with_another_number_of_ranks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One process, which is stopped; two, of which one is killed; one again."""
    caplog.set_level("INFO", "autointerp")
    config = tiny(checkpoint_every=4)
    straight = train_sae(source(), config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train_sae(Stops(source(), 6, 2), config, tmp_path / "stopped")
    with pytest.raises(AutointerpError, match=r"rank 1 of 2 was ended by SIGKILL: .*goes on from the last checkpoint"):
        train_sae(Kills(source().rows), tiny(checkpoint_every=4, ranks=2), tmp_path / "stopped")
    same(straight, train_sae(source(), config, tmp_path / "stopped"))
    went_on = [message for message in caplog.messages if "goes on" in message]
    assert went_on == [f"training goes on from step {step} of 16" for step in (4, 8)]
    steps = [row["step"] for row in csv.DictReader((tmp_path / "stopped" / "log.csv").open())]
    assert steps == ["4", "8", "12", "16"]


def test_two_ranks_train_the_same_weights_again_bit_for_bit(together: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", source().rows)
    mapped = ArraySource(np.load(tmp_path / "rows.npy", mmap_mode="r"))  # which each rank opens again
    sae = train_sae(mapped, tiny(**WAYS["batchtopk"], ranks=2), tmp_path / "sae")
    first = load_sae(together / "batchtopk").state_dict()
    assert all(torch.equal(tensor, first[name]) for name, tensor in sae.state_dict().items())


def test_a_source_that_cannot_be_handed_on_is_refused(tmp_path: Path) -> None:
    stream = StreamSource(lambda i: torch.randn(100, 4), d_in=4, rows=100)
    with pytest.raises(ConfigError, match="cannot be handed to another process"):
        train_sae(stream, tiny(ranks=2), tmp_path)


def test_ranks_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import multiprocessing, threading, time
        from autointerp.sae.spawn import run_ranks
        def wait(device, tell):
            time.sleep(600)
        def name_it():
            while not multiprocessing.active_children():
                time.sleep(0.1)
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        if __name__ == "__main__":
            threading.Thread(target=name_it, daemon=True).start()
            run_ranks(wait, 1, "cpu", print)
    """)
    (tmp_path / "script.py").write_text(program)
    process = subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    (rank,) = process.stdout.readline().split()
    process.kill()
    process.wait()
    for _ in range(300):
        if not Path(f"/proc/{rank}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{rank}").exists()


# --- in one process


class Nth(Ranks):
    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count


@given(rows=st.integers(6, 60), batch=st.integers(1, 12), count=st.integers(1, 4), start=st.integers(0, 9))
def test_the_rows_of_all_ranks_are_the_batch(rows: int, batch: int, count: int, start: int) -> None:
    x = np.arange(rows, dtype=np.float32)[:, None]
    chunks = StreamSource(lambda i: torch.from_numpy(x[:5] + 1000 * i), d_in=1, rows=5, buffer_chunks=4)
    for source in (ArraySource(x), chunks, Stops(ArraySource(x), 99, 0)):
        if batch > rows:
            continue
        whole = source.batches(3, start, batch)
        parts = [batches_of(Nth(rank, count), source, 3, start, batch) for rank in range(count)]
        for _ in range(6):
            together = torch.cat([next(part) for part in parts])
            assert torch.equal(together.sort(0).values, next(whole).sort(0).values)


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """torch.distributed's group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Group(torch.device("cpu"))
    dist.destroy_process_group()


@given(
    values=st.lists(st.floats(0, 2.0**127, width=32, exclude_min=True), min_size=1, max_size=50),
    again=st.integers(1, 3),
    k=st.integers(1, 200),
)
def test_the_kth_largest_is_found_by_its_digits(group: Group, values: list[float], again: int, k: int) -> None:
    entries = torch.tensor(values * again, dtype=torch.float32)
    assert torch.equal(group.kth_largest(entries, k), ALONE.kth_largest(entries, k))


@given(first=st.integers(0, 5), rest=st.integers(1, 5), width=st.integers(1, 4))
def test_a_part_of_a_memory_map_is_opened_again_where_it_lies(tmp_path_factory, first, rest, width) -> None:
    file = tmp_path_factory.mktemp("map") / "rows.npy"
    np.save(file, np.random.default_rng(0).normal(size=(12, width)).astype(np.float16))
    rows = np.load(file, mmap_mode="r")[first:-rest]
    sent = pickle.dumps(ArraySource(rows, np.array([1])))
    assert np.array_equal(pickle.loads(sent).rows, rows)
    assert np.array_equal(pickle.loads(pickle.dumps(ArraySource(rows[::2]))).rows, rows[::2])


def test_how_many_ranks_is_no_part_of_what_is_trained() -> None:
    assert tiny(ranks=4).model_dump() == tiny().model_dump()


@pytest.mark.parametrize("ranks", [0, -1, "two", 1.5, True, None])
def test_ranks_are_a_number_of_processes_or_auto(ranks: object) -> None:
    with pytest.raises(ValidationError, match="neither a number of processes nor auto"):
        tiny(ranks=ranks)


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [ranks_wanted("auto", device) for device in ("cpu", "cuda", "cuda:1")] == [1, 4, 1]
    assert (ranks_wanted(3, "cpu"), ranks_wanted(3, "cuda")) == (3, 3)
    for device, gpus in (("cuda", "4 GPUs"), ("cuda:1", "1 GPU")):
        with pytest.raises(ConfigError, match=f"sae.train.ranks is 5, and {device} is {gpus}: one for each"):
            ranks_wanted(5, device)


def test_more_ranks_than_tokens_in_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 ranks cannot share a batch of 1 tokens"):
        train_sae(source(), tiny(tokens=4, batch_size=1, ranks=2), tmp_path)
