"""A sign without feedback: what the router expects has moved away from what it expected before.

It is the weaker of the two checks. Expectations can move while answers stay as good, and answers
can get worse while expectations stay: only `DriftAlarm`, which sees the quality, is about the
promise.

Legend: F figures, J bets; two sides each, below and above.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.online.bandit import Array, State, check_between
from pointsman.pool.online.wealth import RECENT, SHARES, bet
from pointsman.pool.saving import Arrays, Plain

if TYPE_CHECKING:
    from pointsman.pool.policy import PoolPolicy

EDGE = 1e-6


class ShiftWarning:
    """Watches means that need no feedback, such as the predicted quality or a signal.

    Each figure is watched from above and from below as by a `Wealth`. While each one's mean is
    within `tolerance` of what was stored, the probability that the warning is ever given is at most
    `error`, shared among the figures. What falls outside [0, 1] counts as the nearer end, which
    should be done to the stored means as well.

    Args:
        stored: name to the mean over the calibration inputs, in [0, 1].
        inputs: number of calibration inputs; their mean may be wrong by
            sqrt(ln(4 figures / error) / (2 inputs)), which is added to the tolerance. None: the
            means are taken as exact.
        tolerance: distance of the mean that is of no interest.
        error: probability of ever warning while nothing has shifted.
        horizon: see `Wealth`.

    Attributes:
        shifted: whether any figure has been found to have moved; it stays so until `reset`.

    Raises:
        InputError: no figure, or a number out of range.
    """

    def __init__(
        self,
        stored: Mapping[str, float],
        *,
        inputs: int | None = None,
        tolerance: float = 0.02,
        error: float = 0.01,
        horizon: float = 1000.0,
    ) -> None:
        if not stored:
            raise InputError("a warning needs at least one figure to watch, got none")
        self.stored = {name: check_between(name, value, 0.0, 1.0) for name, value in stored.items()}
        self.inputs = inputs
        self.tolerance = check_between("tolerance", tolerance, 0.0, 1.0)
        self.error = check_between("error", error, 1e-300, 1.0)
        self.horizon = check_between("horizon", horizon, 1e-9, 1e300)
        each, wide = self.error / (2 * len(self.stored)), self.tolerance
        if inputs:  # half of the error for the stored mean, half for the watch
            each /= 2
            wide += math.sqrt(-math.log(each) / (2 * inputs))
        mean = np.array(list(self.stored.values()))
        self._each = each
        self._level: Array = np.clip(np.stack([mean, 1.0 - mean], axis=1) - wide, EDGE, 1 - EDGE)
        self._place = {name: at for at, name in enumerate(self.stored)}
        self.reset()

    @classmethod
    def of_policy(cls, policy: "PoolPolicy", **keywords: Any) -> Self | None:
        """Watches every model's predicted quality; None where a policy has no figures for it.

        `observe` takes model names then, with `Decision.prediction.quality`.
        """
        models = policy.expected.get("models", {})
        stored = {
            name: min(max(float(known["predicted_quality"]), 0.0), 1.0)
            for name, known in models.items()
            if "predicted_quality" in known
        }
        if not stored:
            return None
        return cls(stored, inputs=policy.expected.get("queries"), **keywords)

    def reset(self) -> None:
        """Start again, as after a new policy was loaded."""
        figures = len(self.stored)
        self.shifted = False
        self._seen: npt.NDArray[np.int64] = np.zeros(figures, dtype=np.int64)
        self._recent: Array = np.zeros(figures)
        self._staked: Array = np.zeros((figures, 2, len(SHARES)))
        self._reached: npt.NDArray[np.bool_] = np.zeros((figures, 2), dtype=bool)

    def observe(self, values: Mapping[str, float]) -> bool:
        """One value of some of the figures; NaN is left aside. Whether the warning is given.

        Raises:
            InputError: a figure that is not watched.
        """
        unknown = [name for name in values if name not in self._place]
        if unknown:
            raise InputError(f"{unknown[0]!r} is not watched: there are {', '.join(self.stored)}")
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        if known and not self.shifted:
            at = np.array([self._place[name] for name in known])
            value = np.clip(np.array(list(known.values())), 0.0, 1.0)
            self._seen[at] += 1
            weight = np.maximum(1 - RECENT, 1 / self._seen[at])
            self._recent[at] += weight * (value - self._recent[at])
            self._staked[at], found = bet(
                self._staked[at],
                np.stack([value, 1.0 - value], axis=1),
                self._level[at],
                self._seen[at][:, None],
                self.horizon,
            )
            self._reached[at] = found >= 1 / self._each
            self.shifted = bool(self._reached.any())
        return self.shifted

    def words(self) -> str:
        """What was seen and what to do, in a few sentences."""
        moved = [
            f"{name} was {self.stored[name]:.3f} on the calibration inputs and is "
            f"{self._recent[at]:.3f} of late"
            for name, at in self._place.items()
            if self._reached[at].any()
        ]
        if not moved:
            return (
                "No shift seen in what the router expects. That is a weak sign: only feedback "
                "shows whether answers are as good as promised."
            )
        return (
            f"Weaker sign, without feedback: {'; '.join(moved)}. Queries are not like those that "
            "the promise was made on, so it may not hold for them; whether it does, only feedback "
            "or a new evaluation log can tell."
        )

    def to_state(self) -> State:
        """See `Saved`."""
        names = ("stored", "inputs", "tolerance", "error", "horizon")
        arrays = {
            "seen": self._seen.copy(),
            "recent": self._recent.copy(),
            "staked": self._staked.copy(),
            "reached": self._reached.copy(),
        }
        return {name: getattr(self, name) for name in names}, arrays

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        names = ("inputs", "tolerance", "error", "horizon")
        warning = cls(plain["stored"], **{name: plain[name] for name in names})
        warning._seen = np.array(arrays["seen"], dtype=np.int64)
        warning._recent = np.array(arrays["recent"], dtype=np.float64)
        warning._staked = np.array(arrays["staked"], dtype=np.float64)
        warning._reached = np.array(arrays["reached"], dtype=bool)
        warning.shifted = bool(warning._reached.any())
        return warning
