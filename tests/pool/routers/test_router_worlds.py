"""Each router finds the structure it is made for, and none finds what is not there."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from router_logs import every_router, new

from pointsman.pool.features import TextEncoder
from pointsman.pool.features.features import Features
from pointsman.pool.log import Log
from pointsman.pool.routers import Constant
from pointsman.pool.synthetic import Kind, World, world

# One fixed penalty, or leaves of a fixed size, chosen for what text mostly shows.
WEAK = {"Linear", "Forest"}


@cache
def drawn(kind: Kind) -> tuple[World, Log, Features, Log, Features]:
    """A world of four models, 700 queries to learn from and 500 others."""
    pool = world(kind, models=4, seed=3)
    train, test = pool.log(700, seed=1, missing=0.05), pool.log(500, seed=2)
    encoder = TextEncoder().fit(train)
    return pool, train, encoder.transform(train), test, encoder.transform(test)


def error(router: Any, kind: Kind) -> float:
    """Mean squared error of the predicted quality against the truth, that of constants being 1."""
    pool, train, features, test, others = drawn(kind)
    truth = pool.truth(test).quality
    predicted = router.fit(features, train.quality, train.cost).predict(others).quality
    constant = Constant().fit(features, train.quality, train.cost).predict(others).quality
    return float(((predicted - truth) ** 2).mean() / ((constant - truth) ** 2).mean())


@pytest.mark.parametrize(
    ("kind", "name", "most"),
    [
        ("clusters", "KMeans", 0.3),
        ("clusters", "NearestNeighbours", 0.3),
        ("clusters", "SkillProfile", 0.5),
        ("clusters", "GradientBoosting", 0.7),
        ("clusters", "MultilayerPerceptron", 0.6),
        ("clusters", "Linear", 0.6),
        ("linear", "Linear", 0.8),
        ("linear", "MatrixFactorization", 0.9),
        ("linear", "Pairwise", 0.9),
        ("linear", "MultilayerPerceptron", 0.9),
        ("length", "PromptLength", 0.3),
        ("length", "GradientBoosting", 0.5),
        ("tasks", "PerTask", 0.2),
        ("clusters", "Forest", 0.8),
        ("clusters", "Blend", 0.5),
    ],
)
def test_finds_the_structure_of_its_own_world(kind: Kind, name: str, most: float) -> None:
    assert error(new(name), kind) < most


@pytest.mark.parametrize("name", [name for name in every_router() if name not in WEAK])
def test_finds_next_to_nothing_where_there_is_nothing(name: str) -> None:
    _, train, features, _, others = drawn("unlearnable")
    predicted = new(name).fit(features, train.quality, train.cost).predict(others).quality
    assert (predicted.std(axis=0) < 0.05).all()


@pytest.mark.parametrize("name", every_router())
def test_cost_follows_the_length_of_the_query(name: str) -> None:
    pool, train, features, test, others = drawn("length")
    truth = pool.truth(test).cost
    cost = new(name).fit(features, train.quality, train.cost).predict(others).cost
    off = np.abs(cost - truth).sum() / truth.sum()
    assert off < (0.3 if name in {"Constant", "PerTask"} else 0.06)
