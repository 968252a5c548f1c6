"""Cost models of operations, fitted from measurements, and a book of the quickest plan by load.

An operation's time is taken to be alpha + beta * size: what it costs to begin, and to go on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log2
from typing import Generic, TypeVar

import numpy as np

from pointsman.errors import InputError

Plan = TypeVar("Plan")


@dataclass(frozen=True)
class Line:
    """Seconds of an operation as a function of its size: alpha + beta * size.

    Args:
        alpha: seconds to begin, at least 0.
        beta: seconds for each unit of size, at least 0; the unit is the caller's.

    Raises:
        InputError: a number that is negative or not finite.
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        if not (0 <= self.alpha < inf and 0 <= self.beta < inf):
            raise InputError(
                f"a line needs alpha and beta of at least 0, got {self.alpha} and {self.beta}"
            )

    def seconds(self, size: float) -> float:
        """Of one operation of this size."""
        return self.alpha + self.beta * size

    def fits(self, seconds: float) -> float:
        """The largest size that takes no longer than this; 0 if none, inf if any does."""
        if seconds <= self.alpha:
            return 0.0
        return (seconds - self.alpha) / self.beta if self.beta > 0 else inf

    def times(self, factor: float) -> "Line":
        """The same operation, so many times slower."""
        return Line(self.alpha * factor, self.beta * factor)


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line with least squares of relative errors, alpha and beta being at least 0.

    Relative, because times of a micro-benchmark span orders of magnitude.

    Args:
        sizes: at least two different ones.
        seconds: measured, above 0.

    Raises:
        InputError: fewer than two sizes, or a time or size out of range.
    """
    from scipy.optimize import nnls

    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(np.unique(x)) < 2:
        raise InputError(
            "a line is fitted to one time for each of two sizes or more, "
            f"got {x.size} sizes and {y.size} times"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x >= 0).all() and (y > 0).all()):
        raise InputError("sizes must be at least 0 and seconds above 0, both finite")
    scale = x.max()  # so that both columns are of one size
    columns = np.stack([np.ones_like(x), x / scale], axis=1) / y[:, None]
    (alpha, beta), _ = nnls(columns, np.ones_like(y))
    return Line(float(alpha), float(beta / scale))


class PlanBook(Generic[Plan]):
    """The quickest plan for each size of load, learned while running.

    Loads are put into buckets, a few for each doubling. In a bucket, each plan is tried once, in
    the order given or, with `expected`, from the quickest expected on; then the one with the
    smallest mean time is taken. This is the dictionary of Tutel (Hwang et al. 2022, "Tutel:
    adaptive mixture-of-experts at scale", arXiv 2206.03382), whose layout of weights makes changing
    the plan free; that layout, the kernels and the collective algorithms are not here.

    Args:
        plans: to choose from, at least one.
        expected: (plan, load) → seconds, a model that orders the trials. A plan that it puts more
            than `patience` times above the best one is never tried.
        patience: see `expected`.
        per_doubling: buckets between a load and twice that load.

    Raises:
        InputError: no plan, or fewer than one bucket.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        *,
        expected: Callable[[Plan, float], float] | None = None,
        patience: float = inf,
        per_doubling: int = 2,
    ) -> None:
        if not plans or per_doubling < 1:
            raise InputError(
                "a book needs at least one plan and one bucket for each doubling, got "
                f"{len(plans)} plans and {per_doubling}"
            )
        self.plans, self.expected, self.patience = list(plans), expected, patience
        self.per_doubling = per_doubling
        # bucket -> for each plan, how often it was measured and the sum of its seconds
        self.entries: dict[int, list[tuple[int, float]]] = {}

    def bucket(self, load: float) -> int:
        """Number of the bucket of a load; loads up to 1 share one.

        Raises:
            InputError: a load that is negative or not finite.
        """
        if not (isfinite(load) and load >= 0):
            raise InputError(f"a load is finite and at least 0, got {load}")
        return round(log2(max(load, 1.0)) * self.per_doubling)

    def pick(self, load: float) -> Plan:
        """The plan to run now: one to try where there is one, else the quickest so far."""
        counts = self._entry(load)
        for at in self._order(load):
            if counts[at][0] == 0:
                return self.plans[at]
        return self.best(load)

    def best(self, load: float) -> Plan:
        """The quickest measured plan in this bucket; unmeasured, the one that is tried first."""
        measured = [
            (seconds / count, at) for at, (count, seconds) in enumerate(self._entry(load)) if count
        ]
        return self.plans[min(measured)[1] if measured else self._order(load)[0]]

    def record(self, load: float, plan: Plan, seconds: float) -> None:
        """Note what a plan took; every process of a group must note the same, or picks differ.

        Raises:
            InputError: a plan that is not in the book, or a time that is not finite.
        """
        if plan not in self.plans or not isfinite(seconds):
            raise InputError(f"the book has {self.plans}, got {plan!r} with {seconds} seconds")
        entry, at = self._entry(load), self.plans.index(plan)
        count, total = entry[at]
        entry[at] = (count + 1, total + seconds)

    def _entry(self, load: float) -> list[tuple[int, float]]:
        return self.entries.setdefault(self.bucket(load), [(0, 0.0)] * len(self.plans))

    def _order(self, load: float) -> list[int]:
        if self.expected is None:
            return list(range(len(self.plans)))
        seconds = [self.expected(plan, load) for plan in self.plans]
        bound = min(seconds) * self.patience
        worth = [at for at in range(len(self.plans)) if seconds[at] <= bound]
        return sorted(worth, key=lambda at: seconds[at])
