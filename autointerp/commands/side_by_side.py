"""Variants of a sweep side by side, each in a process of its own.

1. A variant is ready when those that it waits for are done; at most so many run at once.
2. What they share in the store is made by the first that comes to it: the others wait for its lock.
3. What a variant logs goes into ``log.txt`` in its folder.
4. Whatever ends the sweep, a kill too, ends its processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter

from autointerp.commands.variant import FIGURES, Key, Measured, Variant, answer, order
from autointerp.config import Config
from autointerp.errors import AutointerpError
from autointerp.llm.backends.http import check_library

COMMAND = [sys.executable, "-m", "autointerp.commands.variant"]
LOG = "log.txt"
POLL = 0.1  # seconds between two looks at the processes
PATIENCE = 10.0  # seconds for a process to end by itself when the sweep is stopped

Outcome = Measured | AutointerpError


def side_by_side(
    after: Mapping[Key, set[Key]], ready: Callable[[Key], Variant], metrics: tuple[str, ...], jobs: int
) -> Generator[tuple[Key, Outcome], None, None]:
    """What becomes of each variant, as they end. `after`: those that each one waits for. `ready` makes one when they
    are done, or raises AutointerpError."""
    waiting = TopologicalSorter(after)
    waiting.prepare()
    due: list[Key] = []
    running: dict[Key, _Process] = {}
    try:
        while waiting.is_active():
            due += waiting.get_ready()
            while due and len(running) < jobs:
                key, place = due.pop(0), min({*range(jobs)} - {each.place for each in running.values()})
                try:
                    running[key] = _Process.begun(ready(key), metrics, place, jobs)
                except AutointerpError as error:
                    waiting.done(key)
                    yield key, error
            for key in [key for key, each in running.items() if each.popen.poll() is not None]:
                outcome = running.pop(key).outcome
                waiting.done(key)
                yield key, outcome
            time.sleep(POLL if running else 0)
    finally:
        _stop([each.popen for each in running.values()])


@dataclass
class _Process:
    variant: Variant
    popen: subprocess.Popen[str]
    place: int  # among those that run at once

    @classmethod
    def begun(cls, variant: Variant, metrics: tuple[str, ...], place: int, jobs: int) -> _Process:
        variant.folder.mkdir(parents=True, exist_ok=True)
        (variant.folder / FIGURES).unlink(missing_ok=True)
        with open(variant.folder / LOG, "w") as log:
            popen = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_share(place, jobs)},
                start_new_session=True,  # Ctrl-C comes to the sweep alone, which then ends them once
            )
        assert popen.stdin is not None
        with suppress(BrokenPipeError):  # it ended at once: its log says why
            popen.stdin.write(order(variant, metrics) + "\n")
            popen.stdin.flush()  # and left open: it hears when this process ends, however that is
        return cls(variant, popen, place)

    @property
    def outcome(self) -> Outcome:
        """Of a process that has ended."""
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):
            self.popen.stdin.close()
        left = answer(self.variant.folder)
        if left is not None and self.popen.returncode == 0:
            return left
        return AutointerpError(f"its process ended with {self.popen.returncode}: see {self.variant.folder / LOG}")


def _share(place: int, jobs: int) -> dict[str, str]:
    """Of the machine: its part of the cores where nobody has said how many threads, and the GPUs in turn."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
    gpus = _gpus()
    return {"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if len(gpus) > 1 else {})


def _gpus() -> list[str]:
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is not None:
        return [name for name in seen.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _stop(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGINT)
    until = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def one_cluster(configs: list[Config], jobs: int) -> Iterator[tuple[int, Callable[[Config], Config]]]:
    """How many variants run at once, and what becomes of each one's config: those on Ray share one cluster, on which
    each has an equal part of the workers, and at least one."""
    on_ray = [config.executor for config in configs if config.executor.kind == "ray"]
    if not on_ray:
        yield jobs, lambda config: config
        return
    check_library("ray")
    from autointerp.engine.cluster.driver import connected

    with connected(on_ray[0]) as (address, room):
        jobs = min(jobs, room)

        def shared(config: Config) -> Config:
            if config.executor.kind == "local":
                return config
            most = max(1, min(room // jobs, config.executor.max_workers or room))
            executor = config.executor.model_copy(update={"address": address, "max_workers": most})
            return config.model_copy(update={"executor": executor})

        yield jobs, shared
