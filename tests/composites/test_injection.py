"""The positive control: what the check sees of sums and circles that are added to a dictionary."""

import numpy as np
import pytest

from autointerp.composites import find_composites
from autointerp.composites.injection import NOISES, inject
from autointerp.errors import AutointerpError


def test_in_a_wide_dictionary_of_independent_directions_the_check_sees_all_and_nothing_else():
    rows = np.random.default_rng(0).standard_normal((500, 256))
    seen = inject(rows, find_composites(rows), 18)
    assert seen.sums == 20  # as many at each noise
    assert seen.recovered == sum(seen.recovered_by_noise.values())
    assert list(seen.recovered_by_noise) == list(NOISES)
    assert seen.recall >= 0.9
    assert seen.exact == seen.recovered
    assert seen.precision == 1
    assert seen.labelled_subspace == seen.on_circles


def test_where_chance_fits_as_well_the_control_says_so():
    rows = np.random.default_rng(0).standard_normal((500, 6))
    seen = inject(rows, find_composites(rows), 20)
    assert seen.recall < 0.5


def test_the_same_seed_adds_the_same_rows():
    rows = np.random.default_rng(1).standard_normal((200, 64))
    table = find_composites(rows)
    assert inject(rows, table, 8, seed=3) == inject(rows, table, 8, seed=3)


def test_a_dictionary_of_one_direction_has_no_constituents():
    rows = np.tile(np.random.default_rng(0).standard_normal((1, 8)), (30, 1))
    with pytest.raises(AutointerpError, match="may be constituents"):
        inject(rows, find_composites(rows), 8)
