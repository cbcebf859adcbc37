"""Explanations and windows of other tools, scored again: the same windows, explanations and scores as of the run that
wrote them itself. Neuronpedia's files are those of the export, which its own package reads (report/test_exports.py);
delphi's cache has the layout of its `save_splits`."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from endpoint import serving
from planted import HOOK, STORIES, config, oracle, plant
from safetensors.numpy import save_file

import autointerp as ai
from autointerp.artifacts import Corpus, Firings
from autointerp.commands.export import export
from autointerp.config import parse_config
from autointerp.engine.store import Store
from autointerp.resources import cache_dir

LATENTS, CONTEXT = 12, 64
WINDOWS = ["feature", "example", "split", "kind", "quantile", "document", "position"]


def texts_of_one_row(stories15m: Path, file: Path) -> Path:
    """The stories' beginnings that are a row of `CONTEXT` tokens with BOS: delphi's rows are documents."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories15m)
    kept = []
    for line in STORIES.read_text().splitlines():
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids[: CONTEXT - 1]
        text = tokenizer.decode(ids)
        if tokenizer(text, add_special_tokens=False).input_ids == ids and len(ids) == CONTEXT - 1:
            kept.append(json.dumps({"text": text}))
    assert len(kept) > 100
    file.write_text("\n".join(kept))
    return file


@pytest.fixture(scope="module")
def wanted(own_cache: Path, stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("planted")
    plant(stories15m, folder, LATENTS)
    made = config(stories15m, folder, "", scorers=["detection"])
    made["corpus"] = {"source": str(texts_of_one_row(stories15m, folder / "rows.jsonl")), "context": CONTEXT}
    made["features"]["min_firings"] = 10
    made["composites"] = {"enabled": False}
    return made


@pytest.fixture(scope="module")
def original(wanted: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ai.Run:
    run = again(wanted, tmp_path_factory.mktemp("original"), oracle)
    assert (run.features["status"] == "ok").sum() >= 8
    return run


def again(wanted: dict[str, Any], out: Path, answer: Any, **changed: Any) -> ai.Run:
    with serving(answer) as endpoint:
        asked = wanted | {"llm": wanted["llm"] | {"base_url": endpoint.url}} | changed
        return ai.run(parse_config(asked), out=out)


def judge_alone(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
    assert "Property:" in messages[-1]["content"], "an explainer was asked"
    return oracle(messages, body)


def same(run: ai.Run, original: ai.Run) -> None:
    pd.testing.assert_frame_equal(run.contexts[WINDOWS], original.contexts[WINDOWS])
    assert [list(t) for t in run.contexts["tokens"]] == [list(t) for t in original.contexts["tokens"]]
    both = [each.explanations.set_index("feature")["explanation"] for each in (run, original)]
    pd.testing.assert_series_equal(*both)
    keys = ["feature", "control"]
    values = ["value", "low", "high", "n_scored", "n_unscored", "base_rate", "chance", "corrected"]
    scores = [each.scores.sort_values(keys)[[*keys, *values]].reset_index(drop=True) for each in (run, original)]
    pd.testing.assert_frame_equal(*scores)
    judged = ["feature", "example", "kind", "quantile", "truth", "prediction"]
    asked = [each.judgements[each.judgements["control"].isna()][judged] for each in (run, original)]
    pd.testing.assert_frame_equal(*(each.sort_values(judged[:2]).reset_index(drop=True) for each in asked))


def test_neuronpedias_files_score_as_the_run_that_wrote_them(
    wanted: dict[str, Any], original: ai.Run, tmp_path: Path
) -> None:
    export(original.folder, "neuronpedia", out=tmp_path / "np", source="0-res", model="stories")
    (batch,) = (tmp_path / "np").rglob("explanations/batch-*.jsonl.gz")
    given = [{"name": "given", "label": "default", "path": str(batch.parent)}]
    same(again(wanted, tmp_path / "run", judge_alone, explainers=given), original)


@pytest.mark.parametrize("writer", ["the layout", "delphi"])
def test_delphis_cache_and_explanations_score_as_the_run_that_wrote_them(
    writer: str, wanted: dict[str, Any], original: ai.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, codes = firings_of(original)
    cache = tmp_path / "latents" / HOOK
    if writer == "delphi":
        by_delphi(tokens, codes, cache, monkeypatch)
    else:
        by_layout(tokens, codes, cache)
    export(original.folder, "delphi", out=tmp_path / "delphi")
    given = [{"name": "given", "label": "default", "path": str(tmp_path / "delphi/explanations")}]
    source = {"source": str(cache), "context": CONTEXT}
    same(again(wanted, tmp_path / "run", judge_alone, corpus=source, explainers=given), original)


def firings_of(run: ai.Run) -> tuple[np.ndarray, np.ndarray]:
    """A run's tokens [rows, context], and its latents' activations [rows, context, latents]."""
    store, stages = Store(cache_dir() / "store"), run.info["stages"]
    corpus = Corpus(store.folder("corpus", stages["corpus"]["key"]))
    firings = Firings(store.folder("harvest", stages["harvest"]["key"])).of(list(range(LATENTS)))
    tokens = np.stack([corpus.row(row) for row in range(corpus.info.n_rows)])
    codes = np.zeros((*tokens.shape, LATENTS), np.float32)
    for latent, (positions, activations) in firings.items():
        codes.reshape(-1, LATENTS)[positions, latent] = activations
    return tokens.astype(np.int64), codes


def by_layout(tokens: np.ndarray, codes: np.ndarray, folder: Path) -> None:
    """What its `save_splits` writes: row, position and latent of each, float16."""
    folder.mkdir(parents=True)
    where = np.ascontiguousarray(np.argwhere(codes > 0))
    data = {"locations": where, "activations": codes[codes > 0].astype(np.float16), "tokens": tokens}
    save_file(data, folder / f"0_{LATENTS - 1}.safetensors")
    (folder / "config.json").write_text("{}")


def by_delphi(tokens: np.ndarray, codes: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By delphi's own code (how to have it: tests/report/test_exports.py), in two splits and batches of 16 rows."""
    delphi = pytest.importorskip("delphi")
    package = types.ModuleType("delphi.latents")  # whose own __init__ needs faiss
    package.__path__ = [str(Path(delphi.__file__).parent / "latents")]
    monkeypatch.setitem(sys.modules, "delphi.latents", package)
    caching: Any = importlib.import_module("delphi.latents.cache")
    cache = caching.LatentCache(types.SimpleNamespace(device="cpu"), {}, batch_size=16)
    cache.width = LATENTS
    for batch, start in enumerate(range(0, len(tokens), 16)):
        rows = slice(start, start + 16)
        cache.cache.add(torch.from_numpy(codes[rows]), torch.from_numpy(tokens[rows]), batch, HOOK)
    cache.cache.save()
    cache.save_splits(2, folder.parent)
