"""The small trainer of benchmarks/toy_points.py: one-to-one partners, tied weights, stages on what is left over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from autointerp.toys import worlds


@pytest.fixture(scope="module")
def points(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("toy_points")


@pytest.fixture(scope="module")
def world() -> worlds.World:
    return worlds.correlated_pairs(0, features=12, d=16, pairs=2, firing=0.2)


def test_unique_partners_are_nobody_s_twice_and_never_oneself(points: Any, world: worlds.World):
    batch = points.Batch(points.Setting(10, penalty=1.0, unique=True), world.sample(64)[0][None])
    batch._nearest(0)
    assert sorted(batch.partners[0].tolist()) == list(range(10))
    assert all(partner != i for i, partner in enumerate(batch.partners[0].tolist()))


def test_tied_weights_encode_with_the_decoder(points: Any, world: worlds.World):
    x = world.sample(64)[0][None]
    batch = points.Batch(points.Setting(10, tied=True, steps=20), x)
    batch.train(points.sampler([world]))
    expected = (x @ batch.decoder.mT + batch.bias).relu()
    assert torch.equal(batch.codes(x), expected)


def test_a_second_stage_lowers_what_the_first_leaves_over(points: Any, world: worlds.World):
    stage = points.Setting(8, sparsity=0.05, steps=150)
    left = [points.learned([world], [stage] * count)[2].square().sum() for count in (1, 2)]
    assert left[1] < 0.9 * left[0]
    assert points.measure([world], stage, stage)["l0"][0] > 0
