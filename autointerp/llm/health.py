"""Whether an endpoint is down: failures in a row make it suspect, and a probe decides."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from autointerp.errors import AutointerpError, EndpointDown
from autointerp.llm.backend import FinalFailure, RateLimited, RequestFailed, RetryableFailure

PROBES = 3


class Health:
    """`over` says why nothing more is asked, None while the endpoint lives.

    A few requests that always fail are no dead endpoint, however often they are sent: their failures in a row
    lead to a short request that any living endpoint answers. Only when that fails too, the run is over.
    """

    def __init__(self, model: str, probe: Callable[[], Awaitable[None]], *, pause: float, longest: float) -> None:
        """`pause`: seconds before the second probe; `longest`: most seconds that a rate limit is waited out."""
        self._model, self._probe, self._pause, self._longest = model, probe, pause, longest
        self._probing = asyncio.Lock()
        self._lost_in_a_row = 0  # no answer at all
        self._failed_in_a_row = 0  # rate limits too
        self.over: AutointerpError | None = None

    def answered(self) -> None:
        self._lost_in_a_row = self._failed_in_a_row = 0

    async def failed(self, error: RequestFailed, in_flight: int) -> None:
        """Take note of a failure; raises what ends the run where no other request will fare better."""
        self._failed_in_a_row += 1
        if isinstance(error, RateLimited):
            self._lost_in_a_row = 0
        elif isinstance(error, RetryableFailure):
            self._lost_in_a_row += 1
        else:
            self.answered()  # a refusal is an answer
            if isinstance(error, FinalFailure) and error.fatal:
                self.over = AutointerpError(str(error))
        if self._suspect(in_flight):
            async with self._probing:
                if self.over is None and self._suspect(in_flight):
                    await self._ask()
        if self.over is not None:
            raise self.over from error

    def _suspect(self, in_flight: int) -> bool:
        # every request on its way must have failed several times, so that a hiccup which drops all of them at once
        # is no death; rate limits come from a living endpoint, and only very many in a row mean a spent quota
        return self._lost_in_a_row >= max(20, 4 * in_flight) or self._failed_in_a_row >= max(100, 20 * in_flight)

    async def _ask(self) -> None:
        failures = self._failed_in_a_row
        error: RequestFailed | None = None
        for number in range(PROBES):
            wanted = error.retry_after if isinstance(error, RateLimited) else None
            await asyncio.sleep(min(self._longest, wanted or self._pause * number * number))
            try:
                await self._probe()
            except (RateLimited, RetryableFailure) as failure:
                error = failure
                continue
            except FinalFailure as failure:
                if failure.fatal:
                    self.over = AutointerpError(str(failure))
            self.answered()
            return
        self.over = EndpointDown(
            f"{self._model} does not answer any more, {failures} failures in a row and {PROBES} probes, "
            f"the last: {error}; all answers are kept: see that the endpoint runs and run again"
        )
