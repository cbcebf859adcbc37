"""Latents one by one: firing frequency, share of firings on punctuation and BOS, nearest decoder direction."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autointerp.evaluation.sums import CLASSES

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from autointerp.evaluation.sums import Measured

DENSE, FREQUENT = 0.1, 0.01  # of the tokens, as SAEBench counts


def token_classes(vocabulary: Sequence[str]) -> torch.Tensor:
    """[vocabulary, CLASSES] bool, of each token's text. punctuation: nothing but punctuation and symbols (Unicode P
    and S) beside spaces; newline: holds a line break; word_start: a letter or number after a space."""
    import torch

    return torch.tensor([[_punctuation(t), "\n" in t or "\r" in t, _word_start(t)] for t in vocabulary])


def _punctuation(text: str) -> bool:
    return bool(text.strip()) and all(unicodedata.category(c)[0] in "PS" for c in text.strip())


def _word_start(text: str) -> bool:
    return text[:1] == " " and text[1:2].isalnum()


def latent_table(measured: Measured, nearest: np.ndarray, cosine: np.ndarray) -> pd.DataFrame:
    """evaluation_features.parquet, a row a latent; `nearest`, `cosine` [latents]: its nearest by decoder cosine.

    Shares are of the latent's firings, null for one that does not fire; bos_share counts its firings on prepended
    BOS tokens too, which nothing else in the table does.
    """
    import pandas as pd

    firings = measured.firings
    tokens = measured.by_document[:, 0].sum()
    other = pd.array(nearest, dtype="Int64")
    other[nearest < 0] = pd.NA
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = {f"{name}_share": measured.by_class[:, i] / firings for i, name in enumerate(CLASSES)}
        table = {
            "feature": np.arange(len(firings)),
            "firings": firings.astype(np.int64),
            "frequency": firings / tokens,
            "firings_per_row": firings / measured.rows_fired,  # of the rows in which it fires
            "mean_activation": measured.activation / firings,  # where it fires
            "max_activation": np.where(firings > 0, measured.peak, np.nan),
            **shares,
            "bos_share": measured.at_bos / (firings + measured.at_bos),
            "nearest": other,
            "max_cosine": np.where(nearest >= 0, cosine, np.nan),
            "dense": firings / tokens > DENSE,
        }
    return pd.DataFrame(table)


def latent_figures(measured: Measured) -> list[dict[str, Any]]:
    """Rows of evaluation.parquet about all latents. They are all counted, not sampled: no interval."""
    tokens = int(measured.by_document[:, 0].sum())
    frequency, firings = measured.firings / tokens, measured.firings.sum()
    dead = float((frequency == 0).mean())

    def of_firings(above: float) -> float | None:
        return float(measured.firings[frequency > above].sum() / firings) if firings else None

    rows: list[tuple[str, float | None, str | None]] = [
        ("dead_fraction", dead, f"silent on {tokens:,} tokens; on more tokens fewer are" if dead else None),
        ("dense_fraction", float((frequency > DENSE).mean()), None),
        ("frequent_fraction", float((frequency > FREQUENT).mean()), None),
        ("dense_firings", of_firings(DENSE), None if firings else "nothing fires"),
        ("frequent_firings", of_firings(FREQUENT), None if firings else "nothing fires"),
    ]
    metrics = [{"metric": name, "value": value, "n": tokens, "note": note} for name, value, note in rows]
    if bos := measured.bos_tokens:
        l0 = float(measured.at_bos.sum() / bos)
        metrics.append(
            {"metric": "l0_on_bos", "value": l0, "n": bos, "note": "BOS is not replaced by what the SAE says"}
        )
    return metrics
