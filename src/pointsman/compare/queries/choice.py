"""Which setting is picked: candidates and order from validation, the promise from calibration.

Legend: S settings, N queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pointsman.compare.ways import testing_order
from pointsman.frontier import Frontier, Knob, Outcomes, Pick, certify

SHARES = tuple(share / 20 for share in range(1, 20))
SEED = 13
CHANCE = "chance"


@dataclass(frozen=True)
class Mixture:
    """Two models by chance: the zero router between two corners of the hull of single models."""

    knob: str
    low: Knob
    high: Knob
    share: float  # of the dearer


def mixtures(singles: Outcomes) -> list[Mixture]:
    """Chance mixtures along the hull of the models alone, found on validation."""
    hull = Frontier.from_outcomes("models", singles).hull().points
    return [
        Mixture(_words(low.knob, high.knob, share), low.knob, high.knob, share)
        for low, high in pairwise(hull)
        for share in SHARES
    ]


def mixed(singles: Outcomes, found: Sequence[Mixture], seed: int = SEED) -> Outcomes:
    """What tossing a coin for each query reached.

    A coin is tossed for each query, as a server would, rather than taking the expectation: quality
    that is right or wrong stays so, and the exact test applies.
    """
    coin = np.random.default_rng(seed).random(len(singles))
    quality, cost = [], []
    for mixture in found:
        high = coin < mixture.share
        ends = singles.setting(mixture.low), singles.setting(mixture.high)
        quality.append(np.where(high, singles.quality[ends[1]], singles.quality[ends[0]]))
        cost.append(np.where(high, singles.cost[ends[1]], singles.cost[ends[0]]))
    return Outcomes(
        tuple(mixture.knob for mixture in found),
        np.stack(quality),
        np.stack(cost),
        singles.reference_quality,
        singles.reference_cost,
        singles.unit,
    )


def pick(
    validation: Sequence[Outcomes],
    calibration: Sequence[Outcomes],
    reference: Knob,
    max_drop: float,
    confidence: float,
) -> Pick:
    """The cheapest setting whose drop is certified; the reference alone where none is.

    Candidates and the order in which they are tested come from validation; calibration queries,
    seen by neither, decide. The reference stands first: it loses nothing, so that its test fails
    only where the queries are too few for any other.
    """
    known = Outcomes.join(list(validation))
    order = [knob for knob in testing_order(known) if knob != reference]
    costs = dict(zip(known.knobs, known.cost.mean(axis=1), strict=True))
    cheaper = [knob for knob in order if costs[knob] < costs[reference]]
    return certify(Outcomes.join(list(calibration)), max_drop, confidence, [reference, *cheaper])


def _words(low: Knob, high: Knob, share: float) -> str:
    names = [str(knob).split(": ", 1)[-1] for knob in (low, high)]
    return f"{CHANCE}: {100 * share:.0f}% {names[1]}, else {names[0]}"
