"""The stage histograms: each feature's firings, counted by how strong they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from autointerp.artifacts import Firings, FiringsInfo, save_shard
from autointerp.stages.histograms import BINS, counted


def test_every_firing_of_a_feature_is_in_one_bin(tmp_path: Path):
    strengths = {0: [], 1: [4.0, 1.0, 0.0625, 3.998046875], 2: [0.5]}
    flat = np.array([value for values in strengths.values() for value in values], np.float32)
    counts = np.array([len(values) for values in strengths.values()])
    indptr = np.concatenate([[0], counts.cumsum()])
    save_shard(tmp_path / "shard-00000.safetensors", indptr, np.arange(len(flat)), flat)
    np.save(tmp_path / "counts.npy", counts)
    np.save(tmp_path / "peaks.npy", np.array([0, 4, 0.5], np.float32))
    info = FiringsInfo(n_latents=3, n_tokens=100, n_shards=1, hook="x", skip_bos=False)
    (tmp_path / "firings.json").write_text(json.dumps(asdict(info)))
    first, second = counted(Firings(tmp_path), [1, 2])
    assert (first["feature"], first["highest"], len(first["counts"])) == (1, 4.0, BINS)
    assert {i: n for i, n in enumerate(first["counts"]) if n} == {0: 1, 10: 1, BINS - 1: 2}
    assert second["counts"][-1] == sum(second["counts"]) == 1
