"""What routing is measured against: mixing by chance, and the best that hindsight allows."""

from dataclasses import replace

import numpy as np

from pointsman.frontier.points import Frontier, Outcomes, Point


def random_mixing(frontier: Frontier) -> Frontier:
    """The straight lines between members: what sending inputs by chance reaches.

    The points are the corners of the hull; any cost between two corners is reached by `mix`. A
    router that looks at its inputs has to lie above these lines (the "zero router" of RouterBench,
    2403.12031).
    """
    return replace(frontier.hull(), name="random mixing")


def oracle(outcomes: Outcomes) -> Point:
    """Per input the best quality of any setting, at the least cost that reaches it.

    Known only in hindsight, so it bounds every router among these settings: none has a higher mean
    quality, and none with the same quality on every input is cheaper.
    """
    best = outcomes.quality.max(axis=0)
    cost = np.where(outcomes.quality == best, outcomes.cost, np.inf).min(axis=0)
    return Point("oracle", float(best.mean()), float(cost.mean()))
