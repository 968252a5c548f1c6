"""The point "online": it starts from the policy, learns from feedback, and forgets nothing."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policies import fit_policy
from rig import FakePolicy, Rig, rig, run, tables

from pointsman.errors import InputError
from pointsman.pool.policy import PoolPolicy
from pointsman.pool.routers import Linear
from pointsman.pool.strategies import BeforeCall, Single
from pointsman.pool.synthetic import world
from pointsman.serve.config import Serving, config_from
from pointsman.serve.deciding import Decider
from pointsman.serve.online import Online, price_at
from pointsman.serve.refusal import RefusalError
from pointsman.serve.request import parse
from pointsman.serve.store import Key

KINDS = pytest.mark.parametrize("kind", ["thompson", "ucb"])


@pytest.fixture(scope="module")
def policy() -> PoolPolicy:
    pool = world("clusters", models=3, seed=1)
    logs = pool.log(300, seed=1), pool.log(200, seed=2)
    return fit_policy(*logs, (Single(), BeforeCall(Linear())))


def row(online: Online, model: str, quality: float, **more: Any) -> dict[str, Any]:
    context = dict.fromkeys(online.models, 0.5)
    kept = {"context": context, "answered": model, "how": "online", "cost": 0.0}
    return {**kept, "quality": quality, **more}


def test_the_price_is_what_the_hull_pays_at_the_default_point(policy: PoolPolicy) -> None:
    corners = policy.points
    assert len(corners) > 2
    slopes = [(b.quality - a.quality) / (b.cost - a.cost) for a, b in pairwise(corners)]
    assert price_at(policy, corners[0].cost) == pytest.approx(slopes[0])
    assert price_at(policy, (corners[1].cost + corners[2].cost) / 2) == pytest.approx(slopes[1])
    assert price_at(policy, 1e9) == pytest.approx(slopes[-1])


@KINDS
def test_without_feedback_the_model_that_the_policy_expects_most_of_leads(
    policy: PoolPolicy, kind: Any
) -> None:
    online = Online(policy, Serving(online=kind))
    worth = np.array([0.1, 0.9, 0.3])
    _, shares = online.choose(worth, [0, 1, 2], lambda: 0.5)
    assert shares.argmax() == 1
    assert shares.sum() == pytest.approx(1)
    assert shares.min() > 0
    _, shares = online.choose(worth, [0, 2], lambda: 0.5)
    assert shares[1] == 0
    assert shares.argmax() == 2


@KINDS
def test_feedback_outweighs_what_was_expected(policy: PoolPolicy, kind: Any) -> None:
    online = Online(policy, Serving(online=kind))
    first, second, third = policy.models
    for _ in range(300):
        online.learn(row(online, first, 1.0))
        online.learn(row(online, second, 0.0))
        online.learn(row(online, third, 0.0))
    _, shares = online.choose(np.full(3, 0.5), [0, 1, 2], lambda: 0.5)
    assert shares[0] > 0.9
    online.reset()
    for _ in range(300):  # as good, and so dear that it is not worth it
        online.learn(row(online, first, 1.0, cost=5.0 / online.price))
    _, shares = online.choose(np.full(3, 0.5), [0, 1, 2], lambda: 0.5)
    assert shares[0] < 0.1


def test_rows_that_do_not_tell_whose_answer_it_was_are_left_aside(policy: PoolPolicy) -> None:
    online = Online(policy, Serving(online="thompson"))
    first = policy.models[0]
    for more in (
        {"how": "cascade"},
        {"how": "substitute"},
        {"context": None},
        {"cost": None},
        {"answered": "gone"},
        {"context": {first: 0.5}},
    ):
        online.learn(row(online, first, 1.0, **more))
    assert online.bandit._fit.now == 0
    online.learn(row(online, first, 1.0))
    assert online.bandit._fit.now == 1


def test_it_needs_costs_in_dollars_and_keys_without_a_floor(policy: PoolPolicy) -> None:
    other = FakePolicy()
    other.unit = "seconds"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="costs are US"):
        Online(other, Serving(online="ucb"))  # type: ignore[arg-type]
    config = config_from(tables("http://x", policy.models), Path())
    made = Decider(policy, config, online=Online(policy, Serving(online="ucb")))
    body = b'{"model": "pointsman:online", "messages": [{"role": "user", "content": "x"}]}'
    with pytest.raises(RefusalError, match="a bandit cannot keep"):
        made.plan(parse(body), Key(1, "ada", floor="cheap"))
    assert "pointsman:online" in made.points()
    assert made.plan(parse(body), Key(1, "ada")).how == "online"
    with pytest.raises(RefusalError, match="there is no model"):
        Decider(policy, config).plan(parse(body))


async def ask(r: Rig, many: int, good: str | None) -> Counter[str]:
    """Requests for the point, each with feedback: 1 for one model, 0 for the others."""
    found: Counter[str] = Counter()
    for i in range(many):
        got = await r.chat(f"query {i % 7}", model="pointsman:online")
        assert got.status == 200
        assert "not certified" in got.headers["x-pointsman-why"]
        assert got.headers["x-pointsman-point"] == "online"
        model, name = (got.headers[f"x-pointsman-{part}"] for part in ("model", "request-id"))
        found[model] += 1
        kept = await r.gateway.store.served(name)
        assert kept is not None
        assert kept["propensity"] == pytest.approx(kept["propensities"][model])
        assert sum(kept["propensities"].values()) == pytest.approx(1)
        if good is not None:
            body = {"id": name, "quality": float(model == good)}
            assert (await r.call("POST", "/v1/feedback", body)).status == 200
    return found


def test_served_it_learns_and_a_restart_loses_nothing(policy: PoolPolicy, tmp_path: Path) -> None:
    async def scenario() -> None:
        options: dict[str, Any] = {
            "policy_table": {"online": "thompson"},
            "server": {"store": f"sqlite:///{tmp_path}/store.db"},
        }
        good = policy.models[1]
        async with rig(policy, **options) as r:  # type: ignore[arg-type]
            for name in policy.models:  # so that all are known
                online = r.gateway.generation.learning.online
                assert online is not None
                context = dict.fromkeys(policy.models, 0.5)
                for i in range(60):
                    kept: dict[str, Any] = {"id": f"{name}{i}", "time": 1.0, "key": 0}
                    kept |= {"model": name, "answered": name, "how": "online", "cost": 0.0}
                    kept |= {"context": context, "policy": r.gateway.generation.learning.name}
                    await r.gateway.store.serve_log(kept)
                    await r.gateway.store.feedback(f"{name}{i}", float(name == good))
            await r.gateway.sync()
            after = await ask(r, 30, good)
            assert after[good] > 15
            state = online.bandit._fit.arrays()
        async with rig(policy, **options) as r:  # type: ignore[arg-type]
            again = r.gateway.generation.learning.online
            assert again is not None
            assert again.bandit._fit.now == 0
            await r.gateway.sync()
            for part, array in again.bandit._fit.arrays().items():
                np.testing.assert_array_equal(array, state[part])
            assert (await ask(r, 10, None))[good] > 5

    run(scenario)
