"""A whole run over many planted features: peak memory and requests a second, at two sizes.

    python benchmarks/scale.py [--features 16384 131072] [--out results/reference/scale.json]

1. A small subject with random weights, an SAE of random directions, and a harvest in which every latent fires equally
   often are planted as artifacts, each under the key that the run asks for.
2. The run goes on from there: selection, directions, contexts, explanations, detection on 20 examples a feature,
   tables, report. Its model answers in this process and counts what it is asked. The check for composites has a
   benchmark of its own (composites.py).

Bars: peak memory at the larger size ≤ 2 GB, and within 10 % of that at the smaller; requests a second no lower, by the
processor's time, for other work on the machine slows either size as it comes. By the clock they stand beside.
Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

GB = 2.0
GROWTH = 1.10
D_MODEL, FIRINGS, CODES = 32, 40, 8  # width; firings of each latent; latents that fire on a token
DOCUMENT = 128  # tokens
ASKING = ("explain/default", "score/detection/default")  # the stages that make nearly all requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, nargs="+", default=[16_384, 131_072])
    parser.add_argument("--out", type=Path, default=Path("results/reference/scale.json"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    sizes = []
    for features in options.features:
        command = [sys.executable, __file__, "--one", str(features)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        sizes.append(json.loads(done.stdout.splitlines()[-1]))
        print(sizes[-1], flush=True)
    small, large = sizes[0], sizes[-1]
    bars = {
        "peak_gb": [large["peak_gb"], GB],
        "memory_ratio": [large["peak_gb"] / small["peak_gb"], GROWTH],
        "slowdown_of_requests": [small["requests_per_cpu_second"] / large["requests_per_cpu_second"], GROWTH],
    }
    command = f"python benchmarks/scale.py --features {' '.join(map(str, options.features))}"
    options.out.write_text(json.dumps({"command": command, "sizes": sizes, "bars": bars}, indent=1) + "\n")
    print(json.dumps(bars))
    sys.exit(any(value > limit for value, limit in bars.values()))


def measure(features: int) -> dict[str, Any]:
    """One run in this process."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["AUTOINTERP_CACHE"] = str(place / "cache")
        counting = add_counting_backend()
        config = planted_config(place, features)
        plant_artifacts(config, place, features)
        import autointerp as ai

        of_stages = note_processor_time()
        started, spent = time.monotonic(), time.process_time()
        run = ai.run(config, out=place / "run")
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - spent
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB, before the tables are read whole below
        stages = {name: stage["seconds"] for name, stage in run.info["stages"].items()}
        asking = sum(stages[name] for name in ASKING)
        scored = int(run.features["detection"].notna().sum())
    return {
        "features": features,
        "scored": scored,
        "requests": counting["requests"],
        "requests_per_second": round(counting["requests"] / asking, 1),
        "requests_per_cpu_second": round(counting["requests"] / cpu_seconds, 1),  # of the whole run
        "requests_per_cpu_second_of_asking": round(counting["requests"] / sum(of_stages[name] for name in ASKING), 1),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_gb": round(peak / 2**20, 3),
        "stages": stages,
    }


def note_processor_time() -> dict[str, float]:
    """By stage, as the run goes on."""
    from autointerp import stages

    spent: dict[str, float] = {}
    run_stage = stages._run

    def timed(session: Any, stage: Any, use: Any, *folders: Any) -> Any:
        begun = time.process_time()
        done = run_stage(session, stage, use, *folders)
        spent[use.name] = time.process_time() - begun
        return done

    stages._run = timed
    return spent


# --- what is planted --------------------------------------------------------------------------


def planted_config(place: Path, features: int) -> Any:
    from safetensors.numpy import save_file
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from autointerp.config import parse_config

    os.environ.pop("AUTOINTERP_CACHE")  # the tokenizer is the catalogue's
    from autointerp.catalog import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("stories15m", "model"))
    os.environ["AUTOINTERP_CACHE"] = str(place / "cache")
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=D_MODEL, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    model = place / "subject"
    LlamaForCausalLM(shape).save_pretrained(model)
    tokenizer.save_pretrained(model)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((features, D_MODEL)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sae = place / "sae"
    sae.mkdir()
    tensors = {
        "W_enc": np.ascontiguousarray(rows.T),
        "W_dec": rows,
        "b_enc": np.zeros(features, np.float32),
        "b_dec": np.zeros(D_MODEL, np.float32),
    }
    save_file(tensors, sae / "sae_weights.safetensors")
    cfg = {
        "architecture": "standard",
        "d_in": D_MODEL,
        "d_sae": features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.0.hook_resid_post", "model_name": "planted", "prepend_bos": True},
    }
    (sae / "cfg.json").write_text(json.dumps(cfg))
    (place / "text.txt").write_text("planted")
    return parse_config(
        {
            "name": "scale",
            "subject": {"model": str(model)},
            "corpus": {"source": str(place / "text.txt"), "context": DOCUMENT},
            "sae": {"load": str(sae), "outlier_norm": None},  # what is planted has no norms
            "features": {"select": "all", "min_firings": 20},
            "contexts": {
                **{"window": 16, "quantiles": 5, "train": 10},
                **{"test_activating": 10, "test_random": 5, "test_near": 5, "neighbours": 5},
            },
            "composites": {"enabled": False},
            "llm": {"model": "counting:judge", "concurrency": 64},
            "explainers": ["default"],
            "scorers": ["detection"],
            "controls": [],
        }
    )


def plant_artifacts(config: Any, place: Path, features: int) -> None:
    """Corpus, SAE and harvest, each complete under its key, as if the run had made them."""
    from autointerp.engine.dag import Dag
    from autointerp.engine.mirrored import open_store
    from autointerp.engine.session import Session
    from autointerp.stages import nodes

    tokens = features * FIRINGS // CODES
    makers = {
        "corpus": lambda folder: plant_corpus(folder, tokens),
        "sae": lambda folder: (folder / "sae.json").write_text("{}"),
        "harvest": lambda folder: plant_harvest(folder, dag, features),
    }
    with Session(config, place / "usage.jsonl") as session:
        dag = Dag(nodes(config, session), open_store())
        for name, make in makers.items():
            key = dag.standings()[name].key
            assert key is not None, f"{name} waits for a stage that is not planted"
            with dag.store.writing(name, key, resumable=False) as folder:
                make(folder)
                dag.store.complete(name, key, 0.0, 0, {})


def plant_corpus(folder: Path, tokens: int) -> None:
    from autointerp.artifacts import Corpus, CorpusInfo

    rows = tokens // (DOCUMENT - 1) + 1
    rng = np.random.default_rng(1)
    text = rng.integers(1000, 30_000, (rows, DOCUMENT)).astype(np.int32)
    text[:, 0] = 1
    info = CorpusInfo("planted", "planted", 1, DOCUMENT, text.size, rows, rows, "planted")
    offsets = np.arange(rows + 1) * DOCUMENT
    Corpus.save(folder, info, text.ravel(), offsets, np.arange(rows), np.zeros(rows))


def plant_harvest(folder: Path, dag: Any, features: int) -> None:
    """Token number t, BOS not counted, fires the latents 8 t, 8 t + 1 …, modulo their number."""
    import torch

    from autointerp.activations.harvest import harvest
    from autointerp.artifacts import Corpus
    from autointerp.progress import Progress

    corpus = Corpus(dag.folder(dag.standings()["corpus"]))
    kept = corpus.info.n_tokens - corpus.info.n_rows
    numbers = np.arange(kept, dtype=np.float32)[:, None]  # in place of activations: the token's number

    def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        number = x[:, 0].long()
        token = torch.arange(len(x)).repeat_interleave(CODES)
        latent = (number[:, None] * CODES + torch.arange(CODES)).flatten()
        value = 1 + (latent * 7919 % 101).float() / 50
        return token, latent * 48_271 % features, value

    bar = Progress("planting", corpus.info.n_tokens, "tokens")
    harvest(
        corpus, numbers, encode, features, folder,
        hook="blocks.0.hook_resid_post", skip_bos=True, batch_tokens=65_536, device="cpu", bar=bar,
    )  # fmt: skip


# --- the model --------------------------------------------------------------------------------


def add_counting_backend() -> dict[str, int]:
    """Register ``counting:NAME``; returns its count."""
    from autointerp.llm.backend import Reply
    from autointerp.llm.prices import Prices
    from autointerp.llm.registry import backend

    counts = {"requests": 0}

    @backend("counting")
    class Counting:
        model, identity, capabilities = "judge", "counting", frozenset()

        @classmethod
        def open(cls, config: Any, resolve_model: Any) -> Any:
            return cls()

        @classmethod
        def identify(cls, config: Any, identify_model: Any) -> dict[str, Any]:
            return {}

        @classmethod
        def expected(cls, config: Any) -> frozenset[Any]:
            return frozenset()

        @classmethod
        def prices(cls, config: Any) -> Any:
            return Prices(0.0, 0.0)

        @classmethod
        def check(cls, config: Any, catalogue: Any) -> None: ...

        async def start(self) -> None: ...

        async def close(self) -> None: ...

        async def probe(self) -> None: ...

        async def ask(self, request: Any) -> dict[str, Any]:
            counts["requests"] += 1
            numbers = re.findall(r"^(\d+)\. ", request.messages[-1].content, re.M)
            judged = json.dumps({number: int(number) % 2 for number in numbers})
            text = judged if request.schema is not None else "EXPLANATION: a planted token"
            return {"text": text, "prompt": sum(len(message.content) for message in request.messages) // 4}

        def read(self, raw: Any, request: Any) -> Reply:
            return Reply(text=raw["text"], prompt_tokens=raw["prompt"], completion_tokens=len(raw["text"]) // 4)

    return counts


if __name__ == "__main__":
    main()
