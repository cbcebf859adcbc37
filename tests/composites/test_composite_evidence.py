"""Neighbours, nulls, activation evidence and geometry on arrays small enough to check by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.composites import evidence, geometry, nulls, top_neighbours
from autointerp.composites.maps import whitener
from autointerp.composites.neighbours import Rows
from autointerp.errors import AutointerpError


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 4000), m=st.integers(1, 12), block=st.integers(1, 900), seed=st.integers(0, 5))
def test_top_neighbours_are_those_of_the_full_matrix(n, m, block, seed):
    rows = np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)
    queries = np.random.default_rng(seed + 1).integers(0, n, 5)
    index, cosine = top_neighbours(rows, m, queries=queries, block=block)
    full = unit(rows)[queries] @ unit(rows).T
    full[np.arange(5), queries] = -np.inf
    expected = -np.sort(-full, axis=1)[:, :m]
    k = min(m, n - 1)
    assert cosine.numpy()[:, :k] == pytest.approx(expected[:, :k], abs=1e-5)
    assert np.take_along_axis(full, index.numpy()[:, :k], 1) == pytest.approx(expected[:, :k], abs=1e-5)
    assert (index.numpy()[:, k:] == -1).all()


def test_neighbours_are_asked_for_by_row_number_and_can_be_trained_on():
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AutointerpError, match="row numbers from 0 to 7"):
        top_neighbours(rows, 2, queries=torch.ones(8, dtype=torch.bool))
    with pytest.raises(AutointerpError, match="row numbers"):
        top_neighbours(rows, 2, queries=[8])
    _, cosines = top_neighbours(rows, 2, queries=[3])
    (cosines * torch.ones(1, requires_grad=True)).sum().backward()  # no inference tensors


def test_zero_rows_and_excluded_rows_are_nobodys_neighbour():
    rows = np.random.default_rng(0).standard_normal((6, 4))
    rows[2] = 0
    allowed = np.array([True, True, True, False, True, True])
    index, _ = top_neighbours(rows, 5, candidates=allowed)
    assert not {2, 3} & set(index.flatten().tolist())
    assert set(index[3].tolist()) == {0, 1, 4, 5, -1}


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("d", [4, 17, 96])
def test_the_closed_form_is_the_law_of_random_spans(k, d):
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((3000, d, k)))[0]
    r2 = np.square(q[:, 0, :]).sum(1)  # of a fixed direction
    for share in (0.1, 0.5, 0.9):
        x = np.quantile(r2, share)
        assert nulls.beta_tail(np.array([x]), k, d)[0] == pytest.approx(1 - share, abs=0.03)


def test_the_random_threshold_is_near_the_extreme_value_formula():
    n, d = 16_384, 768
    median = nulls.threshold(0.5, 1, d, n)
    assert median == pytest.approx((2 * np.log(n) - np.log(np.log(n)) - np.log(4 * np.pi)) / d, rel=0.06)
    assert nulls.p_random(np.array([nulls.threshold(1e-3, 2, d, n)]), 2, d, n)[0] == pytest.approx(1e-3, rel=1e-3)
    assert nulls.threshold(1e-3, 2, 2, n) == np.inf  # two directions span two dimensions


def test_whitening_keeps_linear_relations_and_makes_a_cone_isotropic():
    from autointerp.toys.planted import plant

    Z = torch.from_numpy(plant(2000, 32, seed=0, power=1.0, mean=1.0, composites=0.0, children=0.0).rows)
    L = whitener(Z)
    mapped = torch.linalg.solve_triangular(L, Z.double().T, upper=False).T
    whole = torch.linalg.solve_triangular(L, (2 * Z[0] + Z[1]).double()[:, None], upper=False)[:, 0]
    assert torch.allclose(whole, 2 * mapped[0] + mapped[1], atol=1e-5)
    before, after = (float((x @ x.T).fill_diagonal_(0).square().mean()) for x in (Z, Rows([Z], "cpu").whitened(L)[:]))
    assert before > 0.2
    assert after == pytest.approx(1 / 32, rel=0.1)


def test_the_surrogate_has_the_second_moment_it_matches():
    Z = torch.from_numpy(unit(np.random.default_rng(0).standard_normal((4000, 16)) + 0.5).astype(np.float32))
    moments = [x.T @ x / len(x) for x in (Z, nulls.random_directions(20_000, 16, 1, whitener(Z)))]
    assert torch.allclose(*moments, atol=0.02)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 3))
def test_the_nonnegative_fit_is_optimal(seed, k):
    rng = np.random.default_rng(seed)
    x, parts = rng.standard_normal((4, 6)), rng.standard_normal((k, 6))
    fit = evidence.nonnegative_fit(x @ parts.T, parts @ parts.T)
    gradient = (fit @ parts - x) @ parts.T
    assert (fit >= 0).all()
    assert (gradient >= -1e-8).all()  # the conditions of Karush, Kuhn and Tucker
    assert np.abs(gradient * fit).max() < 1e-8


def test_reencode_confirms_what_its_parts_carry_and_not_what_they_do_not():
    rng = np.random.default_rng(0)
    g, h, other = unit(rng.standard_normal((3, 64)))
    parts, typical = np.stack([g, h]), np.array([2.0, 1.0])
    amount = rng.uniform(1, 3, (150, 1))
    both = amount * (2 * g + h) @ parts.T
    assert evidence.reencode(both, parts @ parts.T, typical).confirms(plain=0.9)
    assert not evidence.reencode(both, parts @ parts.T, typical).confirms(plain=1.0)  # as much as no sums reach
    one = evidence.reencode(amount * (2 * g + other) @ parts.T, parts @ parts.T, typical)
    assert one.share is not None
    assert one.share < 0.1
    few = evidence.reencode(both[:99], parts @ parts.T, typical)
    assert few.share == 1.0
    assert not few.confirms(plain=None)
    assert evidence.reencode(both[:0], parts @ parts.T, typical).share is None


def test_strong_tokens_reach_their_share_of_the_95th_percentile():
    assert evidence.strong_tokens(np.linspace(0, 100, 101)).sum() == 63  # 38 … 100
    assert not len(evidence.strong_tokens(np.zeros(0)))


def test_lift_is_one_by_chance_and_none_for_the_silent():
    everywhere = np.arange(1000)
    assert evidence.lift(everywhere[::2], everywhere[::5], 1000) == pytest.approx(1.0)
    assert evidence.lift(everywhere[::10], everywhere[::5], 1000) == pytest.approx(5.0)
    assert evidence.lift(everywhere[:0], everywhere, 1000) is None
    assert evidence.lift(everywhere, everywhere[:0], 1000) is None


def test_replacing_and_additive_are_told_apart():
    f = np.arange(100)
    assert evidence.mode(f, [np.arange(100, 200), np.arange(95, 300)]) == "replacing"
    assert evidence.mode(f, [np.arange(0, 60), np.arange(40, 300)]) == "additive"
    assert evidence.mode(f[:0], [f, f]) is None


def test_absorption_is_a_silent_feature_whose_direction_is_there():
    f, there = np.arange(50), np.ones(50)
    apart, together = (evidence.share_within(g, f) for g in (np.arange(50, 90), np.arange(50)))
    assert evidence.absorbs(apart, there, typical=1.0)
    assert not evidence.absorbs(together, there, typical=1.0)
    assert not evidence.absorbs(apart, -there, typical=1.0)
    assert evidence.absorbs(None, there, typical=1.0) is None


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 60), max_size=300).map(sorted), count=st.integers(1, 80), seed=st.integers(0, 9))
def test_tested_tokens_come_from_the_rows_that_are_looked_at_first_and_few_from_each(rows, count, seed):
    rows, turn = np.array(rows, int), np.random.default_rng(seed).permutation(61)
    chosen = evidence.draw(rows, turn, count)
    assert len(chosen) == len(set(chosen.tolist())) == min(count, len(rows))
    assert (np.diff(chosen) > 0).all()
    each = np.bincount(rows[chosen], minlength=61)
    room = np.bincount(rows, minlength=61)
    spared = np.minimum(room, evidence.PER_ROW) - each  # while one row has a first handful left, none gives a second
    if (spared > 0).any():
        assert each.max() <= evidence.PER_ROW
        assert turn[each > 0].max() <= turn[spared > 0].min()


def test_swapped_parts_are_another_s_and_share_none_with_the_latent():
    flagged = {1: [10, 11], 2: [12, 13], 3: [10, 14], 4: [1, 15], 5: [16, 17, 18]}
    swapped = evidence.swapped_parts(flagged, seed=0)
    assert swapped[1] == [12, 13]  # 3 shares 10 with it, 4 has it as a part, 5 has more parts
    assert 5 not in swapped
    for f, parts in swapped.items():
        assert parts in flagged.values()
        assert {f, *flagged[f]}.isdisjoint(parts)


def test_random_parts_fire_about_as_often_as_those_they_stand_in_for():
    counts = np.repeat([10, 1000], 100)
    pool = evidence.StandIns(np.arange(200), counts)
    drawn = evidence.random_parts(0, [1, 150], pool, seed=3)
    assert drawn is not None
    assert drawn[0] < 100 <= drawn[1]
    assert not {0, 1, 150} & set(drawn)
    assert evidence.random_parts(0, [1, 2], evidence.StandIns(np.arange(3), counts), seed=0) is None
    lent = evidence.StandIns(np.arange(200), counts, d_sae=150)
    for seed in range(5):
        drawn = evidence.random_parts(0, [1, 160], lent, seed, same=range(180))
        assert drawn is None  # none of the SAE's own says something else
        drawn = evidence.random_parts(0, [1, 160], lent, seed, same=range(20, 190))
        assert drawn is not None
        assert drawn[0] < 20
        assert drawn[1] >= 190


@settings(max_examples=40, deadline=None)
@given(data=st.data(), most=st.sampled_from([1, 3, 10**6]))
def test_stand_ins_are_the_nearest_of_all_and_of_equally_near_ones_the_first(data, most):
    counts = np.array(data.draw(st.lists(st.integers(0, most), min_size=3, max_size=120)))
    pool = np.array(data.draw(st.permutations(np.flatnonzero(counts > 0).tolist())), int)
    part, without = data.draw(st.tuples(*[st.integers(0, len(counts) - 1)] * 2))
    left = pool[pool != without]
    away = np.abs(np.log1p(counts[left]) - np.log1p(counts[part]))
    wanted = left[np.argsort(away, kind="stable")[: evidence.ALIKE]]
    assert evidence.StandIns(pool, counts).nearest(part, {without}).tolist() == wanted.tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 25), min_size=1, max_size=3, unique=True), max_size=25), st.integers(0, 99))
def test_each_other_that_shares_nothing_may_be_swapped_in(parts, seed):
    flagged = dict(enumerate(parts))
    swapped = evidence.swapped_parts(flagged, seed, d_sae=13)
    for f, own in flagged.items():
        fit = [
            g
            for g, theirs in flagged.items()
            if len(theirs) == len(own)
            and sum(part >= 13 for part in theirs) == sum(part >= 13 for part in own)
            and {f, *own}.isdisjoint({g, *theirs})
        ]
        assert (f in swapped) == bool(fit)
        if fit:
            assert swapped[f] == flagged[fit[np.random.default_rng([seed, f]).integers(len(fit))]]


def test_geometry_of_random_directions_is_that_of_its_nulls_and_a_hub_stands_out():
    rows = np.random.default_rng(0).standard_normal((600, 32)).astype(np.float32)
    found = geometry.geometry(rows)
    assert found.mmcs["dictionary"] == pytest.approx(found.mmcs["random"], abs=0.02)
    assert found.mmcs["dictionary"] == pytest.approx(found.mmcs["covariance"], abs=0.03)
    counts = found.profile.groupby(["dictionary", "rank"])["latents"].sum()
    assert (counts == 600).all()
    rows[1:40] = rows[0] + 0.8 * rows[1:40]
    hubs = geometry.geometry(rows).hubs
    assert hubs["largest_hub"].max() >= 10  # the bands share its 39 followers
    assert hubs.loc[hubs["largest_hub"].idxmax(), "hub"] == 0


def test_a_latent_orthogonal_to_all_of_the_other_is_distinct_and_a_zero_row_is_none():
    one = np.eye(8, dtype=np.float32)
    assert geometry.beside(one[:4], one[4:]).distinct == 1
    assert geometry.beside(one[:4], np.concatenate([one[:1], one[4:]])).distinct == 0.75
    assert geometry.beside(np.concatenate([one[:1], 0 * one[:3]]), one[4:]).distinct == 1


def test_distinct_latents_are_those_the_other_sae_has_not():
    rows = unit(np.random.default_rng(0).standard_normal((20, 512))).astype(np.float32)
    assert geometry.beside(rows, rows[:15]).distinct == pytest.approx(0.25)
    index, cosine = geometry.highest_to(rows[3:5], rows)
    assert index.tolist() == [3, 4]
    assert cosine.tolist() == pytest.approx([1, 1], abs=1e-5)
