"""How much of the plane of cost and quality a search has won, and how much there was to win.

The area between a front and a reference point that is worse than everything on it: the usual
measure of a search with two goals (Zitzler and Thiele 1999, IEEE Transactions on Evolutionary
Computation 3(4)), here with cost to be low and quality to be high.
"""

from collections.abc import Sequence

from pointsman.errors import InputError
from pointsman.supernet.search.problem import Evaluation, front


def hypervolume(evaluations: Sequence[Evaluation], *, cost: float, quality: float) -> float:
    """Area that the evaluations dominate, in units of cost times quality.

    Args:
        evaluations: failed ones, and those beyond the reference, count nothing.
        cost: of the reference point, above those that count.
        quality: of the reference point, below those that count.
    """
    within = [e for e in evaluations if e.cost < cost and e.quality > quality]
    total, floor = 0.0, quality
    for each in front(within):
        total += (cost - each.cost) * (each.quality - floor)
        floor = each.quality
    return total


def hypervolume_share(
    evaluations: Sequence[Evaluation], truth: Sequence[Evaluation], margin: float = 0.1
) -> float:
    """Hypervolume of a search over that of the whole space, where the whole space is known.

    Cost and quality are brought to [0, 1] by the least and the greatest of each in the truth; the
    reference point lies a margin beyond the worst of both.

    Args:
        evaluations: of the search.
        truth: of every genotype of the space, or of every affordable one.
        margin: in shares of the range of each.

    Raises:
        InputError: nothing in the truth succeeded, or it has but one cost or one quality.
    """
    known = [each for each in truth if not each.failed]
    if not known:
        raise InputError("a share of the hypervolume needs the truth, got no evaluation of it")
    dearest, cheapest = max(e.cost for e in known), min(e.cost for e in known)
    best, worst = max(e.quality for e in known), min(e.quality for e in known)
    if dearest == cheapest or best == worst:
        raise InputError(
            "a share of the hypervolume needs different costs and qualities in the truth, got "
            f"costs from {cheapest:g} to {dearest:g}, qualities from {worst:g} to {best:g}"
        )
    reference = {
        "cost": dearest + margin * (dearest - cheapest),
        "quality": worst - margin * (best - worst),
    }
    return hypervolume(evaluations, **reference) / hypervolume(known, **reference)
