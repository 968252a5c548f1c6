"""What another policy would have reached, from a log of what was chosen with which probability.

With c the model that was chosen in row i, p its logged propensity, t the probability with which the
other policy would have chosen it, and w = t / p:

- inverse propensity (IPS): mean of w r. Unbiased; large weights make it noisy.
- self-normalised (SNIPS): sum w r / sum w. Slightly biased, usually much less noisy.
- doubly robust (DR): mean of sum_m t_m q_m + w (r - q_c), q a prediction of every model's reward
  that was not learned on these rows. Unbiased as IPS is, and the better q is the less noisy.

All take propensities as logged, and rewards to be missing only at random given query and model.

Intervals. The default is a studentised bootstrap over rows: terms w r have a long tail on one side,
which a symmetric interval ignores, and the plain percentile one understates. Its coverage holds for
many rows and not for sure; tests check it in simulation. "bernstein" is the empirical Bernstein
bound of Maurer & Pontil (2009, arXiv 0907.3740), which holds for every number of rows where rows
are independent and a largest weight is known, and is several times wider. A log of a bandit that
learned while it served has rows that depend on the past: estimates stay unbiased, intervals are
then approximate.

Legend: N rows, M models, R resamples.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError, UnreachableError
from pointsman.pool.online.bandit import Array

Interval = Literal["bootstrap", "bernstein"]

RESAMPLES = 1000
CELLS = 20_000_000  # rows times resamples: beyond it, fewer resamples are drawn
FEWEST = 200
CHUNK = 2_000_000  # cells that are held at once
LEAST_EFFECTIVE = 50.0
MOST_UNCOVERED = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean that was not observed, with its interval.

    Args:
        value: the estimate.
        low: end of the interval.
        high: end of the interval.
        confidence: of the interval.
        rows: N it was made from.
        effective: (sum w)^2 / sum w^2, how many rows of the other policy's own log tell as much.
        uncovered: share of the other policy's choices that the log cannot speak of; the interval
            is wider by what they may be worth.
        method: "inverse propensity", "self-normalised" or "doubly robust".
        interval: "bootstrap" or "bernstein".
    """

    value: float
    low: float
    high: float
    confidence: float
    rows: int
    effective: float
    uncovered: float
    method: str
    interval: str

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Checks:
    """When an estimate is refused, and how its interval is made.

    Args:
        confidence: of the interval, in (0, 1).
        interval: see the module.
        largest_weight: bound on w that held for every row that might have come, such as one over
            the least propensity; needed for "bernstein".
        lowest: least reward there can be; needed for "bernstein" and where a share is uncovered.
        highest: highest reward there can be.
        least_effective: fewer effective rows than this are refused.
        most_uncovered: a larger share of choices without a chance in the log is refused.
        seed: of the resamples.
    """

    confidence: float = 0.95
    interval: Interval = "bootstrap"
    largest_weight: float | None = None
    lowest: float = 0.0
    highest: float = 1.0
    least_effective: float = LEAST_EFFECTIVE
    most_uncovered: float = MOST_UNCOVERED
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.confidence < 1.0:
            raise InputError(f"confidence must lie strictly between 0 and 1, got {self.confidence}")
        if self.interval not in ("bootstrap", "bernstein"):
            raise InputError(f'an interval is "bootstrap" or "bernstein", got {self.interval!r}')
        if self.interval == "bernstein" and self.largest_weight is None:
            raise InputError(
                'the interval "bernstein" needs largest_weight, such as one over the least '
                "propensity with which models were chosen"
            )


DEFAULT = Checks()


def weights(target: npt.ArrayLike, propensity: npt.ArrayLike) -> Array:
    """(N,) w = target / propensity of the model that was chosen.

    Raises:
        InputError: shapes that differ, a propensity outside (0, 1], a target outside [0, 1].
    """
    wanted, logged = (np.asarray(values, dtype=np.float64) for values in (target, propensity))
    if wanted.ndim != 1 or wanted.shape != logged.shape:
        raise InputError(
            f"target and propensity are one number a row, got {wanted.shape} and {logged.shape}"
        )
    for name, values, good in (
        ("a propensity must lie in (0, 1]", logged, (logged > 0) & (logged <= 1 + 1e-9)),
        ("a target must lie in [0, 1]", wanted, (wanted >= 0) & (wanted <= 1 + 1e-9)),
    ):
        if not good.all():
            at = int(np.argmin(good))
            raise InputError(f"{name}, got {values[at]} in row {at}")
    ratio: Array = wanted / logged
    return ratio


def effective_rows(weight: npt.ArrayLike) -> float:
    """(sum w)^2 / sum w^2, 0 where all weights are (Kish 1965)."""
    w = np.asarray(weight, dtype=np.float64)
    squares = float((w * w).sum())
    return float(w.sum()) ** 2 / squares if squares > 0 else 0.0


def inverse_propensity(
    reward: npt.ArrayLike,
    weight: npt.ArrayLike,
    *,
    uncovered: float = 0.0,
    checks: Checks = DEFAULT,
) -> Estimate:
    """Mean reward of the other policy by inverse propensity weights (Horvitz & Thompson 1952).

    Args:
        reward: (N,) observed.
        weight: (N,) see `weights`.
        uncovered: share of the other policy's choices that had no chance in the log.
        checks: when to refuse, and the interval.

    Raises:
        InputError: shapes that differ or values that are not finite.
        UnreachableError: too little overlap between log and policy.
    """
    r, w = _rows(reward, weight)
    _refuse(w, uncovered, checks)
    return _of_terms(w * r, w, uncovered, checks, "inverse propensity")


def self_normalized(
    reward: npt.ArrayLike,
    weight: npt.ArrayLike,
    *,
    uncovered: float = 0.0,
    checks: Checks = DEFAULT,
) -> Estimate:
    """Mean reward of the other policy, weights scaled to sum to N (Swaminathan & Joachims 2015).

    Args:
        reward: (N,) observed.
        weight: (N,) see `weights`.
        uncovered: share of the other policy's choices that had no chance in the log.
        checks: when to refuse, and the interval, which must be "bootstrap".

    Raises:
        InputError: as `inverse_propensity`, or the interval "bernstein", which is for means.
        UnreachableError: too little overlap between log and policy.
    """
    r, w = _rows(reward, weight)
    if checks.interval != "bootstrap":
        raise InputError('a self-normalised estimate is no mean: take the interval "bootstrap"')
    _refuse(w, uncovered, checks)
    value = float((w * r).sum() / w.sum())
    low, high = _bootstrap(w * r, w, checks)
    return _made(value, low, high, w, uncovered, checks, "self-normalised")


def doubly_robust(
    reward: npt.ArrayLike,
    weight: npt.ArrayLike,
    expected: npt.ArrayLike,
    expected_chosen: npt.ArrayLike,
    *,
    uncovered: float = 0.0,
    checks: Checks = DEFAULT,
) -> Estimate:
    """Mean reward of the other policy by a prediction, corrected where rewards were seen.

    Args:
        reward: (N,) observed.
        weight: (N,) see `weights`.
        expected: (N,) predicted reward of the other policy, sum_m t_m q_m.
        expected_chosen: (N,) predicted reward q_c of the model that was chosen.
        uncovered: share of the other policy's choices that had no chance in the log.
        checks: when to refuse, and the interval.

    Raises:
        InputError: shapes that differ or values that are not finite.
        UnreachableError: too little overlap between log and policy.

    Source: Dudík, Langford & Li, "Doubly Robust Policy Evaluation and Learning" (2011, arXiv
    1103.4601).
    """
    r, w = _rows(reward, weight)
    other, chosen = _rows(expected, expected_chosen)
    if other.shape != r.shape:
        raise InputError(f"predictions are one number a row, {r.shape}, got {other.shape}")
    _refuse(w, uncovered, checks)
    return _of_terms(other + w * (r - chosen), w, uncovered, checks, "doubly robust")


def _of_terms(
    terms: Array, weight: Array, uncovered: float, checks: Checks, method: str
) -> Estimate:
    """The estimate that is a mean of independent terms."""
    if checks.interval == "bootstrap":
        low, high = _bootstrap(terms, np.ones_like(terms), checks)
    else:
        half = _bernstein(terms, method, checks)
        low, high = float(terms.mean()) - half, float(terms.mean()) + half
    return _made(float(terms.mean()), low, high, weight, uncovered, checks, method)


def _made(
    value: float,
    low: float,
    high: float,
    weight: Array,
    uncovered: float,
    checks: Checks,
    method: str,
) -> Estimate:
    """An estimate, its interval widened by what the uncovered share may be worth."""
    doubt = uncovered * (checks.highest - checks.lowest)
    return Estimate(
        value=value,
        low=low - doubt,
        high=high + doubt,
        confidence=checks.confidence,
        rows=len(weight),
        effective=effective_rows(weight),
        uncovered=uncovered,
        method=method,
        interval=checks.interval,
    )


def _bootstrap(top: Array, bottom: Array, checks: Checks) -> tuple[float, float]:
    """Studentised bootstrap interval of sum(top) / sum(bottom) (Efron & Tibshirani 1993, ch. 12).

    In each resample the ratio's distance to the whole sample's is taken in its own standard errors,
    those of the ratio to first order: sqrt(sum (top - ratio bottom)^2) / sum(bottom).
    """
    n = len(top)
    ratio = float(top.sum() / bottom.sum())
    error = math.sqrt(float(((top - ratio * bottom) ** 2).sum())) / float(bottom.sum())
    if error == 0.0:
        return ratio, ratio
    rng = np.random.default_rng(checks.seed)
    resamples = max(FEWEST, min(RESAMPLES, CELLS // n))
    distances = []
    for start in range(0, resamples, max(1, CHUNK // n)):
        count = min(max(1, CHUNK // n), resamples - start)
        at = rng.integers(0, n, size=(count, n))
        top_RN, bottom_RN = top[at], bottom[at]
        below = np.maximum(bottom_RN.sum(axis=1), 1e-300)
        ratios = top_RN.sum(axis=1) / below
        spread = np.sqrt(((top_RN - ratios[:, None] * bottom_RN) ** 2).sum(axis=1)) / below
        with np.errstate(divide="ignore", invalid="ignore"):
            distances.append((ratios - ratio) / spread)
    drawn = np.concatenate(distances)
    drawn = np.sort(drawn[~np.isnan(drawn)])
    tail = (1.0 - checks.confidence) / 2
    lower, upper = np.quantile(drawn, [tail, 1.0 - tail], method="inverted_cdf")
    return ratio - float(upper) * error, ratio - float(lower) * error


def _bernstein(terms: Array, method: str, checks: Checks) -> float:
    """Half the width of the empirical Bernstein interval (Maurer & Pontil 2009, theorem 4)."""
    largest, span = checks.largest_weight or 0.0, checks.highest - checks.lowest
    doubly = method == "doubly robust"  # a prediction in between, a correction to either side
    width = (
        span * (1.0 + 2.0 * largest)
        if doubly
        else largest * max(abs(checks.lowest), abs(checks.highest), span)
    )
    if float(terms.max() - terms.min()) > width * (1 + 1e-9):
        raise InputError(
            f"terms spread over {float(terms.max() - terms.min()):.3g}, more than "
            f"largest_weight = {largest:g} and rewards in [{checks.lowest:g}, {checks.highest:g}] "
            "allow: give bounds that hold"
        )
    n, log = len(terms), math.log(4.0 / (1.0 - checks.confidence))
    return math.sqrt(2 * float(terms.var(ddof=1)) * log / n) + 7 * width * log / (3 * (n - 1))


def _rows(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Array, Array]:
    """Two columns of finite numbers, one each a row."""
    a, b = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if a.ndim != 1 or a.shape != b.shape or a.size < 2:
        raise InputError(
            f"columns must be one number a row for two rows or more, got {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("every row needs finite numbers: leave rows without feedback out")
    return a, b


def _refuse(weight: Array, uncovered: float, checks: Checks) -> None:
    """Say no where the log knows too little of what the other policy does."""
    effective = effective_rows(weight)
    if effective < checks.least_effective:
        raise UnreachableError(
            f"no estimate: {len(weight):,} rows tell as much as {effective:.0f} of the other "
            f"policy's own would, at least {checks.least_effective:g} are needed: serve with more "
            "exploration, or compare a policy that is nearer to the one that served"
        )
    if uncovered > checks.most_uncovered:
        raise UnreachableError(
            f"no estimate: {uncovered * 100:.3g}% of what the other policy does had no chance in "
            f"the log, at most {checks.most_uncovered * 100:g}% may: serve with exploration first"
        )
