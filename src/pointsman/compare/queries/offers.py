"""Which strategies are tried on a log: the trivial ones always, the others as far as it allows."""

from dataclasses import dataclass
from typing import Literal

from pointsman.pool.log import Log
from pointsman.pool.routers import (
    Blend,
    GradientBoosting,
    KMeans,
    Linear,
    MatrixFactorization,
    MultilayerPerceptron,
    NearestNeighbours,
    Pairwise,
    PerTask,
    PromptLength,
    SkillProfile,
)
from pointsman.pool.strategies import BeforeCall, Chain, RoutedCascade, Single
from pointsman.pool.strategies.strategy import Strategy

Kind = Literal["alone", "trivial", "before", "after", "both"]

KINDS: dict[Kind, str] = {
    "alone": "never",
    "trivial": "before, hardly looking",
    "before": "before the call",
    "after": "after an answer",
    "both": "before and after",
}
TASK = "task"


@dataclass(frozen=True)
class Offer:
    """A strategy to be tried, and when it decides."""

    strategy: Strategy
    kind: Kind


def offers(log: Log, *, tasks: bool) -> list[Offer]:
    """Every strategy that a log allows, the models alone first.

    Args:
        log: its signals say which deferral rules there are.
        tasks: whether the task of a query is known.
    """
    found = [Offer(Single(), "alone"), Offer(BeforeCall(PromptLength()), "trivial")]
    if tasks:
        found.append(Offer(BeforeCall(PerTask()), "trivial"))
    routers = (
        Linear(),
        NearestNeighbours(),
        KMeans(),
        MatrixFactorization(),
        GradientBoosting(),
        MultilayerPerceptron(),
        SkillProfile(),
        Pairwise(),
        Blend(),
    )
    found += [Offer(BeforeCall(router), "before") for router in routers]
    for signal in log.signals:
        found.append(Offer(Chain(signal), "after"))
        found.append(Offer(RoutedCascade(Linear(), signal), "both"))
    return found
