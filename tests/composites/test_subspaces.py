"""Latents that share a plane or a few dimensions are told from sums, and sums beside them are still found."""

import numpy as np
import pytest

from autointerp.composites import FLAGGED, find_composites
from autointerp.composites.decoys import least_r2
from autointerp.toys.planted import plant


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def directions(n, d=128, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, d)))


def on_a_plane(angles, d=128, seed=1):
    plane = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, 2)))[0].T
    return np.stack([np.cos(angles), np.sin(angles)], 1) @ plane


def flagged(table):
    return set(table.index[table["label"].isin(FLAGGED)])


@pytest.mark.parametrize("size", [5, 6, 7, 12, 24])
def test_a_circle_is_a_subspace_of_rank_two_that_goes_round(size):
    rows = directions(400)
    rows[:size] = on_a_plane(2 * np.pi * np.arange(size) / size)
    table = find_composites(rows)
    assert set(table["label"][:size]) == {"subspace"}
    assert set(table["label"][size:]) == {"atomic"}
    assert set(table["rank"][:size]) == {2}
    assert table["circular"][:size].all()
    assert all(members == list(range(size)) for members in table["members"][:size])
    assert all(parts == [] for parts in table["constituents"][:size])
    places = np.reshape(table["places"][0], (size, 2))
    assert np.hypot(*places.T) == pytest.approx(1)
    assert places @ places.T == pytest.approx(rows[:size] @ rows[:size].T, abs=1e-5)  # as they lie to each other


@pytest.mark.parametrize("rank", [3, 4, 6])
def test_random_directions_of_a_few_dimensions_are_a_subspace_of_their_rank(rank):
    rows, rng = directions(400), np.random.default_rng(5)
    rows[:30] = unit(rng.standard_normal((30, rank)) @ np.linalg.qr(rng.standard_normal((128, rank)))[0].T)
    table = find_composites(rows)
    assert (table["label"][:30] == "subspace").mean() > 0.9
    assert set(table["rank"].dropna()) == {rank}
    assert not table["circular"].dropna().any()
    assert not flagged(table)


def test_half_a_circle_has_a_gap_and_is_not_circular():
    rows = directions(400)
    rows[:9] = on_a_plane(np.linspace(0, np.pi, 9))
    table = find_composites(rows)
    assert (table["label"][:9] == "subspace").sum() >= 7
    assert not table["circular"].dropna().any()


def test_sums_of_the_same_three_atoms_are_sums_and_no_subspace():
    rows = directions(400)
    g, h, k = rows[:3]
    rows[3:9] = unit(np.stack([g + h, g + k, h + k, g + h + k, 2 * g + h, g + 2 * k]))
    table = find_composites(rows)
    assert flagged(table) == set(range(3, 9))
    assert "subspace" not in set(table["label"])


def test_a_sum_of_members_of_two_circles_is_a_sum():
    rows = directions(400)
    rows[:8] = on_a_plane(2 * np.pi * np.arange(8) / 8)
    rows[8:15] = on_a_plane(2 * np.pi * np.arange(7) / 7, seed=2)
    rows[15] = unit(rows[0] + rows[9])
    rows[16] = unit(rows[3] + rows[200])
    table = find_composites(rows)
    assert flagged(table) == {15, 16}
    assert [set(table["constituents"][row]) for row in (15, 16)] == [{0, 9}, {3, 200}]
    assert set(table["label"][:15]) == {"subspace"}


def test_many_children_of_one_parent_are_no_subspace():
    rows = directions(400)
    for row in range(1, 21):
        rows[row] = unit(rows[0] + 0.5 * rows[row])  # cosine .89
    table = find_composites(rows)
    assert "subspace" not in set(table["label"])


def test_a_copy_of_a_member_that_leaves_the_plane_is_a_duplicate():
    rows = directions(400)
    rows[:7] = on_a_plane(2 * np.pi * np.arange(7) / 7)
    rows[7] = unit(rows[2] + 0.2 * rows[7])
    table = find_composites(rows)
    assert (table["label"][7], table["constituents"][7]) == ("duplicate", [2])
    assert set(table["label"][:7]) == {"subspace"}


def test_neither_the_order_of_the_rows_nor_the_block_size_changes_a_subspace():
    planted = plant(500, 128, seed=4, noise=0.2, circles=(5, 9, 16), subspaces=((4, 20),), spread=0.1, duplicates=0.0)
    plain = find_composites(planted.rows)
    cut = find_composites(planted.rows, block=97)
    order = np.random.default_rng(0).permutation(500)
    turned = find_composites(planted.rows[order])
    assert list(plain["label"]) == list(cut["label"])
    assert list(plain["members"]) == list(cut["members"])
    assert list(plain["label"][order]) == list(turned["label"])


def test_what_lies_opposite_a_constituent_does_not_turn_a_sum_round():
    rows = directions(400)
    rows[2] = unit(unit(rows[0] + rows[1]) + 0.2 * rows[5])
    rows[3], rows[4] = -unit(rows[0] + 0.3 * rows[3]), -unit(rows[1] + 0.3 * rows[4])
    table = find_composites(rows)
    assert flagged(table) == {2}
    assert set(table["constituents"][2]) == {0, 1}


def test_a_sum_of_four_is_named_by_all_four():
    rows = directions(400)
    rows[4] = unit(unit(rows[:4].sum(0)) + 0.2 * rows[9])
    table = find_composites(rows)
    assert table["label"][4] == "composite"
    assert set(table["constituents"][4]) == {0, 1, 2, 3}
    rebuilt = np.array(table["coefficients"][4]) @ rows[table["constituents"][4]]
    assert 1 - np.square(rows[4] - rebuilt).sum() == pytest.approx(table["r2"][4], abs=1e-4)


def test_outlier_dimensions_hide_no_sums_and_make_none():
    planted = plant(900, 192, seed=1, noise=0.1, hidden=0.0, stretched=(3, 30.0))
    table = find_composites(planted.rows)
    right = {row for row in flagged(table) if planted.original(row) in set(planted.of_kind("composite"))}
    assert len(right) >= 0.97 * len(flagged(table))
    assert len(right) >= 0.9 * len(planted.of_kind("composite"))


def test_a_parent_of_two_children_is_no_sum_of_them_where_the_spectrum_is_steep():
    planted = plant(1500, 384, seed=2, composites=0.0, children=0.3, power=1.5)
    assert not len(flagged(find_composites(planted.rows)))


def test_a_child_of_a_member_is_no_sum_of_others_of_its_subspace():
    planted = plant(1500, 384, seed=0, composites=0.0, children=0.3, loaded=(0.1, 30.0))
    table = find_composites(planted.rows)
    assert (table["label"] == "subspace").sum() > 50
    assert not len(flagged(table))


def test_sums_count_from_the_fit_on_that_opposites_hardly_reach():
    chance = np.array([0.62, 0.65, 0.7])
    sums = np.array([0.6, 0.66, 0.68, *np.linspace(0.9, 1.0, 100)])
    assert least_r2(np.zeros(0), 1.0, sums) == 0.0
    assert least_r2(chance, 1.0, sums) == pytest.approx(0.65)  # one of 102 above it is chance
    assert least_r2(chance, 4.0, sums) == pytest.approx(0.7)
    assert least_r2(chance, 1.0, sums[:3]) == pytest.approx(0.7)


def test_of_too_steep_a_spectrum_the_check_says_that_it_cannot_tell():
    planted = plant(1500, 384, seed=0, composites=0.0, power=2.5)
    table = find_composites(planted.rows)
    assert not flagged(table)
    assert table["failure"][table["label"] == "atomic"].str.startswith("cannot tell").all()
    atomic = table[table["label"] == "atomic"]
    assert (atomic["constituents"].map(len) == 0).all()
    assert atomic["partial_r2"].isna().all()  # no figures of the sums that chance made
    assert (np.sqrt(atomic["r2"]) <= atomic["max_cosine"] + 1e-5).all()
