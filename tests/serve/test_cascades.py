"""A cascade that was really fitted, served: it asks, reads the signal, and goes on or stops."""

from collections import Counter

import pytest
from policies import fit_policy
from rig import rig, run
from stub_upstream import Behaviour

from pointsman.pool.policy import PoolPolicy
from pointsman.pool.strategies import Chain, Single
from pointsman.pool.synthetic import world


@pytest.fixture(scope="module")
def cascade() -> PoolPolicy:
    """Asks a cheap model first, and goes on where its confidence is low."""
    pool = world("signals", models=2, seed=0)
    train, validation = pool.log(200, seed=1), pool.log(150, seed=2)
    return fit_policy(train, validation, (Single(), Chain("confidence")))


def test_a_fitted_cascade_stops_at_sure_answers_and_goes_on_from_unsure_ones(
    cascade: PoolPolicy,
) -> None:
    async def scenario() -> None:
        signals = {"confidence": {"kind": "logprobs"}}
        async with rig(cascade, signals=signals) as r:  # type: ignore[arg-type]
            asked: dict[float, Counter[str]] = {}
            for logprob in (-0.0001, -9.0):
                r.stub.default = Behaviour(logprob=logprob)
                r.stub.served.clear()
                for i in range(20):
                    got = await r.chat(f"query {i}", model="pointsman:0.5")
                    assert got.status == 200
                    assert "x-pointsman-why" in got.headers
                asked[logprob] = r.stub.served.copy()
            sure, unsure = asked[-0.0001].total(), asked[-9.0].total()
            assert unsure > sure
            assert (await r.gateway.store.spent(0))[1] == 0

    run(scenario)
