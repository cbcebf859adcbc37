"""What a latent does to the subject's output: its direction is added to the activations, or what it adds is taken away.

Explanations from contexts say what a feature reads; what it writes has to be tried (2501.08319).

1. Steered: the decoder row's direction is added at every token but BOS. How strongly is chosen for each feature: the
   least of a ladder of strengths, in units of the median norm of the activations, at which the next-token distribution
   after a few beginnings moves by `MOVED` nats (mean Kullback–Leibler divergence, as 2501.08319 equalises features).
   Then the subject writes on from those beginnings.
2. Ablated: in texts on which the latent fires, what the SAE decodes from it is taken off where it fires, and nothing
   else. The tokens whose log probability as the next token falls most on average are what it had made likelier. At an
   attention sink nothing fires, as in the harvest: what an SAE makes of one would outweigh all else.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from autointerp.activations.outliers import is_outlying
from autointerp.activations.texts import RUNNING, tokenised
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import torch

    from autointerp.artifacts import Corpus
    from autointerp.sae.model import SAE
    from autointerp.subject.model import Subject

LADDER = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # strengths that are tried, times the median norm
MOVED = 1.0  # nats
BEGINNING = 6  # tokens of a document that the subject goes on from
LENGTH = 20  # tokens that it writes
TOP = 10  # tokens kept of those that ablation makes less likely
BATCH = 8  # texts in one pass


class Steering:
    """Answers for the latents of one SAE. Calls from several threads wait for each other (`activations.texts.RUNNING`).

    `reads` and `writes`: the subject where the SAE reads, and where its output belongs. `corpus`: whose documents'
    beginnings are written on from, `texts` of them; as its rows do, every text begins with BOS or without. `firing`:
    texts in which a feature fires, for its ablation. `outlier_threshold`: the norm of what the SAE reads from which on
    nothing fires.
    """

    def __init__(
        self,
        reads: Subject,
        writes: Subject,
        sae: SAE,
        corpus: Corpus,
        firing: Callable[[int], Sequence[str]],
        *,
        outlier_threshold: float | None = None,
        texts: int = 8,
        seed: int = 0,
    ) -> None:
        self._threshold, self._skip = outlier_threshold, int(corpus.info.bos_id is not None)
        self._reads, self._writes, self._sae, self._corpus, self._firing = reads, writes, sae, corpus, firing
        self._count, self._seed = texts, seed
        self._written: dict[int, tuple[str, ...]] = {}
        self._lost: dict[int, tuple[str, ...]] = {}

    def texts(self, feature: int) -> tuple[str, ...]:
        """What the steered subject writes, without the beginnings; the same each time."""
        import torch

        with RUNNING, torch.inference_mode():
            if feature not in self._written:
                self._written[feature] = self._write(feature)
            return self._written[feature]

    def lost(self, feature: int) -> tuple[str, ...]:
        """Tokens that become less likely where the feature is ablated, the most first; none where it does not fire."""
        import torch

        with RUNNING, torch.inference_mode():
            if feature not in self._lost:
                self._lost[feature] = self._ablate(feature, self._firing(feature))
            return self._lost[feature]

    def strength(self, feature: int) -> float:
        """How far the direction, of length 1, is added: the least of the ladder that moves the output enough."""
        clean, best = self._clean, (0.0, 0.0)
        for rung in LADDER:
            steered = self._next(self._beginnings, self._direction(feature) * rung * self._norm)
            moved = float((clean.exp() * (clean - steered.log_softmax(-1))).sum(-1).mean())
            if moved >= MOVED:
                return rung * self._norm
            best = max(best, (moved, rung))
        return best[1] * self._norm

    def _write(self, feature: int) -> tuple[str, ...]:
        import torch

        added = self._direction(feature) * self.strength(feature)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}:{feature}".encode()))
        tokens, begun = self._beginnings, self._beginnings.shape[1]
        for _ in range(LENGTH):
            odds = self._next(tokens, added).softmax(-1).cpu()
            tokens = torch.cat([tokens, torch.multinomial(odds, 1, generator=generator)], dim=1)
        return tuple("".join(self._reads.token_strings(row[begun:])).strip() for row in tokens.tolist())

    def _ablate(self, feature: int, texts: Sequence[str]) -> tuple[str, ...]:
        import torch

        fallen = torch.zeros(len(self._vocabulary), device=self._reads.device)
        for start in range(0, len(texts), BATCH):
            fallen += self._fallen(feature, texts[start : start + BATCH])
        top = fallen.topk(min(TOP, len(fallen)))
        shown = (
            self._vocabulary[i].strip() for i, value in zip(top.indices.tolist(), top.values.tolist()) if value > 0
        )
        return tuple(token for token in shown if token)

    def _fallen(self, feature: int, texts: Sequence[str]) -> torch.Tensor:
        """By how much each token's log probability falls, [vocabulary], over all places where the feature fires."""
        import torch

        tokens, lengths = tokenised(self._reads, texts, self._corpus.info.bos_id)
        hook = self._reads.hook.name
        clean, seen = self._reads.logits(tokens, read=[hook])
        share, fires = decoded(self._sae, feature, seen[hook])
        places = torch.arange(tokens.shape[1], device=fires.device)
        fires &= (places >= self._skip) & (places < torch.tensor(lengths).to(places)[:, None])
        if self._threshold is not None:
            fires &= ~is_outlying(seen[hook], self._threshold)
        without = self._writes.logits(tokens, add={self._writes.hook.name: -share * fires[..., None]})[0]
        return (clean[fires].float().log_softmax(-1) - without[fires].float().log_softmax(-1)).sum(0)

    def _direction(self, feature: int) -> torch.Tensor:
        row = self._sae.W_dec[feature].float()
        return row / row.norm().clamp_min(1e-12)

    def _next(self, tokens: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """Logits of what follows, [b, vocabulary] float32, with `added` [d] put on every token but BOS."""
        import torch

        places = torch.ones(*tokens.shape, 1, device=added.device)
        places[:, : self._skip] = 0.0
        add = {self._writes.hook.name: places * added}
        return self._writes.logits(tokens, add=add, at=_last(tokens))[0][:, 0].float()

    @cached_property
    def _beginnings(self) -> torch.Tensor:
        """[texts, tokens] int64: of rows spread over the corpus, with BOS. AutointerpError where none is so long."""
        import numpy as np
        import torch

        length = BEGINNING + self._skip
        long_enough = np.flatnonzero(np.diff(self._corpus.offsets) >= length)
        if not len(long_enough):
            raise AutointerpError(f"no text of the corpus has {BEGINNING} tokens from which a subject could write on")
        chosen = long_enough[:: max(1, len(long_enough) // self._count)][: self._count]
        return torch.tensor([self._corpus.row(row)[:length].tolist() for row in chosen], dtype=torch.long)

    @cached_property
    def _vocabulary(self) -> list[str]:
        return self._reads.vocab_strings()

    @cached_property
    def _norm(self) -> float:
        return float(self._writes.activations(self._beginnings)[:, self._skip :].norm(dim=-1).median())

    @cached_property
    def _clean(self) -> torch.Tensor:
        """Log probabilities after the beginnings, [texts, vocabulary]."""
        logits, _ = self._reads.logits(self._beginnings, at=_last(self._beginnings))
        return logits[:, 0].float().log_softmax(-1)


def _last(tokens: torch.Tensor) -> torch.Tensor:
    """The place of each row's last token, [b, 1]."""
    return tokens.new_full((len(tokens), 1), tokens.shape[1] - 1)


def decoded(sae: SAE, feature: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `sae` decodes from one latent alone [b, s, d_out], and where it fires [b, s], in activations x [b, s, d]."""
    codes = sae.encode(x)
    none = codes.new_zeros(codes.shape)
    alone = none.clone()
    alone[..., feature] = codes[..., feature]
    return sae.decode(alone, x) - sae.decode(none, x), codes[..., feature] > 0
