"""What exports read of a run: features with all their rows, part by part, and what names the subject and the SAE."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autointerp.errors import ConfigError
from autointerp.report.folder import RunFolder
from autointerp.report.labels import NOTHING, ByHand, read_labels
from autointerp.report.text import named

PART = 256  # features that are in memory at a time, and in one file of those formats that have parts
_LAYER = re.compile(r"(?:blocks|layers|layer|h|block)\.(\d+)")


@dataclass(frozen=True)
class Wanted:
    """What a run does not know of itself, as the command was told; None where it was not."""

    model: str | None = None  # what the other tool calls the subject
    source: str | None = None  # what it calls the SAE


@dataclass
class Feature:
    """One feature with its rows of each table."""

    row: dict[str, Any]  # of features.parquet
    explanations: list[dict[str, Any]] = field(default_factory=list)  # those that have a text
    scores: list[dict[str, Any]] = field(default_factory=list)  # controls included
    judgements: list[dict[str, Any]] = field(default_factory=list)  # of real explanations
    contexts: list[dict[str, Any]] = field(default_factory=list)
    logits: dict[str, list[tuple[str, float]]] = field(default_factory=lambda: {"up": [], "down": []})
    histogram: dict[str, Any] | None = None  # of histograms.parquet
    by_hand: ByHand = NOTHING

    @property
    def index(self) -> int:
        return self.row["feature"]

    def windows(self) -> list[dict[str, Any]]:
        """The contexts in which it fires, the strongest first."""
        firing = [context for context in self.contexts if any(a > 0 for a in context["activations"])]
        return sorted(firing, key=lambda context: (-max(context["activations"]), context["example"]))

    def quantiles(self) -> dict[int, list[dict[str, Any]]]:
        """`windows` by their quantile, 0 = weakest."""
        groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for window in self.windows():
            if window["quantile"] is not None:
                groups[window["quantile"]].append(window)
        return dict(sorted(groups.items()))


def parts(run: RunFolder, size: int = PART) -> Iterator[list[Feature]]:
    """All features of a run in the order of features.parquet, `size` at a time; those without firings are there too."""
    rows, labels = run.features.to_pylist(), read_labels(run.path)
    for start in range(0, len(rows), size):
        features = {row["feature"]: Feature(clean(row)) for row in rows[start : start + size]}
        for row in run.rows("explanations", features):
            if row["explanation"] is not None:
                features[row["feature"]].explanations.append(clean(row) | {"model": named(row.get("model"))})
        for row in run.rows("scores", features):
            features[row["feature"]].scores.append(clean(row))
        for row in run.rows("judgements", features):
            if row.get("control") is None:
                features[row["feature"]].judgements.append(clean(row))
        for row in run.rows("contexts", features):
            features[row["feature"]].contexts.append(clean(row))
        for row in run.rows("histograms", features):
            features[row["feature"]].histogram = row
        for number in features.keys() & labels.keys():
            features[number].by_hand = labels[number]
        for row in sorted(run.rows("logits", features), key=lambda row: (row["feature"], row["rank"])):
            features[row["feature"]].logits[row["direction"]].append((row["token"], row["weight"]))
        yield list(features.values())


def clean(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with null for what is no finite number, which JSON does not have."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


def hook_of(run: RunFolder) -> str | None:
    """Where the run read the subject: what its SAE stage resolved, or what the config names."""
    facts = ((run.info.get("stages") or {}).get("sae") or {}).get("facts") or {}
    return facts.get("hook") or (run.config.get("subject") or {}).get("hook")


def layer_of(run: RunFolder) -> int | None:
    match = _LAYER.search(hook_of(run) or "")
    return int(match[1]) if match else None


def model_of(run: RunFolder, wanted: Wanted) -> str:
    """The subject's short name, such as gpt2-small: as the command says, or the last part of the config's."""
    name = wanted.model or (run.config.get("subject") or {}).get("model")
    if not name:
        raise ConfigError(f"{run.path} does not say its subject: name it with --model")
    return slug(Path(str(name)).name)


def source_of(run: RunFolder, wanted: Wanted) -> str:
    """LAYER-SET as Neuronpedia names an SAE: as the command says, or the hook's layer and the run's name."""
    if wanted.source:
        return slug(wanted.source)
    layer = layer_of(run)
    if layer is None:
        raise ConfigError(f"{run.path} does not say the layer of its SAE: name it with --source, such as 8-res-16k")
    return f"{layer}-{slug(str(run.config.get('name') or run.path.name))}"


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")


def made(run: RunFolder) -> str:
    """When the run was started: what stands where a format wants a time."""
    return run.info.get("started") or "1970-01-01T00:00:00Z"


def an_id(*parts: object) -> str:
    """The same for the same parts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, compressed where the name ends in .gz; without the time and the name that gzip would put there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as raw:
        packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as out:
            out.writelines(to_json(row) + "\n" for row in rows)
