"""Which setting is picked: candidates and order from validation, the promise from calibration.

Legend: S settings, N queries.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pointsman.frontier import Frontier, Knob, Outcomes, Pick, certify, safest_first

SHARES = tuple(share / 20 for share in range(1, 20))
SEED = 13
CHANCE = "chance"
LONGEST_SEQUENCE = 12


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


class Choice(NamedTuple):
    """The pick and its certificate in words.

    Args:
        pick: the cheapest setting whose drop is certified; the reference alone where none is.
        words: in plain sentences.
    """

    pick: Pick
    words: str


def choose(
    validation: Sequence[Outcomes],
    calibration: Sequence[Outcomes],
    reference: Knob,
    max_drop: float,
    confidence: float,
    *,
    among: Collection[Knob] | None = None,
) -> Choice:
    """Pick the cheapest setting that can be certified, of those that may be picked.

    Candidates and the order in which they are tested come from validation; calibration queries,
    seen by neither, decide. Where nothing cheaper passes, the reference is picked, which loses
    nothing by definition; the words then say what the first cheaper setting lacks.
    """
    order = testing_order(Outcomes.join(list(validation)), reference, max_drop)
    known = Outcomes.join(list(calibration))
    found = certify(known, max_drop, confidence, order, among=among)
    if found.knob != reference:
        return Choice(found, found.certificate.words())
    kept = replace(
        found.certificate,
        certified=True,
        promised_drop=0.0,
        p_value=0.0,
        more_inputs=0,
        by_method={},
    )
    words = f"{reference!r} is the reference itself, which loses nothing by definition."
    cheaper = [knob for knob in order[1:] if among is None or knob in among]
    if cheaper:
        first = certify(known, max_drop, confidence, cheaper[:1]).certificate
        words += f" About the safest cheaper setting: {first.words()}"
    else:
        words += " No cheaper setting that may be picked lost little enough on validation."
    return Choice(replace(found, certificate=kept), words)


def testing_order(validation: Outcomes, reference: Knob, max_drop: float) -> list[Knob]:
    """The settings to test, safest first, at even steps of cost.

    Costs of models differ by factors of a hundred, but what can be promised lies close to the
    reference: settings whose mean drop on validation is already above the limit are left out, all
    but the first, and the steps are even in money, not in its logarithm.
    """
    means = dict(zip(validation.knobs, validation.cost.mean(axis=1).tolist(), strict=True))
    drops = dict(zip(validation.knobs, validation.drops().mean(axis=1).tolist(), strict=True))
    cheaper = [knob for knob, cost in means.items() if cost < means[reference] * (1 - 1e-9)]
    if not cheaper:
        return [reference]
    safest = safest_first(validation.choose(cheaper))
    within = sum(drops[knob] <= max_drop for knob in safest)
    kept = [knob for knob in safest if drops[knob] <= max_drop] + [
        knob for knob in safest if drops[knob] > max_drop
    ][: 0 if within else 1]
    costs = np.array([means[knob] for knob in kept])
    marks = np.linspace(costs.max(), costs.min(), LONGEST_SEQUENCE)
    places = sorted({int(np.abs(costs - mark).argmin()) for mark in marks})
    return [reference, *(kept[place] for place in places)]


def _words(low: Knob, high: Knob, share: float) -> str:
    names = [str(knob).split(": ", 1)[-1] for knob in (low, high)]
    return f"{CHANCE}: {100 * share:.0f}% {names[1]}, else {names[0]}"
