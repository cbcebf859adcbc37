"""Export circuit-tracer: a JSON file a feature, as attribution graphs show it, and the labels of nodes.

``features/SOURCE/INDEX.json`` is circuit-tracer's ``frontend.feature_models.Model``; ``labels.json`` has a ``clerp``
for each node ``LAYER_INDEX``, which stands beside it in a graph: the label by hand, else the explanation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autointerp.report.exports.reading import (
    Feature,
    Wanted,
    layer_of,
    parts,
    source_of,
    to_json,
    write_text,
)
from autointerp.report.folder import RunFolder

_BARS = 20  # of the histogram of peaks


def write(run: RunFolder, out: Path, wanted: Wanted) -> None:
    """ConfigError where the layer is not known and not told."""
    source, layer = source_of(run, wanted), layer_of(run)
    prefix = source.partition("-")[0] if layer is None else layer
    labels: dict[str, str] = {}
    for features in parts(run):
        for feature in features:
            write_text(out / "features" / source / f"{feature.index}.json", to_json(_model(feature, source)))
            if text := feature.by_hand.label or feature.row["explanation"]:
                labels[f"{prefix}_{feature.index}"] = text
    write_text(out / "labels.json", to_json(labels, indent=1))


def _model(feature: Feature, source: str) -> dict[str, Any]:
    windows, groups = feature.windows(), feature.quantiles()
    peaks = [max(window["activations"]) for window in windows]
    top = max(groups, default=0)
    quantiles = [_quantile("Top activations", windows[:10])]
    for quantile, held in reversed(groups.items()):
        quantiles.append(_quantile(f"Quantile {quantile + 1} of {top + 1}", held))
    return {
        "transcoder_id": source,
        "index": feature.index,
        "examples_quantiles": quantiles if windows else [],
        "top_logits": [token for token, _ in feature.logits["up"]],
        "bottom_logits": [token for token, _ in feature.logits["down"]],
        "act_min": 0.0,
        "act_max": feature.row["max_activation"] or 0.0,
        "quantile_values": [min(max(window["activations"]) for window in held) for held in groups.values()],
        "histogram": _histogram(peaks),
        "activation_frequency": feature.row["frequency"] or 0.0,
    }


def _quantile(name: str, windows: list[dict[str, Any]]) -> dict[str, Any]:
    examples = [
        {
            "tokens_acts_list": window["activations"],
            "train_token_ind": window["activations"].index(max(window["activations"])),
            "is_repeated_datapoint": False,
            "tokens": window["tokens"],
        }
        for window in windows
    ]
    return {"quantile_name": name, "examples": examples}


def _histogram(peaks: list[float]) -> list[float]:
    """Windows by their highest activation, in equal steps from 0 to the highest."""
    bars = [0.0] * _BARS
    for peak in peaks:
        bars[min(_BARS - 1, int(_BARS * peak / max(peaks)))] += 1
    return bars if peaks else []
