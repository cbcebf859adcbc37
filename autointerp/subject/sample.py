"""Text sampled from a language model itself: on-distribution text where the training text cannot be had.

A plain batched decoding loop. `generate` spends most of a small model's time in its sampling
step (`torch.multinomial` over batch x vocabulary); drawing by the inverse of the cumulative
distribution is several times faster and as exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def sample_documents(
    model: PreTrainedModel,
    *,
    start: int,
    stop: set[int],
    length: int,
    seed: int,
    batch: int = 256,
) -> Iterator[list[int]]:
    """Yield documents without end, as token ids without `start` and without the stop token.

    Temperature 1, no truncation of the distribution. A document ends at a token of `stop` or
    after `length` tokens. The same seed, batch, weights and dtype give the same documents.
    """
    import torch

    device = model.device
    chance = torch.Generator().manual_seed(seed)
    stops = torch.tensor(sorted(stop), device=device)
    while True:
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
        for row in drawn.tolist():
            cut = next((i for i, t in enumerate(row) if t < 0), length)
            if cut:
                yield row[:cut]


def draw(logits: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """One token a row from softmax(logits): logits [b, vocabulary] -> [b, 1].

    The uniform numbers come from the CPU generator `chance`, so that a device changes nothing.
    """
    import torch

    cumulative = torch.softmax(logits, dim=-1, dtype=torch.float32).cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=chance).to(logits.device)
    at = torch.searchsorted(cumulative, uniform * cumulative[:, -1:])
    return at.clamp_(max=logits.shape[-1] - 1)
