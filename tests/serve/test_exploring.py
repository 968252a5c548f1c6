"""Exploration: how often, where never, and that propensities are logged as they were."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from policies import fit_policy, promised
from rig import FakePolicy, rig, run, tables

from pointsman.errors import InputError
from pointsman.pool.online import replay
from pointsman.pool.policy import PoolPolicy
from pointsman.pool.routers import Linear
from pointsman.pool.strategies import BeforeCall, Single
from pointsman.pool.synthetic import world
from pointsman.serve.config import config_from
from pointsman.serve.deciding import Decider, Plan
from pointsman.serve.request import parse
from pointsman.serve.store import Key

ASKED = b'{"model": "pointsman:%b", "messages": [{"role": "user", "content": "hello"}]}'


def decider(served: FakePolicy, **more: Any) -> Decider:
    config = config_from(tables("http://x", served.models, **more), Path())
    rng = np.random.default_rng(0)
    return Decider(cast(PoolPolicy, served), config, lambda: float(rng.random()))


def plans(made: Decider, point: str, many: int, key: Key | None = None) -> Iterator[Plan]:
    request = parse(ASKED % point.encode())
    return (made.plan(request, key) for _ in range(many))


def test_a_share_is_drawn_evenly_with_the_probabilities_that_are_logged() -> None:
    made = decider(FakePolicy(), policy={"explore": 0.3})
    found = list(plans(made, "cheap", 3000))
    explored = [plan for plan in found if plan.how == "explored"]
    assert len(explored) / 3000 == pytest.approx(0.3, abs=0.03)
    drawn = Counter(plan.model for plan in explored)
    assert min(drawn.values()) / len(explored) == pytest.approx(1 / 3, abs=0.05)
    expected = {"small": 0.8, "middle": 0.1, "large": 0.1}
    for plan in found:
        assert plan.propensities == pytest.approx(expected)
        assert plan.propensity == pytest.approx(expected[plan.model])
    assert all("explored" in plan.why and plan.final for plan in explored)
    assert {plan.how for plan in found} == {"policy", "explored"}


def test_the_certified_point_and_floors_are_left_alone_unless_it_is_said() -> None:
    floor = Key(1, "ada", floor="cheap")
    made = decider(FakePolicy(), policy={"explore": 1.0})
    assert {p.how for p in plans(made, "certified", 20)} == {"policy"}
    assert {p.how for p in plans(made, "best", 20, floor)} == {"policy"}
    assert {p.how for p in plans(made, "best", 20)} == {"explored"}
    made = decider(FakePolicy(), policy={"explore": 1.0, "explore_certified": True})
    assert {p.how for p in plans(made, "certified", 20)} == {"explored"}
    assert {p.how for p in plans(made, "certified", 20, floor)} == {"policy"}
    alarmed = made.plan(parse(ASKED % b"certified"), alarmed=True)
    assert (alarmed.how, alarmed.model) == ("alarm", "large")
    request = parse((ASKED % b"x").replace(b"pointsman:x", b"small"))
    named = made.plan(request)
    assert (named.model, named.how, named.propensities) == ("small", None, None)


def test_only_models_that_can_take_the_request_are_drawn() -> None:
    models = {"small": {"tools": False}}
    made = decider(FakePolicy(), policy={"explore": 0.5}, models=models)
    body = (ASKED % b"best")[:-1] + b', "tools": [{"type": "function"}]}'
    found = [made.plan(parse(body)) for _ in range(300)]
    assert {plan.model for plan in found} == {"middle", "large"}
    assert all("small" not in plan.others for plan in found)
    assert found[0].propensities == pytest.approx({"small": 0.0, "middle": 0.25, "large": 0.75})
    cheap = body.replace(b"best", b"cheap")  # whose own choice cannot take it
    assert {made.plan(parse(cheap)).propensity for _ in range(100)} == {None}


def test_a_cascade_keeps_its_share_and_the_rest_is_drawn() -> None:
    signals = {"sure": {"kind": "logprobs"}}
    made = decider(FakePolicy(signal="sure"), policy={"explore": 0.3}, signals=signals)
    for plan in plans(made, "cheap", 100):
        assert plan.propensities == pytest.approx(dict.fromkeys(("small", "middle", "large"), 0.1))
        if plan.how == "explored":
            assert plan.final
            assert plan.propensity == pytest.approx(0.1)
        else:
            assert (plan.how, plan.model) == ("cascade", "small")
            assert plan.propensity == pytest.approx(0.7)


def test_a_share_over_one_is_refused() -> None:
    with pytest.raises(InputError, match="explore is a share"):
        decider(FakePolicy(), policy={"explore": 1.5})


def test_explored_answers_of_the_certified_point_do_not_count_for_the_alarm() -> None:
    async def scenario() -> None:
        table = {"explore": 1.0, "explore_certified": True}
        async with rig(promised(FakePolicy()), policy_table=table) as r:
            for _ in range(3):
                got = await r.chat()
                assert got.headers["x-pointsman-why"].startswith("explored")
                name = got.headers["x-pointsman-request-id"]
                await r.call("POST", "/v1/feedback", {"id": name, "quality": 0})
            assert r.gateway.alarm is not None
            assert r.gateway.alarm.feedbacks == 0

    run(scenario)


def test_what_was_explored_can_be_replayed() -> None:
    pool = world("clusters", models=3, seed=1)
    policy = fit_policy(
        pool.log(400, seed=1), pool.log(200, seed=2), (Single(), BeforeCall(Linear()))
    )
    log = pool.log(500, seed=3)
    worth = pool.truth(log).quality
    rng = np.random.default_rng(0)

    async def scenario() -> None:
        table = {"explore": 0.6}
        rows = []
        async with rig(policy, policy_table=table, server={"log_text": True}) as r:  # type: ignore[arg-type]
            for i, query in enumerate(log.queries):
                got = await r.chat(str(query), model="pointsman:cheap")
                name = got.headers["x-pointsman-request-id"]
                m = log.models.index(got.headers["x-pointsman-model"])
                judged = float(rng.random() < worth[i, m])
                await r.gateway.store.feedback(name, judged)
                rows.append(await r.gateway.store.served(name))
        found = replay(policy, [row for row in rows if row], point="best")
        assert not found.refused
        chosen = [policy.decide(q, point="best", chance=0.5).model for q in log.queries]
        truth = np.mean([worth[i, log.models.index(m)] for i, m in enumerate(chosen)])
        estimate = found.quality["doubly robust"]
        assert estimate.low - 0.02 <= truth <= estimate.high + 0.02

    run(scenario)
