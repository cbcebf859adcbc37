"""Training: resumes exactly, keeps latents alive, finds planted directions, and refuses what it cannot do."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autointerp.errors import AutointerpError, ConfigError
from autointerp.sae import SAE, ArraySource, StreamSource, TrainConfig, check_sae, load_sae, train_sae
from autointerp.sae.recipes import RECIPES
from autointerp.sae.source import ahead
from autointerp.sae.train import geometric_median


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


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_auxk_weighs_what_dead_latents_miss_by_what_there_is_to_explain(architecture: str) -> None:
    """Dead latents that explain nothing miss all of it, whether the live ones leave much over or little."""
    config = small(architecture=architecture)
    recipe = RECIPES[architecture](config, 32)
    recipe.initialise(torch.Generator().manual_seed(0))
    dead = torch.arange(32) >= 16
    recipe.weights["b_enc"] = -1e3 * dead.float()
    recipe.to(torch.device("cpu"))
    alive = torch.zeros(32, dtype=torch.bool)
    for left_over in (0.01, 1.0):
        z = 3 * recipe.weights["W_dec"][:3].repeat(100, 1).detach() + left_over * torch.randn(300, 32)
        added = recipe.loss(z, dead, 0).loss - recipe.loss(z, alive, 0).loss
        assert added.item() == pytest.approx(config.aux_coefficient, rel=1e-3)


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
    bias = torch.randn(9, requires_grad=True)
    pre = (x @ weights.T + bias).detach()
    encoded = sparse.encode(x, weights, bias, indices, pre)
    torch.testing.assert_close(encoded, pre.gather(1, indices))
    (encoded * values.detach()).sum().backward()
    found = weights.grad, values.grad, bias.grad
    weights.grad = values.grad = bias.grad = None
    dense = torch.zeros(5, 9).scatter(1, indices, values)
    ((dense @ weights) * target).sum().backward()
    ((x @ weights.T + bias).gather(1, indices) * values.detach()).sum().backward()
    torch.testing.assert_close(found, (weights.grad, values.grad, bias.grad))


@pytest.mark.parametrize("bandwidth", [1e-3, 0.3])
def test_jumprelu_learns_the_same_from_sparse_products(bandwidth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from autointerp.sae.recipes import RECIPES, JumpReLU

    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    config = TrainConfig(architecture="jumprelu", d_sae=48, k=4, bandwidth=bandwidth, dtype="float32", batch_size=64)
    learned = []
    for dense_from in (0.0, 1.0):  # all by dense products, all by sparse ones
        monkeypatch.setattr(JumpReLU, "dense_from", dense_from)
        recipe = RECIPES["jumprelu"](config, 16)
        recipe.initialise(torch.Generator().manual_seed(0))
        recipe.to(torch.device("cpu"))
        outcome = recipe.loss(z, torch.zeros(48, dtype=torch.bool), step=500)
        outcome.loss.backward()
        learned.append((outcome, {name: tensor.grad for name, tensor in recipe.weights.items()}))
    assert all(gradient.abs().sum() > 0 for gradient in learned[0][1].values())
    torch.testing.assert_close(learned[0], learned[1])


@settings(max_examples=50, deadline=None)
@given(n=st.integers(8, 700), k=st.integers(1, 8), seed=st.integers(0, 99), levels=st.sampled_from([3, 10_000]))
def test_topk_by_groups_finds_the_largest(n: int, k: int, seed: int, levels: int) -> None:
    from autointerp.sae import sparse

    generator = torch.Generator().manual_seed(seed)
    pre = torch.randint(-levels, levels, (5, n), generator=generator).to(torch.bfloat16)
    found = sparse.topk(pre, k)
    assert all(len(set(row)) == k for row in found.tolist())
    torch.testing.assert_close(pre.gather(1, found).sort(1, descending=True).values, pre.topk(k).values)


class Watched(ArraySource):
    """Copies the decoder's and encoder's rows of the training in progress, from its checkpoints, at each batch."""

    def __init__(self, rows: np.ndarray, folder: Path) -> None:
        super().__init__(rows)
        self.folder, self.seen = folder, {}

    def batches(self, seed: int, start_step: int, batch_size: int) -> Iterator[torch.Tensor]:
        for step, batch in enumerate(super().batches(seed, start_step, batch_size), start_step):
            if (self.folder / "checkpoint.pt").exists():
                content = (self.folder / "checkpoint.pt").read_bytes()[32:]
                self.seen[step] = torch.load(io.BytesIO(content), weights_only=True)["recipe"]["weights"]
            yield batch


def test_frozen_latents_do_not_move_while_the_next_learn_the_rest(tmp_path: Path) -> None:
    x = planted(2000)[0]
    _, held_out = ArraySource(x).hold_out(500)
    config = small(
        d_sae=32, k=4, stages=2, tokens=256 * 120, checkpoint_every=1, dead_after=4000, penalty={"weight": 1.0}
    )
    source = Watched(x, tmp_path)
    sae = train_sae(source, config, tmp_path, held_out=held_out)
    begun, later, last = source.seen[60], source.seen[61], source.seen[119]
    for name in ("W_enc", "W_dec", "b_enc"):
        assert torch.equal(begun[name][:16], last[name][:16]), name
        assert not torch.equal(later[name][16:], last[name][16:]), name
    untouched = torch.nn.functional.cosine_similarity(begun["W_dec"][16:], source.seen[1]["W_dec"][16:])
    torch.testing.assert_close(untouched, torch.ones(16))
    alone = check_sae(_first(sae, 16), held_out)
    whole = check_sae(sae, held_out)
    assert whole.explained_variance > alone.explained_variance + 0.1
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))


def _first(sae: SAE, latents: int) -> SAE:
    tensors = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    tensors["W_dec"][latents:] = 0
    tensors["b_enc"][latents:] = -1e6
    return SAE(dataclasses.replace(sae.cfg, k=sae.cfg.k // 2), tensors)


def test_a_training_in_stages_resumes_bit_for_bit(tmp_path: Path) -> None:
    source, config = ArraySource(planted(1000)[0]), small(stages=3, tokens=256 * 40, dtype="bfloat16")
    straight = train_sae(source, config, tmp_path / "straight")
    for at, calls in ((14, 2), (27, 1), (31, 1)):  # 14 and 27 begin a stage
        with pytest.raises(KeyboardInterrupt):
            train_sae(Stops(source, at, calls), config, tmp_path / "stopped")
    resumed = train_sae(source, config, tmp_path / "stopped")
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(1, 60), stages=st.integers(1, 6), d_sae=st.integers(8, 40), decay=st.floats(0, 1))
def test_stages_share_the_steps_and_the_latents(steps: int, stages: int, d_sae: int, decay: float) -> None:
    stages = min(stages, steps)
    config = small(stages=stages, k=8, d_sae=d_sae, tokens=256 * steps, decay=decay)
    spans = [config.stage_at(step) for step in range(steps)]
    assert all(first <= step < after for step, (_, first, after) in enumerate(spans))
    assert sorted({stage for stage, *_ in spans}) == list(range(stages))
    parts = [config.latents_at(first) for first in sorted({first for _, first, _ in spans})]
    assert [latent for part in parts for latent in range(d_sae)[part]] == list(range(d_sae))
    assert all(0 < config.lr_at(step) <= config.peak_lr for step in range(steps))


@pytest.mark.parametrize("architecture", ["relu", "gated", "rescaled"])
def test_the_sparsity_weight_is_steered_to_the_target(tmp_path: Path, architecture) -> None:
    x = planted(4000)[0]
    x += 0.5 * np.random.default_rng(1).normal(size=x.shape).astype(np.float32)  # L0 then follows the weight
    source, held_out = ArraySource(x).hold_out(1000)
    config = small(architecture=architecture, target_l0=6, tokens=128 * 500, batch_size=128, lr=5e-3)
    straight = train_sae(source, config, tmp_path / "straight", held_out=held_out)
    figures = json.loads((tmp_path / "straight" / "train.json").read_text())["figures"]
    assert figures["held_out"]["l0"] == pytest.approx(6, rel=0.1)
    with pytest.raises(KeyboardInterrupt):
        train_sae(Stops(source, 475, 2), config, tmp_path / "stopped")
    assert torch.equal(train_sae(source, config, tmp_path / "stopped").W_dec, straight.W_dec)


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "relu", "stages": 2},
        {"stages": 4, "k": 3},
        {"betas": (0.9, 1.0)},
        {"architecture": "topk", "target_l0": 4},
        {"penalty": {"kind": "sideways"}},
    ],
    ids=str,
)
def test_what_an_architecture_has_not_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"stages|betas|target_l0|kind"):
        small(**options)


@settings(max_examples=30, deadline=None)
@given(usual=st.floats(0, 20), k=st.integers(1, 12), seed=st.integers(0, 5))
def test_batchtopk_keeps_the_largest_whatever_its_threshold_was(usual: float, k: int, seed: int) -> None:
    """The running threshold only says where to look first."""
    config = small(architecture="batchtopk", k=k, d_sae=40, batch_size=30)
    recipe = RECIPES["batchtopk"](config, 16)
    recipe.initialise(torch.Generator().manual_seed(seed))
    recipe.kept["threshold"] = torch.tensor(usual)
    z = torch.randn(30, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        pairs, values, pre = recipe._chosen(z, 5)
    positive = pre[pre > 0].sort(descending=True).values[: 30 * k]
    chosen = pre[pairs.token, pairs.latent]
    assert torch.equal(chosen.sort(descending=True).values, positive)
    assert torch.allclose(values, chosen, atol=1e-5)


def damage(content: bytes) -> Iterator[bytes]:
    yield b""
    yield content[: len(content) // 2]
    yield content[:-1]
    yield os.urandom(len(content))
    middle = len(content) // 2
    yield content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]  # torch.load would not notice


def test_a_damaged_checkpoint_is_set_aside_and_nothing_is_trained_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "autointerp")
    source, config = ArraySource(planted(600)[0]), small(tokens=256 * 20)
    with pytest.raises(KeyboardInterrupt):
        train_sae(Stops(source, 15, 2), config, tmp_path)
    path = tmp_path / "checkpoint.pt"
    undisturbed = train_sae(source, config, tmp_path / "undisturbed")
    for number, content in enumerate(damage(path.read_bytes())):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "checkpoint.pt").write_bytes(content)
        assert torch.equal(train_sae(source, config, folder).W_dec, undisturbed.W_dec)
        assert "set aside" in caplog.messages[-1]


def test_b_dec_starts_at_the_geometric_median_on_request(tmp_path: Path) -> None:
    x = planted(1024)[0]
    x[:100] += 1000  # outliers move the mean, not this
    rows = torch.from_numpy(x)
    median = geometric_median(rows, rows.mean(0))
    distance = lambda at: float((rows - at).norm(dim=1).sum())  # noqa: E731
    assert all(distance(median) <= distance(median + 0.1 * step) for step in torch.randn(20, 32))
    for start, point in (("mean", rows.mean(0)), ("geometric_median", median)):
        config = small(tokens=256 * 4, start=start, lr=1e-9)
        sae = train_sae(ArraySource(x), config, tmp_path / start)
        torch.testing.assert_close(sae.b_dec, point, atol=1e-3, rtol=1e-3)


class FakeRun:
    def __init__(self, **options: object) -> None:
        self.options, self.id = options, options["id"] or "fresh"
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.ended: list[int] = []

    def log(self, row: dict[str, float], step: int) -> None:
        self.rows.append((step, dict(row)))

    def finish(self, exit_code: int = 0) -> None:
        self.ended.append(exit_code)


def test_wandb_gets_the_rows_of_the_log_and_a_resumed_training_its_run(tmp_path: Path, monkeypatch) -> None:
    runs: list[FakeRun] = []

    def init(**options: object) -> FakeRun:
        runs.append(FakeRun(**options))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    source = ArraySource(planted(1000)[0])
    config = small(tokens=256 * 40, tracking={"to": "wandb", "project": "p", "name": "n"}, penalty={"weight": 0.1})
    with pytest.raises(KeyboardInterrupt):
        train_sae(Stops(source, 25, 2), config, tmp_path)
    train_sae(source, config, tmp_path)
    assert [run.options["id"] for run in runs] == [None, "fresh"]
    assert (runs[0].options["project"], runs[0].options["name"]) == ("p", "n")
    assert [run.ended for run in runs] == [[255], [0]]
    logged = [row for _, row in runs[0].rows + runs[1].rows]
    written = csv.DictReader((tmp_path / "log.csv").open())
    assert logged == [{key: float(value) for key, value in row.items()} for row in written]
    assert [step for step, _ in runs[0].rows + runs[1].rows] == [10, 20, 30, 40]
    assert all(0 < row["mmcs"] < 1 and 0 < row["penalty"] < 1 for row in logged)


def test_where_to_log_is_not_what_is_trained(tmp_path: Path) -> None:
    plain, logged = small(tokens=256 * 4), small(tokens=256 * 4, tracking={"to": "wandb", "project": "p"})
    assert plain.model_dump() == logged.model_dump()
    sae = train_sae(ArraySource(planted(600)[0]), plain, tmp_path)
    assert torch.equal(train_sae(ArraySource(planted(600)[0]), logged, tmp_path).W_dec, sae.W_dec)


def test_a_missing_wandb_is_said_before_anything_is_trained(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'autointerp-sae\[wandb\]'"):
        train_sae(ArraySource(planted(600)[0]), small(tracking={"to": "wandb", "project": "p"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_batches_read_ahead_are_the_same(monkeypatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    source = ArraySource(planted(600)[0])
    read = ahead(source.batches(0, 0, 100))
    assert all(torch.equal(next(read), batch) for batch, _ in zip(source.batches(0, 0, 100), range(9)))
    broken = ahead(Stops(source, 2, 1).batches(0, 0, 100))
    next(broken), next(broken)
    with pytest.raises(KeyboardInterrupt):
        next(broken)
