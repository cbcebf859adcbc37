"""Training: resumes exactly, keeps latents alive, finds planted directions, and refuses what it cannot do."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.errors import AutointerpError, ConfigError
from autointerp.sae import ArraySource, StreamSource, TrainConfig, check_sae, load_sae, train_sae
from autointerp.sae.recipes import RECIPES


def planted(n: int = 4000, d: int = 32, features: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(activations [n, d], directions [features, d]): 3 of the features a token, each with a strength, and a mean."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(features, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = np.zeros((n, features))
    for row in codes:
        row[rng.choice(features, 3, replace=False)] = rng.uniform(1, 3, size=3)
    return (codes @ directions + 5 * rng.normal(size=d)).astype(np.float32), directions.astype(np.float32)


def small(**options: object) -> TrainConfig:
    defaults = {
        "d_sae": 32, "k": 3, "tokens": 256 * 60, "batch_size": 256, "lr": 3e-3, "dtype": "float32",
        "checkpoint_every": 10, "log_every": 10, "dead_after": 2000,
    }  # fmt: skip
    return TrainConfig.model_validate(defaults | options)


class Stops:
    """A source that breaks at a given step of the training; the inputs' statistics are taken before it."""

    def __init__(self, inner: ArraySource, at: int, calls: int) -> None:
        self.inner, self.at, self.calls, self.d_in = inner, at, calls, inner.d_in

    def batches(self, seed: int, start_step: int, batch_size: int) -> Iterator[torch.Tensor]:
        self.calls -= 1
        for step, batch in enumerate(self.inner.batches(seed, start_step, batch_size), start_step):
            if self.calls == 0 and step == self.at:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("architecture", sorted(RECIPES))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stopped_training_ends_with_the_same_weights_bit_for_bit(tmp_path: Path, architecture, dtype) -> None:
    source = ArraySource(planted(1000)[0])
    config = small(architecture=architecture, dtype=dtype, tokens=256 * 40)
    straight = train_sae(source, config, tmp_path / "straight")
    for at, calls in ((13, 2), (31, 1)):
        with pytest.raises(KeyboardInterrupt):
            train_sae(Stops(source, at, calls), config, tmp_path / "stopped")
        assert (tmp_path / "stopped" / "checkpoint.pt").exists()
    resumed = train_sae(source, config, tmp_path / "stopped")
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    logs = [list(csv.DictReader((tmp_path / run / "log.csv").open())) for run in ("straight", "stopped")]
    for row in (*logs[0], *logs[1]):
        row.pop("seconds")
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[0]] == ["10", "20", "30", "40"]


def test_a_process_killed_in_training_goes_on(tmp_path: Path) -> None:
    """SIGKILL, in the middle of whatever it was doing."""
    np.save(tmp_path / "acts.npy", planted(1000)[0])
    program = textwrap.dedent("""
        import os, signal, sys, numpy as np
        from autointerp.sae import ArraySource, TrainConfig, train_sae
        class Source(ArraySource):
            calls = 0
            def batches(self, *where):
                self.calls += 1
                for step, batch in enumerate(super().batches(*where), where[1]):
                    if self.calls == 2 and step == int(sys.argv[2]):
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield batch
        config = TrainConfig.model_validate_json(sys.argv[3])
        train_sae(Source(np.load(sys.argv[1])), config, sys.argv[4])
    """)
    config = small(tokens=256 * 20)
    arguments = [str(tmp_path / "acts.npy"), "17", config.model_dump_json(), str(tmp_path / "killed")]
    ended = subprocess.run([sys.executable, "-c", program, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    source = ArraySource(np.load(tmp_path / "acts.npy"))
    resumed = train_sae(source, config, tmp_path / "killed")
    straight = train_sae(source, config, tmp_path / "straight")
    torch.testing.assert_close(resumed.W_dec, straight.W_dec, atol=1e-5, rtol=1e-4)


def test_topk_finds_the_planted_directions(tmp_path: Path) -> None:
    x, directions = planted()
    source, held_out = ArraySource(x).hold_out(500)
    sae = train_sae(source, small(tokens=256 * 400), tmp_path, held_out=held_out, hook_name="h", prepend_bos=True)
    cosines = torch.from_numpy(directions) @ torch.nn.functional.normalize(sae.W_dec).T
    assert float((cosines.amax(1) > 0.95).float().mean()) > 0.8
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))
    figures = json.loads((tmp_path / "train.json").read_text())["figures"]
    assert figures["held_out"]["explained_variance"] > 0.9
    assert figures["held_out"]["l0"] <= 3
    assert not (tmp_path / "checkpoint.pt").exists()
    again = load_sae(tmp_path)
    assert (again.cfg.hook_name, again.cfg.prepend_bos, again.cfg.model_name) == ("h", True, None)
    assert torch.equal(again.encode(held_out), sae.encode(held_out))


def test_auxk_brings_dead_latents_back(tmp_path: Path) -> None:
    source, held_out = ArraySource(planted(8000, features=64)[0]).hold_out(3000)
    dead = {}
    for aux_k in (0, None):
        config = small(d_sae=64, tokens=256 * 300, lr=2e-2, aux_k=aux_k, dead_after=4000)
        train_sae(source, config, tmp_path / str(aux_k), held_out=held_out)
        figures = json.loads((tmp_path / str(aux_k) / "train.json").read_text())["figures"]
        dead[aux_k] = figures["held_out"]["dead_fraction"]
    assert dead[None] < dead[0]


@pytest.mark.parametrize("architecture", sorted(RECIPES))
def test_every_architecture_learns_and_its_checkpoint_says_what_was_trained(tmp_path: Path, architecture) -> None:
    source, held_out = ArraySource(planted(2000)[0]).hold_out(500)
    config = small(architecture=architecture, tokens=256 * 150, lr=1e-2, sparsity=None, bandwidth=0.05)
    if architecture in ("relu", "gated", "rescaled"):
        config = config.model_copy(update={"sparsity": 1.0})
    sae = train_sae(source, config, tmp_path, held_out=held_out)
    check = check_sae(load_sae(tmp_path), held_out)
    assert check.explained_variance > 0.6
    assert 0 < check.l0 < 24
    if sae.cfg.k:
        assert check.l0 == pytest.approx(config.k, abs=2.5)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    # the folded weights give the trained model: the last batches' figure is the held-out one's neighbour
    assert check.explained_variance == pytest.approx(float(rows[-1]["explained_variance"]), abs=0.1)


def test_a_finished_training_is_loaded_and_another_config_is_refused(tmp_path: Path) -> None:
    source = ArraySource(planted(600)[0])
    config = small(tokens=256 * 10)
    sae = train_sae(source, config, tmp_path)
    stamp = (tmp_path / "sae_weights.safetensors").stat().st_mtime_ns
    again = train_sae(source, config, tmp_path)
    assert torch.equal(again.W_enc, sae.W_enc)
    assert (tmp_path / "sae_weights.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="trained with seed = 0, this config says 1"):
        train_sae(source, small(tokens=256 * 10, seed=1), tmp_path)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((600, 4), np.nan, np.float32), "NaN"),
        (np.ones((600, 4), np.float32), "all alike"),
    ],
)
def test_activations_that_teach_nothing_are_refused(tmp_path: Path, x: np.ndarray, message: str) -> None:
    with pytest.raises(AutointerpError, match=message):
        train_sae(ArraySource(x), small(), tmp_path)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(4, 60), batch=st.integers(1, 12), start=st.integers(0, 40), seed=st.integers(0, 5))
def test_a_source_resumes_at_any_step(rows: int, batch: int, start: int, seed: int) -> None:
    x = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    chunk = x[:4]
    stream = StreamSource(lambda i: torch.from_numpy(chunk + 1000 * i), d_in=2, rows=4, buffer_chunks=3)
    for source in (ArraySource(x), stream):
        if batch > rows:
            continue
        straight = source.batches(seed, 0, batch)
        resumed = source.batches(seed, start, batch)
        for _ in range(start):
            next(straight)
        for _ in range(5):
            assert torch.equal(next(straight), next(resumed))


def test_an_epoch_shows_every_row_once_and_the_next_in_another_order() -> None:
    batches = ArraySource(np.arange(40, dtype=np.float32)[:, None]).batches(0, 0, 10)
    first, second = (torch.cat([next(batches)[:, 0] for _ in range(4)]).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_too_few_rows_and_a_wrong_chunk_are_named() -> None:
    with pytest.raises(ConfigError, match="lower batch_size"):
        next(ArraySource(np.zeros((3, 2), np.float32)).batches(0, 0, 4))
    with pytest.raises(ConfigError, match="chunk 0"):
        next(StreamSource(lambda i: torch.zeros(2, 3), d_in=2, rows=2).batches(0, 0, 2))


def test_sparse_products_have_the_gradients_of_the_dense_ones() -> None:
    from autointerp.sae import sparse

    torch.manual_seed(0)
    x, weights = torch.randn(5, 4), torch.randn(9, 4, requires_grad=True)
    indices = torch.stack([torch.randperm(9)[:3] for _ in range(5)])
    values = torch.randn(5, 3, requires_grad=True)
    target = torch.randn(5, 4)
    (sparse.decode(values, indices, weights) * target).sum().backward()
    (sparse.encode(x, weights, indices) * values.detach()).sum().backward()
    found = weights.grad, values.grad
    weights.grad = values.grad = None
    dense = torch.zeros(5, 9).scatter(1, indices, values)
    ((dense @ weights) * target).sum().backward()
    ((x @ weights.T).gather(1, indices) * values.detach()).sum().backward()
    torch.testing.assert_close(found, (weights.grad, values.grad))
