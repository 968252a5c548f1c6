"""Feedback: heard once by all processes, kept over restarts; and the warning without feedback."""

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
from policies import fit_policy, promised
from rig import FakePolicy, rig, run

from pointsman.pool.policy import PoolPolicy
from pointsman.pool.routers import Linear
from pointsman.pool.strategies import BeforeCall, Single
from pointsman.pool.synthetic import world
from pointsman.serve.learning import Learning, digest, packed, unpacked
from pointsman.serve.store import Store, open_store


def learning(policy: FakePolicy) -> Learning:
    return Learning(cast(PoolPolicy, policy))


async def judge(store: Store, policy: FakePolicy, names: list[str], quality: float = 0.0) -> None:
    """Rows of the certified point with feedback."""
    for name in names:
        row: dict[str, Any] = {"id": name, "time": 1.0, "key": 0, "model": "middle"}
        row |= {"point": "certified", "how": "policy", "policy": digest(cast(PoolPolicy, policy))}
        await store.serve_log(row)
        await store.feedback(name, quality)


def test_processes_that_learn_at_once_hear_every_row_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = promised(FakePolicy())
        stores = [await open_store(f"sqlite:///{tmp_path}/store.db") for _ in range(3)]
        several = [learning(policy) for _ in stores]
        heard = 0
        for part in range(4):
            names = [f"r{part}-{i}" for i in range(7)]
            await judge(stores[part % 3], policy, names, quality=0.9)
            heard += len(names)
            pairs = [*zip(several, stores, strict=True)] * 2
            await asyncio.gather(*(one.sync(store) for one, store in pairs))
            await asyncio.gather(*(one.sync(store) for one, store in pairs))
            for one in several:
                assert one.alarm is not None
                assert one.alarm.feedbacks == heard
        states = {json.dumps(packed(one.alarm.to_state())) for one in several if one.alarm}
        assert len(states) == 1
        for store in stores:
            await store.close()

    run(scenario)


def test_an_alarm_outlives_a_restart_and_pruning_but_not_a_new_policy(tmp_path: Path) -> None:
    async def scenario() -> None:
        url = f"sqlite:///{tmp_path}/store.db"
        policy = promised(FakePolicy())
        store = await open_store(url)
        first = learning(policy)
        await judge(store, policy, [f"r{i}" for i in range(60)])
        await first.sync(store)
        assert first.alarm is not None
        assert first.alarm.alarmed
        await store.prune(1e12)
        await store.close()
        store = await open_store(url)
        again = learning(policy)
        assert again.alarm is not None
        assert not again.alarm.alarmed
        await again.sync(store)
        assert again.alarm.alarmed
        assert again.alarm.words() == first.alarm.words()
        other = promised(FakePolicy(), seed=1)
        new = learning(other)
        assert new.name != again.name
        await new.sync(store)
        assert new.alarm is not None
        assert not new.alarm.alarmed
        await store.close()

    run(scenario)


@pytest.mark.parametrize(
    "more", [{"how": "explored"}, {"how": "substitute"}, {"how": "alarm"}, {"point": "cheap"}]
)
def test_only_what_the_certificate_speaks_of_counts_for_the_alarm(more: dict[str, str]) -> None:
    policy = promised(FakePolicy())
    one = learning(policy)
    row = {"id": "r", "point": "certified", "how": "cascade", "quality": 0.0}
    assert one.alarm is not None
    one._hear([row])
    one._hear([{**row, **more}])
    assert one.alarm.feedbacks == 1


def test_what_could_not_be_written_was_not_heard() -> None:
    async def scenario() -> None:
        policy = promised(FakePolicy())
        store = await open_store("memory:")
        one = learning(policy)
        await judge(store, policy, ["a", "b"])
        learn = store.learn

        async def broken(*args: Any) -> bool:
            raise OSError("disk full")

        store.learn = broken  # type: ignore[method-assign, assignment]
        with pytest.raises(OSError, match="disk full"):
            await one.sync(store)
        assert one.alarm is not None
        assert one.alarm.feedbacks == 0
        store.learn = learn  # type: ignore[method-assign]
        await one.sync(store)
        assert one.alarm.feedbacks == 2
        await store.close()

    run(scenario)


def test_a_state_that_cannot_be_read_counts_as_none(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        policy = promised(FakePolicy())
        store = await open_store("memory:")
        one = learning(policy)
        assert await store.learn(one.name, 0, '{"alarm": {"plain": {}}}')
        await judge(store, policy, ["a"])
        await one.sync(store)
        assert "begins anew" in caplog.text
        assert one.alarm is not None
        assert one.alarm.feedbacks == 1
        await store.close()

    run(scenario)


def test_parts_of_others_stay_in_the_state() -> None:
    async def scenario() -> None:
        policy = promised(FakePolicy())
        store = await open_store("memory:")
        one = learning(policy)
        assert await store.learn(one.name, 0, '{"of another": 1}')
        await judge(store, policy, ["a"])
        await one.sync(store)
        assert json.loads((await store.learned(one.name))[1])["of another"] == 1
        await store.close()

    run(scenario)


def test_a_state_comes_back_as_it_was() -> None:
    alarm = learning(promised(FakePolicy())).alarm
    assert alarm is not None
    for i in range(20):
        alarm.observe(i / 20)
    plain, arrays = alarm.to_state()
    kept = json.loads(json.dumps(packed((plain, arrays))))
    back = type(alarm).from_state(*unpacked(kept))
    assert back.words() == alarm.words()
    assert back.evidence == alarm.evidence


def test_a_restarted_gateway_goes_on_falling_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = {"store": f"sqlite:///{tmp_path}/store.db"}
        async with rig(promised(FakePolicy()), server=dict(server)) as r:
            for _ in range(40):
                name = (await r.chat()).headers["x-pointsman-request-id"]
                await r.call("POST", "/v1/feedback", {"id": name, "quality": 0})
            assert r.gateway.alarm is not None
            assert r.gateway.alarm.alarmed
        async with rig(promised(FakePolicy()), server=dict(server)) as r:
            await r.gateway.sync()
            got = await r.chat()
            assert got.headers["x-pointsman-model"] == "large"
            assert got.headers["x-pointsman-why"].startswith("drift alarm")
            row = await r.gateway.store.served(got.headers["x-pointsman-request-id"])
            assert row is not None
            assert (row["how"], row["answered"]) == ("alarm", "large")

    run(scenario)


def test_shifted_predictions_warn_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.serve.gateway.SHIFT_EVERY", 1)
    pool = world("linear", models=3, seed=0)
    policy = fit_policy(
        pool.log(300, seed=1), pool.log(200, seed=2), (Single(), BeforeCall(Linear()))
    )
    for known in policy.expected["models"].values():
        known["predicted_quality"] = 0.05

    async def scenario() -> None:
        async with rig(policy) as r:  # type: ignore[arg-type]
            for i in range(150):
                last = await r.chat(f"query {i}", model="pointsman:best")
            assert r.gateway.generation.shift is not None
            assert r.gateway.generation.shift.shifted
            accept = {"accept": "application/json"}
            told = (await r.call("GET", "/status", headers=accept)).json
            assert told["shift"]["shifted"]
            assert not told["alarm"]["alarmed"]
            assert "Weaker sign" in (await r.call("GET", "/status")).body.decode()
            figures = (await r.call("GET", "/metrics")).body.decode()
            assert [x[-3:] for x in figures.splitlines() if "tion_shift{" in x] == ["1.0"]
            assert not last.headers["x-pointsman-why"].startswith("drift")

    run(scenario)
