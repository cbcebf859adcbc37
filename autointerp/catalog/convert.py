"""Convert a downloaded payload (GGUF, llama2.c, text) to a Hugging Face folder, or JSON lines with "text".

Each function takes the payload's files by name and fills an empty folder. It is run once per
machine; what it writes depends on the payload alone.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STORIES15M_BYTES = 60_816_028  # of the checkpoint, in front of the tokenizer


def stories15m(payload: Mapping[str, Path], folder: Path) -> None:
    from autointerp.catalog.llama2c import convert_model, convert_tokenizer

    data = payload["llama2.data"].read_bytes()
    convert_model(data[:STORIES15M_BYTES], folder)
    convert_tokenizer(data[STORIES15M_BYTES:], folder)


def gguf(payload: Mapping[str, Path], folder: Path) -> None:
    """Dequantise to bfloat16 safetensors. Each tensor is made small as it is read: two copies are held at most."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    file = payload["model.gguf"]
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it advises on running packed weights; these are unpacked and saved
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    finally:
        logging.set_verbosity(verbosity)
    # What is saved is quantised no more.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def as_it_is(payload: Mapping[str, Path], folder: Path) -> None:
    for name, path in payload.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def imdb(payload: Mapping[str, Path], folder: Path) -> None:
    reviews = json.loads(payload["reviews.json"].read_text(encoding="utf-8"))
    with open(folder / "imdb.jsonl", "w", encoding="utf-8") as file:
        for review in reviews:
            file.write(json.dumps({"text": review["t"]}, ensure_ascii=False) + "\n")


def labelled(payload: Mapping[str, Path], folder: Path) -> None:
    """Tables of prompts, each with a target: lines with "text", "set" (the file's name, no number) and "label"."""
    with open(folder / "sae-probes.jsonl", "w", encoding="utf-8") as out:
        for name, path in payload.items():
            collection = name.partition("_")[2].removesuffix(".csv.gz")
            with gzip.open(path, "rt", encoding="utf-8", newline="") as table:
                for row in csv.DictReader(table):
                    line = {"text": row["prompt"], "set": collection, "label": row["target"]}
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
