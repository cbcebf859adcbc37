"""Where a run or a training is logged beside its own folder: Weights & Biases or MLflow, by `tracking` in the config.

A service that cannot be reached at the start is an error, before there is work to lose. One that fails later is a
warning, and the work goes on without it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from autointerp.config import TrackingConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.redact import redact

NOT_IN_KEYS = "what is logged elsewhere changes no result"

log = logging.getLogger("autointerp")

End = Literal["done", "failed", "stopped"]
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}  # service -> the package that reaches it, and the extra that has it


class Service(Protocol):
    """A run in a tracking service."""

    id: str

    def log(self, figures: Mapping[str, float], step: int) -> None: ...
    def summarise(self, figures: Mapping[str, float]) -> None: ...
    def keep(self, files: Sequence[Path]) -> None: ...
    def end(self, how: End) -> None: ...


class Tracker:
    """A run in a tracking service. What the service refuses is told once and lost; nothing is raised."""

    def __init__(self, to: str, service: Service) -> None:
        self._to, self._service, self._lost = to, service, False

    @property
    def id(self) -> str:
        """By which `tracked` goes on with this run."""
        return f"{self._to}:{self._service.id}"

    def log(self, figures: Mapping[str, Any], step: int) -> None:
        """Figures of one step; what is no number is left out."""
        self._try(lambda: self._service.log(numbers(figures), step))

    def summarise(self, figures: Mapping[str, Any]) -> None:
        """Figures of the whole."""
        self._try(lambda: self._service.summarise(numbers(figures)))

    def keep(self, files: Sequence[Path]) -> None:
        """Copies of files."""
        self._try(lambda: self._service.keep([file for file in files if file.exists()]))

    def end(self, how: End) -> None:
        self._try(lambda: self._service.end(how))

    def _try(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception as error:  # its own kinds: a lost connection, a full disk, a name that it does not take
            if not self._lost:
                log.warning("tracking: %s did not take it: %s", self._to, _line(error))
            self._lost = True


def numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def check(config: TrackingConfig) -> str:
    """What will be logged to. Raises ConfigError where the package is missing."""
    _package(config)
    return f"{config.to}, {config.project}"


@contextmanager
def tracked(
    config: TrackingConfig | None, name: str | None, about: Mapping[str, Any], resume: str | None = None
) -> Iterator[Tracker | None]:
    """A run called `config.name`, or `name`, with the settings `about`; it ends as the block ends. None: no config.

    `resume`: the id of a tracker that was stopped. Raises AutointerpError where the service cannot be reached.
    """
    if config is None:
        yield None
        return
    tracker = start(config, name, about, resume)
    try:
        yield tracker
    except BaseException as error:
        tracker.end("failed" if isinstance(error, Exception) else "stopped")
        raise
    tracker.end("done")


def start(config: TrackingConfig, name: str | None, about: Mapping[str, Any], resume: str | None = None) -> Tracker:
    """As `tracked`, for who ends the tracker by `Tracker.end`."""
    package, kind = _package(config), {"wandb": _Wandb, "mlflow": _Mlflow}[config.to]
    to, _, known = (resume or "").partition(":")
    try:
        service = kind(package, config, config.name or name, about, known if to == config.to else None)
    except Exception as error:
        raise AutointerpError(f"tracking: {config.to} cannot be reached: {_line(error)}") from error
    return Tracker(config.to, service)


def _package(config: TrackingConfig) -> Any:
    try:
        if config.to == "wandb":
            import wandb as package  # pyright: ignore[reportMissingImports]
        else:
            import mlflow as package  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        extra = PACKAGES[config.to]
        raise ConfigError(f"tracking needs the package {extra}: pip install 'autointerp-sae[{extra}]'") from error
    return package


def _line(error: Exception) -> str:
    return redact(" ".join(str(error).split())[:300]) or type(error).__name__


class _Wandb:
    def __init__(
        self, wandb: Any, config: TrackingConfig, name: str | None, about: Mapping[str, Any], known: str | None
    ) -> None:
        # a training inside of a run is a run of its own there, and neither ends the other
        self._run = wandb.init(
            project=config.project,
            name=name,
            config=dict(about),
            id=known,
            resume="allow" if known else None,
            reinit="create_new",
            settings={"console": "off"},  # the terminal is ours
        )
        self.id: str = self._run.id

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def summarise(self, figures: Mapping[str, float]) -> None:
        self._run.summary.update(dict(figures))

    def keep(self, files: Sequence[Path]) -> None:
        for file in files:
            self._run.save(str(file), base_path=str(file.parent), policy="now")

    def end(self, how: End) -> None:
        self._run.finish(exit_code={"done": 0, "failed": 1, "stopped": 255}[how])


class _Mlflow:
    """By the client, which knows of no current run: a training inside of a run has one of its own."""

    def __init__(
        self, mlflow: Any, config: TrackingConfig, name: str | None, about: Mapping[str, Any], known: str | None
    ) -> None:
        self._client = mlflow.MlflowClient(tracking_uri=config.uri)
        if known is not None:
            self.id: str = self._client.get_run(known).info.run_id
            self._client.update_run(known, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(config.project)
        where = self._client.create_experiment(config.project) if experiment is None else experiment.experiment_id
        self.id = self._client.create_run(where, run_name=name).info.run_id
        for key, value in _flat(about):
            self._client.log_param(self.id, _named(key), str(value)[:500])

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._client.log_metric(self.id, _named(name), value, step=step)

    def summarise(self, figures: Mapping[str, float]) -> None:
        self.log(figures, 0)

    def keep(self, files: Sequence[Path]) -> None:
        for file in files:
            self._client.log_artifact(self.id, str(file))

    def end(self, how: End) -> None:
        self._client.set_terminated(self.id, {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[how])


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """``("sae.train.k", 16)`` of ``{"sae": {"train": {"k": 16}}}``; what has no value is left out."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif value is not None and value != []:
        yield name, value


def _named(name: str) -> str:
    """As MLflow takes it: letters, digits and a few signs."""
    return re.sub(r"[^\w\-. :/]", "_", name)
