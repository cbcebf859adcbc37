"""Truth about a trained dictionary, on dictionaries made by hand, and one tiny training with a known outcome."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autointerp.errors import AutointerpError
from autointerp.toys.recovery import Agreement, Bounds, agreement, recovery, truth
from autointerp.toys.worlds import three_features

E = np.eye(8, 16)


def known(rows, alive=None, bounds=None):
    decoder = np.array(rows, dtype=float)
    return truth(decoder, E, np.ones(len(decoder), bool) if alive is None else np.array(alive), bounds)


def test_latents_are_features_sums_of_features_or_neither():
    found = known(
        [
            3 * E[0],
            E[1] + 0.1 * E[2],  # a tilted feature
            2 * E[0] + E[1],
            E[3] + E[4] + 0.8 * E[5],
            -E[0],
            E[0] - E[1],
            np.ones(16),  # of all features a little
            E[6],
        ],
        alive=[True] * 7 + [False],
    )
    assert found.kinds == ("feature", "feature", "composite", "composite", "other", "other", "other", "dead")
    assert found.parts[:3] == ((0,), (1,), (0, 1))
    assert found.parts[3][2] == 5
    assert set(found.parts[3]) == {3, 4, 5}
    assert found.parts[4:] == ((), (), (), ())


def test_a_part_counts_only_if_another_latent_has_its_direction():
    tilted = E[0] + 0.45 * E[1]  # a composite, though its cosine with feature 0 is .91
    found = known([tilted, E[1], E[2] + E[3], E[2], E[3]], alive=[True] * 5)
    assert found.of_kind("composite") == [0, 2]
    assert not found.detectable(0)
    assert found.detectable(2)
    assert not known([E[2] + E[3], E[2], E[3]], alive=[True, True, False]).detectable(0)


@pytest.mark.parametrize(("ratio", "kind"), [(0.30, "feature"), (0.36, "composite"), (1.0, "composite")])
def test_a_ratio_of_a_third_parts_a_tilt_from_a_composite(ratio, kind):
    assert known([E[0] + ratio * E[1]]).kinds == (kind,)


@pytest.mark.parametrize(("noise", "kind"), [(0.40, "composite"), (0.45, "other")])
def test_as_much_noise_is_allowed_as_is_planted(noise, kind):
    row = (E[0] + E[1]) / np.sqrt(2) + noise * np.eye(16)[12]
    assert known([row]).kinds == (kind,)
    assert known([row], bounds=Bounds(composite=0.8)).kinds == ("composite",)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 3))
def test_planted_sums_of_features_in_superposition_are_named_with_their_parts(seed, size):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((40, 32))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    parts = rng.choice(40, size, replace=False)
    row = rng.uniform(0.7, 1.0, size) @ features[parts]
    assume(set(parts) <= set(np.argsort(-features @ row)[:16]))  # the search is exact among the sixteen nearest
    found = truth(row[None], features, np.ones(1, bool), Bounds(composite=0.99))
    assert found.kinds == ("composite",)
    assert set(found.parts[0]) == set(parts.tolist())


def test_recovery_matches_latents_with_features_one_to_one():
    features = E[:4]
    whole = recovery(features[::-1], features, np.ones(4, bool))
    assert (whole.mcc, whole.mmcs, whole.recovered, whole.f1) == (1.0, 1.0, 4, 1.0)
    # a copy, a feature upside down and two features in one
    rows = np.stack([E[0], E[0], -E[1], (E[2] + E[3]) / np.sqrt(2)])
    part = recovery(rows, features, np.ones(4, bool))
    assert part.recovered == 1
    assert part.f1 == 2 / 8
    assert part.mcc == pytest.approx((1 + 1 + 0.5**0.5 + 0) / 4)  # the copy is left for a feature at cosine 0
    assert part.mmcs == pytest.approx((1 + 0 + 2 * 0.5**0.5) / 4)
    assert recovery(rows, features, np.array([True, False, False, False])).f1 == 2 / 5
    assert recovery(rows, features, np.zeros(4, bool)).mcc == 0


def test_agreement_counts_copies_with_the_latent_they_copy():
    found = known([E[0] + E[1], E[0] + 1.01 * E[1], E[0], E[1], E[2] + E[3], E[4]])
    counts = agreement(found, {0, 5}, {1: 0})
    assert counts == Agreement(flagged=2, right=1, composites=3, found=2, detectable=2, found_detectable=2)
    assert (counts.precision, counts.recall, counts.recall_all) == (0.5, 1.0, pytest.approx(2 / 3))
    assert (counts + counts).composites == 6
    nothing = agreement(known([E[0]]), set(), {})
    assert (nothing.precision, nothing.recall, nothing.recall_all) == (None, None, None)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(AutointerpError, match="fit together"):
        truth(np.ones((3, 5)), E, np.ones(3, bool))


def test_the_known_composite_of_the_three_feature_world_is_learned_and_flagged(tmp_path):
    from autointerp.composites import find_composites
    from autointerp.sae.source import StreamSource
    from autointerp.sae.train import train_sae
    from autointerp.sae.train_config import TrainConfig

    world = three_features(0)
    source = StreamSource(lambda i: world.sample(8192, i + 1)[0], d_in=32, rows=8192, buffer_chunks=1)
    config = TrainConfig(
        architecture="relu", d_sae=4, k=1, sparsity=3.0, tokens=256 * 1200, batch_size=256, lr=3e-3, dtype="float32"
    )
    decoder = train_sae(source, config, tmp_path).W_dec.detach()
    found = truth(decoder.numpy(), world.features.numpy(), np.ones(4, bool))
    composites = [latent for latent in found.of_kind("composite") if set(found.parts[latent]) == {0, 1}]
    assert len(composites) == 1
    label = find_composites(decoder)["label"]
    assert label[composites[0]] == "composite"
    assert (label == "composite").sum() == 1
