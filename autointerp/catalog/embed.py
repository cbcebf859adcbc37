"""Sentence embeddings: texts to unit vectors, by an embedding model of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

BATCH = 64  # texts in one forward pass


class Embedder:
    """A sentence-transformers model in `folder`: the mean of the last layer over a text's tokens, made a unit vector
    (Reimers & Gurevych 2019, arXiv 1908.10084)."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder).eval().to(device)
        self._device = device

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> unit rows [n, d] float32; a text longer than the model reads is cut."""
        import numpy as np
        import torch

        longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        rows = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        for start in range(0, len(texts), BATCH):
            places = longest_first[start : start + BATCH]
            batch = self._tokenizer(
                [texts[i] for i in places], padding=True, truncation=True, max_length=256, return_tensors="pt"
            ).to(self._device)
            with torch.inference_mode():
                states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1)
            rows[places] = torch.nn.functional.normalize(mean, dim=-1).float().cpu().numpy()
        return rows
