"""A feature's activations on any text: for scorers that write texts and ask whether the feature fires on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from autointerp.activations.outliers import is_outlying
from autointerp.records import TokenActivations

if TYPE_CHECKING:
    import torch

    from autointerp.sae.model import SAE
    from autointerp.subject.model import Subject

BATCH = 32  # texts in one forward pass
RUNNING = threading.Lock()  # one pass at a time: the hooks of two, on one model, would read each other's numbers


class TextActivations:
    """A subject and an SAE that answer for texts. Calls from several threads wait for each other (`RUNNING`).

    `bos_id` and `outlier_threshold`: the BOS of the harvest's corpus, None where it has none, and from which norm on
    nothing fires there.
    """

    def __init__(self, subject: Subject, sae: SAE, bos_id: int | None, outlier_threshold: float | None = None) -> None:
        self._subject, self._sae, self._bos, self._threshold = subject, sae, bos_id, outlier_threshold

    def of(self, feature: int) -> Callable[[Sequence[str]], list[TokenActivations]]:
        """Texts -> their tokens and this feature's activation on each, as in the harvest: BOS in front where the corpus
        has one, and not among the tokens; a text longer than the subject reads is cut. A token of outlying norm
        (`activations.outliers`) has the activation 0."""
        return lambda texts: self._read(feature, texts)

    def fired(self, text: str) -> tuple[list[str], dict[int, list[float]]]:
        """The text's tokens, and latent -> its activation on each of them, of the latents that fire on any; as `of`
        reads them."""
        import torch

        skip = int(self._bos is not None)
        tokens, lengths = tokenised(self._subject, [text], self._bos)
        with RUNNING, torch.inference_mode():
            acts = self._subject.activations(tokens)
            place, latent, value = (part.cpu() for part in self._sae.encode_sparse(acts))
            fires = value > 0
            if self._threshold is not None:
                fires &= ~is_outlying(acts, self._threshold).cpu().flatten()[place]
        pieces = self._subject.token_strings(tokens[0, skip : lengths[0]].tolist())
        values: dict[int, list[float]] = {}
        for at, number, strength in zip(*(part[fires].tolist() for part in (place, latent, value.float()))):
            if skip <= at < lengths[0]:
                values.setdefault(number, [0.0] * len(pieces))[at - skip] = strength
        return pieces, values

    def _read(self, feature: int, texts: Sequence[str]) -> list[TokenActivations]:
        import torch

        subject, results = self._subject, []
        skip = int(self._bos is not None)
        for start in range(0, len(texts), BATCH):
            tokens, lengths = tokenised(subject, texts[start : start + BATCH], self._bos)
            with RUNNING, torch.inference_mode():
                acts = subject.activations(tokens)
                values = self._sae.encode(acts)[..., feature].float()
                if self._threshold is not None:
                    values = values.masked_fill(is_outlying(acts, self._threshold).to(values.device), 0.0)
                values = values.cpu()
            for row, length, activation in zip(tokens.tolist(), lengths, values.tolist()):
                pieces = subject.token_strings(row[skip:length])
                results.append(TokenActivations(tuple(pieces), tuple(activation[skip:length])))
        return results


def tokenised(subject: Subject, texts: Sequence[str], bos_id: int | None) -> tuple[torch.Tensor, list[int]]:
    """Texts as rows of tokens [b, s] padded on the right, and each row's length; `bos_id` in front of each, where there
    is one, and no longer than the subject reads."""
    import torch

    bos = [] if bos_id is None else [bos_id]
    rows = [bos + subject.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    rows = [row[: subject.context] for row in rows]
    tokens = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return tokens, [len(row) for row in rows]
