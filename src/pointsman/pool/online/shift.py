"""A sign without feedback: what the router expects has moved away from what it expected before.

It is the weaker of the two checks. Expectations can move while answers stay as good, and answers
can get worse while expectations stay: only `DriftAlarm`, which sees the quality, is about the
promise.
"""

import math
from collections.abc import Mapping
from typing import Any, Self

from pointsman.errors import InputError
from pointsman.pool.online.bandit import State, check_between
from pointsman.pool.online.wealth import Wealth
from pointsman.pool.saving import Arrays, Plain, inside, nested

EDGE = 1e-6


class ShiftWarning:
    """Watches means that need no feedback, such as the predicted quality or a signal.

    Each figure is watched from above and from below by a `Wealth`. While each one's mean is within
    `tolerance` of what was stored, the probability that the warning is ever given is at most
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
        self.reset()

    def reset(self) -> None:
        """Start again, as after a new policy was loaded."""
        each = (
            self.error / (4 * len(self.stored))
            if self.inputs
            else self.error / (2 * len(self.stored))
        )
        wide = self.tolerance
        if self.inputs:
            wide += math.sqrt(-math.log(each) / (2 * self.inputs))
        self._sides = {
            f"{side} {name}": Wealth(
                min(max(level - wide, EDGE), 1 - EDGE), each, horizon=self.horizon
            )
            for name, mean in self.stored.items()
            for side, level in (("below", mean), ("above", 1.0 - mean))
        }

    def observe(self, name: str, value: float) -> bool:
        """One value of a figure; NaN is left aside. Whether the warning is given.

        Raises:
            InputError: a figure that is not watched.
        """
        if name not in self.stored:
            raise InputError(f"{name!r} is not watched: there are {', '.join(self.stored)}")
        if not math.isnan(value):
            held = min(max(value, 0.0), 1.0)
            self._sides[f"below {name}"].observe(held)
            self._sides[f"above {name}"].observe(1.0 - held)
        return self.shifted

    @property
    def shifted(self) -> bool:
        """Whether any figure has been found to have moved; it stays so until `reset`."""
        return any(side.reached for side in self._sides.values())

    def words(self) -> str:
        """What was seen and what to do, in a few sentences."""
        moved = [
            f"{name} was {self.stored[name]:.3f} on the calibration inputs and is "
            f"{self._recent(name):.3f} of late"
            for name in self.stored
            if self._sides[f"below {name}"].reached or self._sides[f"above {name}"].reached
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

    def _recent(self, name: str) -> float:
        below = self._sides[f"below {name}"]
        return below.recent if below.reached else 1.0 - self._sides[f"above {name}"].recent

    def to_state(self) -> State:
        """See `Saved`."""
        names = ("stored", "inputs", "tolerance", "error", "horizon")
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        parts, arrays = nested({name: side.to_state() for name, side in self._sides.items()})
        return {**own, "parts": parts}, arrays

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        names = ("inputs", "tolerance", "error", "horizon")
        warning = cls(plain["stored"], **{name: plain[name] for name in names})
        warning._sides = {
            name: Wealth.from_state(state, inside(name, arrays))
            for name, state in plain["parts"].items()
        }
        return warning
