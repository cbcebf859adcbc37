"""Penalties: gradients are those of the formulas, what is searched in blocks is found, and they act as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sae_train import Stops, planted, small
from torch import Tensor

from autointerp.sae import ArraySource, train_sae
from autointerp.sae.penalties import _BLOCK, PENALTIES, Batch, _nearest, chunk_at, mmcs
from autointerp.sae.train_config import PenaltyConfig


def unit(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.3)


def batch(rows: Tensor, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(20, rows.shape[1], generator=generator, dtype=rows.dtype)
    fired = torch.rand(len(rows), generator=generator) < 0.6
    return Batch(rows, z, fired, 3, step, rows.dtype, {})


def cosines(rows: Tensor) -> Tensor:
    return (rows @ rows.T).masked_fill(torch.eye(len(rows), dtype=torch.bool), 0.0)


def naive(kind: str, b: Batch, p: PenaltyConfig, rows: Tensor) -> Tensor:
    """The formula as it is written, on the whole matrix."""
    c = cosines(rows)
    n = len(rows)
    apart = c - 2 * torch.eye(n, dtype=rows.dtype)
    pairs = n * (n - 1)
    match kind:
        case "chunk_max":
            chunk = chunk_at(n, p.chunk, b.seed, b.step // p.every)
            within = apart if chunk is None else apart[chunk][:, chunk]
            return within.amax(1).square().mean()
        case "all_pairs":
            return c.abs().sum() / pairs
        case "threshold":
            return (c.abs() - p.threshold).relu().square().sum() / n
        case "mean_max":
            return c.abs().sum() / pairs + c.abs().amax(1).mean() + c.abs().max()
        case "nearest":
            highest = apart.amax(1)[b.fired]
            if p.shape == "sigmoid":
                return ((highest - p.threshold) / 0.1).sigmoid().mean()
            return highest.relu().square().mean()
        case "neighbours":
            return apart.topk(p.neighbours, dim=1).values.relu().square().sum(1).mean()
        case _:
            made = b.z @ rows.T @ rows * (rows.shape[1] / n)
            return (made - b.z).square().sum() / b.z.square().sum()


@pytest.mark.parametrize(
    "options",
    [
        *({"kind": kind} for kind in PENALTIES),
        {"kind": "nearest", "shape": "sigmoid"},
        {"kind": "chunk_max", "chunk": 20, "every": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("step", [0, 4])
def test_value_and_gradient_are_those_of_the_formula(options: dict[str, object], step: int, monkeypatch) -> None:
    monkeypatch.setattr("autointerp.sae.penalties._BLOCK", 32)  # several blocks
    config = PenaltyConfig.model_validate({"neighbours": 5} | options)
    rows = unit(75, 12).requires_grad_()
    b = batch(rows.detach(), step)
    value, gradient = PENALTIES[config.kind](b, config)
    expected = naive(config.kind, b, config, rows)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, rows.grad)


@pytest.mark.parametrize("kind", ["nearest", "neighbours"])
def test_gathered_pairs_give_the_same_as_sparse_products(kind, monkeypatch) -> None:
    """What a GPU does, on a CPU."""
    from autointerp.sae import penalties

    b, config = batch(unit(50, 8)), PenaltyConfig(kind=kind, neighbours=4)
    expected = PENALTIES[kind](b, config)
    monkeypatch.setattr(penalties, "_of_pairs", penalties._of_gathered)
    torch.testing.assert_close(PENALTIES[kind](b, config), expected)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 3 * _BLOCK), seed=st.integers(0, 9))
def test_the_search_in_blocks_finds_each_rows_nearest(n: int, seed: int) -> None:
    rows = unit(n, 6, seed)
    c = cosines(rows) - 2 * torch.eye(n, dtype=rows.dtype)
    torch.testing.assert_close(c[torch.arange(n), _nearest(rows)], c.amax(1))
    assert mmcs(rows, torch.float64, sample=n) == pytest.approx(float(c.amax(1).mean()))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 500), size=st.integers(2, 300), seed=st.integers(0, 9), rounds=st.integers(0, 3))
def test_chunks_go_through_all_latents_once_a_round(n: int, size: int, seed: int, rounds: int) -> None:
    count = -(-n // size)
    turns = [chunk_at(n, size, seed, count * rounds + at) for at in range(count)]
    if count == 1:
        assert turns == [None]
        return
    chunks = [turn.tolist() for turn in turns if turn is not None]
    assert sorted(latent for chunk in chunks for latent in chunk) == list(range(n))
    assert all(1 <= len(chunk) <= size for chunk in chunks)
    assert all(turn.equal(chunk_at(n, size, seed, count * rounds + at)) for at, turn in enumerate(turns))


def test_an_inactive_neighbour_is_moved_too() -> None:
    rows = unit(12, 6)
    fired = torch.zeros(12, dtype=torch.bool)
    fired[0] = True
    partner = int(_nearest(rows)[0])
    _, gradient = PENALTIES["nearest"](batch(rows)._replace(fired=fired), PenaltyConfig(kind="nearest"))
    assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == {0, partner}


@pytest.mark.parametrize("kind", sorted(PENALTIES))
def test_a_stopped_training_with_a_penalty_ends_with_the_same_weights_bit_for_bit(tmp_path: Path, kind) -> None:
    source = ArraySource(planted(1000)[0])
    penalty = {"kind": kind, "every": 3, "chunk": 12, "refresh": 7, "neighbours": 4}
    config = small(tokens=256 * 30, dtype="bfloat16", penalty=penalty)
    straight = train_sae(source, config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train_sae(Stops(source, 23, 2), config, tmp_path / "stopped")
    resumed = train_sae(source, config, tmp_path / "stopped")
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("kind", sorted(set(PENALTIES) - {"soft_orthonormal"}))
def test_a_penalty_draws_the_directions_apart_and_a_negative_one_together(tmp_path: Path, kind) -> None:
    source = ArraySource(planted(2000)[0])
    found = {}
    for weight in (-2.0, 0.0, 2.0):
        penalty = {"kind": kind, "weight": weight, "every": 2, "neighbours": 4, "threshold": 0.1}
        sae = train_sae(source, small(tokens=256 * 80, penalty=penalty), tmp_path / str(weight))
        found[weight] = mmcs(sae.W_dec, torch.float32)
    assert found[2.0] < found[0.0] < found[-2.0], found


@pytest.mark.parametrize("architecture", ["batchtopk", "gated"])
def test_a_penalty_goes_with_other_architectures_and_leaves_unit_rows(tmp_path: Path, architecture) -> None:
    config = small(architecture=architecture, tokens=256 * 20, penalty={"weight": 1.0})
    sae = train_sae(ArraySource(planted(1000)[0]), config, tmp_path)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))
