"""N2N Learning: layers are removed from a teacher, then what is left is shrunk, by two policies.

Ashok et al. 2017, "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement
Learning", arXiv 1709.06030. A child is rewarded for its accuracy and for what it saves,

    R = A * C(2 - C),   A = quality / quality of the teacher,   C = 1 - cost / cost of the teacher,

and -1 if it does not run. Both stages are `policy_search` with this reward: first `LayerwisePolicy`
over choices (False, True), one a layer; then, on the best child, `AutoregressivePolicy` over
`MULTIPLIERS`, one choice for each layer and size. The published rates are 0.003 and 0.1.

Where we depart: every draw is credited with its own reward; the published code gives all draws of
an update their mean. The baseline is a moving average instead of the mean of all past rewards. Of
the multipliers of the published code each is there once.
"""

from math import floor

from pointsman.errors import InputError
from pointsman.supernet.search.problem import Evaluation

MULTIPLIERS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FAILED = -1.0
SOFT = 15  # updates until a constraint that is missed has its full weight


class CompressionReward:
    """How good a child is beside its teacher, from -1 to about 1.

    Args:
        quality: of the teacher, above 0.
        cost: of the teacher, above 0, in the unit of the problem.
        least_quality: a child below it misses the constraint; None: no constraint.
        most_cost: a child above it does, but is evaluated; None: no constraint. The budget of a
            problem is the one that no child may exceed.

    Raises:
        InputError: a teacher of no quality or cost.
    """

    def __init__(
        self,
        quality: float,
        cost: float,
        *,
        least_quality: float | None = None,
        most_cost: float | None = None,
    ) -> None:
        if not (quality > 0 and cost > 0):
            raise InputError(
                f"a teacher has a quality and a cost above 0, got {quality} and {cost}"
            )
        self.quality, self.cost = quality, cost
        self.least_quality, self.most_cost = least_quality, most_cost

    def __call__(self, child: Evaluation, update: int) -> float:
        """R, or where a constraint is missed (e - 1) + e * R.

        e = (1 - update / 15)^4 until update 15 and 0 from then on: a missed constraint counts for
        nothing at first and gives -1 later.
        """
        if child.failed:
            return FAILED
        saved = 1 - child.cost / self.cost
        reward = child.quality / self.quality * saved * (2 - saved)
        poor = self.least_quality is not None and child.quality < self.least_quality
        dear = self.most_cost is not None and child.cost > self.most_cost
        if not (poor or dear):
            return reward
        soft = max(0.0, 1 - update / SOFT) ** 4
        return (soft - 1) + soft * reward


def shrunk(size: int, multiplier: float, least: int = 1) -> int:
    """A size times a multiplier, rounded down, and `least` or more."""
    return max(floor(size * multiplier), least)
