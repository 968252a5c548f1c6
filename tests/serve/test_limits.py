"""Slots, breakers and the count of guesses, with a clock of the test's own."""

import asyncio

import pytest

from pointsman.serve.limits import Breaker, BusyError, Guesses, Slots


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_slots_are_handed_on_in_order_and_a_cancelled_wait_loses_none() -> None:
    async def scenario() -> None:
        slots, order = Slots(1, 10, 5.0), []
        await slots.take()

        async def wait(name: int) -> None:
            await slots.take()
            order.append(name)

        tasks = [asyncio.create_task(wait(i)) for i in range(4)]
        await asyncio.sleep(0)
        assert (slots.running, slots.waiting) == (1, 4)
        tasks[1].cancel()
        slots.give()
        tasks[0].cancel()  # just as its turn has come
        for _ in range(5):
            await asyncio.sleep(0)
        assert order in ([2], [0])
        while slots.running:
            slots.give()
            for _ in range(5):
                await asyncio.sleep(0)
        assert order[-2:] == [2, 3]
        assert (slots.running, slots.waiting) == (0, 0)

    asyncio.run(scenario())


def test_a_full_queue_and_a_long_wait_are_busy() -> None:
    async def scenario() -> None:
        slots = Slots(1, 1, 0.01)
        await slots.take()
        waiting = asyncio.create_task(slots.take())
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await slots.take()
        with pytest.raises(BusyError):
            await waiting
        slots.give()
        assert (slots.running, slots.waiting) == (0, 0)

    asyncio.run(scenario())


def test_a_breaker_opens_probes_once_and_closes_or_opens_for_longer() -> None:
    clock = Clock()
    breaker = Breaker(2, 10.0, clock)
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.passes
    breaker.failed()
    assert (breaker.state, breaker.passes) == ("open", False)
    clock.now += 10
    assert (breaker.state, breaker.passes) == ("probing", True)
    with breaker.attempt():
        assert not breaker.passes
        breaker.failed()
    clock.now += 10
    assert breaker.state == "open"
    clock.now += 10
    with breaker.attempt():
        breaker.succeeded()
    assert (breaker.state, breaker.passes) == ("closed", True)


def test_a_breaker_rests_as_long_as_it_is_asked_to_and_no_longer_than_its_longest() -> None:
    clock = Clock()
    breaker = Breaker(3, 1.0, clock, longest=60.0)
    breaker.rest(5.0)
    assert breaker.state == "open"
    clock.now += 5
    assert breaker.state == "closed"
    breaker.rest(1e9)
    clock.now += 60
    assert breaker.state == "closed"


def test_guesses_are_counted_by_address_and_forgotten_with_time() -> None:
    clock = Clock()
    guesses = Guesses(3, clock, addresses=2)
    for _ in range(3):
        assert guesses.wait("a") == 0
        guesses.wrong("a")
    assert guesses.wait("a") == pytest.approx(20)
    assert guesses.wait("b") == 0
    clock.now += 20.5
    assert guesses.wait("a") == 0
    for address in "bcd":
        guesses.wrong(address)
    assert len(guesses._full_at) == 2
