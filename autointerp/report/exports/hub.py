"""Export hub: a dataset folder for the Hugging Face hub: the run's tables, and a card with its figures and controls.

Each table is a configuration of the dataset: ``datasets.load_dataset(FOLDER, "features")``. Paths of this machine, in
the config and as names of models, are cut to their last part. Nothing is sent: `autointerp.commands.export` does that
where it is asked to.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from autointerp.report.columns import explainers_of, features_by
from autointerp.report.exports.reading import Wanted, hook_of, write_text
from autointerp.report.figures import Mean, summarise
from autointerp.report.folder import RunFolder
from autointerp.report.labels import FILE as LABELS
from autointerp.report.overview import about
from autointerp.report.text import interval, named, number

TABLES = (
    "features",
    "explanations",
    "scores",
    "judgements",
    "contexts",
    "composites",
    "logits",
    "neighbours",
    "histograms",
)
_PRIVATE = (
    "Hardware",
    "Revision",
    "Subject",
    "SAE",
    "Hook",
    "Text",
)  # said in the card's own words, or not at all


def write(run: RunFolder, out: Path, wanted: Wanted) -> None:
    files = [name for name in (*(f"{table}.parquet" for table in TABLES), LABELS) if (run.path / name).is_file()]
    (out / "data").mkdir(parents=True, exist_ok=True)
    for name in files:
        _copy(run.path / name, out / "data" / name)
    config = yaml.safe_dump(_without_paths(run.config), sort_keys=False, allow_unicode=True)
    write_text(out / "config.yaml", config)
    write_text(out / "README.md", card(run, files, wanted))


def _copy(source: Path, target: Path) -> None:
    """A file of the run as it is; where it names models, these without paths of this machine."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if source.suffix != ".parquet" or "model" not in (schema := pq.read_schema(source)).names:
        shutil.copyfile(source, target)
        return
    place = schema.get_field_index("model")
    with pq.ParquetFile(source) as file, pq.ParquetWriter(target, schema) as out:
        for batch in file.iter_batches():
            models = pa.array([named(model) for model in batch["model"].to_pylist()], schema.field(place).type)
            out.write_batch(batch.set_column(place, schema.field(place), models))


def card(run: RunFolder, files: list[str], wanted: Wanted) -> str:
    """The dataset card, Markdown after a head of YAML."""
    name = str(run.config.get("name") or run.path.name)
    head: dict[str, Any] = {
        "pretty_name": f"Explained features: {name}",
        "tags": ["autointerp", "sparse-autoencoder", "interpretability"],
        "configs": [{"config_name": Path(file).stem, "data_files": f"data/{file}"} for file in files],
    }
    if model := _hub_id((run.config.get("subject") or {}).get("model")):
        head["base_model"] = model
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# Explained features: {_text(name)}",
        "",
        "Explanations of features of a sparse autoencoder, written and scored by language models with"
        " autointerp (`pip install autointerp-sae`).",
        "",
        *_subject(run, wanted),
        "",
        "## How far to trust them",
        "",
        "The control is the same judge on the same examples, told another feature's explanation: what a score is above"
        " its control is what the explanation itself is worth. Intervals are 95 % over features.",
        "",
        "| explainer | scorer | mean | control | paired difference | features | without a value |",
        "|---|---|---|---|---|---|---|",
        *(line for explainer in explainers_of(run) for line in _figures(run, explainer)),
        "",
        _statuses(run),
        "",
        "## Tables",
        "",
        "```python",
        "import datasets",
        f'datasets.load_dataset("ORG/NAME", "{Path(files[0]).stem}")',
        "```",
        "",
        *(f"- `{Path(file).stem}`" for file in files),
        "",
    ]
    return "\n".join(lines)


def _subject(run: RunFolder, wanted: Wanted) -> list[str]:
    config = run.config
    facts = {
        "Subject": wanted.model or named((config.get("subject") or {}).get("model")),
        "SAE": wanted.source or named((config.get("sae") or {}).get("load")) or "trained by the run",
        "Hook": hook_of(run),
        "Text": named((config.get("corpus") or {}).get("source")),
        **{key: value for key, value in about(run) if key not in _PRIVATE},
    }
    return [f"- {key}: {_text(str(value))}" for key, value in facts.items() if value]


def _figures(run: RunFolder, explainer: str) -> list[str]:
    features = features_by(run, explainer)
    rows = []
    for s in summarise(features).scorers:
        cells = [explainer, s.scorer, _mean(s.mean), number(s.control.value) if s.control.n else "–"]
        difference = s.difference
        paired = interval(difference.value, difference.low, difference.high) if difference.n else "–"
        cells += [paired, str(s.mean.n), str(len(features) - s.mean.n)]
        rows.append(f"| {' | '.join(map(_text, cells))} |")
    return rows


def _mean(mean: Mean) -> str:
    return interval(mean.value, mean.low, mean.high) if mean.n else "–"


def _statuses(run: RunFolder) -> str:
    summary = summarise(run.features)
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in summary.statuses.items())
    return f"Of {summary.n} features asked for: {counts}."


def _text(text: str) -> str:
    """One line that Markdown shows as it stands."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _hub_id(model: Any) -> str | None:
    """ORG/NAME where that is what it is, and no path."""
    name = str(model or "")
    return name if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and not Path(name).exists() else None


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    return named(value) if isinstance(value, str) else value
