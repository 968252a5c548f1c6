"""Sums of rewards that forget: weights that fall by a factor each tick of a clock.

Legend: M arms.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.pool.online.bandit import Array


class Counts:
    """How often each arm was tried and what it brought, both discounted.

    With discount g and rewards r_s of choices made at times s, at the latest time t:
    N_i = sum g^(t - s) 1[a_s = i] and S_i = sum g^(t - s) r_s 1[a_s = i]. They depend on the times
    alone and not on the order in which rewards arrive.

    Args:
        arms: M.
        discount: g in (0, 1]; 1 forgets nothing.
    """

    def __init__(self, arms: int, discount: float) -> None:
        self.discount = discount
        self.now = 0.0
        self.tried: Array = np.zeros(arms)
        self.brought: Array = np.zeros(arms)

    def add(self, arm: int, reward: float, at: float | None) -> None:
        """Count one reward; None: one tick after the latest."""
        when = self.now + 1.0 if at is None else float(at)
        weight = 1.0
        if when >= self.now:
            fade = self.discount ** (when - self.now)
            self.tried *= fade
            self.brought *= fade
            self.now = when
        else:
            weight = self.discount ** (self.now - when)
        self.tried[arm] += weight
        self.brought[arm] += weight * reward

    def forget(self, arm: int | None) -> None:
        """Empty one arm, or all."""
        at = slice(None) if arm is None else arm
        self.tried[at] = 0.0
        self.brought[at] = 0.0

    def mean(self) -> Array:
        """(M,) mean rewards; 0 where an arm was never tried."""
        known = self.tried > 0
        mean: Array = np.divide(
            self.brought, self.tried, out=np.zeros_like(self.tried), where=known
        )
        return mean

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What has to be kept."""
        clock = np.array([self.now])
        return {"tried": self.tried.copy(), "brought": self.brought.copy(), "clock": clock}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take up what `arrays` gave."""
        self.tried = np.array(arrays["tried"], dtype=np.float64)
        self.brought = np.array(arrays["brought"], dtype=np.float64)
        self.now = float(arrays["clock"][0])
