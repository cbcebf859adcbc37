"""The toys hold what they promise: otherwise a benchmark measures the generator."""

import numpy as np
import pytest
import torch

from autointerp.errors import AutointerpError
from autointerp.toys.planted import plant
from autointerp.toys.worlds import correlated_pairs, three_features


def test_a_planted_dictionary_is_what_it_says():
    planted = plant(800, 96, seed=0, noise=0.2, triples=0.3)
    assert np.linalg.norm(planted.rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert [len(planted.of_kind(k)) for k in ("composite", "split_child", "duplicate")] == [40, 80, 16]
    for row in planted.of_kind("composite"):
        if planted.detectable(row):
            clean = np.array(planted.coefficients[row]) @ planted.rows[list(planted.parts[row])]
            assert clean @ planted.rows[row] == pytest.approx(1 / np.sqrt(1.04), abs=1e-4)
    for row in planted.of_kind("split_child"):
        assert 0.499 < planted.rows[row] @ planted.rows[planted.parts[row][0]] < 0.851
    for row in planted.of_kind("duplicate"):
        assert planted.rows[row] @ planted.rows[planted.original(row)] > 0.959


def test_a_seed_gives_one_dictionary():
    one, same, other = (plant(200, 32, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.rows, same.rows)
    assert not np.array_equal(one.rows, other.rows)


def test_a_cone_shares_a_mean_and_an_isotropic_dictionary_does_not():
    norms = [float(np.linalg.norm(plant(2000, 64, seed=0, mean=m).rows.mean(0))) for m in (0.0, 1.0)]
    assert norms[0] < 0.05
    assert norms[1] > 0.6


@pytest.mark.parametrize("together", [0.3, 0.7])
def test_pairs_fire_together_as_asked_and_each_as_often_as_the_rest(together):
    world = correlated_pairs(0, together=together)
    _, strengths = world.sample(100_000)
    on = (strengths > 0).float()
    assert on.mean(0) == pytest.approx(0.05, abs=0.004)
    g, h = on[:, 0], on[:, 1]
    assert float((g * h).sum() / torch.maximum(g, h).sum()) == pytest.approx(together, abs=0.03)


def test_three_features_mix_in_fixed_or_varying_proportion():
    for varying in (False, True):
        world = three_features(1, varying=varying)
        x, strengths = world.sample(5000)
        assert torch.allclose(x, strengths @ world.features)
        both = strengths[(strengths[:, :2] > 0).all(1)]
        assert (float((both[:, 0] - both[:, 1]).abs().max()) > 0.1) is varying
    assert torch.equal(world.sample(10)[0], world.sample(10)[0])
    assert not torch.equal(world.sample(10)[0], world.sample(10, part=1)[0])


def test_a_world_that_cannot_be_is_refused():
    with pytest.raises(AutointerpError, match="more pairs"):
        correlated_pairs(0, features=10, pairs=6)
