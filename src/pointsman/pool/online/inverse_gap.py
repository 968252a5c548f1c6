"""A bandit with one number as context: polynomials of it, and probabilities by inverse gaps.

Legend: M arms, D coefficients.
"""

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.online.bandit import (
    Array,
    Bandit,
    State,
    allowed,
    check_arm,
    check_between,
    check_reward,
    penalised,
)
from pointsman.pool.online.regressions import Regressions
from pointsman.pool.saving import Arrays, Plain


class ChebyshevInverseGap(Bandit):
    """ChebCB: what an arm brings is a polynomial of the context; worse arms are tried less.

    Each arm fits `terms` Chebyshev polynomials of the context, moved to [-1, 1], by ridge
    regression. With gaps to the best expected reward, p_i = 1 / (n + growth sqrt(t) gap_i / scale)
    for the n eligible arms, and what is left goes to the best. The scale is the mean absolute
    reward so far.

    Args:
        arms: M.
        low: of the context.
        high: of the context, above low; contexts beyond either end count as that end.
        terms: D, at least 1.
        ridge: weight of the prior, above 0.
        growth: how fast the trying of worse arms fades.

    Raises:
        InputError: a number out of range, or a context that is not one finite number.

    Source: Khodak et al., "Learning to Relax" (2023, arXiv 2310.02246), after SquareCB of Foster &
    Rakhlin (2020, arXiv 2002.04926). A ridge takes the place of the box around the coefficients,
    and the scale is ours.
    """

    contextual = True

    def __init__(
        self,
        arms: int,
        low: float,
        high: float,
        *,
        terms: int = 6,
        ridge: float = 0.01,
        growth: float = 30.0,
    ) -> None:
        self.arms = int(check_between("arms", arms, 1, math.inf))
        self.low, self.high = float(low), float(high)
        if not -math.inf < self.low < self.high < math.inf:
            raise InputError(f"low must be below high, got {low!r} and {high!r}")
        self.terms = int(check_between("terms", terms, 1, 64))
        self.ridge = check_between("ridge", ridge, 1e-12, math.inf)
        self.growth = check_between("growth", growth, 0.0, math.inf)
        self._fit = Regressions(self.arms, self.terms, self.ridge, 1.0)
        self._rounds, self._size = 0, 0.0

    def expected(self, x: npt.ArrayLike | None) -> Array:
        """(M,) expected reward of each arm at a context."""
        return self._fit.predict(self._basis(x))[0]

    def probabilities(
        self,
        x: npt.ArrayLike | None = None,
        eligible: npt.ArrayLike | None = None,
        penalty: npt.ArrayLike | None = None,
    ) -> Array:
        """(M,) see `Bandit`."""
        mask = allowed(eligible, self.arms)
        worth = penalised(self.expected(x), penalty)
        best = int(np.argmax(np.where(mask, worth, -np.inf)))
        scale = self._size / self._rounds if self._size > 0 else 1.0
        gap = np.where(mask, worth[best] - worth, 0.0)
        steep = self.growth * math.sqrt(self._rounds)
        p: Array = mask / (mask.sum() + steep * gap / scale)
        p[best] = 0.0
        p[best] = 1.0 - p.sum()
        return p

    def update(
        self,
        arm: int,
        reward: float,
        x: npt.ArrayLike | None = None,
        cost: float | None = None,
        *,
        at: float | None = None,
        propensity: float | None = None,
    ) -> None:
        """See `Bandit`."""
        value = check_reward(reward)
        self._fit.add(check_arm(arm, self.arms), value, self._basis(x), at)
        self._rounds += 1
        self._size += abs(value)

    def forget(self, arm: int | None = None) -> None:
        """See `Bandit`."""
        self._fit.forget(arm)
        if arm is None:
            self._rounds, self._size = 0, 0.0

    def _basis(self, x: npt.ArrayLike | None) -> Array:
        """(D,) Chebyshev polynomials at the context."""
        given = np.zeros(0) if x is None else np.asarray(x, dtype=np.float64).ravel()
        if given.shape != (1,) or not np.isfinite(given[0]):
            raise InputError(f"the context must be one finite number, got {x!r}")
        place = 2.0 * (float(given[0]) - self.low) / (self.high - self.low) - 1.0
        angle = math.acos(min(max(place, -1.0), 1.0))
        basis: Array = np.cos(angle * np.arange(self.terms))
        return basis

    def to_state(self) -> State:
        """See `Saved`."""
        names = ("arms", "low", "high", "terms", "ridge", "growth")
        plain: dict[str, Any] = {name: getattr(self, name) for name in names}
        return plain, {**self._fit.arrays(), "sums": np.array([self._rounds, self._size])}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        bandit = cls(**plain)
        bandit._fit.restore(arrays)
        bandit._rounds, bandit._size = int(arrays["sums"][0]), float(arrays["sums"][1])
        return bandit
