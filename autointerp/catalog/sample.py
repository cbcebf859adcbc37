"""Sample text from a language model itself: on-distribution text where the training text cannot be had.

A plain batched decoding loop. `generate` spends most of a small model's time in its sampling
step (`torch.multinomial` over batch x vocabulary); drawing by the inverse of the cumulative
distribution is several times faster and as exact.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import write_atomically
from autointerp.catalog import fetch
from autointerp.catalog.entries import ENTRIES
from autointerp.catalog.store import ensure
from autointerp.progress import progress
from autointerp.resources import cache_dir

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BATCH = 128  # documents; part of what a seed means
DRAWN_AT_ONCE = 16  # rows of the distribution: few enough to stay in the cache of a core


def sampled_text(name: str, *, tokens: int, seed: int, device: str = "auto") -> Path:
    """JSON lines of at least `tokens` tokens of documents (one BOS each), sampled by the entry's model.

    Kept in the cache and extended batch by batch when more is asked for, so a seed's text of 1M
    tokens is the beginning of its text of 2M. What a killed process left half-written is cut off.
    """
    import torch
    from filelock import FileLock
    from transformers import AutoModelForCausalLM, AutoTokenizer

    entry = ENTRIES[name]
    weights = ensure(ENTRIES[entry.sampled_from or ""])
    file = cache_dir() / "text" / f"{name}-seed{seed}-{entry.sha256[:8]}.jsonl"
    with fetch.disk_full_said(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            made = _State.read(file)
            if made.tokens >= tokens:
                return file
            tokenizer = AutoTokenizer.from_pretrained(weights)
            where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
            # Half the memory traffic is nearly twice the speed, but only where the CPU multiplies bfloat16 itself.
            native = where != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
            model: Any = AutoModelForCausalLM.from_pretrained(
                weights, dtype=torch.bfloat16 if native else torch.float32
            )
            model.to(where).eval()
            with progress(f"sample {name}", tokens, "tokens") as bar, open(file, "ab") as lines:
                bar.advance(made.tokens, skipped=True)
                lines.truncate(made.bytes)
                while made.tokens < tokens:
                    documents = sample_batch(
                        model,
                        start=tokenizer.bos_token_id,
                        stop={tokenizer.bos_token_id, tokenizer.eos_token_id},
                        length=model.config.max_position_embeddings - 1,
                        seed=_batch_seed(seed, made.batches),
                    )
                    texts = [t for t in tokenizer.batch_decode(documents, skip_special_tokens=True) if t.strip()]
                    # Counted as a reader will count it: the text is tokenised anew, and may come out shorter.
                    count = sum(map(len, tokenizer(texts, verbose=False)["input_ids"]))
                    lines.write(b"".join(json.dumps({"text": t}, ensure_ascii=False).encode() + b"\n" for t in texts))
                    lines.flush()
                    os.fsync(lines.fileno())
                    made = _State(made.batches + 1, made.tokens + count, lines.tell())
                    made.write(file)
                    bar.advance(count)
    return file


@dataclass(frozen=True)
class _State:
    """How much of a file of samples is whole; beside it, written after it."""

    batches: int = 0
    tokens: int = 0
    bytes: int = 0

    @classmethod
    def read(cls, file: Path) -> _State:
        try:
            state = cls(**json.loads(file.with_suffix(".json").read_text()))
            return state if file.stat().st_size >= state.bytes else cls()
        except (FileNotFoundError, ValueError, TypeError):
            return cls()

    def write(self, file: Path) -> None:
        write_atomically(file.with_suffix(".json"), lambda path: path.write_text(json.dumps(asdict(self))))


def _batch_seed(seed: int, index: int) -> int:
    """A seed of its own for each batch, so that sampling can go on where it stopped."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:7])


def sample_batch(
    model: PreTrainedModel, *, start: int, stop: set[int], length: int, seed: int, batch: int = BATCH
) -> list[list[int]]:
    """Up to `batch` documents as token ids, without `start` and without the stop token; empty ones left out.

    Temperature 1, no truncation of the distribution. A document ends at a token of `stop` or
    after `length` tokens. The same seed, batch, weights and dtype give the same documents.
    """
    import torch

    device = model.device
    chance = torch.Generator().manual_seed(seed)
    stops = torch.tensor(sorted(stop), device=device)
    drawn = torch.full((batch, length), -1, dtype=torch.long, device=device)
    alive = torch.arange(batch, device=device)  # the rows of `drawn` still in the batch
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    token = torch.full((batch, 1), start, dtype=torch.long, device=device)
    cache = None
    for step in range(length):
        with torch.inference_mode():
            out = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        token = draw(out.logits[:, -1], chance)
        ended = ended | torch.isin(token[:, 0], stops)
        drawn[alive, step] = torch.where(ended, -1, token[:, 0])
        # Dropping rows copies the cache: worth it once an eighth of the batch has ended.
        if int(ended.sum()) * 8 >= len(alive):
            keep = (~ended).nonzero()[:, 0]
            if len(keep) == 0:
                break
            cache.batch_select_indices(keep)
            token, alive, ended = token[keep], alive[keep], ended[keep]
    documents = []
    for row in drawn.tolist():
        cut = next((i for i, t in enumerate(row) if t < 0), length)
        if cut:
            documents.append(row[:cut])
    return documents


def draw(logits: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """One token a row from softmax(logits): logits [b, vocabulary] -> [b, 1].

    The uniform numbers come from the CPU generator `chance`, so that a device changes nothing.
    """
    import torch

    uniform = torch.rand(len(logits), 1, generator=chance).to(logits.device)
    drawn = []
    for rows, number in zip(logits.split(DRAWN_AT_ONCE), uniform.split(DRAWN_AT_ONCE)):
        cumulative = torch.softmax(rows, dim=-1, dtype=torch.float32).cumsum(-1)
        drawn.append(torch.searchsorted(cumulative, number * cumulative[:, -1:]))
    return torch.cat(drawn).clamp_(max=logits.shape[-1] - 1)
