"""Points, fallbacks, pacing and the alarm."""

import base64
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from policies import promised
from rig import FakePolicy, rig, run, tables

from pointsman.errors import InputError
from pointsman.pool.policy import PoolPolicy
from pointsman.pool.routers.router import Prediction
from pointsman.serve.config import config_from
from pointsman.serve.deciding import Decider, _order, read_vector
from pointsman.serve.refusal import RefusalError


def test_models_that_are_as_good_come_first_by_cost_then_the_rest_by_quality() -> None:
    quality = np.array([[0.5, 0.9, 0.7, 0.8, 0.7]])
    cost = np.array([[1.0, 9.0, 4.0, 2.0, 3.0]])
    assert _order(Prediction(quality, cost), 2) == [3, 4, 1, 0]


def decider(served: FakePolicy, **more: Any) -> Decider:
    config = config_from(tables("http://x", served.models, **more), Path())
    return Decider(cast(PoolPolicy, served), config)


def test_what_the_policy_needs_must_be_configured() -> None:
    with pytest.raises(InputError, match=r"no \[signals.agreement\]"):
        decider(FakePolicy(signal="agreement"))
    with pytest.raises(InputError, match="no point 'none'"):
        decider(FakePolicy(), policy={"point": "none"})
    few = config_from(tables("http://x", ["small"]), Path())
    with pytest.raises(InputError, match=r"no \[models.middle\]"):
        Decider(cast(PoolPolicy, FakePolicy()), few)


def test_vectors_are_read_from_their_header() -> None:
    vector = np.array([1.5, -2.0], dtype="<f4")
    found = read_vector(base64.b64encode(vector.tobytes()).decode())
    assert found is not None
    np.testing.assert_array_equal(found, vector)
    assert read_vector(None) is None
    nan = base64.b64encode(np.array([np.nan], dtype="<f4").tobytes()).decode()
    for wrong in ("", "?", "AAA=", nan):
        with pytest.raises(RefusalError, match="x-pointsman-vector"):
            read_vector(wrong)


def test_pacing_goes_down_with_the_budget_and_never_below_the_floor() -> None:
    async def scenario() -> None:
        # A stub answer costs 26 micro-dollars here: the budget is used up at once.
        policy = {"pace": 0.00002, "pace_period": "day"}
        async with rig(policy_table=policy) as r:
            await r.chat()
            assert (await r.chat()).headers["x-pointsman-model"] == "small"
            asked = await r.chat(model="pointsman:best")
            assert asked.headers["x-pointsman-model"] == "large"
        async with rig(policy_table={**policy, "floor": "certified"}) as r:
            await r.chat()
            assert (await r.chat()).headers["x-pointsman-model"] == "middle"

    run(scenario)


def test_bad_feedback_on_the_certified_point_raises_the_alarm_and_falls_back() -> None:
    async def scenario() -> None:
        async with rig(promised(FakePolicy())) as r:
            assert r.gateway.alarm is not None
            names = [(await r.chat()).headers["x-pointsman-request-id"] for _ in range(60)]
            for name in names:
                await r.call("POST", "/v1/feedback", {"id": name, "quality": 0})
                await r.call("POST", "/v1/feedback", {"id": names[0], "quality": 0})
            assert r.gateway.alarm.alarmed
            assert r.gateway.alarm.feedbacks <= 60
            got = await r.chat()
            assert got.headers["x-pointsman-model"] == "large"
            assert got.headers["x-pointsman-why"].startswith("drift alarm")
            cheap = await r.chat(model="pointsman:cheap")
            assert cheap.headers["x-pointsman-model"] == "small"
            told = (await r.call("GET", "/metrics")).body.decode()
            assert [line[-3:] for line in told.splitlines() if "ate_alarm{" in line] == ["1.0"]

    run(scenario)


class Failing:
    """An encoder that asks elsewhere, where nobody answers."""


def test_a_query_that_cannot_be_encoded_goes_to_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(FakePolicy):
        encoder = Failing()

        def decide(self, query: str, **more: Any) -> Any:
            raise InputError("http://127.0.0.1:1 gives no embeddings")

    async def scenario() -> None:
        async with rig(Broken()) as r:
            assert (await r.chat()).status == 400
        monkeypatch.setattr("pointsman.serve.deciding.SLOW", (Failing,))
        async with rig(Broken()) as r:
            got = await r.chat()
            assert got.headers["x-pointsman-model"] == "large"
            assert "could not be encoded" in got.headers["x-pointsman-why"]

    run(scenario)
