"""Real policies, small enough to be fitted in a test."""

from pathlib import Path

from pointsman.frontier.points import Outcomes
from pointsman.pool.features import TextEncoder
from pointsman.pool.policy import PoolPolicy, expectations
from pointsman.pool.routers import Linear
from pointsman.pool.strategies import BeforeCall, Single
from pointsman.pool.strategies.strategy import outcomes
from pointsman.pool.synthetic import world


def save_policy(path: Path, seed: int = 0) -> PoolPolicy:
    """Fit a policy over three models on a synthetic log, and write it."""
    pool = world("linear", models=3, seed=seed)
    train, validation = pool.log(400, seed=seed + 1), pool.log(300, seed=seed + 2)
    encoder = TextEncoder().fit(train)
    features, seen = encoder.transform(train), encoder.transform(validation)
    parts = [s.fit(train, features) for s in (Single(), BeforeCall(Linear()))]
    reference = int(train.mean_quality().argmax())
    reached, strategies = [], []
    for part in parts:
        prediction = part.predict(seen)
        settings = part.settings(validation, prediction)
        strategies.append((part, settings))
        reached.append(outcomes(validation, part, prediction, settings, reference))
    policy = PoolPolicy.make(
        encoder=encoder,
        models=train.models,
        strategies=strategies,
        validation=Outcomes.join(reached),
        reference=train.models[reference],
        expected=expectations(validation, prediction, train.models[reference]),
    )
    policy.save(path)
    return policy
