"""A run's folder: open one (`open_run`), and write config.yaml, run.json (versions, git, seeds) and usage.parquet."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from autointerp.artifacts import write_atomically
from autointerp.commands.totals import total_failures
from autointerp.config import Config
from autointerp.engine.remote import is_url
from autointerp.progress import FILE
from autointerp.redact import public_config, redact
from autointerp.registry import did_you_mean
from autointerp.report.controls import compared
from autointerp.report.folder import RunFolder
from autointerp.resources import package_version

if TYPE_CHECKING:
    import pandas as pd

    from autointerp.report.html import FeatureCard

log = logging.getLogger("autointerp")

PACKAGES = ("torch", "transformers", "transformer-lens", "openai", "vllm", "datasets", "numpy", "pandas")


class Run:
    """A run's `folder`. Each table is read when it is first asked for: ``run.features``, ``run.scores`` …"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tables: dict[str, pd.DataFrame] = {}

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._tables:
            path = self.folder / f"{name}.parquet"
            if not path.exists():
                known = [p.stem for p in self.folder.glob("*.parquet")]
                raise AttributeError(f"the run in {self.folder} has no table {name!r}{did_you_mean(name, known)}")
            import pandas as pd

            self._tables[name] = pd.read_parquet(path)
        return self._tables[name]

    @property
    def info(self) -> dict[str, Any]:
        """run.json."""
        return json.loads((self.folder / "run.json").read_text())

    @property
    def labels(self) -> pd.DataFrame:
        """What was written by hand, a row a feature: feature, label, comment, changed."""
        import pandas as pd

        from autointerp.report.labels import read_labels

        rows = [{"feature": feature, **asdict(words)} for feature, words in read_labels(self.folder).items()]
        return pd.DataFrame(rows, columns=["feature", "label", "comment", "changed"])

    @property
    def total_failures(self) -> list[str]:
        """What explained or scored no feature at all, a line each; empty where all is well."""
        return total_failures(self.folder)

    def show(self, feature: int) -> FeatureCard:
        """One feature: its contexts, explanations, scores, neighbours and logits, as a notebook or a terminal shows
        them. Raises AutointerpError where the run does not have it."""
        from autointerp.report.html import feature_card

        return feature_card(self.folder, feature)

    def compare(
        self,
        *others: Run | str | Path,
        by: Literal["explainer", "judge", "run"] | None = None,
        scorer: str | None = None,
        measure: str | None = None,
        against: str | None = None,
    ) -> pd.DataFrame:
        """Explainers, judges or runs against each other and against their controls, paired by feature: a row a pair,
        scorer and quantile, with the mean difference, its 95 % interval, wins, losses and what had no value.

        What the arguments mean, and what is raised: `autointerp.report.compare.compare`.
        """
        from autointerp.report.compare import compare
        from autointerp.report.frame import ComparisonFrame

        runs = [self.folder, *(other.folder if isinstance(other, Run) else other for other in others)]
        rows = compare(*runs, by=by, scorer=scorer, measure=measure, against=against)
        return ComparisonFrame.of(rows)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """The features, the first scorer's highest first."""
        from autointerp.report.html import features_table

        return features_table(self.folder)


def open_run(folder_or_name: str | Path) -> Run:
    """A run by its folder, its URL, or its name in ``results/``; a warning in the log says where it is not done."""
    from autointerp.report import find_run, so_far

    folder = find_run(folder_or_name)
    if unfinished := so_far(folder):
        log.warning("%s: %s", folder, unfinished)
    return Run(folder)


def run_folder(config: Config, out: str | Path | None) -> Path:
    """Where a run works: of a URL the copy on this machine."""
    if is_url(out):
        from autointerp.report.at_url import copy_of

        return copy_of(str(out))
    return Path(out) if out is not None else Path("results") / config.name


def previous_stages(folder: Path) -> dict[str, Any]:
    """What run.json says of the stages of the last finished run in this folder."""
    try:
        return json.loads((folder / "run.json").read_text())["stages"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def is_complete(folder: Path) -> bool:
    """Whether the folder holds all that a run leaves, and no run since has begun and not ended."""
    if (folder / FILE).exists():
        return False
    return all((folder / name).exists() for name in ("features.parquet", "usage.parquet", "report.html", "run.json"))


def write_config(folder: Path, config: Config) -> None:
    """config.yaml: the config as resolved, but for what may be a secret."""
    text = yaml.safe_dump(public_config(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", lambda path: path.write_text(text))


def write_usage(folder: Path) -> None:
    """usage.parquet from the journal, row by row."""
    from autointerp.llm import read_usage
    from autointerp.tables import write_stream

    rows = (asdict(row) for row in read_usage(folder / "usage.jsonl"))
    write_atomically(folder / "usage.parquet", lambda path: write_stream(path, "usage", rows))


def write_json(path: Path, value: Any) -> None:
    text = redact(json.dumps(value, indent=2, default=str))
    write_atomically(path, lambda temporary: temporary.write_text(text))


def describe(config: Config, stages: dict[str, Any], folder: Path, started: float) -> dict[str, Any]:
    """run.json: all that is needed to say later how these tables came to be."""
    return {
        "name": config.name,
        **environment(),
        "seeds": {"run": config.seed, "corpus": config.corpus.seed if config.corpus.seed is not None else config.seed},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
        "bos": stages["corpus"]["facts"].get("bos_id"),
        "stages": stages,
        "controls": [row.as_json() for row in compared(RunFolder(folder))],
        "usage": count_usage(folder),
    }


def count_usage(folder: Path) -> dict[str, int]:
    """What usage.parquet adds up to; tokens are of requests that an endpoint answered."""
    import pyarrow.parquet as pq

    names = ("requests", "from_cache", "failed", "prompt_tokens", "completion_tokens")
    counts: dict[str, int] = dict.fromkeys(names, 0)
    with pq.ParquetFile(folder / "usage.parquet") as file:
        for batch in file.iter_batches(columns=["cached", "outcome", "prompt_tokens", "completion_tokens"]):
            for row in batch.to_pylist():
                if row["cached"]:
                    counts["from_cache"] += 1
                    continue
                counts["requests"] += 1
                counts["failed"] += row["outcome"] != "ok"
                counts["prompt_tokens"] += row["prompt_tokens"] or 0
                counts["completion_tokens"] += row["completion_tokens"] or 0
    return counts


def environment() -> dict[str, Any]:
    """Which code ran on what."""
    return {
        "autointerp": package_version(),
        "python": platform.python_version(),
        "packages": _versions(),
        "git": _git(),
        "hardware": _hardware(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _git() -> dict[str, Any] | None:
    """Revision of the checkout this code runs from, and whether it was changed; None for an installed wheel."""

    def git(*arguments: str) -> str:
        where = Path(__file__).parent
        done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        top = Path(git("rev-parse", "--show-toplevel"))
        if not (top / "autointerp" / "engine").exists():
            return None
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _hardware() -> dict[str, Any]:
    hardware: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            hardware["gpu"] = torch.cuda.get_device_name()
    return hardware
