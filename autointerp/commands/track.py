"""What of a run is logged to the service that `tracking` names: each stage as it ends, and the scores at the end.

1. Nothing is begun there before a stage has work to do; a run that has nothing to do is none.
2. A run that was stopped goes on in the same one there: its id is in the run's folder until the run is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autointerp.artifacts import write_atomically
from autointerp.commands.folder import count_usage
from autointerp.config import Config
from autointerp.engine.dag import Done, Node
from autointerp.engine.store import Manifest
from autointerp.redact import public_config
from autointerp.report.figures import summarise
from autointerp.report.folder import RunFolder
from autointerp.report.overview import explainers, scores_of
from autointerp.tracking import Tracker, start

FILES = ("report.html", "run.json", "config.yaml", "features.parquet")  # of the run's folder
_ID = ".tracking"


class RunTracking:
    """Use as a context manager around the run; without `config.tracking` it does nothing."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._id = config, folder / _ID
        self._folder = folder
        self._tracker: Tracker | None = None
        self._ended = 0

    def watched(self, nodes: Sequence[Node]) -> list[Node]:
        """`nodes` with work that begins the run there, once."""
        return [replace(node, work=self._beginning(node.work)) for node in nodes]

    def _beginning(
        self, work: Callable[[Path, Mapping[str, Path]], Done]
    ) -> Callable[[Path, Mapping[str, Path]], Done]:
        def begun(folder: Path, inputs: Mapping[str, Path]) -> Done:
            self._begin()
            return work(folder, inputs)

        return begun

    def _begin(self) -> None:
        tracking = self._config.tracking
        if tracking is None or self._tracker is not None:
            return
        before = self._id.read_text() if self._id.exists() else None
        about = public_config(self._config.model_dump(mode="json", exclude={"tracking"}))
        self._tracker = tracker = start(tracking, self._config.name, about, before)
        write_atomically(self._id, lambda path: path.write_text(tracker.id))

    def ended(self, node: Node, manifest: Manifest, ran: bool) -> None:
        """For `Dag.run`: the stage's seconds, and the figures that it tells."""
        self._ended += 1
        if self._tracker is not None and ran:
            figures = {f"{node.name}/{name}": value for name, value in manifest.facts.items()}
            self._tracker.log({f"{node.name}/seconds": manifest.seconds} | figures, self._ended)

    def finish(self) -> None:
        """The run's folder holds everything: the scores, the requests and a few files."""
        if self._tracker is not None:
            requests = {f"usage/{name}": value for name, value in count_usage(self._folder).items()}
            self._tracker.summarise(scores_in(RunFolder(self._folder)) | requests)
            self._tracker.keep([self._folder / name for name in FILES])
        self._id.unlink(missing_ok=True)

    def __enter__(self) -> RunTracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._tracker is not None:
            self._tracker.end("done" if kind is None else "failed" if issubclass(kind, Exception) else "stopped")


def scores_in(run: RunFolder) -> dict[str, Any]:
    """Means over features: ``detection/corrected`` of the first explainer beside its interval, its control and the
    features without a value, and ``detection/value by NAME`` of each explainer where there are several."""
    summary = summarise(run.features)
    figures: dict[str, Any] = {f"features/{status}": n for status, n in summary.statuses.items()}
    for scorer in [*summary.scorers, *summary.ceilings]:
        means = {"value": scorer.mean, "corrected": scorer.corrected, "control": scorer.control}
        for name, mean in means.items():
            parts = {"": mean.value, "_low": mean.low, "_high": mean.high}
            figures |= {f"{scorer.scorer}/{name}{part}": value for part, value in parts.items()}
        figures[f"{scorer.scorer}/features_without"] = scorer.asked - scorer.mean.n
    return figures | {f"{row.scorer}/value by {row.explainer}": row.mean.value for row in explainers(scores_of(run))}
