"""A small run folder by the contract, with the cases that break readers: see `write_run`."""

# ruff: noqa: E501

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

HOSTILE = "<script>alert('x')</script> & \"quotes\" — names\nof \x1b[31mcolours</td>"
FAILURE = "the judge gave no readable answer to any example"
TOKENS = [
    "▁The", " cat", "\n", " sat", "<b>", "&amp;", "\t", "café", "🦊", "<0xE2>", "�", "</template>", "日本", " of", ".", "'\"", "\x1b[2J",
]  # fmt: skip
SCORERS = ("detection", "simulation")


def write_run(
    folder: Path, features: int = 12, windows: int = 4, explainers: tuple[str, ...] = ("default", "token_stats")
) -> Path:
    """All tables of a run of `features` features (ids 3, 10, 17, …).

    Of these the last four are dead, too_rare, failed (no explanation) and one with an explanation but no
    detection score; feature 3 has the hostile explanation. Odd rows are composites of their neighbours.
    `windows` contexts a kind and quantile.
    """
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    ids = [3 + 7 * i for i in range(features)]
    dead, rare, failed, unscored = ids[-4:]
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("features", "explanations", "scores", "judgements", "contexts", "composites", "usage", "logits", "neighbours")
    }  # fmt: skip
    for i, f in enumerate(ids):
        status, failure = "ok", None
        if f == dead:
            status, failure = "dead", "never fires in 10,000 tokens"
        elif f == rare:
            status, failure = "too_rare", "12 firings, features.min_firings is 60"
        elif f == failed:
            status, failure = "failed", "the explainer's answer was empty"
        elif f == unscored:
            failure = f"detection: {FAILURE}"
        text = (
            None
            if status != "ok"
            else HOSTILE
            if i == 0
            else f"words about topic {i}, such as “{rng.choice(['fox', 'rain', 'red'])}”"
        )
        row: dict[str, Any] = {
            "feature": f,
            "firings": 0 if f == dead else 12 if f == rare else 100 + 31 * i,
            "frequency": 0.001 * i,
            "max_activation": None if f == dead else 5.0,
            "explanation": text,
            "explainer": explainers[0],
        }
        for scorer in SCORERS:
            value = (
                None
                if text is None or (f == unscored and scorer == "detection")
                else round(0.95 - 0.36 * i / features, 3)
            )
            control = None if value is None else round(0.5 + 0.01 * rng.random(), 3)
            row |= {
                scorer: value,
                f"{scorer}_low": None if value is None else value - 0.08,
                f"{scorer}_high": None if value is None else min(value + 0.06, 1.0),
                f"{scorer}_chance": None if value is None else 0.54,
                f"{scorer}_corrected": None if value is None else (value - 0.54) / 0.46,
                f"{scorer}_yes_rate": None if value is None else 0.97 if scorer == "detection" else None,
                f"{scorer}_ece": None if value is None else 0.4 if scorer == "detection" else None,
                f"{scorer}_q1": None if value is None else 0.6,
                f"{scorer}_q2": None if value is None else 0.7,
                f"{scorer}_control": control,
                f"{scorer}_n_scored": 0 if value is None else 20 - i % 2,
                f"{scorer}_n_unscored": 20
                if f == unscored and scorer == "detection"
                else 0
                if value is None
                else i % 2,
            }
        lexical = None if text is None else 0.83
        row |= {"lexical": lexical, "lexical_low": lexical, "lexical_high": lexical}
        row |= {"lexical_corrected": None if text is None else 0.65}
        label = None if status == "dead" else ("composite" if i % 4 == 1 else "split_child" if i % 4 == 2 else "atomic")
        rows["features"].append(row | {"composite": label, "status": status, "failure": failure})
        if label:
            parts = [ids[i - 1], 99_999] if label == "composite" else []
            rows["composites"].append({
                "feature": f, "label": label, "constituents": parts, "coefficients": [0.8, 0.6][: len(parts)], "r2": 0.91, "partial_r2": 0.5,
                "max_cosine": 0.7, "p_value": 1e-9, "reencode": None, "lift": 3.2, "semantic": None,
            })  # fmt: skip
        if status in ("dead", "too_rare"):
            continue
        for explainer in explainers:
            said = text if explainer == explainers[0] else f"tokens {i}"
            rows["explanations"].append({
                "feature": f, "explainer": explainer, "explanation": said, "model": "tiny", "prompt_hash": "ab12", "prompt_tokens": 900,
                "completion_tokens": 20, "status": "ok" if said else "failed", "failure": None if said else failure, "raw": said,
            })  # fmt: skip
            for scorer in SCORERS:
                for control in (None, "other_feature"):
                    value = row[f"{scorer}_control" if control else scorer]
                    rows["scores"].append({
                        "feature": f, "explainer": explainer, "scorer": scorer, "control": control, "value": value,
                        "corrected": value, "low": None if value is None else value - 0.1, "high": None if value is None else value + 0.05,
                        "n_scored": 0 if value is None else 20, "n_unscored": 20 if value is None else 1, "base_rate": 0.5,
                        "f1": value, "auprc": value, "pearson": None, "failure": FAILURE if value is None and said else None,
                    })  # fmt: skip
        example = 0
        for split in ("train", "test"):
            for kind, quantile in [*(("activating", q) for q in range(3)), ("random", None), ("near", None)]:
                for _ in range(windows):
                    tokens = [rng.choice(TOKENS) for _ in range(16)]
                    peak = 0.0 if quantile is None else 1.5 * (quantile + 1) + rng.random() * 0.4
                    acts = [0.0] * 16
                    if quantile is not None:
                        acts[7], acts[8] = peak, peak / 3
                    rows["contexts"].append({
                        "feature": f, "example": example, "split": split, "kind": kind, "quantile": quantile, "document": example,
                        "position": 16 * example, "tokens": tokens, "activations": acts,
                    })  # fmt: skip
                    if split == "test" and text is not None:
                        truth = float(kind == "activating")
                        wrong = example % 5 == 0
                        lost = f == unscored or example % 17 == 0
                        p = None if lost else abs((truth if not wrong else 1 - truth) - 0.2)
                        for control in (None, "other_feature"):
                            rows["judgements"].append({
                                "feature": f, "explainer": explainers[0], "scorer": "detection", "control": control, "example": example,
                                "kind": kind, "quantile": quantile, "truth": truth, "prediction": None if p is None else float(p > 0.5),
                                "probability": p, "status": "failed" if lost else "ok", "failure": FAILURE if lost else None,
                            })  # fmt: skip
                    example += 1
        for rank in range(3):
            rows["neighbours"].append(
                {"feature": f, "rank": rank, "neighbour": ids[(i + rank + 1) % len(ids)], "cosine": 0.7 - 0.2 * rank}
            )
            for direction, sign in (("up", 1), ("down", -1)):
                rows["logits"].append(
                    {
                        "feature": f,
                        "direction": direction,
                        "rank": rank,
                        "token": rng.choice(TOKENS),
                        "weight": sign * (2.0 - rank),
                    }
                )
        rows["usage"].append({
            "stage": "explain" if i % 2 else "detection", "model": "tiny", "prompt_tokens": 900, "completion_tokens": 20, "cached_tokens": 500,
            "cached": i % 2 == 0, "seconds": 0.5, "outcome": "ok" if i else "failed: HTTP 500",
        })  # fmt: skip
    for name, content in rows.items():
        pq.write_table(pa.Table.from_pylist(content), folder / f"{name}.parquet")
    (folder / "config.yaml").write_text(
        "name: synthetic <run>\nseed: 7\nsubject: {model: stories15m, hook: blocks.3.hook_resid_post}\n"
        "corpus: {source: stories, tokens: 10000, context: 64}\nsae: {load: some/sae}\nllm: {model: tiny}\n"
        "explainers: [{name: default}, {name: token_stats}]\n"
        "scorers: [{name: detection, llm: {model: judge}}, {name: simulation}]\ncontrols: [{name: other_feature}]\n"
    )
    run = {
        "autointerp": "0.1.0",
        "python": "3.11",
        "packages": {"torch": "2.13.0"},
        "git": {"revision": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "seeds": {"run": 7},
        "hardware": {"machine": "x86_64", "cores": 2},
        "started": "2025-01-02T03:04:05Z",
        "stages": {
            "corpus": {"key": "aa", "status": "ran", "seconds": 1.5},
            "harvest": {"key": "bb", "status": "cached", "seconds": 61.0},
        },
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def hostile(count: int) -> list[str]:
    """Tokens of script, direction marks, control characters, combining marks and halves of characters."""
    rng = random.Random(7)
    parts = [
        "<script>alert(1)</script>", "</template>", "</textarea>", "<img src=x onerror=alert(1)>", "javascript:x()",
        "{{7*7}}", "{% raw %}", "&lt;", "&#x3c;", "\"'><svg/onload=alert(1)>", "]]>", "<!--", "-->", "</style>",
        "\u202e", "\u2066", "\u200f", "\u061c", "\x00", "\x1b[2J", "\x7f", "\r", "\x85", "\u2028", "e" + "\u0301" * 40,
        "\u0489" * 20, "�", "<0xE2>", "\ufeff", "\ufffe", "🦊", "\U000e0041", "ﷺ", "日本", " ", "`", "\\", "\\u003c",
    ]  # fmt: skip
    return ["".join(rng.choice(parts) for _ in range(rng.randint(1, 4))) for _ in range(count)]


def write_hostile(folder: Path) -> Path:
    """A run whose every text is hostile: 1,000 tokens over contexts, explanations, logits, failures and its name."""
    write_run(folder)
    tokens = hostile(1_000)
    left = iter(tokens)

    def of(name: str, change: Any) -> None:
        table = pq.read_table(folder / f"{name}.parquet")
        written = [row | change(row) for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(written, table.schema), folder / f"{name}.parquet")

    of("contexts", lambda row: {"tokens": [next(left, tokens[i]) for i in range(len(row["tokens"]))]})
    of("explanations", lambda row: {"explanation": row["explanation"] and tokens[row["feature"]]})
    of("features", lambda row: {"explanation": row["explanation"] and tokens[row["feature"]]})
    of("logits", lambda row: {"token": tokens[100 + row["rank"]]})
    of("judgements", lambda row: {"failure": row["failure"] and tokens[200]})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"name": tokens[0]}, allow_unicode=True))
    return folder
