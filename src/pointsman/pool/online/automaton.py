"""Learning automata: a probability vector that moves towards what was rewarded.

Legend: M arms.
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
)
from pointsman.pool.saving import Arrays, Plain


class RewardInaction(Bandit):
    """Linear reward-inaction: p_a grows by step R (1 - p_a), every other p_j falls by step R p_j.

    A reward of 0 changes nothing. The sum stays 1. Without a floor the rule is absorbing: once all
    the mass is on one arm, nothing else is ever tried; with one, every arm keeps at least `floor`
    and the automaton follows a world that changes.

    Args:
        arms: M.
        step: b in (0, 1].
        floor: least probability of each arm, at most 1 / M; 0 is the rule as published.

    Raises:
        InputError: a number out of range; a reward outside [0, 1]; a penalty, which it cannot use.

    Source: Narendra & Thathachar, "Learning Automata: A Survey" (1974); for paths, as in
    reinforcement-learning-based path selection for programmable networks. The floor is ours: what
    falls below it is raised to it, at the expense of what the others have above it.
    """

    contextual = False

    def __init__(self, arms: int, *, step: float = 0.02, floor: float = 0.0) -> None:
        self.arms = int(check_between("arms", arms, 1, math.inf))
        self.step = check_between("step", step, 1e-12, 1.0)
        self.floor = check_between("floor", floor, 0.0, 1.0 / self.arms)
        self._p: Array = np.full(self.arms, 1.0 / self.arms)

    def probabilities(
        self,
        x: npt.ArrayLike | None = None,
        eligible: npt.ArrayLike | None = None,
        penalty: npt.ArrayLike | None = None,
    ) -> Array:
        """(M,) see `Bandit`; scaled to the eligible arms, evenly where none of them has mass."""
        if penalty is not None:
            raise InputError("an automaton knows no worth that a penalty could be taken off")
        mask = allowed(eligible, self.arms)
        p = np.where(mask, self._p, 0.0)
        shares: Array = p if p.any() else mask.astype(np.float64)
        scaled: Array = shares / shares.sum()
        return scaled

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
        arm, gain = check_arm(arm, self.arms), self.step * check_reward(reward, share=True)
        self._p *= 1.0 - gain
        self._p[arm] += gain
        if self.floor > 0.0:
            raised = np.maximum(self._p, self.floor)
            above = raised - self.floor  # what may be taken back, so that the sum stays 1
            self._p = (
                raised - above * ((raised.sum() - 1.0) / above.sum()) if above.any() else raised
            )
        self._p /= self._p.sum()

    def forget(self, arm: int | None = None) -> None:
        """All arms become equally likely; one arm becomes as likely as an even share."""
        if arm is None:
            self._p = np.full(self.arms, 1.0 / self.arms)
            return
        others = 1.0 - 1.0 / self.arms
        rest = 1.0 - self._p[check_arm(arm, self.arms)]
        self._p = self._p * (others / rest) if rest > 0 else np.full(self.arms, others)
        self._p[arm] = 1.0 / self.arms
        self._p /= self._p.sum()

    def to_state(self) -> State:
        """See `Saved`."""
        plain: dict[str, Any] = {"arms": self.arms, "step": self.step, "floor": self.floor}
        return plain, {"p": self._p.copy()}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        bandit = cls(**plain)
        bandit._p = np.array(arrays["p"], dtype=np.float64)
        return bandit
