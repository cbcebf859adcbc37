"""What the composite check finds in dictionaries whose truth is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.composites import FLAGGED, expand, find_composites
from autointerp.errors import AutointerpError
from autointerp.toys.planted import plant

COLUMNS = [
    *("feature", "label", "constituents", "coefficients", "union_constituents", "r2", "partial_r2", "max_cosine"),
    *("p_value", "p_value_null", "rank", "members", "circular", "places", "reencode", "lift", "semantic", "failure"),
]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def directions(n, d=64, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, d)))


def flagged(table):
    return set(table.index[table["label"].isin(FLAGGED)])


@pytest.fixture(scope="module")
def planted():
    return plant(600, 128, seed=3, noise=0.3, hidden=0.0)


@pytest.fixture(scope="module")
def table(planted):
    return find_composites(planted.rows)


def test_planted_composites_are_found_with_their_exact_parts_and_nothing_else_is_flagged(planted, table):
    truth = set(planted.of_kind("composite"))
    assert {planted.original(row) for row in flagged(table)} == truth
    for row in flagged(table):
        named = {planted.original(part) for part in table["constituents"][row]}
        assert named == {planted.original(part) for part in planted.parts[planted.original(row)]}


def test_columns_are_those_of_composites_parquet_and_survive_the_file(table, tmp_path):
    import pandas as pd

    assert list(table.columns) == COLUMNS
    table.to_parquet(tmp_path / "composites.parquet")
    again = pd.read_parquet(tmp_path / "composites.parquet")
    assert [list(c) for c in again["constituents"]] == list(table["constituents"])
    assert again["semantic"].isna().all()
    assert again["reencode"].isna().all()


def test_coefficients_rebuild_the_raw_unit_row_and_give_its_r2(planted, table):
    scaled = planted.rows * np.random.default_rng(0).uniform(0.2, 5, (600, 1)).astype(np.float32)
    rescaled = find_composites(scaled)
    assert list(rescaled["label"]) == list(table["label"])
    for row in flagged(rescaled):
        rebuilt = np.array(rescaled["coefficients"][row]) @ unit(scaled)[rescaled["constituents"][row]]
        residual = np.square(unit(scaled)[row] - rebuilt).sum()
        assert 1 - residual == pytest.approx(rescaled["r2"][row], abs=1e-4)


def test_split_families_are_named_and_not_flagged(planted, table):
    children = planted.of_kind("split_child")
    families = {"split_child", "parent_of_children", "duplicate"}
    assert np.mean(table["label"][children].isin(families)) > 0.9
    solitary = [row for row in children if table["label"][row] == "split_child"]
    parent = [planted.original(table["constituents"][row][0]) == planted.parts[row][0] for row in solitary]
    assert np.mean(parent) > 0.9


def test_parent_of_unequal_children_is_called_a_parent():
    base = directions(200)
    parent, rng = base[0], np.random.default_rng(1)
    for row in (1, 2, 3):
        side = rng.standard_normal(64)
        base[row] = 0.8 * parent + 0.6 * unit(side - (side @ parent) * parent)
    table = find_composites(base)
    assert table["label"][0] == "parent_of_children"
    assert set(table["constituents"][0]) <= {1, 2, 3}
    assert not flagged(table)


def test_a_parent_between_children_that_exclude_each_other_is_their_sum_as_the_limits_say():
    rng = np.random.default_rng(0)
    rows = unit(rng.standard_normal((1000, 256)))
    away = rng.standard_normal(256)
    away = unit(away - (away @ rows[0]) * rows[0])
    for cosine, label in ((0.7, "composite"), (0.85, "parent_of_children")):
        rows[1], rows[2] = (cosine * rows[0] + sign * np.sqrt(1 - cosine**2) * away for sign in (1, -1))
        table = find_composites(rows)
        assert table["label"][0] == label
        assert set(table["constituents"][0]) == {1, 2}


def test_only_the_positive_side_of_a_signed_relation_is_flagged():
    base = directions(200)
    base[2] = unit(base[0] + 0.7 * base[1])  # so base[0] = (base[2] - b base[1]) / a as well
    table = find_composites(base)
    assert flagged(table) == {2}
    assert table["constituents"][2] == [0, 1]
    assert table["label"][0] == table["label"][1] == "atomic"


def test_a_third_part_is_named_only_where_it_adds_enough():
    base = directions(300, 128)
    base[3] = unit(base[0] + base[1] + 0.8 * base[2])
    base[7] = unit(base[4] + base[5] + 0.2 * base[6])  # adds R² .02
    table = find_composites(base)
    assert set(table["constituents"][3]) == {0, 1, 2}
    assert table["r2"][3] == pytest.approx(1, abs=1e-3)
    assert set(table["constituents"][7]) == {4, 5}


def test_a_third_part_that_adds_little_does_not_hide_the_pair():
    g, h, k, rest = np.linalg.qr(np.random.default_rng(0).standard_normal((256, 4)))[0].T
    rows = unit(np.random.default_rng(1).standard_normal((1000, 256)))
    rows[0], rows[1], rows[2] = unit(0.66 * g + 0.61 * h + 0.23 * k + 0.37 * rest), g, h
    for third in (False, True):
        if third:
            rows[3] = k
        table = find_composites(rows)
        assert table["label"][0] == "composite"
        assert set(table["constituents"][0]) == {1, 2}


def test_a_chain_of_near_rows_is_no_group_of_duplicates():
    rng = np.random.default_rng(0)
    rows = unit(rng.standard_normal((300, 256)))
    first, last = np.linalg.qr(rng.standard_normal((256, 2)))[0].T
    for i, angle in enumerate(np.linspace(0, np.pi / 2, 9)):  # neighbours have a cosine of .98
        rows[i] = np.cos(angle) * first + np.sin(angle) * last
    rows[20] = unit(rows[8] + rows[30])
    table = find_composites(rows)
    copies = table[table["label"] == "duplicate"]
    of = [rows[i] @ rows[parts[0]] for i, parts in copies["constituents"].items()]
    assert len(of) > 4
    assert min(of) > 0.95 - 1e-6
    assert table["label"][20] == "composite"
    assert (rows[table["constituents"][20]] @ rows[8]).max() > 0.95  # the end is no copy of the beginning


@pytest.mark.parametrize("d", [1, 2, 3])
def test_where_any_direction_is_a_sum_of_a_few_nothing_is_flagged(d):
    for seed in range(4):
        table = find_composites(np.random.default_rng(seed).standard_normal((20, d)))
        assert not table["label"].isin(FLAGGED).any()


def test_sums_of_the_same_two_atoms_are_named_by_the_atoms_and_expand_to_them():
    base = directions(200)
    for row, (a, b) in zip((2, 3, 4), ((2, 1), (1, 1), (1, 2))):
        base[row] = unit(a * base[0] + b * base[1])
    table = find_composites(base)
    assert flagged(table) == {2, 3, 4}
    for row in (2, 3, 4):
        assert set(expand(table, [row])[row]) == {0, 1}
    atoms = expand(table, [2])[2]
    assert atoms[0] / atoms[1] == pytest.approx(2, rel=1e-3)


def test_composites_of_composites_expand_to_atoms():
    base = directions(300, 128)
    base[3] = unit(base[0] + base[1])
    base[4] = unit(base[3] + 0.5 * base[2])
    table = find_composites(base)
    assert {3, 4} <= flagged(table)
    assert set(expand(table, [4])[4]) == {0, 1, 2}


def sums(parts):
    """A table of composites whose coefficients are all ½."""
    import pandas as pd

    columns = ("feature", "label", "constituents", "coefficients")
    rows = [(f, "composite" if own else "atomic", own, [0.5] * len(own)) for f, own in parts.items()]
    return pd.DataFrame(rows, columns=list(columns))


def test_sums_that_share_their_parts_over_many_levels_expand_at_once():
    chain = {f: [f - 1, f - 2] if f > 1 else [] for f in range(200)}  # 2^100 ways lead down
    atoms = expand(sums(chain), [2, 3, 199])
    assert atoms[2] == {1: 0.5, 0: 0.5}
    assert atoms[3] == {1: 0.75, 0: 0.25}
    assert atoms[199].keys() == {0, 1}
    assert sum(atoms[199].values()) == pytest.approx(1)


def test_on_a_cycle_of_sums_a_constituent_is_its_own_atom():
    rng = np.random.default_rng(0)
    ring = {f: [(f + 1) % 60, *rng.choice(60, 2).tolist(), 60] for f in range(60)}  # each leads to each, in many ways
    table = sums({**ring, 60: [61, 62], 61: [], 62: [], 63: [0, 60], 64: [63, 61]})
    atoms = expand(table, range(65))
    assert set(atoms[0]) == {*ring[0][:3], 61, 62}
    assert set(atoms[63]) == {0, 61, 62}
    assert atoms[64] == {0: 0.25, 61: 0.5 + 0.125, 62: 0.125}
    assert atoms[61] == {61: 1.0}


def test_duplicates_are_reported_and_do_not_hide_a_composite():
    base = directions(200)
    base[2] = unit(base[0] + base[1])
    base[10:60] = base[0]  # fifty copies would fill every neighbour list
    base[60] = base[2]
    table = find_composites(base)
    assert set(table["label"][10:60]) == {"duplicate"}
    assert all(c == [0] for c in table["constituents"][10:60])
    assert table["label"][2] == "composite"
    assert table["constituents"][2] in ([0, 1], [1, 0])
    assert (table["label"][60], table["constituents"][60]) == ("duplicate", [2])


def test_a_part_that_only_the_union_dictionary_holds_is_found_there():
    base, other = directions(200), directions(300, seed=9)
    base[5] = unit(base[0] + 0.6 * other[7])
    other[9] = base[0]
    assert 5 not in flagged(find_composites(base))
    table = find_composites(base, other)
    assert flagged(table) == {5}
    assert (table["constituents"][5], table["union_constituents"][5]) == ([0], [7])
    rebuilt = table["coefficients"][5][0] * base[0] + table["coefficients"][5][1] * other[7]
    assert rebuilt == pytest.approx(base[5], abs=1e-3)


@settings(max_examples=12, deadline=None)
@given(block=st.integers(1, 700), seed=st.integers(0, 3), cone=st.booleans())
def test_any_block_size_gives_the_same_labels_and_parts(block, seed, cone):
    rows = plant(300, 48, seed=seed, noise=0.3, power=0.7 * cone, mean=0.5 * cone).rows
    whole, cut = find_composites(rows, block=4096), find_composites(rows, block=block)
    assert list(whole["label"]) == list(cut["label"])
    assert list(whole["constituents"]) == list(cut["constituents"])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_the_rows_does_not_matter(seed):
    rows = plant(300, 48, seed=1, noise=0.3, duplicates=0.0).rows
    order = np.random.default_rng(seed).permutation(300)
    plain, shuffled = find_composites(rows), find_composites(rows[order])
    assert list(plain["label"][order]) == list(shuffled["label"])


@settings(max_examples=8, deadline=None)
@given(noise=st.floats(0, 1.2))
def test_r2_falls_as_the_residual_grows(noise):
    base, extra = directions(300, 96), directions(1, 96, seed=5)[0]
    base[2] = unit(unit(base[0] + base[1]) + noise * extra)
    table = find_composites(base)
    expected = 1 / (1 + noise**2)
    if table["label"][2] in FLAGGED:
        assert table["r2"][2] == pytest.approx(expected, abs=0.15)
        assert expected > 0.45
    else:
        assert expected < 0.75


@pytest.mark.parametrize("d", [32, 64, 256])
def test_random_dictionaries_are_not_flagged_and_their_p_values_are_uniform(d):
    table = find_composites(np.random.default_rng(d).standard_normal((1500, d)).astype(np.float32))
    assert not flagged(table)
    p = table["p_value"].to_numpy(float)
    assert np.mean(p <= 0.05) <= 0.08
    assert np.mean(p <= 0.5) <= 0.56
    assert np.mean(p <= 0.5) >= 0.3  # neither idle


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_rows_that_span_few_of_their_dimensions_are_judged_by_chance_in_those(noise):
    rng, span = np.random.default_rng(0), np.linalg.qr(np.random.default_rng(1).standard_normal((256, 40)))[0].T
    inside = directions(3000, 40) @ span
    inside[2] = unit(inside[0] + 0.8 * inside[1])
    rows = unit(inside + noise / 16 * rng.standard_normal((3000, 256)))
    table = find_composites(rows)
    assert 2 in flagged(table)
    assert len(flagged(table)) <= 3  # in 256 dimensions nothing would fit so well by chance, and a tenth is flagged
    assert (table["p_value"] <= 0.05).mean() == pytest.approx(0.05, abs=0.03)


def test_a_cone_without_composites_is_not_flagged():
    rows = plant(1500, 128, seed=1, composites=0.0, power=1.0, mean=0.5).rows
    assert len(flagged(find_composites(rows))) <= 1


def test_the_p_value_says_which_null(table):
    assert set(table["p_value_null"].dropna()) <= {"random", "covariance", "conditional"}
    composites = table[table["label"] == "composite"]
    assert (composites["p_value"] < 1e-3).all()


@pytest.mark.parametrize("kind", ["float16", "float64", "torch16", "read_only", "fortran", "bfloat16"])
def test_any_float_matrix_is_taken(kind):
    rows = directions(100, 32)
    rows[2] = unit(rows[0] + rows[1])
    given = {
        "float16": lambda: rows.astype(np.float16),
        "float64": lambda: rows,
        "torch16": lambda: torch.from_numpy(rows).half().requires_grad_(),
        "bfloat16": lambda: torch.from_numpy(rows).bfloat16(),
        "read_only": lambda: np.frombuffer(rows.astype("f4").tobytes(), "f4").reshape(rows.shape),
        "fortran": lambda: np.asfortranarray(rows),
    }[kind]()
    assert flagged(find_composites(given)) == {2}


def test_a_map_of_a_file_is_read_in_place(tmp_path):
    rows = directions(100, 32)
    rows[2] = unit(rows[0] + rows[1])
    np.save(tmp_path / "w.npy", rows.astype(np.float16))
    assert flagged(find_composites(np.load(tmp_path / "w.npy", mmap_mode="r"))) == {2}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.full((5, 4), np.nan), "NaN"),
        (np.array([[1.0, np.inf], [0.0, 1.0]]), "first in row 0"),
        (np.ones(5), "matrix of floats"),
        (np.ones((5, 4), dtype=int), "matrix of floats"),
        (np.ones((5, 0)), "width"),
    ],
)
def test_what_is_no_decoder_is_refused_in_one_line(rows, says):
    with pytest.raises(AutointerpError, match=says) as error:
        find_composites(rows)
    assert "\n" not in str(error.value)


def test_copies_within_the_union_dictionary_do_not_crowd_out_the_other_part():
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((200, 64))
    g, h = rng.standard_normal((2, 64))
    own = np.concatenate([atoms, [g + 0.7 * h]])  # h's cosine with it is below that of the forty copies of g
    copies = g + 0.02 * rng.standard_normal((40, 64))
    table = find_composites(own, np.concatenate([rng.standard_normal((30, 64)), [g, h], copies]))
    assert table["label"][200] == "composite"
    assert table["union_constituents"][200] == [30, 31]


def test_what_the_union_lends_is_never_a_row_that_the_dictionary_has():
    rng = np.random.default_rng(0)
    own = rng.standard_normal((200, 64))
    own[0] = own[1] + own[2]
    table = find_composites(own, np.concatenate([own, own, rng.standard_normal((20, 64))]))
    assert table["constituents"][0] == [1, 2]
    assert (table["union_constituents"].map(len) == 0).all()


def test_dead_latents_of_the_union_are_not_lent_and_none_stands_before_its_living_copy():
    base, other = directions(200), directions(300, seed=9)
    base[5] = unit(base[0] + 0.6 * other[7])
    other[3] = other[7]  # the first of the two copies is lent
    assert find_composites(base, other)["union_constituents"][5] == [3]
    alive = np.ones(300, dtype=bool)
    alive[3] = False
    assert find_composites(base, other, union_alive=alive)["union_constituents"][5] == [7]
    alive[7] = False
    assert 5 not in flagged(find_composites(base, other, union_alive=alive))


def test_a_union_of_another_width_or_a_wrong_mask_is_refused():
    with pytest.raises(AutointerpError, match="width 8"):
        find_composites(directions(10), directions(10, 8))
    with pytest.raises(AutointerpError, match="10 booleans"):
        find_composites(directions(10), alive=np.ones(9, dtype=bool))
    with pytest.raises(AutointerpError, match="union_alive must be 0 booleans"):
        find_composites(directions(10), union_alive=np.ones(9, dtype=bool))


def test_zero_rows_and_masked_rows_are_dead_and_no_candidates():
    base = directions(200)
    base[2] = unit(base[0] + base[1])
    base[4] = 0
    table = find_composites(base)
    assert (table["label"][4], table["constituents"][4]) == ("dead", [])
    assert np.isnan(table["r2"][4])
    assert table["failure"][4]
    alive = np.ones(200, dtype=bool)
    alive[1] = False
    masked = find_composites(base, alive=alive)
    assert masked["label"][1] == "dead"
    assert 2 not in flagged(masked)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_rows_hold_no_composite(n):
    table = find_composites(directions(5)[:n])
    assert len(table) == n
    assert list(table["label"]) == ["atomic"] * n
    if n == 1:
        assert table["failure"][0] == "no other latent to compare with"


def test_three_rows_are_enough_for_one():
    base = directions(3)
    base[2] = unit(base[0] + base[1])
    table = find_composites(base)
    assert list(table["label"]) == ["atomic", "atomic", "composite"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_dictionary_of_one_direction_is_all_duplicates(dtype):
    table = find_composites(np.tile(directions(1), (50, 1)).astype(dtype))
    assert set(table["label"]) == {"duplicate"}
    assert list(table["constituents"])[:3] == [[1], [0], [0]]


def test_all_rows_zero_are_all_dead():
    assert set(find_composites(np.zeros((4, 8)))["label"]) == {"dead"}


@pytest.mark.cuda
def test_the_label_does_not_depend_on_the_device():
    rows = plant(1000, 128, seed=2, power=0.7, mean=0.5).rows
    cpu, gpu = find_composites(rows), find_composites(rows, device="cuda")
    assert list(cpu["label"]) == list(gpu["label"])
    assert list(cpu["constituents"]) == list(gpu["constituents"])
