"""Definitions of every evaluation figure (explained variance, L0, loss recovered …) as functions of sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autointerp.evaluation.sums import COLUMNS
from autointerp.stats import LEVEL

if TYPE_CHECKING:
    from autointerp.evaluation.sums import Measured

Floats = NDArray[np.float64]
Sums = Mapping[str, Floats]
RESAMPLES = 1000  # of documents
LEAST = 0.01  # nats a token that ablation must cost, or there is nothing to recover


@dataclass(frozen=True)
class Figure:
    """`of` maps sums of any shape to values of that shape, NaN where `undefined` is the reason."""

    name: str
    of: Callable[[Sums], Floats]
    counts: str = "tokens"  # the sum that says over how many tokens
    undefined: str = "no such token"


def _ratio(part: Floats, whole: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _mean(name: str, column: str | None = None, counts: str = "tokens") -> Figure:
    return Figure(name, lambda s: _ratio(s[column or name], s[counts]), counts)


def _recovered(name: str, run: str, ablated: str, clean: str | None, counts: str) -> Figure:
    """(ablated − run) / (ablated − clean); undefined where the ablation costs less than `LEAST`."""

    def of(s: Sums) -> Floats:
        base = s[clean] if clean else np.zeros_like(s[run])
        cost = s[ablated] - base
        return np.where(_ratio(cost, s[counts]) >= LEAST, _ratio(s[ablated] - s[run], cost), np.nan)

    why = f"ablation costs less than {LEAST} nats a token: nothing to recover"
    return Figure(name, of, counts, why)


FLAT = "the activations do not vary"
FIGURES: tuple[Figure, ...] = (
    _mean("l0"),
    _mean("l1"),
    Figure("explained_variance", lambda s: 1 - _ratio(s["residual"], s["variance"]), undefined=FLAT),
    Figure(
        "explained_variance_with_outliers",
        lambda s: 1 - _ratio(s["all_residual"], s["all_variance"]),
        counts="all_tokens",
        undefined=FLAT,
    ),
    _mean("l0_with_outliers", "all_l0", counts="all_tokens"),
    Figure("outlying_tokens", lambda s: _ratio(s["all_tokens"] - s["tokens"], s["all_tokens"]), counts="all_tokens"),
    Figure("explained_variance_per_token", lambda s: 1 - _ratio(s["unexplained"], s["tokens"]), undefined=FLAT),
    _mean("mse"),
    _mean("cosine"),
    _mean("l2_norm_in", "norm_in"),
    _mean("l2_norm_out", "norm_out"),
    _mean("l2_ratio", "norm_ratio"),
    Figure(
        "relative_reconstruction_bias",
        lambda s: _ratio(s["out_out"], s["in_out"]),
        undefined="the reconstruction has no component along its input",
    ),
    *(_mean(name, counts="predictions") for name in ("ce_clean", "ce_sae", "ce_zero", "ce_mean")),
    _recovered("ce_loss_recovered", "ce_sae", "ce_zero", "ce_clean", "predictions"),
    _recovered("ce_loss_recovered_from_mean", "ce_sae", "ce_mean", "ce_clean", "predictions"),
    *(_mean(name) for name in ("kl_sae", "kl_zero", "kl_mean")),
    _recovered("kl_loss_recovered", "kl_sae", "kl_zero", None, "tokens"),
    _recovered("kl_loss_recovered_from_mean", "kl_sae", "kl_mean", None, "tokens"),
    *(
        figure
        for kind in ("punctuation", "newline")
        for figure in (
            _mean(f"firings_on_{kind}", f"fired_{kind}", counts="l0"),
            _mean(f"{kind}_tokens", kind),
        )
    ),
)
"""Means over tokens unless said otherwise; y is what the SAE should give back, ŷ what it gives, μ the mean of y.

l0, l1                          latents above 0; their sum
explained_variance              1 − Σ‖y − ŷ‖² / Σ‖y − μ‖², with the μ of all positions also where it is of one position
…_with_outliers                 the same where tokens of outlying norm (attention sinks) count too, as nowhere else;
                                outlying_tokens: their share of all tokens
explained_variance_per_token    1 − mean of ‖y − ŷ‖² / ‖y − μ‖²: SAEBench's older definition
mse                             ‖y − ŷ‖² / width
cosine, l2_ratio                of y and ŷ; ‖ŷ‖ / ‖y‖
relative_reconstruction_bias    Σ‖ŷ‖² / Σ y·ŷ (2404.16014, equation 10); 1: no shrinkage
ce_*                            cross-entropy in nats of the token that follows, of the clean model and with y replaced
                                by ŷ (sae), 0 (zero) or μ (mean); a row's last token predicts nothing
ce_loss_recovered               (ce_zero − ce_sae) / (ce_zero − ce_clean); `_from_mean` with ce_mean
kl_*                            KL(clean ‖ replaced) of the next-token distributions, in nats
kl_loss_recovered               (kl_zero − kl_sae) / kl_zero; `_from_mean` with kl_mean
firings_on_punctuation          share of all firings that are on such tokens; punctuation_tokens: such tokens' share
                                of all, which it would be for latents that do not look
"""


def overall(measured: Measured, seed: int) -> list[dict[str, Any]]:
    """Rows of evaluation.parquet: metric, value, low, high, n, note.

    Intervals are 95 % percentile bootstraps over documents, for tokens of one document are not independent.
    """
    total = _named(measured.by_document.sum(0))
    values = {f.name: f.of(total) for f in FIGURES}
    intervals = _bootstrap(measured.by_document, seed)
    rows = []
    for figure in FIGURES:
        value = float(values[figure.name])
        low, high = intervals.get(figure.name, (None, None))
        note = figure.undefined if np.isnan(value) else None
        if note is None and low is None:
            note = "fewer than two documents: no interval"
        rows.append(
            {
                "metric": figure.name,
                "value": None if np.isnan(value) else value,
                "low": low,
                "high": high,
                "n": int(total[figure.counts]),
                "note": note,
            }
        )
    return rows


def by_position(measured: Measured, trained: int | None) -> list[dict[str, Any]]:
    """Rows of evaluation_positions.parquet: position (0 is the row's first token, BOS where there is one), last (the
    same), n, beyond (past the context of `trained` tokens that the SAE saw; None where that is not known), figures."""
    return _pooled(measured.by_position, list(range(len(measured.by_position))), trained)


def by_band(measured: Measured, trained: int | None) -> list[dict[str, Any]]:
    """The same for bands of positions: 1, 2–3, 4–7, 8–15 …, one of them ending where `trained` ends."""
    context = len(measured.by_position)
    starts = {0, *(2**i for i in range(context.bit_length())), *([trained] if trained else [])}
    return _pooled(measured.by_position, sorted(start for start in starts if start < context), trained)


def _pooled(by_position: Floats, starts: list[int], trained: int | None) -> list[dict[str, Any]]:
    """A row for each run of positions from one of `starts` to the next; those without tokens are left out."""
    sums = _named(np.add.reduceat(by_position, starts, axis=0))
    values = {f.name: f.of(sums) for f in FIGURES}
    return [
        {
            "position": start,
            "last": end - 1,
            "n": int(sums["tokens"][i]),
            "beyond": None if trained is None else start >= trained,
            **{name: None if np.isnan(v[i]) else float(v[i]) for name, v in values.items()},
        }
        for i, (start, end) in enumerate(zip(starts, [*starts[1:], len(by_position)]))
        if sums["tokens"][i]
    ]


def _named(sums: Floats) -> dict[str, Floats]:
    return {name: sums[..., i] for i, name in enumerate(COLUMNS)}


def _bootstrap(by_document: Floats, seed: int) -> dict[str, tuple[float, float]]:
    """95 % intervals of the figures that are defined in most resamples."""
    count = len(by_document)
    if count < 2:
        return {}
    rng = np.random.default_rng(seed)
    parts = max(1, count // 10_000)  # weights [resamples, documents] of at most 80 MB
    drawn = [
        rng.multinomial(count, np.full(count, 1 / count), size=len(part)) @ by_document
        for part in np.array_split(np.arange(RESAMPLES), parts)
    ]
    resampled = _named(np.concatenate(drawn))
    intervals: dict[str, tuple[float, float]] = {}
    for figure in FIGURES:
        values = figure.of(resampled)
        values = values[~np.isnan(values)]
        if len(values) > RESAMPLES / 2:
            low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            intervals[figure.name] = float(low), float(high)
    return intervals
