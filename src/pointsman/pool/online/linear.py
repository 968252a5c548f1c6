"""Contextual bandits: what an arm brings is a linear function of the context, one for each arm.

Legend: M arms, D features of a context and a constant, G points of a grid.
"""

import math
from typing import Self

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
    greedy,
    penalised,
    thompson,
)
from pointsman.pool.online.regressions import Regressions
from pointsman.pool.saving import Arrays, Plain

GRID = 512  # points on which the densities of `LinearThompson` are compared
REACH = 5.0  # standard deviations that the grid covers


class LinearUpperConfidence(Bandit):
    """LinUCB: the arm with the highest upper confidence bound at this context.

    Arm i keeps A_i = ridge I + sum w x x^T and b_i = sum w r x, with weights w = discount^age; its
    index is x^T A_i^-1 b_i + width sqrt(x^T A_i^-1 x). A constant is added to every context.

    Args:
        arms: M.
        features: of a context, without the constant.
        ridge: weight of the prior, above 0.
        width: of the bound, in standard deviations of rewards with variance 1.
        discount: share of its weight that a reward keeps each tick; 1 forgets nothing.
        explore: share of the choices spread evenly, which keeps every propensity above 0.

    Raises:
        InputError: a number out of range; a context of another length or that is not finite.

    Source: Li, Chu, Langford & Schapire, "A Contextual-Bandit Approach to Personalized News Article
    Recommendation" (2010, arXiv 1003.0146), algorithm 1; forgetting after Russac, Vernade & Cappé
    (2019, arXiv 1909.09146), where we keep the ridge whole and A_i alone in the width. An update
    costs an eigendecomposition, O(D^3), and a choice O(M D^2): meant for D up to about 64.
    """

    contextual = True

    def __init__(
        self,
        arms: int,
        features: int,
        *,
        ridge: float = 1.0,
        width: float = 1.0,
        discount: float = 1.0,
        explore: float = 0.0,
    ) -> None:
        self.arms = int(check_between("arms", arms, 1, math.inf))
        self.features = int(check_between("features", features, 0, math.inf))
        self.ridge = check_between("ridge", ridge, 1e-12, math.inf)
        self.width = check_between("width", width, 0.0, math.inf)
        self.discount = check_between("discount", discount, 1e-6, 1.0)
        self.explore = check_between("explore", explore, 0.0, 1.0)
        self._fit = Regressions(self.arms, self.features + 1, self.ridge, self.discount)

    def expected(self, x: npt.ArrayLike | None) -> Array:
        """(M,) expected reward of each arm at a context."""
        return self._fit.predict(_context(x, self.features))[0]

    def probabilities(
        self,
        x: npt.ArrayLike | None = None,
        eligible: npt.ArrayLike | None = None,
        penalty: npt.ArrayLike | None = None,
    ) -> Array:
        """(M,) see `Bandit`."""
        mean, deviation = self._fit.predict(_context(x, self.features))
        worth = penalised(mean + self.width * deviation, penalty)
        return greedy(worth, allowed(eligible, self.arms), self.explore)

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
        context = _context(x, self.features)
        self._fit.add(check_arm(arm, self.arms), check_reward(reward), context, at)

    def forget(self, arm: int | None = None) -> None:
        """See `Bandit`."""
        self._fit.forget(arm)

    def to_state(self) -> State:
        """See `Saved`."""
        names = ("arms", "features", "ridge", "width", "discount", "explore")
        return {name: getattr(self, name) for name in names}, self._fit.arrays()

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        bandit = cls(**plain)
        bandit._fit.restore(arrays)
        return bandit


class LinearThompson(Bandit):
    """Linear Thompson sampling: an arm with the probability that it is the best at this context.

    The worth of arm i at x is normal with mean x^T A_i^-1 b_i and standard deviation
    spread sqrt(x^T A_i^-1 x), see `LinearUpperConfidence`; arms are independent. Probabilities are
    computed on a grid, see `thompson`, and not by drawing coefficients.

    Args:
        arms: M.
        features: of a context, without the constant.
        ridge: weight of the prior, above 0.
        spread: standard deviation of a reward around its mean, above 0.
        discount: share of its weight that a reward keeps each tick; 1 forgets nothing.
        explore: share of the choices spread evenly, which keeps every propensity above 0.

    Raises:
        InputError: a number out of range; a context of another length or that is not finite.

    Source: Agrawal & Goyal, "Thompson Sampling for Contextual Bandits with Linear Payoffs" (2012,
    arXiv 1209.3352), with coefficients of their own for each arm.
    """

    contextual = True

    def __init__(
        self,
        arms: int,
        features: int,
        *,
        ridge: float = 1.0,
        spread: float = 0.5,
        discount: float = 1.0,
        explore: float = 0.0,
    ) -> None:
        self.arms = int(check_between("arms", arms, 1, math.inf))
        self.features = int(check_between("features", features, 0, math.inf))
        self.ridge = check_between("ridge", ridge, 1e-12, math.inf)
        self.spread = check_between("spread", spread, 1e-9, math.inf)
        self.discount = check_between("discount", discount, 1e-6, 1.0)
        self.explore = check_between("explore", explore, 0.0, 1.0)
        self._fit = Regressions(self.arms, self.features + 1, self.ridge, self.discount)

    def expected(self, x: npt.ArrayLike | None) -> Array:
        """(M,) expected reward of each arm at a context."""
        return self._fit.predict(_context(x, self.features))[0]

    def probabilities(
        self,
        x: npt.ArrayLike | None = None,
        eligible: npt.ArrayLike | None = None,
        penalty: npt.ArrayLike | None = None,
    ) -> Array:
        """(M,) see `Bandit`."""
        mean, deviation = self._fit.predict(_context(x, self.features))
        mass = _normal(penalised(mean, penalty), self.spread * deviation)
        return thompson(mass, allowed(eligible, self.arms), self.explore)

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
        context = _context(x, self.features)
        self._fit.add(check_arm(arm, self.arms), check_reward(reward), context, at)

    def forget(self, arm: int | None = None) -> None:
        """See `Bandit`."""
        self._fit.forget(arm)

    def to_state(self) -> State:
        """See `Saved`."""
        names = ("arms", "features", "ridge", "spread", "discount", "explore")
        return {name: getattr(self, name) for name in names}, self._fit.arrays()

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        bandit = cls(**plain)
        bandit._fit.restore(arrays)
        return bandit


def _context(x: npt.ArrayLike | None, features: int) -> Array:
    """(D,) the context with a constant behind it."""
    given = np.zeros(0) if x is None else np.asarray(x, dtype=np.float64)
    if given.shape != (features,) or not np.isfinite(given).all():
        raise InputError(
            f"a context is ({features},) finite numbers, got "
            f"{'none' if x is None else f'shape {given.shape}'}: {np.array2string(given[:5])}"
        )
    return np.append(given, 1.0)


def _normal(mean: Array, deviation: Array) -> Array:
    """(M, G) masses of normal distributions on one grid."""
    low = float((mean - REACH * deviation).min())
    high = float((mean + REACH * deviation).max())
    cell = (high - low) / GRID
    worth = low + cell * (np.arange(GRID) + 0.5)
    # widened by the cell, so that a density narrower than it does not fall between two points
    scaled = (worth - mean[:, None]) / np.hypot(deviation, cell / 2)[:, None]
    mass = np.exp(-scaled * scaled / 2)
    rows: Array = mass / mass.sum(axis=1, keepdims=True)
    return rows
