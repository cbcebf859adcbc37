"""Everything that waits for a GPU, one step after the other, in one file of results.

    make gpu        (python benchmarks/gpu.py [--steps tests training …] [--out results/reference/gpu.json])

tests       the tests marked `cuda`: the same firings, labels and neighbours as on the processor
composites  the composite check of 65,536 rows against its own matrix product
training    a TopK SAE's step against a bfloat16 product of the encoder's shape (≥ 40 %)
ranks       training by torch.distributed over NCCL, by one rank and by as many as there are GPUs: one process' SAE
harvest     forward pass, encoding and bookkeeping of stories15M's residual stream, by the clock
vllm        a real instruct model of the catalogue on the card: its start, and Yes-or-No questions a second; vLLM is
            that of $AUTOINTERP_VLLM_PYTHON, else of this environment

A step has ten minutes and a process of its own. What is done is written down after each step. Without a CUDA device one
line says so, and nothing is written. Exits 1 where a step failed or missed a bar.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from autointerp.catalog import resolve
from autointerp.config import LLMConfig
from autointerp.llm.backend import Choose
from autointerp.llm.backends.vllm import VllmBackend
from autointerp.records import Message

LIMIT = 600.0  # seconds of a step
INSTRUCT, QUESTIONS = "qwen2.5-coder-1.5b-instruct", 512
HERE = Path(__file__).parent
STEPS: dict[str, list[str]] = {
    "tests": ["-m", "pytest", "-m", "cuda", "--tb=short"],
    "composites": [str(HERE / "composites.py"), "--speed", "65536", "768", "--device", "cuda", "--out", "REPORT"],
    "training": [str(HERE / "training.py"), "--gpu", "--out", "REPORT"],
    "ranks": [str(HERE / "ranks.py"), "--device", "cuda", "--out", "REPORT"],
    "harvest": [str(HERE / "harvest.py"), "--device", "cuda", "--tokens", "262144", "--out", "REPORT"],
    "vllm": [str(HERE / "gpu.py"), "--ask", "--out", "REPORT"],
}


def step(name: str) -> dict[str, Any]:
    """Run one step; what came of it, with the end of what it said."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        arguments = [str(report) if word == "REPORT" else word for word in STEPS[name]]
        start = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT
            )
            code, told = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            code, told = None, (error.stdout or b"").decode(errors="replace")
        result: dict[str, Any] = {
            "command": " ".join(["python", *STEPS[name]]).replace(str(HERE), "benchmarks").replace(" --out REPORT", ""),
            "seconds": round(time.perf_counter() - start, 1),
            "outcome": {0: "met", None: f"not done in {LIMIT:g} seconds"}.get(code, f"exit code {code}"),
            "report": json.loads(report.read_text()) if report.exists() else None,
        }
    if code != 0 or result["report"] is None:
        result["said"] = told.splitlines()[-20:]
    return result


async def ask() -> dict[str, Any]:
    """Start the instruct model and ask it short questions, as many at a time as it takes."""
    backend = VllmBackend(LLMConfig(model=f"vllm:{resolve(INSTRUCT, 'model')}", timeout=LIMIT, device="cuda"))
    start = time.perf_counter()
    try:
        await backend.start()
        started = time.perf_counter() - start
        requests = [
            Choose([Message("user", f"Is {n} an even number? Answer Yes or No.")], ["Yes", "No"])
            for n in range(QUESTIONS)
        ]
        start = time.perf_counter()
        replies = [backend.read(raw, r) for raw, r in zip(await asyncio.gather(*map(backend.ask, requests)), requests)]
        seconds = time.perf_counter() - start
    finally:
        await backend.close()
    answered = [reply.choices[0].probabilities for reply in replies if reply.choices and reply.choices[0].probabilities]
    sure = [abs(sum(each) - 1) < 1e-3 for each in answered]
    return {
        "model": INSTRUCT,
        "start_s": started,
        "questions": QUESTIONS,
        "answered_with_probabilities": sum(sure),
        "questions_a_second": QUESTIONS / seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ask", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: `make gpu` has nothing to run on")
        return 0
    if args.ask:
        report = asyncio.run(ask())
        args.out.write_text(json.dumps(report))
        return int(report["answered_with_probabilities"] < QUESTIONS)
    whole: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "steps": {},
    }
    for name in args.steps:
        whole["steps"][name] = result = step(name)
        print(f"{name:12} {result['seconds']:7.1f} s  {result['outcome']}", flush=True)
        if args.out:
            args.out.write_text(json.dumps(whole, indent=1) + "\n")
    return int(any(result["outcome"] != "met" for result in whole["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
