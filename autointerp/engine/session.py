"""The session of a run: the config, what was loaded once, and the event loop; ends what it started."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from autointerp.config import Config, LLMConfig
    from autointerp.llm.books import Books

T = TypeVar("T")
PATIENCE = 3.0  # seconds for what is under way to end, where a run is stopped
OF_ALL = ("llm ", "embedder")  # what is loaded once for all subjects, by how its name begins
OF_ONE = {"hook", "hook_out", "weights"}  # names say these themselves where they matter
NOT_IN_KEYS = "it holds what other files make, and makes nothing"


class Session:
    """Resources of a run; use as a context manager, it ends what it started (model servers, connections).

    It knows of no subject, SAE or language model: `engine.models` and `engine.asking` load those and keep them here,
    so that a stage's key holds just the code of what the stage asks for.
    """

    def __init__(self, config: Config, journal: Path, *, retry_failed: bool = False) -> None:
        self.config = config
        self.retry_failed = retry_failed  # failed rows are asked for again, whatever their reason
        self.journal = journal  # usage, a line a request
        self.on_shard: Callable[[], None] | None = None  # called when a shard of features is kept: tables may grow
        self.executor: Any = None  # an `executor.Executor`: who works the shards; None: this process
        self.books: Callable[[LLMConfig, str], Books] | None = None  # of language models; None: this process' own
        self._kept: dict[str, Any] = {}
        self._open = AsyncExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._root = self

    def under(self, config: Config) -> Session:
        """The same session with another config, for what is done again under a change: its loop, its language models
        and all that was loaded once are shared, but for what was loaded of another subject."""
        other = copy.copy(self)
        other.config = config
        return other

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` made when it was first asked for by this name, for this config's subject or, where the name is
        one of `OF_ALL`, for all."""
        if not name.startswith(OF_ALL):
            name = f"{name}, {self.config.subject.model_dump_json(exclude=OF_ONE)}"
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def enter(self, resource: AbstractAsyncContextManager[T]) -> T:
        """Enter an async context manager in the run's event loop; it is left when the session ends."""
        return self.wait(self._open.enter_async_context(resource))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the session's event loop and wait for it.

        The loop is one for the whole run, so that connections outlive a stage, and runs in a thread of its own, so
        that a caller may be inside a running loop, as in a notebook.
        """
        root = self._root
        if root._loop is None:
            root._loop = asyncio.new_event_loop()
            Thread(target=root._loop.run_forever, name="autointerp-requests", daemon=True).start()
        task = asyncio.run_coroutine_threadsafe(work, root._loop)
        try:
            return task.result()
        except BaseException:  # Ctrl-C in the waiting thread: what is under way ends before we go on
            task.cancel()
            asyncio.run_coroutine_threadsafe(_settled(), root._loop).result()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After Ctrl-C what needs longer to end, such as a forward pass, ends behind the caller's back."""
        if self._loop is None:
            return
        loop, self._loop = self._loop, None
        closing = asyncio.run_coroutine_threadsafe(self._open.aclose(), loop)
        closing.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        with suppress(TimeoutError) if stopped else nullcontext():
            closing.result(PATIENCE if stopped else None)


async def _settled() -> None:
    """Wait until every other task has ended that was cancelled or ends by itself at once."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if others:
        await asyncio.wait(others, timeout=PATIENCE)
