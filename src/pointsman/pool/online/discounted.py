"""Bandits without context for a world that changes: old rewards count less and less.

Legend: M arms, G points of a grid.
"""

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt

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
from pointsman.pool.online.counts import Counts
from pointsman.pool.saving import Arrays, Plain

GRID = 512  # points on which the densities of `DiscountedThompson` are compared
REACH = 6.0  # standard deviations that the grid covers


class DiscountedUpperConfidence(Bandit):
    """Discounted UCB: the arm with the highest upper confidence bound on its recent mean.

    Index S_i / N_i + width sqrt(ln(sum N) / max(N_i, least)), see `Counts`; an arm that was never
    tried comes first. With discount 1 it is UCB1 for a world that stays as it is.

    Args:
        arms: M.
        discount: share of its weight that a reward keeps each tick; about 1 - sqrt(changes / T) / 4
            over T choices.
        width: of the bound, in rewards; the paper's 2 B sqrt(xi) with B the range of the rewards,
            of which a half serves as well where rewards are close together.
        least: below this N_i no longer widens the bound, so that an arm that was left alone long
            is tried again and not worshipped.
        explore: share of the choices spread evenly, which keeps every propensity above 0.

    Raises:
        InputError: a number out of range.

    Source: Garivier & Moulines, "On Upper-Confidence Bound Policies for Non-Stationary Bandit
    Problems" (2008, arXiv 0805.3415). `least`, `explore` and the clock of late rewards are ours.
    """

    contextual = False

    def __init__(
        self,
        arms: int,
        *,
        discount: float = 0.999,
        width: float = 0.8,
        least: float = 1.0,
        explore: float = 0.0,
    ) -> None:
        self.arms = int(check_between("arms", arms, 1, math.inf))
        self.discount = check_between("discount", discount, 1e-6, 1.0)
        self.width = check_between("width", width, 0.0, math.inf)
        self.least = check_between("least", least, 1e-12, math.inf)
        self.explore = check_between("explore", explore, 0.0, 1.0)
        self._counts = Counts(self.arms, self.discount)

    def index(self) -> Array:
        """(M,) upper confidence bounds, infinite where an arm was never tried."""
        tried = self._counts.tried
        bonus = self.width * np.sqrt(
            math.log(max(float(tried.sum()), math.e)) / np.maximum(tried, self.least)
        )
        return np.where(tried > 0, self._counts.mean() + bonus, np.inf)

    def probabilities(
        self,
        x: npt.ArrayLike | None = None,
        eligible: npt.ArrayLike | None = None,
        penalty: npt.ArrayLike | None = None,
    ) -> Array:
        """(M,) see `Bandit`."""
        return greedy(penalised(self.index(), penalty), allowed(eligible, self.arms), self.explore)

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
        self._counts.add(check_arm(arm, self.arms), check_reward(reward), at)

    def forget(self, arm: int | None = None) -> None:
        """See `Bandit`."""
        self._counts.forget(arm)

    def to_state(self) -> State:
        """See `Saved`."""
        names = ("arms", "discount", "width", "least", "explore")
        return {name: getattr(self, name) for name in names}, self._counts.arrays()

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        bandit = cls(**plain)
        bandit._counts.restore(arrays)
        return bandit


class DiscountedThompson(Bandit):
    """Discounted Thompson sampling: an arm with the probability that its recent mean is the best.

    The mean of arm i follows Beta(prior + S_i, prior + N_i - S_i), see `Counts`. Probabilities are
    computed on a grid, see `thompson`.

    Args:
        arms: M.
        discount: share of its weight that a reward keeps each tick; 1 is Thompson sampling for a
            world that stays as it is.
        prior: successes, and failures, that every arm is given beforehand.
        explore: share of the choices spread evenly, which keeps every propensity above 0.

    Raises:
        InputError: a number out of range; on update, a reward outside [0, 1].

    Source: Raj & Kalyani, "Taming Non-stationary Bandits: A Bayesian Approach" (2017, arXiv
    1707.09727). Here the prior does not fade with the rewards.
    """

    contextual = False

    def __init__(
        self, arms: int, *, discount: float = 0.999, prior: float = 1.0, explore: float = 0.0
    ) -> None:
        self.arms = int(check_between("arms", arms, 1, math.inf))
        self.discount = check_between("discount", discount, 1e-6, 1.0)
        self.prior = check_between("prior", prior, 1e-6, math.inf)
        self.explore = check_between("explore", explore, 0.0, 1.0)
        self._counts = Counts(self.arms, self.discount)

    def probabilities(
        self,
        x: npt.ArrayLike | None = None,
        eligible: npt.ArrayLike | None = None,
        penalty: npt.ArrayLike | None = None,
    ) -> Array:
        """(M,) see `Bandit`."""
        good = self.prior + self._counts.brought
        bad = self.prior + np.maximum(self._counts.tried - self._counts.brought, 0.0)
        return thompson(_beta(good, bad, penalty), allowed(eligible, self.arms), self.explore)

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
        self._counts.add(check_arm(arm, self.arms), check_reward(reward, share=True), at)

    def forget(self, arm: int | None = None) -> None:
        """See `Bandit`."""
        self._counts.forget(arm)

    def to_state(self) -> State:
        """See `Saved`."""
        plain: dict[str, Any] = {
            name: getattr(self, name) for name in ("arms", "discount", "prior", "explore")
        }
        return plain, self._counts.arrays()

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        bandit = cls(**plain)
        bandit._counts.restore(arrays)
        return bandit


def _beta(good: Array, bad: Array, penalty: npt.ArrayLike | None) -> Array:
    """(M, G) masses of Beta(good, bad), less a penalty each, on one grid."""
    count = good + bad
    mean, spread = good / count, np.sqrt(good * bad / (count + 1)) / count
    shift = mean - penalised(mean, penalty)
    low = float((np.maximum(mean - REACH * spread, 0.0) - shift).min())
    high = float((np.minimum(mean + REACH * spread, 1.0) - shift).max())
    cell = (high - low) / GRID
    worth = low + cell * (np.arange(GRID) + 0.5) + shift[:, None]
    # a density narrower than a cell must not fall between two points: the nearest one holds it
    inside = (worth > 0) & (worth < 1)
    held = np.where(inside, worth, 0.5)
    log_density = (good[:, None] - 1) * np.log(held) + (bad[:, None] - 1) * np.log1p(-held)
    log_density = np.where(inside, log_density, -np.inf)
    mass = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    scaled: Array = mass / mass.sum(axis=1, keepdims=True)
    return scaled
