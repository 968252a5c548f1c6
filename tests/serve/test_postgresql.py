"""The gateway on PostgreSQL; skipped where there is no server."""

import asyncio
from typing import Any

import pytest
from policies import promised
from rig import FakePolicy, rig, run

from pointsman.serve.keys import hash_key, new_key
from pointsman.serve.store import Key
from pointsman.serve.store.reading import read_served


def test_keys_ledger_feedback_and_pacing_work_on_postgresql(postgres_url: str) -> None:
    async def scenario() -> None:
        options: dict[str, Any] = {
            "server": {"store": postgres_url, "keys": True, "log_text": True},
            "policy_table": {"pace": 100.0},
        }
        secret = new_key()
        certified = {"model": "pointsman:certified"}
        shown = {"authorization": f"Bearer {secret}"}
        async with (
            rig(promised(FakePolicy()), **options) as one,
            rig(promised(FakePolicy()), **options) as other,
        ):
            assert (await one.chat()).status == 401
            key = await one.gateway.store.add_key(
                Key(0, "ada", budget=10.0, period="day", rate_per_minute=1000), hash_key(secret)
            )
            both = [one, other]
            asking = (both[i % 2].chat(headers=shown, **certified) for i in range(40))
            got = await asyncio.gather(*asking)
            assert {g.status for g in got} == {200}
            paid = sum(float(g.headers["x-pointsman-cost-usd"]) for g in got)
            settled, reserved = await other.gateway.store.spent(key.id)
            assert (settled, reserved) == (pytest.approx(paid), 0.0)
            assert await one.gateway.store.check() == []
            names = [g.headers["x-pointsman-request-id"] for g in got]
            for i, name in enumerate(names):
                body = {"id": name, "quality": 0}
                said = await both[i % 2].call("POST", "/v1/feedback", body, shown)
                assert said.status == 200
            for r in both:
                await r.gateway.sync()
                assert r.gateway.alarm is not None
                assert r.gateway.alarm.alarmed
                assert r.gateway.generation.pacer is not None
                assert r.gateway.generation.pacer.spent == pytest.approx(paid)
            for r in both:
                fell = await r.chat(headers=shown, **certified)
                assert fell.headers["x-pointsman-why"].startswith("drift alarm")
            streamed = await one.chat(headers=shown, stream=True)
            assert streamed.text
        rows = list(read_served(postgres_url))
        assert {row["query"] for row in rows} == {"hello there"}
        assert len(rows) == 43

    run(scenario)
