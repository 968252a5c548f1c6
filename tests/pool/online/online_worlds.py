"""Small worlds that bandits are tried in."""

import json

import numpy as np

MEANS = np.array([0.75, 0.45, 0.55, 0.35])
AFTER = np.array([0.30, 0.80, 0.55, 0.35])
SLOPES = np.array([[0.4, -0.3], [-0.4, 0.3], [0.0, 0.1], [0.1, 0.0]])


def context(rng):
    return rng.uniform(-1, 1, size=2)


def chances(x, means):
    """(M,) probability of a reward: a line of the context where there is one."""
    return means if x is None else np.clip(0.5 + SLOPES @ x + (means - means.mean()) / 4, 0, 1)


def play(bandit, rounds, *, seed, means=MEANS, contextual=False):
    """(T,) regret of each round: the best arm's chance less that of the arm chosen."""
    rng = np.random.default_rng(seed)
    regret = np.zeros(rounds)
    for t in range(rounds):
        x = context(rng) if contextual else None
        now = chances(x, means)
        arm, _ = bandit.choose(x, None, rng)
        bandit.update(arm, float(rng.random() < now[arm]), x, cost=0.5)
        regret[t] = now.max() - now[arm]
    return regret


def saved_and_loaded(part):
    """The part after a trip through JSON and arrays."""
    plain, arrays = part.to_state()
    return type(part).from_state(
        json.loads(json.dumps(plain)), {name: array.copy() for name, array in arrays.items()}
    )
