"""Attention sinks and the training: left out, resumed with the same weights, measured apart, and warned of."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sae_train import Stops, planted, small

from autointerp.activations.outliers import find_outliers
from autointerp.errors import AutointerpError
from autointerp.sae import ArraySource, StreamSource, check_sae, load_sae, train_sae
from autointerp.sae.silence import silence_warning

LIMIT = 300.0  # above the norm of all rows but sinks, which have ten times it


def with_sinks(n: int = 4000, every: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """(activations [n, 32] of which each row number `every` is a sink, the sinks' indices)."""
    rows, _ = planted(n)
    index = np.arange(0, n, every)
    rng = np.random.default_rng(1)
    rows[index] = 10 * LIMIT * (np.eye(32)[0] + 0.01 * rng.normal(size=(len(index), 32)))
    return rows.astype(np.float32), index


def test_sinks_left_out_give_the_batches_of_rows_that_never_had_them() -> None:
    rows, sinks = with_sinks()
    seen, index = find_outliers(rows, 10.0)
    assert index.tolist() == sinks.tolist()
    assert seen.variance_share > 0.9
    without = ArraySource(np.delete(rows, sinks, axis=0)).batches(3, 11, 256)
    batches = ArraySource(rows, index).batches(3, 11, 256)
    assert all(torch.equal(next(batches), next(without)) for _ in range(40))


def test_nothing_left_out_changes_no_batch() -> None:
    rows, _ = planted(1000)
    pairs = zip(ArraySource(rows, np.zeros(0, np.int64)).batches(0, 0, 300), ArraySource(rows).batches(0, 0, 300))
    assert all(torch.equal(*next(pairs)) for _ in range(7))


def test_what_is_held_out_keeps_its_sinks_and_the_rest_loses_its_own() -> None:
    rows, sinks = with_sinks(1000)
    source, held_out = ArraySource(rows, sinks).hold_out(120)
    assert np.array_equal(held_out.numpy(), rows[-120:])
    assert source.left_out.tolist() == [i for i in sinks if i < 880]
    assert float(next(source.batches(0, 0, 256)).norm(dim=1).max()) < LIMIT


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 9), st.integers(1, 40), st.integers(2, 30))
def test_a_stream_gives_out_no_sink_and_resumes_at_any_step(start: int, batch: int, every: int) -> None:
    rows = torch.arange(1, 41).float()[:, None] * torch.ones(3)
    rows[::every] *= 1e6

    def stream() -> StreamSource:
        return StreamSource(lambda i: rows + i, d_in=3, rows=40, buffer_chunks=2, outlier_threshold=1e4)

    whole = stream().batches(0, 0, batch)
    batches = [next(whole) for _ in range(start + 3)]
    assert all(float(b.norm(dim=1).max()) <= 1e4 for b in batches)
    resumed = stream().batches(0, start, batch)
    assert all(torch.equal(next(resumed), b) for b in batches[start:])


def test_a_stream_of_sinks_alone_is_refused() -> None:
    stream = StreamSource(lambda i: torch.ones(4, 3), d_in=3, rows=4, buffer_chunks=1, outlier_threshold=0.5)
    with pytest.raises(AutointerpError, match=r"all 4 activations of a buffer have a norm above 0\.5"):
        next(stream.batches(0, 0, 2))


def test_a_stopped_training_without_its_sinks_ends_with_the_same_weights(tmp_path: Path) -> None:
    rows, sinks = with_sinks()
    source, config = ArraySource(rows, sinks), small(tokens=256 * 40)
    straight = train_sae(source, config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train_sae(Stops(source, 23, 2), config, tmp_path / "stopped")  # type: ignore[arg-type]
    resumed = train_sae(source, config, tmp_path / "stopped")
    clean = train_sae(ArraySource(np.delete(rows, sinks, axis=0)), config, tmp_path / "clean")
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
        assert torch.equal(tensor, clean.state_dict()[name]), name


def test_both_figures_are_given_of_what_is_held_out(tmp_path: Path) -> None:
    rows, sinks = with_sinks()
    source, held_out = ArraySource(rows, sinks).hold_out(500)
    sae = train_sae(source, small(tokens=256 * 200), tmp_path, held_out=held_out, outlier_threshold=LIMIT)
    told = json.loads((tmp_path / "train.json").read_text())["figures"]["held_out"]
    assert (told["tokens"], told["outlying"]) == (490, 10)
    usual = held_out[held_out.norm(dim=1) <= LIMIT]
    assert told["explained_variance"] == check_sae(sae, usual).explained_variance
    assert told["explained_variance_with_outliers"] == pytest.approx(check_sae(sae, held_out).explained_variance)
    assert told["l0_with_outliers"] == pytest.approx(check_sae(sae, held_out).l0)
    assert told["explained_variance"] > 0.8


def test_check_without_outliers_is_as_it_was(tmp_path: Path) -> None:
    rows, _ = planted(600)
    sae = train_sae(ArraySource(rows), small(), tmp_path)
    x = torch.from_numpy(rows)
    looks, does_not = check_sae(sae, x, outlier_threshold=LIMIT), check_sae(sae, x)
    assert looks == does_not
    assert looks.with_outliers == (looks.l0, looks.explained_variance)
    with pytest.raises(AutointerpError, match=r"all 600 activations have a norm above 0\.001"):
        check_sae(sae, x, outlier_threshold=0.001)


def test_sinks_that_are_trained_on_silence_latents_and_are_named(tmp_path: Path, caplog) -> None:
    rows, sinks = with_sinks()
    config = small(d_sae=64, tokens=256 * 300, aux_k=0)
    with caplog.at_level(logging.WARNING, logger="autointerp"):
        train_sae(ArraySource(rows), config, tmp_path / "with")
        train_sae(ArraySource(rows, sinks), small(tokens=256 * 300), tmp_path / "without")
    (warning,) = json.loads((tmp_path / "with" / "train.json").read_text())["figures"]["warnings"]
    assert "sae.outlier_norm" in warning
    assert "attention sinks" in warning
    assert [record.getMessage() for record in caplog.records] == [f"training: {warning}"]
    assert "warnings" not in json.loads((tmp_path / "without" / "train.json").read_text())["figures"]
    load_sae(tmp_path / "with")


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"lr": 3.0}, r"lr = 3 is \d+ times"),
        ({"lr": None}, "too few tokens: 15,360 are 60 steps"),
        ({"lr": None, "tokens": 256 * 300, "aux_k": 0}, "aux_k = 0"),
        ({"lr": None, "tokens": 256 * 300}, r"more latents \(d_sae = 32\)"),
    ],
)
def test_another_cause_is_named(options: dict[str, object], cause: str) -> None:
    source = ArraySource(planted(1000)[0])
    warning = silence_warning(source, small(**options), 0.5)
    assert warning is not None
    assert warning.startswith("50% of the latents were silent on the last 2,000 tokens")
    assert re.search(cause, warning)


def test_few_silent_latents_are_no_warning() -> None:
    assert silence_warning(ArraySource(planted(1000)[0]), small(), 0.3) is None
