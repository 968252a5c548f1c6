"""A small pool with known truth and a policy fitted on its log, made once."""

import pytest

from pointsman.pool.features import TextEncoder
from pointsman.pool.policy import PoolPolicy
from pointsman.pool.routers import Linear
from pointsman.pool.strategies import BeforeCall, Single
from pointsman.pool.strategies.strategy import outcomes
from pointsman.pool.synthetic import world


@pytest.fixture(scope="session")
def pool():
    return world("clusters", models=3, seed=1)


@pytest.fixture(scope="session")
def policy(pool):
    train, validation = pool.log(600, seed=1), pool.log(300, seed=2)
    encoder = TextEncoder().fit(train)
    router, single = BeforeCall(Linear()), Single()
    fitted = []
    measured = []
    features = encoder.transform(validation)
    for strategy in (router, single):
        strategy.fit(train, encoder.transform(train))
        prediction = strategy.predict(features)
        settings = strategy.settings(validation, prediction)
        fitted.append((strategy, settings))
        measured.append(outcomes(validation, strategy, prediction, settings, 2))
    return PoolPolicy.make(
        encoder=encoder,
        models=train.models,
        strategies=fitted,
        validation=type(measured[0]).join(measured),
        reference=train.models[-1],
    )
