"""Bandits that start again with an arm once its rewards have changed.

Legend: M arms, n values since the last start.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from pointsman.pool.online.bandit import (
    Array,
    Bandit,
    Contextual,
    State,
    allowed,
    check_arm,
    check_between,
    check_reward,
    mixed,
)
from pointsman.pool.online.keeping import PartsByName, restored, written
from pointsman.pool.saving import Arrays, Plain, inside, nested

NEAR_ZERO = 1e-9


class Detector(Protocol):
    """Tells from values in [0, 1], one after the other, that their mean has changed."""

    def observe(self, value: float) -> bool:
        """Take in one value; True where the mean has changed since the start."""
        ...

    def fresh(self) -> Self:
        """Another one with the same keywords that has seen nothing."""
        ...

    def to_state(self) -> State:
        """See `Saved`."""
        ...

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        ...


class PageHinkley(Detector):
    """Page-Hinkley: the sum of deviations from the running mean has moved too far from its extreme.

    Looks for a fall and for a rise at once, in constant time a value.

    Args:
        tolerance: change of the mean that is of no interest.
        threshold: how far the sum may move, in values; larger is slower and rarer wrong.
        least: values before which nothing is said.

    Source: Page, "Continuous Inspection Schemes" (1954); Hinkley (1971).
    """

    def __init__(
        self, *, tolerance: float = 0.05, threshold: float = 12.0, least: int = 30
    ) -> None:
        self.tolerance = check_between("tolerance", tolerance, 0.0, 1.0)
        self.threshold = check_between("threshold", threshold, 1e-9, math.inf)
        self.least = int(check_between("least", least, 1, math.inf))
        self._seen, self._mean, self._fall, self._rise = 0, 0.0, 0.0, 0.0

    def observe(self, value: float) -> bool:
        """See `Detector`."""
        self._seen += 1
        self._mean += (value - self._mean) / self._seen
        self._fall = max(0.0, self._fall + self._mean - value - self.tolerance)
        self._rise = max(0.0, self._rise + value - self._mean - self.tolerance)
        return self._seen >= self.least and max(self._fall, self._rise) > self.threshold

    def fresh(self) -> Self:
        """See `Detector`."""
        return type(self)(tolerance=self.tolerance, threshold=self.threshold, least=self.least)

    def to_state(self) -> State:
        """See `Saved`."""
        plain = {"tolerance": self.tolerance, "threshold": self.threshold, "least": self.least}
        sums = np.array([self._seen, self._mean, self._fall, self._rise], dtype=np.float64)
        return plain, {"sums": sums}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        detector = cls(**plain)
        seen, detector._mean, detector._fall, detector._rise = map(float, arrays["sums"])
        detector._seen = int(seen)
        return detector


class LikelihoodRatio(Detector):
    """Generalised likelihood ratio: some split of the values explains them much better than none.

    With kl the divergence of Bernoulli distributions, it says so as soon as
    max_s s kl(mean_1:s, mean) + (n - s) kl(mean_s+1:n, mean) >= ln(3 n^(3/2) / error).
    Nothing needs to be known about the size of the change.

    Args:
        error: probability of a false alarm that the threshold is made for, in (0, 1).
        every: values between two looks, each of O(n).
        most: values kept; beyond it, the oldest half is let go.

    Source: Besson, Kaufmann, Maillard & Seznec, "Efficient Change-Point Detection for Tackling
    Piecewise-Stationary Bandits" (2019, arXiv 1902.01575), with the threshold of its experiments.
    Letting old values go is ours.
    """

    def __init__(self, *, error: float = 0.01, every: int = 10, most: int = 2000) -> None:
        self.error = check_between("error", error, 1e-300, 1.0)
        self.every = int(check_between("every", every, 1, math.inf))
        self.most = int(check_between("most", most, 4, math.inf))
        self._values: list[float] = []

    def observe(self, value: float) -> bool:
        """See `Detector`."""
        self._values.append(value)
        n = len(self._values)
        if n % self.every or n < 4:
            return False
        total = np.cumsum(self._values)
        before = np.arange(1, n)
        mean = total[-1] / n
        first, second = total[:-1] / before, (total[-1] - total[:-1]) / (n - before)
        gain = before * _divergence(first, mean) + (n - before) * _divergence(second, mean)
        changed = bool(gain.max() >= math.log(3 * n**1.5 / self.error))
        if n >= self.most:
            del self._values[: n // 2]
        return changed

    def fresh(self) -> Self:
        """See `Detector`."""
        return type(self)(error=self.error, every=self.every, most=self.most)

    def to_state(self) -> State:
        """See `Saved`."""
        plain: dict[str, Any] = {"error": self.error, "every": self.every, "most": self.most}
        return plain, {"values": np.array(self._values, dtype=np.float64)}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        detector = cls(**plain)
        detector._values = [float(value) for value in arrays["values"]]
        return detector


def _divergence(p: Array, q: float) -> Array:
    """Kullback-Leibler divergence of Bernoulli(p) from Bernoulli(q), in nats."""
    p = np.clip(p, NEAR_ZERO, 1 - NEAR_ZERO)
    q = min(max(q, NEAR_ZERO), 1 - NEAR_ZERO)
    found: Array = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return np.maximum(found, 0.0)


DETECTORS: PartsByName[Detector] = {"PageHinkley": PageHinkley, "LikelihoodRatio": LikelihoodRatio}


class ChangeDetection(Bandit):
    """Any bandit, with a detector beside each arm: where it speaks, that arm is learned anew.

    A detector sees the rewards of its arm; with a contextual bandit, (1 + reward - expected) / 2,
    so that a change of the traffic alone is none. Arms that the bandit has given up are still
    tried by a share of the choices, else nobody would notice that they have become good.

    Args:
        bandit: with rewards in [0, 1].
        detector: copied for each arm; None: `LikelihoodRatio()`.
        explore: share of the choices spread evenly over the eligible arms.
        everything: whether a change of one arm restarts all of them.

    Raises:
        InputError: a number out of range; on update, a reward outside [0, 1].

    Attributes:
        changes: how often a change was found so far.

    Source: Liu, Lee & Shroff, "A Change-Detection Based Framework for Piecewise-Stationary
    Multi-Armed Bandit Problem" (2017, arXiv 1711.03539); Besson et al. 2019 (1902.01575). That
    residuals are watched for contextual bandits is ours.
    """

    def __init__(
        self,
        bandit: Bandit,
        detector: Detector | None = None,
        *,
        explore: float = 0.05,
        everything: bool = False,
    ) -> None:
        self.bandit = bandit
        self.arms, self.contextual = bandit.arms, bandit.contextual
        self.explore = check_between("explore", explore, 0.0, 1.0)
        self.everything = bool(everything)
        self.changes = 0
        first = LikelihoodRatio() if detector is None else detector
        self._detectors = [first.fresh() for _ in range(self.arms)]

    def probabilities(
        self,
        x: npt.ArrayLike | None = None,
        eligible: npt.ArrayLike | None = None,
        penalty: npt.ArrayLike | None = None,
    ) -> Array:
        """(M,) see `Bandit`."""
        mask = allowed(eligible, self.arms)
        return mixed(self.bandit.probabilities(x, mask, penalty), mask, self.explore)

    def expected(self, x: npt.ArrayLike | None) -> Array:
        """(M,) what the bandit inside expects of each arm at a context; only contextual ones do."""
        return cast(Contextual, self.bandit).expected(x)

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
        arm, value = check_arm(arm, self.arms), check_reward(reward, share=True)
        if self.contextual:
            expected = float(self.expected(x)[arm])
            value = min(max((1.0 + value - expected) / 2, 0.0), 1.0)
        if self._detectors[arm].observe(value):
            self.changes += 1
            self.forget(None if self.everything else arm)
        self.bandit.update(arm, reward, x, cost, at=at, propensity=propensity)

    def forget(self, arm: int | None = None) -> None:
        """See `Bandit`."""
        for each in range(self.arms) if arm is None else [check_arm(arm, self.arms)]:
            self._detectors[each] = self._detectors[each].fresh()
        self.bandit.forget(arm)

    def to_state(self) -> State:
        """See `Saved`."""
        parts = {"bandit": written(self.bandit)}
        parts |= {f"detector {at}": written(one) for at, one in enumerate(self._detectors)}
        plain, arrays = nested(parts)
        own = {"explore": self.explore, "everything": self.everything, "changes": self.changes}
        return {**own, "arms": self.arms, "parts": plain}, arrays

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        from pointsman.pool.online.kinds import BANDITS  # the list names this class as well

        parts: Mapping[str, Any] = plain["parts"]
        bandit = restored(BANDITS, parts["bandit"], inside("bandit", arrays))
        found = cls(bandit, explore=plain["explore"], everything=plain["everything"])
        found.changes = plain["changes"]
        found._detectors = [
            restored(DETECTORS, parts[name], inside(name, arrays))
            for name in (f"detector {at}" for at in range(plain["arms"]))
        ]
        return found
