"""The composite check on the embedding matrix of a real model: its most frequent tokens, every flagged row by name.

    python benchmarks/embeddings.py [--model stories15m] [--text stories15m-samples] [--tokens 4000]

Tokens that the text never holds may be untrained: their rows lie where they began, all near one direction. They are
left out, and the least frequent of those kept is printed. Beside the decoder's figures stands what a reader can judge:
the tokens themselves. Writes `results/reference/embeddings.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="stories15m")
    parser.add_argument("--text", default="stories15m-samples")
    parser.add_argument("--tokens", type=int, default=4000, help="most frequent ones that are checked")
    parser.add_argument("--read", type=int, default=1_000_000, help="tokens of text that are counted")
    parser.add_argument("--out", type=Path, default=Path("results/reference/embeddings.json"))
    arguments = parser.parse_args()
    figures = {"command": " ".join(["python", *sys.argv]), **measure(arguments)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print(figures["labels"], "least frequent:", figures["least_count"], "times")
    for row in figures["flagged"]:
        parts = " + ".join(f"{weight:.2f} {part!r}" for part, weight in zip(row["parts"], row["coefficients"]))
        print(f"{row['label']:9} R² {row['r2']:.2f}  {row['token']!r} = {parts}")
    for space in figures["subspaces"]:
        print(f"subspace of rank {space['rank']}: {' '.join(map(repr, space['tokens']))}")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autointerp.artifacts import Corpus
    from autointerp.catalog import resolve
    from autointerp.composites import find_composites
    from autointerp.composites.labels import FLAGGED
    from autointerp.config import CorpusConfig
    from autointerp.subject.corpus import build_corpus

    model = Path(resolve(arguments.model, "model"))
    with tempfile.TemporaryDirectory() as folder:
        build_corpus(CorpusConfig(source=arguments.text, tokens=arguments.read), model, Path(folder))
        corpus = Corpus(folder)
        counts = np.bincount(corpus.tokens)
        if corpus.info.bos_id is not None:
            counts[corpus.info.bos_id] = 0
    frequent = np.sort(np.argsort(-counts, kind="stable")[: min(arguments.tokens, int((counts > 0).sum()))])
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    matrix = loaded.get_input_embeddings().weight.detach().float().numpy()[frequent]
    table: Any = find_composites(matrix)
    pieces = AutoTokenizer.from_pretrained(model).convert_ids_to_tokens(frequent.tolist())
    rows = table[table["label"].isin(FLAGGED)].sort_values(["label", "r2"], ascending=[True, False])
    spaces = {tuple(row["members"]): row["rank"] for row in table[table["label"] == "subspace"].to_dict("records")}
    return {
        "model": arguments.model,
        "text": arguments.text,
        "tokens": len(frequent),
        "width": matrix.shape[1],
        "least_count": int(counts[frequent].min()),
        "labels": table["label"].value_counts().to_dict(),
        "failure": table["failure"].value_counts().to_dict(),
        "flagged": [
            {
                "token": pieces[row["feature"]],
                "count": int(counts[frequent[row["feature"]]]),
                "label": row["label"],
                "r2": row["r2"],
                "parts": [pieces[part] for part in row["constituents"]],
                "part_counts": [int(counts[frequent[part]]) for part in row["constituents"]],
                "coefficients": row["coefficients"],
            }
            for row in rows.to_dict("records")
        ],
        "subspaces": [{"rank": int(rank), "tokens": [pieces[m] for m in members]} for members, rank in spaces.items()],
    }


if __name__ == "__main__":
    main()
