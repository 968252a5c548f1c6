"""Budgets that are spread evenly: one for all processes, and kept over restarts."""

from pathlib import Path
from typing import Any

import pytest
from rig import FakePolicy, rig, run

from pointsman.serve.keys import hash_key, new_key
from pointsman.serve.store import Key

PRICE = {"price_input": 1000.0, "price_output": 0.0}


def server(folder: Path, **more: Any) -> dict[str, Any]:
    return {"store": f"sqlite:///{folder}/store.db", **more}


def test_a_restart_goes_on_with_what_was_spent(tmp_path: Path) -> None:
    async def scenario() -> None:
        # less for the whole day than six answers cost: overspent at any hour of it
        table = {"pace": 0.0001, "pace_period": "day"}
        async with rig(policy_table=dict(table), server=server(tmp_path), model=PRICE) as r:
            assert r.gateway.generation.pacer is not None
            for _ in range(6):
                last = await r.chat(model="pointsman:best")
            spent = r.gateway.generation.pacer.spent
            assert spent == pytest.approx(6 * float(last.headers["x-pointsman-cost-usd"]))
        async with rig(policy_table=dict(table), server=server(tmp_path), model=PRICE) as r:
            pacer = r.gateway.generation.pacer
            assert pacer is not None
            assert pacer.spent == 0
            await r.gateway.sync()
            assert pacer.spent == pytest.approx(spent)
            assert pacer._course.sum() == pytest.approx(6)
            assert pacer.pending == pytest.approx(0)
            assert (await r.chat()).headers["x-pointsman-model"] == "small"

    run(scenario)


def test_two_processes_share_a_budget(tmp_path: Path) -> None:
    async def scenario() -> None:
        table = {"pace": 100.0}
        options: Any = {"policy_table": table, "server": server(tmp_path), "model": PRICE}
        async with rig(**options) as one, rig(**options) as other:
            for r in (one, other, other):
                await r.chat(model="pointsman:best")
            for r in (one, other):
                await r.gateway.sync()
            pacers = [r.gateway.generation.pacer for r in (one, other)]
            assert pacers[0] is not None
            assert pacers[1] is not None
            assert pacers[0].spent == pytest.approx(pacers[1].spent)
            assert pacers[0]._course.sum() == pytest.approx(3)
            paid = await one.gateway.store.paid(0.0)
            assert pacers[0].spent == pytest.approx(paid[0][0])

    run(scenario)


def test_budgets_of_keys_are_spread_apart_from_the_servers(tmp_path: Path) -> None:
    async def scenario() -> None:
        table = {"pace": 100.0, "pace_keys": True}
        options: Any = {
            "policy_table": table,
            "server": server(tmp_path, keys=True),
            "model": {**PRICE, "max_output": 10},
        }
        secrets = {}
        async with rig(**options) as r:
            for name, budget in (("ada", 50.0), ("bob", None)):
                secret = new_key()
                secrets[name] = {"authorization": f"Bearer {secret}"}
                key = Key(0, name, budget=budget, period="day")
                await r.gateway.store.add_key(key, hash_key(secret))
            for name in ("ada", "ada", "bob"):
                assert (await r.chat(headers=secrets[name])).status == 200
        async with rig(**options) as r:
            await r.gateway.sync()
            paid = await r.gateway.store.paid(0.0)
            (ada,) = r.gateway._pacers.values()
            server_pacer = r.gateway.generation.pacer
            assert server_pacer is not None
            assert ada.budget == 50.0
            ids = {key.name: key.id for key in await r.gateway.store.keys()}
            assert ada.spent == pytest.approx(paid[ids["ada"]][0])
            assert ada._course.sum() == pytest.approx(2)
            assert server_pacer.spent == pytest.approx(paid[ids["bob"]][0])

    run(scenario)


def test_what_is_under_way_stays_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(FakePolicy(), policy_table={"pace": 1.0}) as r:
            pacer = r.gateway.generation.pacer
            assert pacer is not None
            pacer.request(0.25)
            await r.gateway.sync()
            assert pacer.pending == 0.25
            pacer.spend(0.25, 0.25)
            assert (pacer.pending, pacer.spent) == (0.0, 0.25)

    run(scenario)
