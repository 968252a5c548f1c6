"""Real policies, small enough to be fitted in a test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rig import FakePolicy

from pointsman.frontier.certify import certify
from pointsman.frontier.points import Outcomes
from pointsman.pool.features import TextEncoder
from pointsman.pool.log import Log
from pointsman.pool.policy import PoolPolicy, expectations
from pointsman.pool.routers import Linear
from pointsman.pool.strategies import BeforeCall, Single
from pointsman.pool.strategies.strategy import outcomes
from pointsman.pool.synthetic import world


def save_policy(path: Path, seed: int = 0) -> PoolPolicy:
    """Fit a policy over three models on a synthetic log, and write it."""
    pool = world("linear", models=3, seed=seed)
    train, validation = pool.log(400, seed=seed + 1), pool.log(300, seed=seed + 2)
    policy = fit_policy(train, validation, (Single(), BeforeCall(Linear())))
    policy.save(path)
    return policy


def fit_policy(train: Log, validation: Log, parts: Sequence[Any]) -> PoolPolicy:
    """A policy of these strategies."""
    encoder = TextEncoder().fit(train)
    features, seen = encoder.transform(train), encoder.transform(validation)
    reference = int(train.mean_quality().argmax())
    reached, strategies = [], []
    for part in parts:
        prediction = part.fit(train, features).predict(seen)
        settings = part.settings(validation, prediction)
        strategies.append((part, settings))
        reached.append(outcomes(validation, part, prediction, settings, reference))
    return PoolPolicy.make(
        encoder=encoder,
        models=train.models,
        strategies=strategies,
        validation=Outcomes.join(reached),
        reference=train.models[reference],
        expected=expectations(validation, prediction, train.models[reference]),
    )


def promised(policy: FakePolicy, seed: int = 0) -> FakePolicy:
    """The same policy with a certificate."""
    rng = np.random.default_rng(seed)
    reference = (rng.random(2000) < 0.9).astype(float)
    cost = np.ones((1, 2000))
    kept = Outcomes(("same",), reference[None], cost, reference, cost[0], "US$")
    policy.certificate = certify(kept, 0.01, 0.95).certificate.to_dict()
    policy.expected = {"models": {policy.reference: {"quality": float(reference.mean())}}}
    return policy
