"""Asking again: which kept answers count as not there while a failed row is made anew (`run --retry-failed`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from autointerp.answers import too_little
from autointerp.llm.backend import Complete, Reply, Request

NOT_IN_KEYS = "it decides what is asked again, not what an answer says"

Which = Literal["unread", "all"]


@dataclass
class Renewal:
    """Which of the kept answers are asked for again, and how many were."""

    which: Which
    asked: int = 0

    def wants(self, request: Request, reply: Reply) -> bool:
        """``unread``: an answer that says nothing, and a repeat of a question whose first answer could not be read."""
        return self.which == "all" or _unread(request, reply)


_renewal: ContextVar[Renewal | None] = ContextVar("autointerp_renewal", default=None)


@contextmanager
def again(which: Which) -> Iterator[Renewal]:
    """Requests made inside, in this task and those it starts, are asked anew where `which` says so."""
    renewal = Renewal(which)
    token = _renewal.set(renewal)
    try:
        yield renewal
    finally:
        _renewal.reset(token)


def renewal() -> Renewal | None:
    """That which holds for requests made here."""
    return _renewal.get()


def _unread(request: Request, reply: Reply) -> bool:
    if reply.failure is not None or (isinstance(request, Complete) and request.attempt > 0):
        return True
    return any(c.failure is not None for c in reply.choices) or too_little(reply.choices, "the answers") is not None
