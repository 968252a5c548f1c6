"""Predictions that are used again for as long as what they depend on stays the same.

Legend: n samples.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from pointsman.route import Route
from pointsman.steps.policies.plain import without
from pointsman.steps.sampling import Computed, Moment, Settled


@dataclass(frozen=True)
class WhenChanged:
    """One evaluation, made only for samples that changed since it was made last (RADD, 2406.03736).

    The result is that of evaluating at every step, exactly, if the evaluation does not read the
    time. Each sample of a batch is looked at by itself.
    """

    evaluation: int = 0

    def choose(self, now: Moment, memory: Any) -> Route:
        """The samples that differ from when they were evaluated."""
        route = now.everyone(self.evaluation)
        if memory is None:
            return route
        same = (now.x == memory[0]).flatten(1).all(dim=1)
        return without(route, same)

    def settle(self, now: Moment, computed: Computed, memory: Any) -> Settled:
        """What was computed now or before; remembers x and the predictions for it."""
        earlier = None if memory is None else memory[1]
        prediction = replace(computed, earlier=earlier).prediction()
        return Settled(prediction, (torch.clone(now.x), prediction))
