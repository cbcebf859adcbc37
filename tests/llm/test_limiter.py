from __future__ import annotations

import asyncio

import pytest

from autointerp.config import LLMConfig
from autointerp.errors import ConfigError, OutOfBudget
from autointerp.llm.limiter import Budget, Limiter, Slot, Spent
from autointerp.llm.prices import Prices


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def taken(limiter: Limiter, count: int) -> tuple[list[Slot], list[asyncio.Task[None]], asyncio.Event]:
    """Requests that hold their slots until the event is set."""
    slots: list[Slot] = []
    done = asyncio.Event()

    async def hold() -> None:
        async with limiter.slot() as slot:
            await slot.renew()
            slots.append(slot)
            await done.wait()

    tasks = [asyncio.create_task(hold()) for _ in range(count)]
    await settled()
    return slots, tasks, done


async def test_the_maximum_is_in_flight_from_the_beginning_and_never_more() -> None:
    limiter = Limiter(64)
    slots, tasks, done = await taken(limiter, 200)
    assert len(slots) == limiter.in_flight == 64
    done.set()
    await asyncio.gather(*tasks)
    assert len(slots) == 200
    assert limiter.in_flight == 0


async def test_a_window_of_rate_limits_halves_once_and_the_next_window_again() -> None:
    limiter = Limiter(64)
    slots, _, done = await taken(limiter, 64)
    for slot in slots:
        limiter.limited(slot, None)
    assert limiter.limit == 32
    done.set()
    await settled()
    later, _, done = await taken(limiter, 64)
    assert len(later) == 32
    for slot in later:
        limiter.limited(slot, None)
    assert limiter.limit == 16
    done.set()


async def test_successes_bring_it_back_to_the_maximum_and_no_further() -> None:
    limiter = Limiter(16)
    limiter.limited(Slot(limiter), None)
    limits = []
    for _ in range(200):
        limiter.succeeded()
        limits.append(limiter.limit)
    assert limits == sorted(limits)
    assert limits[0] < 9  # additively: a window of successes adds a small step
    assert limits[-1] == 16


async def test_nothing_starts_before_retry_after_has_passed() -> None:
    limiter = Limiter(4)
    loop = asyncio.get_running_loop()
    limiter.limited(Slot(limiter), 0.05)
    until = loop.time() + 0.04  # the clock of timers is coarse

    async def one() -> float:
        async with limiter.slot():
            return loop.time()

    started = await asyncio.gather(one(), one())
    assert min(started) >= until


async def test_a_request_gives_way_when_fewer_may_be_in_flight() -> None:
    limiter = Limiter(4)
    slots, _, done = await taken(limiter, 4)
    limiter.limited(slots[0], None)
    again = asyncio.create_task(slots[0].renew())
    other = asyncio.create_task(slots[1].renew())
    await settled()
    assert limiter.in_flight == 2
    assert not again.done()
    assert not other.done()
    done.set()
    await asyncio.gather(again, other)


async def test_cancelled_waiters_leave_no_slot_behind() -> None:
    limiter = Limiter(2)
    _, tasks, done = await taken(limiter, 6)
    tasks[3].cancel()
    tasks[0].cancel()
    await settled()
    done.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert limiter.in_flight == 0
    _, more, done = await taken(limiter, 2)
    assert limiter.in_flight == 2
    done.set()
    await asyncio.gather(*more)


def budget(**limits: float) -> Budget:
    return Budget(LLMConfig.model_validate({"model": "m", **limits}))


async def test_a_request_that_does_not_fit_waits_for_what_others_give_back() -> None:
    purse = budget(max_tokens=100)
    await purse.reserve(Spent(1, 80))
    waiting = asyncio.create_task(purse.reserve(Spent(1, 60)))
    await settled()
    assert not waiting.done()
    purse.settle(Spent(1, 80), Spent(1, 30))
    await waiting
    assert purse.spent == Spent(1, 30)


async def test_a_request_that_can_never_fit_is_refused_and_says_how_to_go_on() -> None:
    purse = budget(max_tokens=100)
    await purse.reserve(Spent(1, 80))
    waiting = asyncio.create_task(purse.reserve(Spent(1, 60)))
    await settled()
    purse.settle(Spent(1, 80), Spent(1, 80))
    with pytest.raises(OutOfBudget, match=r"llm\.max_tokens=100 is reached.*kept; raise it and run again"):
        await waiting
    await purse.reserve(Spent(1, 20))  # a smaller one still fits


async def test_what_was_not_answered_is_not_spent() -> None:
    purse = budget(max_requests=1)
    await purse.reserve(Spent(1, 5))
    purse.settle(Spent(1, 5), None)
    await purse.reserve(Spent(1, 5))


async def test_cost_is_tokens_times_the_prices() -> None:
    purse = Budget(LLMConfig(model="m", max_cost=0.01), Prices(2.0, 8.0))
    assert purse.price(1_000_000, 500_000).cost == pytest.approx(6.0)
    with pytest.raises(OutOfBudget, match="max_cost"):
        await purse.reserve(purse.price(1000, 1001))
    await purse.reserve(purse.price(1000, 1000))


def test_a_cost_limit_without_prices_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"price_in"):
        budget(max_cost=1)
