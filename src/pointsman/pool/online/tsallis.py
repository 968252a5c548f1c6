"""Tsallis-INF: follows the regularised leader, whether losses are random or chosen against it.

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

PRECISION = 1e-12
MOST_STEPS = 100
LEAST = 1e-6  # propensity that is assumed where none was told and the arm is all but given up


class TsallisInf(Bandit):
    """Probabilities p_i = 4 / (eta (L_i - z))^2 with eta = 2 / sqrt(t) and z so that they sum to 1.

    L_i is the sum of loss / propensity over the choices of arm i, loss = top - reward. With
    `rescale` it is divided by the mean loss so far, for losses that have no known bound, such as
    numbers of iterations.

    Args:
        arms: M.
        top: the highest reward there can be.
        rescale: whether losses are measured in their mean; else they should lie in [0, 1].

    Raises:
        InputError: a number out of range; a reward above `top`; a penalty, which it cannot use.

    Source: Zimmert & Seldin, "An Optimal Algorithm for Stochastic and Adversarial Bandits" (2018,
    arXiv 1807.07623), with plain importance weights; the scale is that of Khodak et al.,
    "Learning to Relax" (2023, arXiv 2310.02246). Where only some arms are eligible, the
    probabilities are those of the same rule among them, and `update` has to be told the propensity.
    """

    contextual = False

    def __init__(self, arms: int, *, top: float = 1.0, rescale: bool = False) -> None:
        self.arms = int(check_between("arms", arms, 1, math.inf))
        self.top = check_between("top", top, -1e300, 1e300)
        self.rescale = bool(rescale)
        self._losses: Array = np.zeros(self.arms)
        self._rounds, self._total = 0, 0.0

    def probabilities(
        self,
        x: npt.ArrayLike | None = None,
        eligible: npt.ArrayLike | None = None,
        penalty: npt.ArrayLike | None = None,
    ) -> Array:
        """(M,) see `Bandit`."""
        if penalty is not None:
            raise InputError("Tsallis-INF keeps losses as they came: it can use no penalty")
        mask = allowed(eligible, self.arms)
        scale = self._total / self._rounds if self.rescale and self._total > 0 else 1.0
        p = np.zeros(self.arms)
        p[mask] = tsallis(self._losses[mask] / scale, 2.0 / math.sqrt(self._rounds + 1))
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
        """See `Bandit`; weighs by the propensity, today's among all arms where it is None."""
        arm, loss = check_arm(arm, self.arms), self.top - check_reward(reward)
        if loss < 0:
            raise InputError(f"no reward may exceed top = {self.top:g}, got {reward!r}")
        if propensity is None:
            propensity = max(float(self.probabilities()[arm]), LEAST)
        self._losses[arm] += loss / check_between("propensity", propensity, 1e-300, 1.0)
        self._rounds += 1
        self._total += loss

    def forget(self, arm: int | None = None) -> None:
        """All start again; a single arm is set to the least loss of any."""
        if arm is None:
            self._losses[:] = 0.0
            self._rounds, self._total = 0, 0.0
        else:
            self._losses[check_arm(arm, self.arms)] = self._losses.min()

    def to_state(self) -> State:
        """See `Saved`."""
        plain: dict[str, Any] = {"arms": self.arms, "top": self.top, "rescale": self.rescale}
        sums = np.array([self._rounds, self._total])
        return plain, {"losses": self._losses.copy(), "sums": sums}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        bandit = cls(**plain)
        bandit._losses = np.array(arrays["losses"], dtype=np.float64)
        bandit._rounds, bandit._total = int(arrays["sums"][0]), float(arrays["sums"][1])
        return bandit


def tsallis(losses: Array, eta: float) -> Array:
    """(M,) minimiser of <p, losses> - (4 / eta) sum sqrt(p_i) over the simplex, by Newton's method.

    The sum of 4 / (eta (L_i - z))^2 is convex and grows with z, so steps that start where it is at
    least 1 come down on the root from above.
    """
    z = float(losses.min()) - 2.0 / eta
    for _ in range(MOST_STEPS):
        gap = eta * (losses - z)
        p = 4.0 / (gap * gap)
        excess = float(p.sum()) - 1.0
        if excess <= PRECISION:
            break
        z -= excess / float((2.0 * eta * p / gap).sum())
    shares: Array = p / p.sum()
    return shares
