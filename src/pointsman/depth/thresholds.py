"""A threshold for each exit: settings searched on validation, from the safest to the cheapest.

For a price on cost, the best thresholds are those with the largest sum over inputs of

    quality - price * cost,        cost as a share of the whole network's

One exit's best threshold, the others given, is exact and cheap to find: sort who comes there by how
sure the exit is, and let go the first so many whose gain against going on adds up highest. This is
repeated from the last exit to the first until nothing changes, for prices from low to high, each
starting from what the last one found; and for subsets of the exits, because a head that is left out
costs nothing. Each price gives at most one setting a subset, so there are few of them however many
exits there are, where a grid would have as many as its side to the power of the exits.

What was found is fitted to the validation inputs; what it is worth is for `certify` to say on
others.

Legend: S exits, N inputs.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pointsman.errors import InputError
from pointsman.run import Confidence, StageCosts, StoppingRule, stage_sureness

Floats = npt.NDArray[np.float64]
Setting = tuple[float, ...]  # S thresholds, +inf at exits that are left out, -inf at the last

PRICES = tuple(float(price) for price in np.geomspace(0.004, 4.0, 31))
MOST_SWEEPS = 12
MOST_EXITS = 6  # early exits up to which every subset is tried


def exit_settings(
    logits: Tensor,
    quality_SN: Tensor,
    costs: StageCosts,
    rule: Confidence | StoppingRule,
    *,
    prices: Sequence[float] = PRICES,
) -> list[Setting]:
    """Thresholds worth testing, which differ in six digits; the first lets nobody leave early.

    Args:
        logits: (S, N, ..., C) of every exit on every validation input.
        quality_SN: what each exit's answer is worth, in [0, 1].
        costs: of every exit.
        rule: how sure an exit is.
        prices: of the whole network's cost, in quality.

    Raises:
        InputError: shapes that do not fit one another, or no input.
    """
    exits, inputs = quality_SN.shape if quality_SN.ndim == 2 else (0, 0)
    if logits.shape[:2] != (exits, inputs) or len(costs) != exits or inputs == 0:
        raise InputError(
            "thresholds are searched on logits (exits, inputs, ..., classes), quality (exits, "
            f"inputs) and a cost for each exit, got {tuple(logits.shape)}, "
            f"{tuple(quality_SN.shape)} and {len(costs)} costs"
        )
    quality = quality_SN.detach().cpu().double().numpy()
    found: list[Setting] = [(*[math.inf] * (exits - 1), -math.inf)]
    for asked in _subsets(exits - 1):
        mask = [at in asked for at in range(exits - 1)]
        sure = stage_sureness(logits, rule, [*mask, True])
        search = _Search(sure.detach().cpu().double().numpy(), quality, costs, mask)
        found += search.settings(prices)
    return list({tuple(f"{t:.6g}" for t in setting): setting for setting in found}.values())


def _subsets(early: int) -> Iterator[tuple[int, ...]]:
    """Which early exits are asked: every choice of a few, else all, and evenly spread ones."""
    if early <= MOST_EXITS:
        for count in range(1, early + 1):
            yield from combinations(range(early), count)
        return
    seen = set()
    for count in (early, *(2**power for power in range(early.bit_length()) if 2**power < early)):
        for shift in range(early // count):
            chosen = tuple(min(early - 1, at * early // count + shift) for at in range(count))
            if chosen not in seen:
                seen.add(chosen)
                yield chosen


class _Search:
    """Coordinate ascent over the thresholds of the exits that are asked."""

    def __init__(
        self, sure_SN: Floats, quality_SN: Floats, costs: StageCosts, asked: list[bool]
    ) -> None:
        self.asked = [at for at, yes in enumerate(asked) if yes]
        advance: Any = costs.advance.amount
        answer: Any = costs.answer.amount
        paid = np.cumsum(advance + answer * np.array([*asked, True]))
        self.spent = paid / max(float(costs.alone(-1)), 1e-300)
        self.sure, self.quality = sure_SN, quality_SN
        self.order = {at: np.argsort(-sure_SN[at], kind="stable") for at in self.asked}

    def settings(self, prices: Sequence[float]) -> Iterator[Setting]:
        """What is best at each price."""
        limits = np.full(len(self.quality), math.inf)
        limits[-1] = -math.inf
        for price in sorted(prices):
            limits = self._best(limits, price)
            yield tuple(limits.tolist())

    def _best(self, limits: Floats, price: float) -> Floats:
        value_SN = self.quality - price * self.spent[:, None]
        limits = limits.copy()
        for _ in range(MOST_SWEEPS):
            before = limits.copy()
            later = value_SN[-1]  # what an input is worth if it goes on from here
            for at in reversed(self.asked):
                limits[at] = self._threshold(at, value_SN[at] - later, limits)
                later = np.where(self.sure[at] >= limits[at], value_SN[at], later)
            if np.array_equal(limits, before):
                break
        return limits

    def _threshold(self, at: int, gain_N: Floats, limits: Floats) -> float:
        """The threshold with the largest sum of gains among the inputs that come to this exit."""
        here = np.ones(len(gain_N), dtype=bool)
        for earlier in self.asked[: self.asked.index(at)]:
            here &= self.sure[earlier] < limits[earlier]
        rows = self.order[at][here[self.order[at]]]
        if len(rows) == 0:
            return math.inf
        sure = self.sure[at][rows]
        below = np.append(sure[1:], -math.inf)
        total = np.where(below < sure, np.cumsum(gain_N[rows]), -math.inf)  # equals leave together
        best = int(total.argmax())
        if total[best] <= 0:
            return math.inf
        if best == len(rows) - 1:
            return -math.inf
        half = float(np.float32(below[best] + (sure[best] - below[best]) / 2))
        # float32 is what most confidences are compared in: both sides must stay where they are
        return half if below[best] < half <= sure[best] else float(sure[best])
