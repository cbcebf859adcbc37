"""The real story model as the catalogue converts it, and text sampled from a model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from autointerp.catalog import convert, fetch, sampled_text
from autointerp.catalog.entries import ENTRIES, Entry
from autointerp.catalog.sample import draw, sample_batch

TENSORS = "be23d6d343e314d29c01bb4489f652a41a05086762aaf98c5c92209b7b05c834"


def test_the_converted_weights_are_these(stories15m: Path) -> None:
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(stories15m / "model.safetensors", "np") as file:
        for name in sorted(file.keys()):
            digest.update(name.encode())
            digest.update(file.get_tensor(name).tobytes())
    assert digest.hexdigest() == TENSORS


def test_the_model_tells_the_story_it_is_known_for(stories15m: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(stories15m), AutoTokenizer.from_pretrained(stories15m)
    start = tokenizer("Once upon a time, there was", return_tensors="pt")["input_ids"]
    told = model.generate(start, max_new_tokens=24, do_sample=False)[0]
    assert start.tolist() == [[1, 9038, 2501, 263, 931, 29892, 727, 471]]
    assert tokenizer.decode(told, skip_special_tokens=True) == (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the sunshine. "
        "One day, she saw a"
    )


# --- sampling, from a tiny random model with the real tokenizer


@pytest.fixture
def writer(stories15m: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of sampled text whose model stands in the catalogue with one random layer."""

    def tiny(payload: dict[str, Path], folder: Path) -> None:
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        LlamaForCausalLM(LlamaConfig(vocab_size=32000, max_position_embeddings=7, **shape)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(stories15m).save_pretrained(folder)

    monkeypatch.setattr(convert, "tiny", tiny, raising=False)
    monkeypatch.setattr(fetch, "fetch_payload", lambda entry, folder: ({}, "the test"))
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    common = {"about": "", "licence": "MIT", "size": 0, "disk": 0, "sources": (), "payload": {}}
    monkeypatch.setitem(ENTRIES, "tiny", Entry("tiny", "model", convert="tiny", **common))
    monkeypatch.setitem(ENTRIES, "told", Entry("told", "text", convert="", sampled_from="tiny", **common))
    return "told"


def test_more_tokens_of_a_seed_begin_with_the_fewer(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = sampled_text(writer, tokens=100, seed=1)
    short = file.read_bytes()
    assert sampled_text(writer, tokens=5000, seed=1) == file
    long = file.read_bytes()
    assert long.startswith(short)
    assert len(long) > len(short)
    assert all(json.loads(line)["text"].strip() for line in long.splitlines())
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "other"))
    at_once = sampled_text(writer, tokens=5000, seed=1)
    assert at_once.read_bytes() == long
    assert sampled_text(writer, tokens=100, seed=2).read_bytes() != short


def test_what_a_killed_process_left_half_written_is_cut_off(writer: str, tmp_path: Path) -> None:
    file = sampled_text(writer, tokens=100, seed=1)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"text": "half a li')
    grown = sampled_text(writer, tokens=len(whole), seed=1).read_bytes()
    assert grown.startswith(whole)
    assert [json.loads(line) for line in grown.splitlines()]
    file.write_bytes(whole[:50])  # shorter than its state says: made anew
    assert sampled_text(writer, tokens=100, seed=1).read_bytes() == whole


def test_drawing_follows_the_distribution() -> None:
    import torch

    wanted = torch.tensor([0.7, 0.2, 0.1, 0.0])
    drawn = draw(wanted.log().expand(20000, 4), torch.Generator().manual_seed(0))
    share = torch.bincount(drawn[:, 0], minlength=4) / 20000
    assert torch.allclose(share, wanted, atol=0.015)
    assert share[3] == 0


def test_documents_end_at_the_stop_token(stories15m: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(stories15m)
    comma = 29892
    documents = sample_batch(model, start=1, stop={comma}, length=12, seed=0, batch=6)
    assert documents
    assert all(0 < len(document) <= 12 and comma not in document for document in documents)
    assert documents == sample_batch(model, start=1, stop={comma}, length=12, seed=0, batch=6)
