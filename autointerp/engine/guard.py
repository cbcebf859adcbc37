"""Exceptions that a plug-in raises become failed rows and do not end the run."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from autointerp.errors import AutointerpError

T = TypeVar("T")
log = logging.getLogger("autointerp")


async def guarded(call: Callable[[], Awaitable[T]], kind: type[T], failed: Callable[[str], T]) -> T:
    """A plug-in's own error, or an answer that is no `kind`, is its feature's failure, with the reason; our errors end
    the run."""
    try:
        answer: Any = await call()
        if isinstance(answer, kind):
            return answer
        return failed(f"the plug-in returned {answer!r:.60}, no {kind.__name__}")
    except AutointerpError:
        raise
    except Exception as error:
        log.debug("plug-in failed", exc_info=True)
        return failed(f"{type(error).__name__}: {error}")
