"""Evidence that a mean has fallen below a level, valid whenever one looks.

Legend: S streams, T values, J bets.
"""

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.pool.online.bandit import Array, State, check_between
from pointsman.pool.saving import Arrays, Plain

SHARES = np.geomspace(0.8, 0.01, 9)  # of the largest bet that cannot lose everything
RECENT = 0.98  # memory of the running mean that is shown
RICHEST = 1e200  # nobody gets richer, which keeps sums finite and can only hide evidence


class Wealth:
    """A gambler who bets that values in [0, 1] stay below a level, and starts anew all the time.

    While every value's mean, given the past, is at least the level, a bet l in [0, 1 / (1 - level)]
    multiplies what was staked by 1 + l (level - value), which is at most 1 in the mean. One dollar
    is staked little by little, pi_t at time t with sum 1, each spread evenly over J fixed bets:
    V_t = (V_t-1 + pi_t) (1 + l (level - value_t)), and the evidence is the sum of all V_t plus what
    is not yet staked. That is a supermartingale that starts at 1, so by Ville's inequality the
    probability that it ever reaches 1 / error is at most `error`, whenever one looks and however
    values depend on the past.

    Args:
        level: that the mean should not fall below, in (0, 1).
        error: probability of ever being wrong, in (0, 1).
        horizon: number of values in which a change is likely: a third or so of the dollar is staked
            in them. Larger is slower at the start and quicker later.

    Attributes:
        evidence: 1 at the start; 1 / error or more is proof at this error.
        reached: whether it ever was; nothing is taken in from then on.
        seen: number of values.
        recent: mean of the latest fifty or so.

    Raises:
        InputError: a number out of range.

    Source: bets on means, Waudby-Smith & Ramdas (2020, arXiv 2010.09686); a promise watched after
    its model went live, Podkopaev & Ramdas (2021, arXiv 2110.06177); sums over starting times,
    Shin, Ramdas & Rinaldo, "E-detectors" (2022, arXiv 2203.03532). They bound the mean time to a
    false alarm; with stakes that sum to one, the probability of there ever being one is bounded
    instead, at the price of a delay that grows with the logarithm of the time without a change.
    """

    def __init__(self, level: float, error: float = 0.01, *, horizon: float = 1000.0) -> None:
        self.level = check_between("level", level, 1e-9, 1.0 - 1e-9)
        self.error = check_between("error", error, 1e-300, 1.0)
        self.horizon = check_between("horizon", horizon, 1e-9, 1e300)
        self.seen, self.recent, self.evidence, self.reached = 0, math.nan, 1.0, False
        self._staked: Array = np.zeros(len(SHARES))

    def observe(self, value: float) -> bool:
        """Take in one value in [0, 1]; whether the proof is there.

        Raises:
            InputError: a value outside [0, 1], or none.
        """
        value = check_between("a value", value, 0.0, 1.0)
        if self.reached:
            return True
        self.seen += 1
        known = value if self.seen == 1 else self.recent
        weight = max(1 - RECENT, 1 / self.seen)
        self.recent = known + weight * (value - known)
        self._staked, found = bet(self._staked, value, self.level, self.seen, self.horizon)
        self.evidence = float(found)
        self.reached = bool(self.evidence >= 1 / self.error)
        return self.reached

    def to_state(self) -> State:
        """See `Saved`."""
        names = ("level", "error", "horizon", "seen", "evidence", "reached")
        plain: dict[str, Any] = {name: getattr(self, name) for name in names}
        recent = None if math.isnan(self.recent) else self.recent
        return {**plain, "recent": recent}, {"staked": self._staked.copy()}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        wealth = cls(plain["level"], plain["error"], horizon=plain["horizon"])
        wealth.seen, wealth.reached = plain["seen"], plain["reached"]
        wealth.recent = math.nan if plain["recent"] is None else plain["recent"]
        wealth.evidence = plain["evidence"]
        wealth._staked = np.array(arrays["staked"], dtype=np.float64)
        return wealth


def evidence(values_ST: Array, level: float, *, horizon: float = 1000.0) -> Array:
    """(S, T) the evidence of `Wealth` after every value of many streams at once."""
    staked = np.zeros((*values_ST.shape[:-1], len(SHARES)))
    found = np.empty(values_ST.shape)
    for t in range(values_ST.shape[-1]):
        staked, found[..., t] = bet(staked, values_ST[..., t], level, t + 1, horizon)
    return found


def bet(
    staked: Array, value: Any, level: Any, time: Any, horizon: float
) -> tuple[Array, npt.NDArray[np.float64]]:
    """What stands on each bet after one more value, and the evidence; for any shape of streams.

    Args:
        staked: (..., J) before it.
        value: (...) in [0, 1].
        level: (...) or one for all, see `Wealth`.
        time: (...) or one for all, number of values with this one.
        horizon: see `Wealth`.
    """
    kept = unstaked(time, horizon)
    fresh = (unstaked(np.asarray(time) - 1, horizon) - kept) / len(SHARES)
    room = np.asarray(1.0 - level)[..., None]
    lost = np.asarray(level - np.asarray(value))[..., None]
    staked = np.minimum((staked + fresh[..., None]) * (1.0 + SHARES / room * lost), RICHEST)
    return staked, staked.sum(axis=-1) + kept


def unstaked(time: Any, horizon: float) -> npt.NDArray[np.float64]:
    """Share of the dollar that is not yet staked after so many values; falls to 0, slowly."""
    share: npt.NDArray[np.float64] = 1.0 / (1.0 + np.log1p(np.asarray(time) / horizon))
    return share
