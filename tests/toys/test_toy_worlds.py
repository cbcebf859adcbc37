"""The toys hold what they promise: otherwise a benchmark measures the generator."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.errors import AutointerpError
from autointerp.toys.planted import plant
from autointerp.toys.worlds import World, correlated_pairs, forest, three_features, two_one_hot_sets


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


def within_chance(count: torch.Tensor, tokens: int | torch.Tensor, probability: torch.Tensor | float) -> bool:
    """Whether counts are what binomial draws give: none is off by more than five standard deviations and a draw."""
    p = torch.as_tensor(probability)
    return bool(((count - tokens * p).abs() <= 5 * (tokens * p * (1 - p)).sqrt() + 1).all())


def fires_as_often_as_it_says(world: World, tokens: int = 20_000) -> bool:
    return within_chance((world.sample(tokens)[1] > 0).sum(0), tokens, world.probability)


small_forest = {"features": 200, "d": 32, "trees": 5, "branching": 3, "depth": 2, "rank": 4}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), together=st.floats(0.1, 0.9), pairs=st.integers(0, 6))
def test_pairs_fire_together_as_asked_and_each_as_often_as_the_rest(seed, together, pairs):
    world = correlated_pairs(seed, features=16, d=16, pairs=pairs, together=together)
    assert fires_as_often_as_it_says(world)
    on = world.sample(20_000)[1] > 0
    for g, h in world.pairs:
        assert within_chance((on[:, g] & on[:, h]).sum(), (on[:, g] | on[:, h]).sum(), together)
    assert within_chance((on[:, -1] & on[:, 0]).sum(), len(on), 0.05**2)


def test_three_features_mix_in_fixed_or_varying_proportion():
    for varying in (False, True):
        world = three_features(1, varying=varying)
        _, strengths = world.sample(5000)
        both = strengths[(strengths[:, :2] > 0).all(1)]
        assert (float((both[:, 0] - both[:, 1]).abs().max()) > 0.1) is varying
        assert fires_as_often_as_it_says(world)


@pytest.mark.parametrize(
    "world",
    [three_features(3), correlated_pairs(3), two_one_hot_sets(3), forest(3, **small_forest)],
    ids=["three", "pairs", "one-hot", "forest"],
)
def test_inputs_are_sums_of_unit_features_and_a_part_is_always_the_same(world):
    x, strengths = world.sample(300, part=1)
    assert torch.allclose(x, strengths @ world.features, atol=1e-5)
    assert torch.allclose(world.features.norm(dim=1), torch.ones(len(world.features)), atol=1e-5)
    assert ((strengths == 0) | ((strengths >= 0.5) & (strengths <= 1.5))).all()
    assert torch.equal(world.sample(300, part=1)[0], x)
    assert not torch.equal(world.sample(300, part=2)[0], x)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 6), together=st.floats(0.0, 1.0))
def test_each_one_hot_set_has_one_feature_on(seed, size, together):
    world = two_one_hot_sets(seed, size=size, d=16, together=together)
    on = world.sample(4000)[1] > 0
    assert (on[:, :size].sum(1) == 1).all()
    assert (on[:, size:].sum(1) == 1).all()
    same = sum((on[:, g] & on[:, h]).sum() for g, h in world.pairs)
    assert within_chance(same, 4000, together)


def test_one_hot_sets_have_no_privileged_basis():
    world = two_one_hot_sets(0)
    assert not world.privileged
    x, strengths = world.sample(100)
    shift = torch.cat([torch.ones(4), -torch.ones(4)])[:, None] * torch.randn(world.features.shape[1])
    assert torch.allclose(strengths @ (world.features + shift), x, atol=1e-5)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), exponent=st.floats(0.3, 1.2), exhaustive=st.floats(0.2, 1.0))
def test_a_forest_fires_by_its_chances_and_children_exclude_each_other(seed, exponent, exhaustive):
    world = forest(seed, **small_forest, exponent=exponent, exhaustive=exhaustive)
    assert fires_as_often_as_it_says(world)
    on = world.sample(20_000)[1] > 0
    parents = torch.tensor(world.parents)
    for parent in parents[parents >= 0].unique():
        children = (parents == parent).nonzero().squeeze(1)
        assert len(children) == 3
        assert (on[:, children].sum(1) <= on[:, parent]).all()
        assert float(world.probability[children].sum()) <= exhaustive * float(world.probability[parent]) + 1e-6


def test_a_forest_follows_zipf_where_families_leave_room():
    world = forest(0, **small_forest, exponent=0.5)
    free = torch.tensor([i for i, parent in enumerate(world.parents) if parent < 0])
    assert torch.allclose(world.probability[free], 0.4 * (free + 1.0) ** -0.5, rtol=1e-5)


def test_features_of_a_forest_are_correlated_by_few_factors_and_only_if_asked():
    strongest = []
    for correlation in (0.0, 0.6):
        world = forest(1, **{**small_forest, "rank": 2}, exponent=0.1, correlation=correlation)
        free = torch.tensor([i for i, parent in enumerate(world.parents) if parent < 0])[:60]
        matrix = torch.corrcoef((world.sample(20_000)[1][:, free] > 0).float().T)
        strongest.append(float((matrix - torch.eye(60)).abs().max()))
    assert strongest[0] < 5 / 20_000**0.5
    assert strongest[1] > 0.2


def test_a_world_that_cannot_be_is_refused():
    with pytest.raises(AutointerpError, match="more pairs"):
        correlated_pairs(0, features=10, pairs=6)
    with pytest.raises(AutointerpError, match="two features"):
        two_one_hot_sets(0, size=1)
    with pytest.raises(AutointerpError, match="do not fit"):
        forest(0, features=100, d=8)
