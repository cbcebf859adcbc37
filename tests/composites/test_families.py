"""Families on planted dictionaries: every kind of fate is told, nothing is made of what is unrelated, labels stay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from autointerp.composites.families import FATES, ORIGINS, Families, families, stability
from autointerp.errors import AutointerpError
from autointerp.toys.planted_families import PlantedFamilies, plant_families


@pytest.fixture(scope="module")
def planted() -> PlantedFamilies:
    return plant_families(300, 128, seed=0, noise=0.2)


@pytest.fixture(scope="module")
def followed(planted: PlantedFamilies) -> Families:
    return families(planted.narrow, planted.wide)


def test_each_kind_of_fate_and_origin_is_told(planted: PlantedFamilies, followed: Families):
    for truth, table, labels in (
        (planted.fates, followed.fates, FATES),
        (planted.origins, followed.origins, ORIGINS),
    ):
        told = Counter(zip(truth, table["label"]))
        for label in labels:
            assert told[label, label] >= 0.95 * truth.count(label) > 0


def test_a_family_is_named_whole(planted: PlantedFamilies, followed: Families):
    for truth, others, row in zip(planted.fates, planted.others, followed.fates.to_dict("records")):
        if truth == row["label"] and truth in ("kept", "split"):
            assert set(row["others"]) == others
            assert row["cosines"] == sorted(row["cosines"], reverse=True)


def test_both_sides_say_the_same(followed: Families):
    fates, origins = followed.fates, followed.origins
    for row in fates[fates["label"] == "split"].to_dict("records"):
        for child in row["others"]:
            assert origins.loc[child, "label"] in ("child", "kept")
            assert origins.loc[child, "others"] == [row["feature"]]
    for row in origins[origins["label"] == "sum"].to_dict("records"):
        assert len(row["others"]) >= 2
        assert row["r2"] >= 0.6


def test_dictionaries_with_nothing_in_common_have_no_families():
    rng = np.random.default_rng(0)
    followed = families(rng.standard_normal((300, 64)), rng.standard_normal((600, 64)))
    assert set(followed.fates["label"]) == {"missing"}
    assert set(followed.origins["label"]) == {"new"}
    assert (followed.match == -1).all()
    assert followed.fates["max_cosine"].isna().mean() > 0.98


def test_a_dictionary_is_kept_by_itself_in_any_order_but_for_zero_rows():
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((200, 64)).astype(np.float32)
    rows[7] = 0
    order = rng.permutation(200)
    followed = families(rows, rows[order])
    place = np.argsort(order)
    assert followed.match.tolist() == [int(place[i]) if i != 7 else -1 for i in range(200)]
    assert followed.fates["label"].value_counts().to_dict() == {"kept": 199}
    assert followed.fates.loc[7, "failure"] == followed.origins.loc[int(place[7]), "failure"] == "a zero row"


def test_widths_that_differ_are_refused():
    with pytest.raises(AutointerpError, match="wide has rows of width 32, narrow of 64"):
        families(np.ones((10, 64)), np.ones((10, 32)))


def labels(*values: str) -> pd.DataFrame:
    return pd.DataFrame({"label": values})


def test_stability_counts_matched_latents_and_stands_beside_a_random_matching():
    first = labels(*["composite"] * 20, *["atomic"] * 180, "possible")
    second = labels(*["possible"] * 15, *["atomic"] * 185)
    match = np.array([*range(200), -1])  # the last has no counterpart
    flagged, subspace, _ = stability(first, second, match)
    assert (flagged.n, flagged.again, flagged.share) == (20, 15, 0.75)
    assert (flagged.low or 1) < 0.75 < (flagged.high or 0)
    assert flagged.chance == pytest.approx(15 / 200)
    assert (flagged.p or 1) < 0.001
    assert (subspace.n, subspace.share, subspace.p) == (0, None, None)


def test_labels_that_stay_by_chance_are_no_stability():
    rng = np.random.default_rng(0)
    first, second = (labels(*np.where(rng.random(1000) < 0.3, "composite", "atomic")) for _ in range(2))
    flagged = stability(first, second, np.arange(1000))[0]
    assert (flagged.chance_low or 1) <= (flagged.share or 0) <= (flagged.chance_high or 0)
