"""Start ranks on this machine, hear how far they are, and end all where one fails.

Each rank is a process with a pipe to this one, which does nothing else meanwhile. A rank that dies closes its
pipe; the others, which wait for it in torch.distributed, are then ended from here. Where this process dies they end by
themselves.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from logging.handlers import QueueHandler
from multiprocessing import connection
from pickle import PicklingError
from typing import Any, Literal

import torch
import torch.distributed as dist

from autointerp.errors import AutointerpError, ConfigError

NOT_IN_KEYS = "it starts processes and waits for them: what they do is followed from whoever hands it over"

log = logging.getLogger("autointerp")

HOST = "127.0.0.1"
PATIENCE = 5.0  # seconds that ranks have to end by themselves once one has failed

Tell = Callable[[float, float], None]  # tokens done, and those of them that were done before
Work = Callable[[str, Tell], None]  # what a rank does, on its device


def ranks_wanted(ranks: int | Literal["auto"], device: str) -> int:
    """How many processes `ranks` means on `device`. Raises ConfigError for more than there are GPUs, and for several
    on one GPU that was named."""
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return 1 if ranks == "auto" else ranks
    gpus = torch.cuda.device_count() if kind == "cuda" and not number else 1
    if ranks == "auto":
        return max(1, gpus)
    if ranks > gpus:
        raise ConfigError(f"sae.train.ranks is {ranks}, and {device} is {gpus} GPU{'s' * (gpus != 1)}: one for each")
    return ranks


def run_ranks(work: Work, count: int, device: str, heard: Tell) -> None:
    """Have `count` processes do `work`, each on a device of its own, as ranks of one group.

    What the first of them tells comes to `heard`, what it logs to this process' log. `work` and all that it holds are
    pickled; a script that comes here needs ``if __name__ == "__main__":``, for each process imports it.

    Raises AutointerpError as a rank raised it, or for a rank that ended before its work was done.
    """
    context = multiprocessing.get_context("spawn")
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]
    threads = max(1, torch.get_num_threads() // count)
    ranks: list[_Rank] = []
    try:
        for rank in range(count):
            ear, mouth = context.Pipe(duplex=False)
            place = f"{device}:{rank}" if device == "cuda" else device
            process = context.Process(
                target=_be, args=(work, rank, count, place, store.port, threads, mouth), daemon=True
            )
            ranks.append(_Rank(rank, process, ear))
            try:
                process.start()
            except (TypeError, AttributeError, PicklingError) as error:
                raise ConfigError(f"what is trained on cannot be handed to another process: {error}") from error
            finally:
                mouth.close()
        _wait(ranks, heard)
    finally:
        for each in ranks:
            each.end()


class _Rank:
    """A process, as this one sees it."""

    def __init__(self, rank: int, process: Any, ear: connection.Connection) -> None:
        self.rank, self.process, self.ear = rank, process, ear
        self.begun = self.done = self.over = False
        self.error: AutointerpError | None = None  # that it raised
        self.trouble: str | None = None  # another error of its

    @property
    def failed(self) -> bool:
        return self.over and not self.done

    def hear(self, heard: Tell) -> None:
        try:
            kind, value = self.ear.recv()
        except (EOFError, OSError):
            self.over = True
            self.process.join(PATIENCE)
            return
        self.begun = True
        if kind == "step":
            heard(*value)
        elif kind == "log":
            log.handle(value)
        elif kind == "error":
            self.error = value
        elif kind == "trouble":
            self.trouble = value
        elif kind == "done":
            self.done = True

    def reason(self, count: int) -> str:
        name, code = f"rank {self.rank} of {count}", self.process.exitcode
        if self.trouble is not None:
            return f"{name}: {self.trouble}"
        if code is not None and code < 0:
            return f"{name} was ended by {signal.Signals(-code).name}"
        guard = "" if self.begun else ' before it began (a script needs `if __name__ == "__main__":`)'
        return f"{name} ended with exit code {code}{guard}"

    def end(self) -> None:
        if self.process.pid is not None:
            if self.done:
                self.process.join(PATIENCE)
            self.process.kill()
            self.process.join()
        self.ear.close()


def _wait(ranks: list[_Rank], heard: Tell) -> None:
    until: float | None = None  # others end by themselves where they notice that one has failed
    while open_ := {each.ear: each for each in ranks if not each.over}:
        left = None if until is None else max(0.0, until - time.monotonic())
        ready = connection.wait(list(open_), left)
        if not ready:
            break
        for ear in ready:
            open_[ear].hear(heard)  # type: ignore[index]
        if until is None and any(each.failed for each in ranks):
            until = time.monotonic() + PATIENCE
    errors = [each.error for each in ranks if each.error is not None]
    if errors:
        raise errors[0]
    failed = [each for each in ranks if each.failed]
    if failed:
        # one that ended without a word is why the others lost their connections
        first = min(failed, key=lambda each: each.trouble is not None)
        why = first.reason(len(ranks))
        raise AutointerpError(f"training stopped, {why}: the same command goes on from the last checkpoint")


# --- in the process of a rank -----------------------------------------------------------------


def _be(work: Work, rank: int, count: int, device: str, port: int, threads: int, mouth: connection.Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the process that started us ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    mouth.send(("begun", None))
    lock = threading.Lock()

    def tell(kind: str, value: object) -> None:
        with lock:
            mouth.send((kind, value))

    logger = logging.getLogger("autointerp")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(_ToParent(tell) if rank == 0 else logging.NullHandler())
    torch.set_num_threads(threads)
    gpu = torch.device(device) if device.startswith("cuda") else None
    if gpu is not None:
        torch.cuda.set_device(gpu)
    try:
        store = dist.TCPStore(HOST, port, is_master=False)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(
            "gloo" if gpu is None else "nccl", store=store, rank=rank, world_size=count, device_id=gpu
        )
        work(device, (lambda done, skipped: tell("step", (done, skipped))) if rank == 0 else lambda *_: None)
    except AutointerpError as error:
        tell("error", error)
    except Exception as error:
        tell("trouble", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    else:
        tell("done", None)
        dist.destroy_process_group()
    mouth.close()


class _ToParent(QueueHandler):
    """A log's records, made ready to be sent."""

    def __init__(self, tell: Callable[[str, object], None]) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._tell = tell

    def enqueue(self, record: logging.LogRecord) -> None:
        self._tell("log", record)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
