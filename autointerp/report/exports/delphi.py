"""Export delphi: explanations and scores as EleutherAI's delphi leaves them, for its ``log.result_analysis``.

``explanations/HOOK_latentN.txt`` is a JSON text, ``scores/{detection,fuzz}/HOOK_latentN.txt`` a list of examples. The
explanations are those of the run's first explainer; other explainers have a folder ``EXPLAINER/`` of the same form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autointerp.report.exports.neuronpedia import detail
from autointerp.report.exports.reading import Wanted, hook_of, parts, slug, to_json, write_text
from autointerp.report.folder import RunFolder

_SCORERS = {"detection": "detection", "fuzzing": "fuzz"}  # ours -> delphi's


def write(run: RunFolder, out: Path, wanted: Wanted) -> None:
    hook = slug(wanted.source or hook_of(run) or "sae")
    for features in parts(run):
        for feature in features:
            name = f"{hook}_latent{feature.index}.txt"
            windows = {context["example"]: context for context in feature.contexts}
            for row in feature.explanations:
                folder = _folder(out, row["explainer"], feature.row["explainer"])
                write_text(folder / "explanations" / name, to_json(row["explanation"]))
            judged: dict[tuple[str, str], list[dict[str, Any]]] = {}
            for row in feature.judgements:
                if row["scorer"] in _SCORERS:
                    example = detail(row, windows)
                    example["activating"] = example["ground_truth"]  # its newer name
                    judged.setdefault((row["explainer"], row["scorer"]), []).append(example)
            for (explainer, scorer), examples in judged.items():
                folder = _folder(out, explainer, feature.row["explainer"]) / "scores" / _SCORERS[scorer]
                write_text(folder / name, to_json(examples))


def _folder(out: Path, explainer: str, shown: str | None) -> Path:
    return out if explainer == shown else out / slug(explainer)
