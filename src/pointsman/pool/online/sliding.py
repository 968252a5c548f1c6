"""A bandit without context that looks at the latest choices only.

Legend: M arms, W rewards inside the window.
"""

import math
from bisect import insort
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
)
from pointsman.pool.saving import Arrays, Plain


class SlidingWindowUpperConfidence(Bandit):
    """Sliding-window UCB: upper confidence bounds from the rewards of the latest choices.

    Index S_i / N_i + width sqrt(ln(min(t, window)) / N_i), with sums over choices made after
    t - window; an arm without one comes first.

    Args:
        arms: M.
        window: ticks of the clock that are looked at; about 4 sqrt(T ln T / changes) over T
            choices.
        width: of the bound, in rewards; the paper's 2 B sqrt(xi), B the range of the rewards.
        explore: share of the choices spread evenly, which keeps every propensity above 0.

    Raises:
        InputError: a number out of range.

    Source: Garivier & Moulines 2008, arXiv 0805.3415. `explore` and late rewards are ours: one
    that is older than the window is left aside.
    """

    contextual = False

    def __init__(
        self, arms: int, *, window: float = 1000, width: float = 0.8, explore: float = 0.0
    ) -> None:
        self.arms = int(check_between("arms", arms, 1, math.inf))
        self.window = check_between("window", window, 1.0, math.inf)
        self.width = check_between("width", width, 0.0, math.inf)
        self.explore = check_between("explore", explore, 0.0, 1.0)
        self._now = 0.0
        self._seen: list[tuple[float, int, float]] = []  # time, arm, reward, in order of time
        self._first = 0  # of the list that is inside; what lies before is cut off now and then
        self._tried: npt.NDArray[np.int64] = np.zeros(self.arms, dtype=np.int64)
        self._brought: Array = np.zeros(self.arms)

    def index(self) -> Array:
        """(M,) upper confidence bounds, infinite where an arm has no reward in the window."""
        known = np.maximum(self._tried, 1)
        total = math.log(max(float(self._tried.sum()), math.e))
        bound = self._brought / known + self.width * np.sqrt(total / known)
        return np.where(self._tried > 0, bound, np.inf)

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
        when = self._now + 1.0 if at is None else float(at)
        event = (when, check_arm(arm, self.arms), check_reward(reward))
        self._now = max(self._now, when)
        if when > self._now - self.window:
            insort(self._seen, event, lo=self._first)
            self._tried[arm] += 1
            self._brought[arm] += reward
        self._drop()

    def _drop(self) -> None:
        """Take what has left the window off the sums."""
        while self._first < len(self._seen):
            when, arm, reward = self._seen[self._first]
            if when > self._now - self.window:
                break
            self._tried[arm] -= 1
            self._brought[arm] = self._brought[arm] - reward if self._tried[arm] else 0.0
            self._first += 1
        if self._first > len(self._seen) // 2:
            del self._seen[: self._first]
            self._first = 0

    def forget(self, arm: int | None = None) -> None:
        """See `Bandit`."""
        kept = [] if arm is None else [e for e in self._seen[self._first :] if e[1] != arm]
        self._seen, self._first = kept, 0
        at = slice(None) if arm is None else arm
        self._tried[at] = 0
        self._brought[at] = 0.0

    def to_state(self) -> State:
        """See `Saved`."""
        plain: dict[str, Any] = {
            name: getattr(self, name) for name in ("arms", "window", "width", "explore")
        }
        seen = np.array(self._seen[self._first :], dtype=np.float64).reshape(-1, 3)
        return plain, {
            "seen": seen,
            "brought": self._brought.copy(),
            "clock": np.array([self._now]),
        }

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        bandit = cls(**plain)
        bandit._now = float(arrays["clock"][0])
        bandit._seen = [(float(at), int(arm), float(r)) for at, arm, r in arrays["seen"]]
        chosen = [arm for _, arm, _ in bandit._seen]
        bandit._tried = np.bincount(chosen, minlength=bandit.arms).astype(np.int64)
        bandit._brought = np.array(arrays["brought"], dtype=np.float64)
        return bandit
