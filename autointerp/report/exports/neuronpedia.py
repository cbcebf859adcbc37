"""Export neuronpedia: its bulk files, scores beside them, and bodies for the batch API of its Python client.

``v1/MODEL/SOURCE/{release,model,sourceset,source}.jsonl`` and ``{features,activations,explanations}/batch-N.jsonl.gz``
are what Neuronpedia itself publishes and imports; every row of a file has the same keys. ``scores/batch-N.jsonl.gz``
has rows of its table of explanation scores, which the bulk files lack. ``upload/batch-N.json`` has what
``neuronpedia.np_source.Source.upload_batch`` sends: features of the batch API, at most 128 a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autointerp.report.arms import judges_of
from autointerp.report.exports.reading import (
    Feature,
    Wanted,
    an_id,
    hook_of,
    made,
    model_of,
    parts,
    source_of,
    to_json,
    write_lines,
    write_text,
)
from autointerp.report.folder import RunFolder
from autointerp.report.text import named

AUTHOR = "autointerp"
BY_HAND = "by_hand"  # the type of an explanation that a person wrote
UPLOAD = 128  # features that the batch API takes at once
_TEXT, _TOKENS = 512, 1024  # characters of an explanation and tokens of a window that it takes
_METHODS = {"default": "np_max-act-logits", "token_stats": "np_max-act"}  # Neuronpedia's name where one fits
_SCORES = {
    "fuzzing": "eleuther_fuzz",
    "detection": "eleuther_recall",
    "simulation": "recall_alt",
    "embedding": "eleuther_embedding",
}


def write(run: RunFolder, out: Path, wanted: Wanted) -> None:
    """ConfigError where the subject or the layer is not known and not told."""
    names = _Names(run, wanted)
    for table, row in names.heads():
        write_lines(names.folder(out) / f"{table}.jsonl", [row])
    for number, features in enumerate(parts(run, UPLOAD)):
        tables = {
            "features": [names.feature(feature) for feature in features],
            "activations": [row for feature in features for row in names.activations(feature)],
            "explanations": [row for feature in features for row in names.explanations(feature)],
            "scores": [row for feature in features for row in names.scores(feature)],
        }
        for table, rows in tables.items():
            write_lines(names.folder(out) / table / f"batch-{number}.jsonl.gz", rows)
        body = {"modelId": names.model, "source": names.source, "features": [_upload(f) for f in features]}
        write_text(out / "upload" / f"batch-{number}.json", to_json(body))


class _Names:
    """Rows of Neuronpedia's tables, which all name the model and the SAE."""

    def __init__(self, run: RunFolder, wanted: Wanted) -> None:
        self.run, self.model, self.source = run, model_of(run, wanted), source_of(run, wanted)
        self.set, self.hook, self.created = self.source.partition("-")[2] or self.source, hook_of(run), made(run)

    def folder(self, out: Path) -> Path:
        return out / "v1" / self.model / self.source

    def heads(self) -> Iterator[tuple[str, dict[str, Any]]]:
        name = str(self.run.config.get("name") or self.run.path.name)
        yield "release", {"name": name, "description": f"autointerp run {name}", "createdAt": self.created}
        yield "model", {"id": self.model, "displayName": self.model, "createdAt": self.created}
        yield (
            "sourceset",
            {"modelId": self.model, "name": self.set, "releaseName": name, "createdAt": self.created},
        )
        yield (
            "source",
            {
                "id": self.source,
                "modelId": self.model,
                "setName": self.set,
                "hookName": self.hook,
                "createdAt": self.created,
            },
        )

    def feature(self, feature: Feature) -> dict[str, Any]:
        up, down = feature.logits["up"], feature.logits["down"]
        return {
            "modelId": self.model,
            "layer": self.source,
            "index": str(feature.index),
            "maxActApprox": feature.row["max_activation"] or 0.0,
            "frac_nonzero": feature.row["frequency"] or 0.0,
            "pos_str": [token for token, _ in up],
            "pos_values": [weight for _, weight in up],
            "neg_str": [token for token, _ in down],
            "neg_values": [weight for _, weight in down],
            "freq_hist_data_bar_heights": (feature.histogram or {}).get("counts") or [],
            "freq_hist_data_bar_values": _middles(feature.histogram),
            "logits_hist_data_bar_heights": [],
            "logits_hist_data_bar_values": [],
            "hookName": self.hook,
            "topkCosSimIndices": [],
            "topkCosSimValues": [],
        }

    def activations(self, feature: Feature) -> Iterator[dict[str, Any]]:
        groups, n = feature.quantiles(), len(feature.windows())
        for windows in reversed(groups.values()):
            peaks = [max(window["activations"]) for window in windows]
            for window, peak in zip(windows, peaks):
                values = window["activations"]
                yield {
                    "id": an_id(self.model, self.source, feature.index, "activation", window["example"]),
                    "tokens": window["tokens"],
                    "dataIndex": str(window["document"]),
                    "index": str(feature.index),
                    "layer": self.source,
                    "modelId": self.model,
                    "maxValue": peak,
                    "maxValueTokenIndex": values.index(peak),
                    "minValue": min(values),
                    "values": values,
                    "creatorId": AUTHOR,
                    "binMin": min(peaks),
                    "binMax": max(peaks),
                    "binContains": len(windows) / n,
                    "qualifyingTokenIndex": values.index(peak),
                    "createdAt": self.created,
                }

    def explanations(self, feature: Feature) -> Iterator[dict[str, Any]]:
        """Those of the run's explainers, then the label by hand."""
        for row in [*feature.explanations, *_by_hand(feature)]:
            yield self._described(feature, row)

    def _described(self, feature: Feature, row: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._explanation(feature, row["explainer"]),
            "modelId": self.model,
            "layer": self.source,
            "index": str(feature.index),
            "description": row["explanation"],
            "authorId": AUTHOR,
            "typeName": _METHODS.get(row["explainer"], row["explainer"]),
            "explanationModelName": row["model"],
            "notes": row.get("notes") or f"explainer {row['explainer']}",
            "createdAt": self.created,
        }

    def scores(self, feature: Feature) -> Iterator[dict[str, Any]]:
        """The real explanations' scores that have a value, each with what was judged."""
        judges = judges_of(self.run.config)
        windows = {context["example"]: context for context in feature.contexts}
        for row in feature.scores:
            if row.get("control") is not None or row["value"] is None:
                continue
            key = (row["explainer"], row["scorer"])
            judged = [each for each in feature.judgements if (each["explainer"], each["scorer"]) == key]
            answers = all(each["prediction"] in (None, 0, 1) for each in judged)
            details = [detail(each, windows, answers) for each in judged]
            yield {
                "id": an_id(self.model, self.source, feature.index, "score", *key),
                "explanationId": self._explanation(feature, row["explainer"]),
                "value": row["value"],
                "explanationScoreTypeName": _SCORES.get(row["scorer"], row["scorer"]),
                "explanationScoreModelName": named(judges.get(row["scorer"], ("", None))[1]),
                "jsonDetails": to_json(details),
            }

    def _explanation(self, feature: Feature, explainer: str) -> str:
        return an_id(self.model, self.source, feature.index, "explanation", explainer)


def _middles(histogram: dict[str, Any] | None) -> list[float]:
    """Of the bars of a histogram of histograms.parquet."""
    if histogram is None:
        return []
    step = histogram["highest"] / len(histogram["counts"])
    return [(i + 0.5) * step for i in range(len(histogram["counts"]))]


def _by_hand(feature: Feature) -> Iterator[dict[str, Any]]:
    if label := feature.by_hand.label:
        yield {"explainer": BY_HAND, "explanation": label, "model": None, "notes": feature.by_hand.comment}


def detail(judgement: dict[str, Any], windows: Mapping[int, dict[str, Any]], answers: bool = True) -> dict[str, Any]:
    """A judgement as a classifier's output of delphi, which is Neuronpedia's form too. `distance` is the quantile from
    1, -1 for a window in which the feature is silent. What could not be judged has nulls, and so has what is ranked by
    evidence, where nothing `answers` Yes or No."""
    answer, truth = judgement["prediction"], bool(judgement["truth"])
    prediction = bool(answer) if answers and answer is not None else None
    window = _judged_in(judgement, windows)
    tokens = window["tokens"] if window else []
    return {
        "text": judgement.get("text") or "".join(tokens),
        "distance": -1 if judgement["quantile"] is None else judgement["quantile"] + 1,
        "ground_truth": truth,
        "prediction": prediction,
        "highlighted": judgement["kind"] in ("marked", "mismarked"),
        "probability": judgement["probability"],
        "correct": None if prediction is None else prediction == truth,
        "activations": window["activations"] if window else [],
        "str_tokens": tokens,
    }


def _judged_in(judgement: dict[str, Any], windows: Mapping[int, dict[str, Any]]) -> dict[str, Any] | None:
    """The window that was judged. A scorer numbers the texts that it made by itself: then only one that says the same,
    but for marks, is it."""
    window, text = windows.get(judgement["example"]), judgement.get("text")
    if window is None or text is None:
        return window
    return window if (said := _letters(text)) and said in _letters("".join(window["tokens"])) else None


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def _upload(feature: Feature) -> dict[str, Any]:
    groups, n = feature.quantiles(), len(feature.windows())
    activations = []
    for windows in reversed(groups.values()):
        peaks = [max(window["activations"]) for window in windows]
        for window in windows:
            activations.append(
                {
                    "tokens": window["tokens"][:_TOKENS],
                    "values": window["activations"][:_TOKENS],
                    "quantileMax": max(peaks),
                    "quantileMin": min(peaks),
                    "quantileFraction": len(windows) / n,
                }
            )
    return {
        "index": feature.index,
        "density": feature.row["frequency"],
        "activations": activations,
        "explanations": [
            {"text": row["explanation"][:_TEXT], "methodName": _METHODS.get(row["explainer"], row["explainer"]),
             "modelName": row["model"]}
            for row in feature.explanations
        ],
        "topLogits": [{"token": token, "value": weight} for token, weight in feature.logits["up"]],
        "bottomLogits": [{"token": token, "value": weight} for token, weight in feature.logits["down"]],
    }  # fmt: skip
