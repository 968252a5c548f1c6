"""What every store must do, whatever database it is in."""

import asyncio
import calendar
import random
from collections.abc import Callable
from typing import Any

import pytest

from pointsman.errors import InputError
from pointsman.serve.store import (
    ANONYMOUS,
    SERVED,
    Key,
    Store,
    StoreError,
    accounts,
    open_store,
)

Run = Callable[[Any], Any]


class Clock:
    """A clock that a test moves."""

    def __init__(self, year: int = 2026, month: int = 11, day: int = 21) -> None:
        self.now = float(calendar.timegm((year, month, day, 12, 0, 0)))

    def __call__(self) -> float:
        return self.now


def with_store(run: Run, url: str, test: Callable[[Store], Any], clock: Any = None) -> Any:
    async def body() -> Any:
        store = await open_store(url, **({"clock": clock} if clock else {}))
        try:
            return await test(store)
        finally:
            await store.close()

    return run(body())


async def new_key(store: Store, name: str = "ada", **limits: Any) -> Key:
    return await store.add_key(Key(0, name, created=1.0, **limits), f"hash of {name}")


ROW = {"id": "r", "time": 5.0, "key": 0, "model": "small", "propensities": {"small": 0.75}}


def test_a_cost_takes_the_place_of_what_was_reserved(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        assert await store.reserve(ANONYMOUS, 0.5, "a")
        assert await store.reserve(ANONYMOUS, 0.25, "b")
        assert await store.spent(ANONYMOUS) == (0.0, 0.75)
        assert await store.settle("a", 0.1)
        assert await store.spent(ANONYMOUS) == (0.1, 0.25)
        assert await store.release("b")
        assert await store.spent(ANONYMOUS) == (0.1, 0.0)
        (total,) = await store.totals()
        assert (total.settled, total.reserved, total.requests) == (0.1, 0.0, 2)
        assert await store.check() == []

    with_store(run, url, test)


def test_settling_twice_counts_once(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        await store.reserve(ANONYMOUS, 0.5, "a")
        done = await asyncio.gather(*(store.settle("a", 0.3) for _ in range(5)))
        assert sorted(done) == [False] * 4 + [True]
        assert not await store.release("a")
        assert await store.spent(ANONYMOUS) == (0.3, 0.0)
        with pytest.raises(InputError, match="settled before, at another cost"):
            await store.settle("a", 0.4)
        assert await store.check() == []

    with_store(run, url, test)


def test_a_cost_that_comes_after_the_release_counts(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        await store.reserve(ANONYMOUS, 0.5, "a")
        assert await store.release("a")
        assert not await store.release("a")
        assert await store.settle("a", 0.2)
        assert await store.spent(ANONYMOUS) == (0.2, 0.0)
        assert await store.check() == []

    with_store(run, url, test)


def test_what_was_never_reserved_cannot_be_settled(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        with pytest.raises(InputError, match="nothing is reserved for request x"):
            await store.settle("x", 0.1)
        assert not await store.release("x")
        with pytest.raises(InputError, match="no key of id 77"):
            await store.reserve(77, 0.1, "y")
        await store.reserve(ANONYMOUS, 0.1, "z")
        with pytest.raises(InputError, match="has a reservation already"):
            await store.reserve(ANONYMOUS, 0.1, "z")
        assert await store.spent(ANONYMOUS) == (0.0, 0.1)
        assert await store.check() == []

    with_store(run, url, test)


@pytest.mark.parametrize("amount", [-0.1, float("nan"), float("inf"), 2e6])
def test_amounts_that_are_none_are_refused(run: Run, amount: float) -> None:
    async def test(store: Store) -> None:
        with pytest.raises(InputError, match="must be US"):
            await store.reserve(ANONYMOUS, amount, "a")
        with pytest.raises(InputError, match="must be US"):
            await store.settle("a", amount)

    with_store(run, "memory:", test)


def test_a_budget_holds_to_the_last_nano_dollar(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        key = await new_key(store, budget=1.0, period="total")
        assert await store.reserve(key.id, 0.7, "a")
        assert not await store.reserve(key.id, 0.300000001, "b")
        assert await store.reserve(key.id, 0.3, "c")
        assert not await store.reserve(key.id, 0.000000001, "d")
        assert await store.reserve(key.id, 0.0, "e")
        await store.settle("a", 0.699999999)
        assert await store.reserve(key.id, 0.000000001, "f")
        assert await store.check() == []

    with_store(run, url, test)


def test_a_budget_holds_when_many_ask_at_once(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        key = await new_key(store, budget=0.1, period="day")
        got = await asyncio.gather(*(store.reserve(key.id, 0.003, f"r{i}") for i in range(300)))
        assert sum(got) == 33
        assert await store.spent(key.id) == (0.0, 0.099)
        assert await store.check() == []

    with_store(run, url, test)


def test_no_amount_is_lost_among_many_tasks(run: Run, url: str) -> None:
    rng = random.Random(0)
    costs = [rng.randrange(10**7) for _ in range(400)]

    async def test(store: Store) -> None:
        keys = [await new_key(store, f"k{i}", period="total") for i in range(3)]

        async def one(i: int) -> None:
            await store.reserve(keys[i % 3].id, 0.02, f"r{i}")
            if i % 7 == 0:
                await store.release(f"r{i}")
            else:
                await store.settle(f"r{i}", costs[i] / 1e9)

        await asyncio.gather(*map(one, range(400)))
        for k, key in enumerate(keys):
            exact = sum(costs[i] for i in range(400) if i % 3 == k and i % 7)
            assert await store.spent(key.id) == (exact / 1e9, 0.0)
        assert await store.check() == []

    with_store(run, url, test)


@pytest.mark.parametrize(
    ("period", "label", "next_day", "next_month"),
    [
        ("day", "2026-11-30", True, True),
        ("month", "2026-11", True, True),
        ("total", "total", False, False),
    ],
)
def test_a_period_that_begins_anew_has_its_whole_budget(
    run: Run, url: str, period: Any, label: str, next_day: bool, next_month: bool
) -> None:
    clock = Clock(2026, 11, 30)

    async def test(store: Store) -> None:
        key = await new_key(store, budget=1.0, period=period)
        assert await store.reserve(key.id, 1.0, "a")
        assert not await store.reserve(key.id, 0.1, "b")
        clock.now += 86400  # 1 December
        assert await store.reserve(key.id, 0.1, "c") is next_day
        assert await store.settle("a", 0.9)  # counts where it was reserved
        first = next(total for total in await store.totals() if total.period == label)
        assert first.settled == 0.9
        assert await store.spent(key.id) == ((0.9, 0.0) if period == "total" else (0.0, 0.1))
        clock.now += 31 * 86400
        assert await store.reserve(key.id, 1.0, "d") is next_month
        assert await store.check() == []

    with_store(run, url, test, clock)


def test_a_day_does_not_reach_into_the_rest_of_its_month(run: Run, url: str) -> None:
    clock = Clock(2026, 11, 3)

    async def test(store: Store) -> None:
        monthly = await new_key(store, budget=1.0, period="month")
        assert await store.reserve(monthly.id, 0.9, "a")
        clock.now += 86400
        assert not await store.reserve(monthly.id, 0.2, "b")

    with_store(run, url, test, clock)


def test_a_rate_is_a_minute_in_hand_and_refills_evenly(run: Run, url: str) -> None:
    clock = Clock()

    async def test(store: Store) -> None:
        key = await new_key(store, rate_per_minute=3)
        answers = [await store.allow(key.id) for _ in range(5)]
        assert [ok for ok, _ in answers] == [True] * 3 + [False] * 2
        assert answers[3][1] == pytest.approx(20.0)
        clock.now += 19.9
        ok, wait = await store.allow(key.id)
        assert not ok
        assert wait == pytest.approx(0.1)
        clock.now += 0.2
        assert (await store.allow(key.id)) == (True, 0.0)
        clock.now += 3600  # never more than a minute's worth is kept
        assert sum([(await store.allow(key.id))[0] for _ in range(9)]) == 3

    with_store(run, url, test, clock)


def test_a_slow_rate_lets_one_through(run: Run, url: str) -> None:
    clock = Clock()

    async def test(store: Store) -> None:
        key = await new_key(store, rate_per_minute=0.1)
        assert await store.allow(key.id) == (True, 0.0)
        ok, wait = await store.allow(key.id)
        assert (ok, wait) == (False, pytest.approx(600.0))

    with_store(run, url, test, clock)


def test_a_key_without_a_rate_may_always_ask(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        key = await new_key(store)
        assert all([(await store.allow(key.id))[0] for _ in range(50)])

    with_store(run, url, test)


def test_a_key_is_found_by_its_hash_as_it_was_written(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        made = await new_key(
            store,
            "bo",
            rate_per_minute=7.5,
            budget=12.34,
            points=("cheap", "a,b"),
            floor="certified",
        )
        assert made.id > 0
        assert await store.key("hash of bo") == made
        assert made == Key(made.id, "bo", 7.5, 12.34, "month", ("cheap", "a,b"), "certified", 1.0)
        assert await store.key("another") is None
        assert await store.keys() == [made]

    with_store(run, url, test)


def test_a_revoked_key_is_out_of_use_at_once(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        key = await new_key(store)
        assert await store.key("hash of ada") == key
        gone = await store.revoke_key("ada")
        assert gone.revoked is not None
        assert await store.key("hash of ada") is None
        assert not await store.reserve(key.id, 0.1, "a")
        with pytest.raises(InputError, match="no key 'ada' is in use"):
            await store.revoke_key("ada")
        again = await store.add_key(Key(0, "ada"), "another hash")
        assert again.id != key.id
        assert [k.revoked is None for k in await store.keys()] == [False, True]
        assert (await store.revoke_key(str(again.id))).id == again.id

    with_store(run, url, test)


def test_a_key_whose_name_is_the_number_of_another_is_told_apart(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        first = await new_key(store, "first")
        second = await new_key(store, str(first.id))
        assert (await store.revoke_key(str(first.id))).id == second.id
        assert (await store.revoke_key(str(first.id))).id == first.id
        with pytest.raises(InputError):
            await store.revoke_key("0")

    with_store(run, url, test)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"name": "x" * 201},
        {"name": "a", "rate_per_minute": 0},
        {"name": "a", "rate_per_minute": float("nan")},
        {"name": "a", "budget": -1.0},
        {"name": "a", "period": "week"},
    ],
)
def test_a_key_that_is_none_is_refused(run: Run, wrong: dict[str, Any]) -> None:
    async def test(store: Store) -> None:
        with pytest.raises(InputError):
            await store.add_key(Key(0, **wrong), "h")
        assert await store.keys() == []

    with_store(run, "memory:", test)


def test_two_keys_in_use_cannot_share_a_name(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        made = await asyncio.gather(
            *(store.add_key(Key(0, "ada"), f"h{i}") for i in range(4)), return_exceptions=True
        )
        assert sum(isinstance(one, Key) for one in made) == 1
        assert all("is in use" in str(one) for one in made if not isinstance(one, Key))

    with_store(run, url, test)


def test_one_refusal_leaves_what_waits_beside_it_alone(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        await store.spent(ANONYMOUS)  # its key is known from here on: all that follows is at once
        done = await asyncio.gather(
            store.reserve(ANONYMOUS, 0.1, "a"),
            store.settle("unknown", 0.1),
            store.reserve(ANONYMOUS, 0.1, "a"),
            store.reserve(ANONYMOUS, 0.1, "b"),
            store.settle("b", 0.05),
            return_exceptions=True,
        )
        assert [isinstance(one, InputError) for one in done] == [False, True, True, False, False]
        assert await store.spent(ANONYMOUS) == (0.05, 0.1)
        assert await store.check() == []

    with_store(run, url, test)


def test_one_failure_leaves_what_waits_beside_it_alone(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        await store.spent(ANONYMOUS)
        names = ["a", "no text \ud800", "b"]
        done = await asyncio.gather(
            *(store.reserve(ANONYMOUS, 0.1, name) for name in names), return_exceptions=True
        )
        assert done[0] is True
        assert isinstance(done[1], Exception)
        assert done[2] is True
        assert await store.spent(ANONYMOUS) == (0.0, 0.2)
        assert await store.check() == []

    with_store(run, url, test)


def test_whoever_is_cancelled_while_reserving_holds_nothing(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        for i in range(30):
            task = asyncio.create_task(store.reserve(ANONYMOUS, 0.1, f"r{i}"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.1)
        for i in range(30):  # whether it was cancelled in time or not, it is not held
            await store.release(f"r{i}")
        assert await store.spent(ANONYMOUS) == (0.0, 0.0)
        assert await store.reservations() == []
        assert await store.check() == []

    with_store(run, url, test)


def test_a_reservation_is_given_back_when_its_caller_is_cancelled(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        await store.spent(ANONYMOUS)  # its key is known from here on
        task = asyncio.create_task(store.reserve(ANONYMOUS, 0.1, "a"))
        await asyncio.sleep(0)  # it waits for the store now
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _ in range(100):
            await asyncio.sleep(0.01)
            if (await store.totals()) and await store.spent(ANONYMOUS) == (0.0, 0.0):
                break
        assert await store.spent(ANONYMOUS) == (0.0, 0.0)
        assert await store.reservations() == []
        assert await store.settle("a", 0.0)  # it had been written down

    with_store(run, url, test)


def test_a_served_row_comes_back_as_it_went_in(run: Run, url: str) -> None:
    row = {
        "id": "r1",
        "time": 1234.5,
        "key": 3,
        "query": "prompt with \0 and \ud800 and ' and €",
        "task": "mathematics",
        "point": "certified",
        "model": "small",
        "propensity": 0.25,
        "answered": "large",
        "how": "cascade",
        "policy": "digest",
        "propensities": {"small": 0.25, "large": 0.75},
        "context": {"small": 0.5},
        "predicted_quality": 0.8,
        "predicted_cost": 0.002,
        "cost": 0.0013,
        "latency": 0.7,
        "quality": None,
    }

    async def test(store: Store) -> None:
        await store.serve_log(row)
        await store.serve_log({**row, "model": "ignored"})
        kept = await store.served("r1")
        assert kept == {**row, "query": "prompt with \ufffd and ? and ' and €"}
        assert tuple(kept) == SERVED
        assert await store.served("r2") is None
        await store.serve_log({**ROW, "cost": float("nan")})
        assert (await store.served("r"))["cost"] is None  # type: ignore[index]

    with_store(run, url, test)


def test_a_cost_and_its_row_are_written_together(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        await store.reserve(ANONYMOUS, 0.1, "r")
        await store.settle("r", 0.02, {**ROW, "cost": 0.02})
        assert (await store.served("r"))["cost"] == 0.02  # type: ignore[index]
        with pytest.raises(InputError):
            await store.settle("never reserved", 0.02, {**ROW, "id": "never reserved"})
        assert await store.served("never reserved") is None

    with_store(run, url, test)


def test_feedback_is_written_to_the_row_and_the_last_word_counts(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        await store.serve_log(ROW)
        assert await store.feedback("nobody", 1.0) is None
        row = await store.feedback("r", 1)
        assert row is not None
        assert row["quality"] == 1.0
        assert row["propensities"] == {"small": 0.75}
        assert (await store.feedback("r", 0.5, key_id=0))["quality"] == 0.5  # type: ignore[index]
        assert await store.feedback("r", 0.1, key_id=9) is None
        assert (await store.served("r"))["quality"] == 0.5  # type: ignore[index]
        for wrong in (-0.1, 1.1, float("nan")):
            with pytest.raises(InputError, match="from 0 to 1"):
                await store.feedback("r", wrong)

    with_store(run, url, test)


def test_feedback_is_handed_out_until_it_was_learned_from(run: Run, url: str) -> None:
    clock = Clock()

    async def test(store: Store) -> None:
        for i in range(60):
            await store.serve_log({**ROW, "id": f"r{i}", "policy": "p" if i else "other"})
        assert await store.unheard("p") == []
        for i in (2, 0, 3, 1):
            clock.now += 1
            await store.feedback(f"r{i}", i / 4)
        await store.feedback("r2", 1.0)  # a later word does not change the order
        came = await store.unheard("p")
        assert [(row["id"], row["quality"]) for row in came] == [
            ("r2", 1.0),
            ("r3", 0.75),
            ("r1", 0.25),
        ]
        assert [row["id"] for row in await store.unheard("p", most=1)] == ["r2"]
        assert await store.learned("p") == (0, "")
        assert await store.learn("p", 0, "first", ["r2", "r3"])
        assert await store.learned("p") == (1, "first")
        assert not await store.learn("p", 0, "late", ["r1"])
        assert [row["id"] for row in await store.unheard("p")] == ["r1"]
        await store.feedback("r2", 0.0)
        assert [row["id"] for row in await store.unheard("p")] == ["r1"]
        for i in range(4, 60):
            await store.feedback(f"r{i}", 1.0)
        heard = [row["id"] for row in await store.unheard("p")]
        assert len(heard) == 57
        assert await store.learn("p", 1, "second", heard)
        assert await store.unheard("p") == []
        assert not await store.learn("p", 1, "late", ["r0"])
        assert await store.learned("p") == (2, "second")
        assert len(await store.unheard("other")) == 1

    with_store(run, url, test, clock)


def test_costs_are_summed_by_hours(run: Run, url: str) -> None:
    clock = Clock()

    async def test(store: Store) -> None:
        clock.now = begin = 3600.0 * 400_000
        for i, (wait, cost) in enumerate([(10, 0.5), (3590, 0.25), (10, 0.125)]):
            clock.now += wait
            assert await store.reserve(ANONYMOUS, 1.0, f"h{i}")
            assert await store.settle(f"h{i}", cost)
            assert not await store.settle(f"h{i}", cost)
        assert await store.paid(begin) == {ANONYMOUS: (0.875, 3)}
        assert await store.paid(begin + 3600) == {ANONYMOUS: (0.375, 2)}
        assert await store.paid(begin + 7200) == {}
        await store.prune(begin + 3600)
        assert await store.paid(begin) == {ANONYMOUS: (0.375, 2)}

    with_store(run, url, test, clock)


@pytest.mark.parametrize("wrong", [{**ROW, "colour": 1}, {"id": "r", "time": 1.0, "key": 0}])
def test_a_served_row_that_is_none_is_refused(run: Run, wrong: dict[str, Any]) -> None:
    async def test(store: Store) -> None:
        with pytest.raises(InputError, match="a served row has the columns"):
            await store.serve_log(wrong)

    with_store(run, "memory:", test)


def test_a_store_that_is_closed_says_so(run: Run, url: str) -> None:
    async def test() -> None:
        store = await open_store(url)
        await asyncio.gather(*(store.reserve(ANONYMOUS, 0.1, f"r{i}") for i in range(9)))
        last = asyncio.create_task(store.settle("r0", 0.1))
        await asyncio.sleep(0)
        await store.close()
        assert await last
        with pytest.raises(StoreError, match="closed"):
            await store.spent(ANONYMOUS)
        await store.close()

    run(test())


def test_what_a_process_publishes_others_may_read(run: Run, url: str) -> None:
    async def test(store: Store) -> None:
        store.publish('{"up": 1}', "metrics")
        await store.beat()
        (me,) = await store.processes()
        assert (me.id, me.state, me.metrics) == (store.process.id, '{"up": 1}', "metrics")

    with_store(run, url, test)


def test_pruning_drops_what_ended_and_keeps_the_totals(
    run: Run, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for name in ("_OLD", "_OLD_ROWS"):  # two at once
        statement = getattr(accounts, name).replace("2000", "2")
        monkeypatch.setattr(accounts, name, statement)

    async def test(store: Store) -> None:
        for i in range(6):
            await store.reserve(ANONYMOUS, 0.5, f"r{i}")
            await store.serve_log({**ROW, "id": f"r{i}", "time": clock.now})
            if i != 2:
                await store.settle(f"r{i}", 0.25)
            clock.now += 10
        assert await store.prune(clock.now - 25) == (3, 4)
        assert await store.spent(ANONYMOUS) == (1.25, 0.5)
        assert [one.request for one in await store.reservations()] == ["r2"]
        assert await store.check() == []
        assert await store.settle("r2", 0.25)
        assert await store.reserve(ANONYMOUS, 0.1, "new")
        assert await store.settle("new", 0.1)
        assert await store.spent(ANONYMOUS) == (1.6, 0.0)
        with pytest.raises(InputError, match="nothing is reserved"):
            await store.settle("r0", 0.25)
        assert await store.served("r5") is not None

    with_store(run, url, test, clock)
