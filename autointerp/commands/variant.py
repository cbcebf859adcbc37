"""One variant of a sweep, measured: its SAE trained or loaded, evaluated, checked, where asked its features explained.

``python -m autointerp.commands.variant`` does that in a process of its own: what is asked comes as a line of
JSON on stdin, which stays open as long as the process is wanted, and what was measured goes into ``figures.json`` in
the variant's folder.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from threading import Thread
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import write_atomically
from autointerp.commands.run import run, run_targets
from autointerp.commands.shell import logged
from autointerp.commands.train import train
from autointerp.config import Config, parse_config
from autointerp.errors import AutointerpError
from autointerp.redact import redact
from autointerp.registry import look_in, places

if TYPE_CHECKING:
    from autointerp.commands.folder import Run

log = logging.getLogger("autointerp")

Key = tuple[str, int]  # a variant's name, and the seed

FIGURES = "figures.json"
CONTROL, GAIN = "_control", "_gain"  # of a scorer's name
LABELS = (
    "confirmed",
    "composite",
    "possible",
    "absorption",
    "duplicate",
    "subspace",
    "split_child",
    "parent_of_children",
)


@dataclass(frozen=True)
class Variant:
    """With one seed."""

    name: str
    seed: int
    config: Config
    folder: Path

    @property
    def is_trained(self) -> bool:
        return self.config.sae.train is not None

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}" if self.is_trained else self.name

    def with_union(self, sae: str | None) -> Variant:
        composites = self.config.composites.model_copy(update={"union": sae})
        return replace(self, config=self.config.model_copy(update={"composites": composites}))


@dataclass(frozen=True)
class Measured:
    sae: str  # a folder, or the name of what was loaded
    rows: Sequence[Mapping[str, Any]]  # metric, value, low and high
    places: Sequence[Mapping[str, Any]]  # position in the context, and the metrics there


def targets(config: Config, metrics: Iterable[str]) -> list[str]:
    """The stages that `metrics` take."""
    checked = ["reencode"] if config.composites.enabled else []
    return ["evaluate", *checked, *(["tables"] if _scores_of(config).intersection(metrics) else [])]


def measure(variant: Variant, metrics: Sequence[str]) -> Measured:
    """Whatever is done already is not done again. Raises AutointerpError."""
    config, own = variant.config, variant.folder
    asked = targets(config, metrics)
    if variant.is_trained:
        sae = str(train(config, out=own)[0])
    else:
        sae = config.sae.load or str(run_targets(config, ["sae"], out=own)["sae"])
    done = run_targets(config, [name for name in asked if name != "tables"], out=own)
    rows = _rows(done["evaluate"] / "evaluation.parquet")
    if "reencode" in done:
        rows += _composites(done["reencode"])
    if "tables" in asked:
        rows += _scores(run(config, out=own), _scores_of(config).intersection(metrics))
    return Measured(
        sae,
        [{key: row.get(key) for key in ("metric", "value", "low", "high")} for row in rows],
        _rows(done["evaluate"] / "evaluation_positions.parquet"),
    )


def _rows(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(file).to_pylist()


def _composites(folder: Path) -> list[dict[str, Any]]:
    """Share of the living latents with each label; all are counted: no interval but what the seeds show. `confirmed`
    ones are composites too. Of composites on whose strong tokens all constituents fire, too: `cofire` is the mean share
    of such tokens, `share_cofiring` the share of latents with .6 or more. `no_sums_pass`: the share of atomic latents
    that would pass the re-encode test; `no_sums_cofire`: with .6 or more by their two nearest rows of the union SAE."""
    from autointerp.composites.evidence import CONFIRM_SHARE, CONFIRM_TOKENS

    table = _rows(folder / "composites.parquet")
    labels = Counter(row["label"] for row in table if row["label"] != "dead")
    living = max(labels.total(), 1)
    labels["composite"] += labels["confirmed"]
    rows: list[dict[str, Any]] = [{"metric": f"share_{label}", "value": labels[label] / living} for label in LABELS]
    tested = [
        row for row in table if row["label"] in ("confirmed", "composite") and (row["tokens"] or 0) >= CONFIRM_TOKENS
    ]
    for column in ("cofire", "cofire_swapped"):
        shares = [row[column] for row in tested if row[column] is not None]
        rows.append({"metric": column, "value": fmean(shares) if shares else None})
        if column == "cofire":
            rows.append({"metric": "share_cofiring", "value": sum(x >= CONFIRM_SHARE for x in shares) / living})
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    for metric, section in (("no_sums_pass", "reencode"), ("no_sums_cofire", "union")):
        plain = facts.get(section, {}).get("no_sums") or {"n": 0}
        rows.append({"metric": metric, "value": plain["pass"] / plain["n"] if plain["n"] else None})
    return rows


def _scores_of(config: Config) -> set[str]:
    """Metrics that need explanations: a scorer's name, its control, and how far the first is ahead of the second."""
    return {f"{scorer.key}{end}" for scorer in config.scorers for end in ("", CONTROL, GAIN)}


def _scores(made: Run, metrics: Iterable[str]) -> list[dict[str, Any]]:
    """Means over the features, of the first explainer, with their intervals: paired where they are differences. Two
    SAEs have other features, so between variants nothing is paired."""
    from autointerp.report.figures import summarise
    from autointerp.report.folder import RunFolder

    summary, means = summarise(RunFolder(made.folder).features), {}
    for s in [*summary.scorers, *summary.ceilings]:
        means |= {s.scorer: s.mean, s.scorer + CONTROL: s.control, s.scorer + GAIN: s.difference}
    return [{"metric": m, "value": means[m].value, "low": means[m].low, "high": means[m].high} for m in metrics]


def order(variant: Variant, metrics: Sequence[str]) -> str:
    """What `main` is told."""
    about = {"name": variant.name, "seed": variant.seed, "config": variant.config.model_dump(mode="json")}
    return json.dumps(about | {"folder": str(variant.folder), "metrics": metrics, "places": list(map(str, places()))})


def answer(folder: Path) -> Measured | AutointerpError | None:
    """What `main` left; None where it left nothing."""
    try:
        told = json.loads((folder / FIGURES).read_text())
    except (OSError, ValueError):
        return None
    if "failure" in told:
        error = AutointerpError(told["failure"])
        error.exit_code = told["exit_code"]
        return error
    return Measured(**told)


def main() -> int:
    asked = json.loads(sys.stdin.readline())
    Thread(target=_end_with_sweep, daemon=True).start()
    for place in asked["places"]:
        look_in(Path(place))
    variant = Variant(asked["name"], asked["seed"], parse_config(asked["config"]), Path(asked["folder"]))
    with logged(verbose=True):
        try:
            told: Mapping[str, Any] = asdict(measure(variant, asked["metrics"]))
        except KeyboardInterrupt:
            return 130
        except AutointerpError as error:
            told = {"failure": redact(str(error)), "exit_code": error.exit_code}
    text = json.dumps(told, indent=1)
    write_atomically(variant.folder / FIGURES, lambda path: path.write_text(text))
    return 0


def _end_with_sweep() -> None:
    """As Ctrl-C does, when the other end of stdin is closed."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
