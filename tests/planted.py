"""A subject with an SAE whose features are known: each latent fires on one word, and an oracle that knows it.

The hook is the token embedding of the real story model; latent i reads token t_i's embedding with a
threshold halfway between t_i and the token that comes nearest.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

STORIES = Path(__file__).parent / "data" / "stories.jsonl"
HOOK = "hook_embed"
ONE_DONOR = [{"name": "other_feature", "donors": 1}]  # the default asks three of them


@cache
def embedding_of(model: Path) -> Any:
    """[vocabulary, d] float32."""
    from safetensors.torch import load_file

    return load_file(model / "model.safetensors")["model.embed_tokens.weight"].float()


@cache
def choose_words(model: Path, count: int) -> dict[int, str]:
    """token -> word, the most frequent first, of words whose places the text tells: as often a token as a substring."""
    import torch
    from transformers import AutoTokenizer

    embedding = embedding_of(model)
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
    return words


def plant(model: Path, folder: Path, count: int = 24) -> dict[int, str]:
    """Write an SAE of `count` one-word latents in SAELens' format; returns latent -> its word."""
    import torch

    embedding = embedding_of(model)
    words = choose_words(model, count)
    rows = embedding[list(words)]
    nearest = (rows @ embedding.T).topk(2, dim=-1).values  # itself, and who comes nearest
    tensors = {
        "W_enc": rows.T.contiguous(),
        "W_dec": torch.nn.functional.normalize(rows, dim=-1),
        "b_enc": -nearest.mean(-1),
        "b_dec": torch.zeros(rows.shape[1]),
    }
    _write_sae(folder, "standard", tensors)
    return dict(enumerate(words.values()))


def plant_composites(model: Path, folder: Path, count: int = 12, composites: int = 3) -> tuple[dict[int, str], Parts]:
    """Write a subject and an SAE of one-word latents, the first `composites` of which are sums of two others.

    In ``folder/model``, a copy of `model`, the embedding of each composite's word is the sum of its parts' words';
    its latent fires on that word, in place of the parts, whose encoders shun each other. Returns latent -> word, and
    composite's word -> its parts' words.
    """
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    changed = folder / "model"
    shutil.copytree(model, changed)
    weights = load_file(model / "model.safetensors")
    embedding = embedding_of(model).clone()
    words = choose_words(model, count)
    tokens = list(words)
    pairs = {i: (composites + 2 * i, composites + 2 * i + 1) for i in range(composites)}
    for whole, (g, h) in pairs.items():
        embedding[tokens[whole]] = embedding[tokens[g]] + embedding[tokens[h]]
    save_file(weights | {"model.embed_tokens.weight": embedding}, changed / "model.safetensors", {"format": "pt"})
    rows = torch.nn.functional.normalize(embedding[tokens], dim=-1)
    encoder = rows.clone()
    for g, h in pairs.values():
        encoder[g], encoder[h] = rows[g] - rows[h], rows[h] - rows[g]
    reached = encoder @ embedding.T
    own = reached[torch.arange(count), tokens].clone()
    reached[torch.arange(count), tokens] = -torch.inf
    highest = reached.max(-1).values
    assert (own > highest).all()
    tensors = {
        "W_enc": encoder.T.contiguous(),
        "W_dec": rows,
        "b_enc": torch.zeros(count),
        "b_dec": torch.zeros(rows.shape[1]),
        "threshold": (own + highest) / 2,
    }
    _write_sae(folder / "sae", "jumprelu", tensors)
    word = list(words.values())
    return dict(enumerate(word)), {word[i]: (word[g], word[h]) for i, (g, h) in pairs.items()}


Parts = dict[str, tuple[str, str]]


def split_in_two(folder: Path, composites: int = 3) -> dict[int, int]:
    """Of the SAE that `plant_composites` wrote, two: ``folder/narrow`` without the parts of the composites, and
    ``folder/wide``, a union dictionary that has them, each twice and before that dead, and all that the narrow one has
    but the composites. Returns row of the wide one -> latent of the SAE."""
    import torch
    from safetensors.torch import load_file

    whole = load_file(folder / "sae" / "sae_weights.safetensors")
    n, parts = len(whole["W_dec"]), list(range(composites, 3 * composites))
    rest = list(range(3 * composites, n))
    rows = {"narrow": [*range(composites), *rest], "wide": [*rest, *parts, *parts, *parts]}
    for name, kept in rows.items():
        along = {"W_enc": 1, "b_dec": None}
        tensors = {
            key: value if (axis := along.get(key, 0)) is None else value.index_select(axis, torch.tensor(kept))
            for key, value in whole.items()
        }
        if name == "wide":
            tensors["threshold"][len(rest) : len(rest) + len(parts)] = 1e9
        _write_sae(folder / name, "jumprelu", tensors)
    return dict(enumerate(rows["wide"]))


def _write_sae(folder: Path, architecture: str, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    d_sae, d_in = tensors["W_dec"].shape
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": HOOK, "model_name": "stories15m", "prepend_bos": True, "context_size": 256},
    }
    (folder / "cfg.json").write_text(json.dumps(cfg))


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


def oracle_of(parts: Parts) -> Any:
    """`oracle` that also knows of what the composites are made: "both g and h" is the word that they are the parts
    of, and what fits it fits each of them."""

    def answer(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
        said = messages[-1]["content"]
        words = re.findall(r"the word (\w+)", said)
        if "Does this description imply:" in said:
            return "Yes" if words[1] in parts.get(words[0], ()) else "No"
        if "Simpler unit" in said:
            return f"EXPLANATION: both the word {words[0]} and the word {words[1]}"
        if "Property: both" in said or "responds to: both" in said:
            whole = next((w for w, both in parts.items() if set(both) == set(words[:2])), "nothing")
            said = re.sub(r"(Property:|responds to:) both .*", rf"\1 the word {whole}", said)
        return oracle([*messages[:-1], {"role": "user", "content": said}], body)

    return answer


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
        "controls": ONE_DONOR,
        **more,
    }
