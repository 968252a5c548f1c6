"""An alarm on the promise itself: it says when a certificate has stopped to hold."""

import math
from typing import Any, NamedTuple, Protocol, Self

from pointsman.errors import InputError
from pointsman.pool.online.bandit import State, check_between
from pointsman.pool.online.wealth import Wealth
from pointsman.pool.saving import Arrays, Plain, inside, nested

LEAST_LEVEL = 1e-6  # a level below it promises nothing that could be broken


class Promise(Protocol):
    """What an alarm reads of a `frontier.certify.Certificate`."""

    @property
    def promised_drop(self) -> float:
        """Largest mean drop of quality that is promised."""
        ...

    @property
    def inputs(self) -> int:
        """Number of calibration inputs."""
        ...


class DriftAlarm:
    """Watches the quality of served answers against what a certificate promised.

    The promise is that the mean quality is at most `promised_drop` below the reference's. The
    reference is not asked while the policy serves, so its quality is taken from the calibration
    inputs, less what that mean may be wrong by (Chernoff's bound): answers should reach

        level = lowest reference quality that n calibration inputs leave possible - promised_drop.

    Where the reference was asked beside (shadow traffic), the drop itself is watched as well, and
    nothing has to be assumed of its quality. Either test is a `Wealth`.

    While the promise holds, the probability that the alarm is ever raised is at most `error`: a
    quarter of it for the level, a quarter for the watch on the quality, half for that on drops.
    This needs feedback that does not depend on how good the answer was; feedback may be sparse and
    late, since time is counted in feedbacks. Only answers of the policy's certified point count,
    not those of the reference after a fall-back.

    Args:
        certificate: `promised_drop` and `inputs` are read.
        reference_quality: mean of the reference on the calibration inputs, in [0, 1].
        reference: its name, for the words.
        error: probability of ever raising the alarm while the promise holds.
        slack: further fall of the quality that is to be let pass.
        horizon: see `Wealth`; the number of feedbacks in which a change is likely.

    Raises:
        InputError: a number out of range.

    Source: Podkopaev & Ramdas, "Tracking the Risk of a Deployed Model and Detecting Harmful
    Distribution Shifts" (2021, arXiv 2110.06177); see `Wealth` for the test.
    """

    def __init__(
        self,
        certificate: Promise,
        reference_quality: float,
        *,
        reference: str = "the reference",
        error: float = 0.01,
        slack: float = 0.0,
        horizon: float = 1000.0,
    ) -> None:
        self.promised_drop = check_between("promised_drop", certificate.promised_drop, 0.0, 1.0)
        self.inputs = int(check_between("inputs", certificate.inputs, 1, math.inf))
        self.reference_quality = check_between("reference_quality", reference_quality, 0.0, 1.0)
        self.reference = str(reference)
        self.error = check_between("error", error, 1e-300, 1.0)
        self.slack = check_between("slack", slack, 0.0, 1.0)
        self.horizon = check_between("horizon", horizon, 1e-9, 1e300)
        lowest = lowest_mean(self.reference_quality, self.inputs, self.error / 4)
        self.level = lowest - self.promised_drop - self.slack
        self.reset()

    def reset(self) -> None:
        """Start again, as after a new policy was loaded."""
        level = min(max(self.level, LEAST_LEVEL), 1 - LEAST_LEVEL)
        self._quality = Wealth(level, self.error / 4, horizon=self.horizon)
        kept = 1.0 - self.promised_drop - self.slack
        kept_level = min(max(kept / 2, LEAST_LEVEL), 1 - LEAST_LEVEL)
        self._kept = Wealth(kept_level, self.error / 2, horizon=self.horizon)

    def observe(self, quality: float, reference: float | None = None) -> bool:
        """Feedback on one served answer.

        Args:
            quality: of the answer, in [0, 1]; NaN is no feedback and leaves things as they are.
            reference: quality of the reference's answer to the same query, where it is known.

        Returns:
            Whether the alarm is raised; it stays so until `reset`.

        Raises:
            InputError: a quality outside [0, 1].
        """
        for value in (quality, reference):
            if value is not None and not math.isnan(value) and not 0.0 <= value <= 1.0:
                raise InputError(f"a quality must lie in [0, 1], got {value!r}")
        if not math.isnan(quality) and not self.alarmed:
            self._quality.observe(quality)
            if reference is not None and not math.isnan(reference):
                self._kept.observe((1.0 + quality - reference) / 2)
        return self.alarmed

    @property
    def alarmed(self) -> bool:
        """Whether the promise has been found broken."""
        return self._quality.reached or self._kept.reached

    @property
    def feedbacks(self) -> int:
        """How many were taken in."""
        return self._quality.seen

    @property
    def evidence(self) -> float:
        """Share of the evidence that raises the alarm, on a scale of logarithms: 0 none, 1 all."""
        shares = [
            math.log(max(w.evidence, 1.0)) / -math.log(w.error) for w in (self._quality, self._kept)
        ]
        return min(max(shares), 1.0)

    def words(self) -> str:
        """What was seen and what to do, in a few sentences."""
        promised = (
            f"quality of {self.level:.3f} or more ({self.reference} reached "
            f"{self.reference_quality:.3f} on {self.inputs:,} calibration inputs; the policy may "
            f"lose {self.promised_drop * 100:.2g}%)"
        )
        if not self.feedbacks:
            return f"No feedback yet: whether the promise of {promised} still holds is not watched."
        if not self.alarmed:
            return (
                f"No alarm after {self.feedbacks:,} feedbacks: of late quality was "
                f"{self._quality.recent:.3f}, promised is {promised}."
            )
        if self._kept.reached:
            lost = 1.0 - 2.0 * self._kept.recent
            found = (
                f"of late answers lose {lost * 100:.3g}% against {self.reference} on the same "
                f"queries, promised is at most {(self.promised_drop + self.slack) * 100:.2g}%"
            )
        else:
            found = f"of late quality was {self._quality.recent:.3f}, promised is {promised}"
        return (
            f"Drift: the promise has stopped to hold. After {self.feedbacks:,} feedbacks, {found}. "
            f"Were the promise kept, the probability of this alarm would be at most "
            f"{self.error * 100:g}%. Send requests to {self.reference}, collect an evaluation log "
            "of recent queries, run `pointsman compare` on it and load the new policy."
        )

    def to_state(self) -> State:
        """See `Saved`."""
        names = ("promised_drop", "inputs", "reference_quality", "reference", "error", "slack")
        own: dict[str, Any] = {name: getattr(self, name) for name in (*names, "horizon")}
        parts, arrays = nested({"quality": self._quality.to_state(), "kept": self._kept.to_state()})
        return {**own, "parts": parts}, arrays

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        alarm = cls(
            _Promise(plain["promised_drop"], plain["inputs"]),
            plain["reference_quality"],
            **{name: plain[name] for name in ("reference", "error", "slack", "horizon")},
        )
        parts = plain["parts"]
        alarm._quality = Wealth.from_state(parts["quality"], inside("quality", arrays))
        alarm._kept = Wealth.from_state(parts["kept"], inside("kept", arrays))
        return alarm


class _Promise(NamedTuple):
    """A promise as it was kept."""

    promised_drop: float
    inputs: int


def lowest_mean(mean: float, n: int, error: float) -> float:
    """Lower bound on the mean of values in [0, 1] of which n independent ones had this mean.

    Chernoff's bound in its entropy form (Hoeffding 1963): the q below the mean at which
    n KL(mean, q) = ln(1 / error), found by bisection and rounded down.
    """
    budget = -math.log(error) / n
    low, high = 0.0, mean
    for _ in range(60):
        middle = (low + high) / 2
        if _divergence(mean, middle) > budget:
            low = middle
        else:
            high = middle
    return low


def _divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(p) from Bernoulli(q), in nats, for q <= p."""
    if q <= 0.0:
        return math.inf if p > 0 else 0.0
    left = p * math.log(p / q) if p > 0 else 0.0
    right = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0
    return left + right
