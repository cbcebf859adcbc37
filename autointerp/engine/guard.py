"""Exceptions that a plug-in raises become failed rows and do not end the run."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from autointerp.errors import AutointerpError

T = TypeVar("T")
log = logging.getLogger("autointerp")


async def guarded(call: Callable[[], Awaitable[T]], failed: Callable[[str], T]) -> T:
    """A plug-in's own error is its feature's failure, with the reason; ours end the run."""
    try:
        return await call()
    except AutointerpError:
        raise
    except Exception as error:
        log.debug("plug-in failed", exc_info=True)
        return failed(f"{type(error).__name__}: {error}")
