"""Ridge regressions that forget, one an arm.

Legend: M arms, D numbers of a context.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.pool.online.bandit import Array
from pointsman.pool.saving import Arrays


class Regressions:
    """Sums of x x^T and r x for each arm, which fade by a factor each tick of a clock.

    With S the faded sum of x x^T and its eigenvectors kept, (ridge I + f S)^-1 is at hand for every
    further fading f, so an arm that was left alone costs nothing.

    Args:
        arms: M.
        width: D.
        ridge: weight of the prior, which does not fade.
        discount: share of its weight that a reward keeps each tick.
    """

    def __init__(self, arms: int, width: int, ridge: float, discount: float) -> None:
        self.ridge, self.discount, self.now = ridge, discount, 0.0
        self.squares: Array = np.zeros((arms, width, width))
        self.products: Array = np.zeros((arms, width))
        self.as_of: Array = np.zeros(arms)
        self._axes: Array = np.tile(np.eye(width), (arms, 1, 1))
        self._values: Array = np.zeros((arms, width))
        self._turned: Array = np.zeros((arms, width))
        self._stale: set[int] = set()

    def add(self, arm: int, reward: float, x_D: Array, at: float | None) -> None:
        """Count one reward at a context; None: one tick after the latest."""
        when = self.now + 1.0 if at is None else float(at)
        self.now = max(self.now, when)
        weight = 1.0
        if when >= self.as_of[arm]:
            fade = self.discount ** (when - self.as_of[arm])
            self.squares[arm] *= fade
            self.products[arm] *= fade
            self.as_of[arm] = when
        else:
            weight = self.discount ** (self.as_of[arm] - when)
        self.squares[arm] += weight * np.outer(x_D, x_D)
        self.products[arm] += weight * reward * x_D
        self._stale.add(arm)

    def predict(self, x_D: Array) -> tuple[Array, Array]:
        """(M,) means, and (M,) standard deviations for rewards of variance 1."""
        for arm in self._stale:
            values, axes = np.linalg.eigh(self.squares[arm])
            self._values[arm], self._axes[arm] = np.maximum(values, 0.0), axes
            self._turned[arm] = self.products[arm] @ axes
        self._stale.clear()
        fade = (self.discount ** (self.now - self.as_of))[:, None]
        along = x_D @ self._axes
        inverse = along / (self.ridge + fade * self._values)
        mean: Array = (inverse * fade * self._turned).sum(axis=1)
        return mean, np.sqrt((inverse * along).sum(axis=1))

    def forget(self, arm: int | None) -> None:
        """Empty one arm, or all."""
        at = range(len(self.products)) if arm is None else [arm]
        for each in at:
            self.squares[each] = 0.0
            self.products[each] = 0.0
            self._stale.add(each)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What has to be kept."""
        clock = np.array([self.now])
        kept = {"squares": self.squares, "products": self.products, "as_of": self.as_of}
        return {**{name: array.copy() for name, array in kept.items()}, "clock": clock}

    def restore(self, arrays: Arrays) -> None:
        """Take up what `arrays` gave."""
        self.squares = np.array(arrays["squares"], dtype=np.float64)
        self.products = np.array(arrays["products"], dtype=np.float64)
        self.as_of = np.array(arrays["as_of"], dtype=np.float64)
        self.now = float(arrays["clock"][0])
        self._stale = set(range(len(self.products)))
