"""A subject with an SAE whose features are known: each latent fires on one word, and an oracle that knows it.

The hook is the token embedding of the real story model; latent i reads token t_i's embedding with a
threshold halfway between t_i and the token that comes nearest.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

STORIES = Path(__file__).parent / "data" / "stories.jsonl"
HOOK = "hook_embed"


def plant(model: Path, folder: Path, count: int = 24) -> dict[int, str]:
    """Write an SAE of `count` one-word latents in SAELens' format; returns latent -> its word.

    Words are chosen so that the text tells where the latent fires: as often a token as a substring.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    embedding = load_file(model / "model.safetensors")["model.embed_tokens.weight"].float()
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [json.loads(line)["text"] for line in STORIES.read_text().splitlines()]
    ids = [token for one in tokenizer(texts, add_special_tokens=False).input_ids for token in one]
    seen = torch.bincount(torch.tensor(ids), minlength=len(embedding))
    everything = "\n".join(" " + text for text in texts)
    words: dict[int, str] = {}
    for token in seen.argsort(descending=True).tolist():
        piece = tokenizer.convert_ids_to_tokens(token)
        word = piece.replace("▁", "")
        if not re.fullmatch("▁[a-z]{3,9}", piece) or everything.count(word) != int(seen[token]):
            continue
        own = embedding[token] @ embedding[token]
        others = embedding @ embedding[token]
        others[token] = -torch.inf
        if own > others.max() + 1e-3 and int(seen[token]) < 400:
            words[token] = word
        if len(words) == count:
            break
    rows = embedding[list(words)]
    nearest = (rows @ embedding.T).topk(2, dim=-1).values  # itself, and who comes nearest
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "W_enc": rows.T.contiguous(),
            "W_dec": torch.nn.functional.normalize(rows, dim=-1),
            "b_enc": -nearest.mean(-1),
            "b_dec": torch.zeros(rows.shape[1]),
        },
        folder / "sae_weights.safetensors",
    )
    cfg: dict[str, Any] = {
        "architecture": "standard",
        "d_in": rows.shape[1],
        "d_sae": len(rows),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": HOOK, "model_name": "stories15m", "prepend_bos": True, "context_size": 256},
    }
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return dict(enumerate(words.values()))


def oracle(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
    """Explains by the word between the marks; judges and simulates by the word of the explanation, without error."""
    said = messages[-1]["content"]
    if "Property:" in said:
        rule = re.search(r"Property: .*?the word (\w+)", said)
        numbered = re.findall(r"^(\d+)\. (.*)$", said, re.M)
        return json.dumps({number: int(bool(rule) and rule[1] in text) for number, text in numbered})
    if "The unit responds to:" in said:
        word = re.search(r"the word (\w+)", said)
        tokens = json.loads(said[said.index("Tokens: ") + 8 :])
        return json.dumps({"pairs": [[t, 10 if word and t.strip() == word[1] else 0] for t in tokens]})
    words = re.findall(r"«(\w+)»", said)
    return f"EXPLANATION: the word {max(set(words), key=words.count)}"


def config(model: Path, sae: Path, url: str, **more: Any) -> dict[str, Any]:
    """A whole run against an endpoint at `url`, small enough for a test."""
    return {
        "name": "planted",
        "subject": {"model": str(model)},
        "corpus": {"source": str(STORIES), "tokens": 60_000, "context": 128},
        "sae": {"load": str(sae)},
        "features": {"select": "all", "min_firings": 30},
        "contexts": {"window": 20, "quantiles": 2, "train": 6, "test_activating": 10, "test_random": 5, "test_near": 5},
        "llm": {"model": "test-model", "base_url": url, "api_key_env": None, "logprobs": False},
        "scorers": ["detection", {"name": "simulation", "sequences": 10}],
        **more,
    }
