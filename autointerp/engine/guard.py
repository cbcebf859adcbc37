"""Exceptions that a plug-in raises become failed rows and do not end the run."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from autointerp.errors import AutointerpError
from autointerp.redact import redact

T = TypeVar("T")
log = logging.getLogger("autointerp")


async def guarded(call: Callable[[], Awaitable[T]], kind: type[T], failed: Callable[[str], T]) -> T:
    """A plug-in's own error, or an answer that is no `kind`, is its feature's failure, with the reason; our errors end
    the run."""
    try:
        answer: Any = await call()
        if isinstance(answer, kind):
            return answer
        return failed(f"the plug-in returned {redact(repr(answer)):.60}, no {kind.__name__}")
    except AutointerpError:
        raise
    except Exception as error:
        log.debug("plug-in failed", exc_info=True)
        return failed(redact(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}{_place(error)}"))


def _place(error: Exception) -> str:
    """Where in the plug-in's own file it was raised: the innermost line there."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _ours(f.filename)]
    inside = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno}, in {inside[-1].name})" if inside else ""


def _ours(file: str) -> bool:
    """Whether a file only calls the plug-in."""
    here = Path(__file__).parent
    return Path(file).parent in (here, here.with_name("stages"))
