"""How sure one can be that the mean drop of quality stays below a limit.

A drop is what one input loses against the reference: a number in [-1, 1], negative for a win. The
drops of N inputs are taken as independent draws from one distribution with mean mu, of which
nothing else is assumed. Every p-value here is for the hypothesis mu >= max_drop and is valid at
every N: while the hypothesis is true, P(p <= a) <= a for each a. Every p-value falls as max_drop
rises, so one that is small enough at a limit is so at all higher limits, and `upper_bound` is a
confidence bound. The argument for each method stands in its function.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, logsumexp

from pointsman.errors import InputError
from pointsman.frontier.trinomial import Region, exact

Array = npt.NDArray[np.float64]
Method = Literal[
    "auto",
    "exact",
    "betting",
    "predictable_betting",
    "hoeffding_bentkus",
    "empirical_bernstein",
    "hoeffding",
]
METHODS: tuple[Method, ...] = get_args(Method)[1:]

# Bets as shares of the largest bet that cannot lose everything, with their prior weights: a quarter
# on the boldest (best when next to nothing is lost), the rest on a geometric ladder.
LADDER = np.geomspace(0.8, 0.03, 8)
BETS = np.concatenate([[1.0], LADDER])
PRIOR = np.concatenate([[0.25], 0.75 * LADDER**0.3 / (LADDER**0.3).sum()])
PLUG_IN_LEVEL = 0.05  # the level the predictable bets are tuned for; they are valid at every level
PLUG_IN_MOST = 0.9
SHUFFLE_SEED = 20
MOST_INPUTS = 1_000_000  # beyond this, `inputs_needed` gives up
PRECISION = 1e-6  # of `upper_bound`


@dataclass(frozen=True, eq=False)
class _Drops:
    """Drops as ascending distinct values with counts, and as rows where the order matters."""

    values: Array
    counts: npt.NDArray[np.int64]
    rows: Array | None = None

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return float(self.values @ self.counts) / self.n

    def stretched(self, n: int) -> "_Drops":
        """A sample of n inputs with these shares; counts are rounded towards the larger drops."""
        ends = np.floor(np.cumsum(self.counts) * (n / self.n) + 1e-6)
        counts = np.diff(ends, prepend=0).astype(np.int64)
        return _Drops(self.values[counts > 0], counts[counts > 0])


Test = Callable[[_Drops, float], float]  # p-value of a sample at a limit


def p_value(drops: npt.ArrayLike, max_drop: float, method: Method = "auto") -> float:
    """p-value of the hypothesis that the mean drop is at least `max_drop`; small means it is not.

    Args:
        drops: (N,) in [-1, 1], one per input.
        max_drop: limit on the mean drop, in [0, 1).
        method: "auto" is "exact" where every drop is -1, 0 or 1, else "betting". Choose one method
            before looking: the smallest of several p-values is not a p-value.

    Raises:
        InputError: drops empty, not finite or outside [-1, 1]; a limit outside [0, 1); an unknown
            method; "exact" for other drops than -1, 0, 1.
    """
    _check_limit(max_drop)
    sample = _sample(drops)
    return _test(sample, method)(sample, max_drop)


def upper_bound(drops: npt.ArrayLike, confidence: float = 0.95, method: Method = "auto") -> float:
    """The smallest limit that these drops certify: the mean drop is below it, at `confidence`.

    Found by bisection to one millionth, rounded up. 0.0 where even no loss at all is certified,
    1.0 where nothing is.

    If the true mean mu exceeded the bound u, then p(mu) <= p(u) <= 1 - confidence, because p falls
    with the limit, and that has probability at most 1 - confidence.

    Args:
        drops: (N,) in [-1, 1].
        confidence: in (0, 1).
        method: as in `p_value`.

    Raises:
        InputError: as in `p_value`, or a confidence outside (0, 1).
    """
    level = _level(confidence)
    sample = _sample(drops)
    test = _test(sample, method)
    low, high = 0.0, 1.0 - PRECISION
    if test(sample, low) <= level:
        return low
    if test(sample, high) > level:
        return 1.0
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if test(sample, middle) <= level else (middle, high)
    return high


def inputs_needed(
    drops: npt.ArrayLike, max_drop: float, confidence: float = 0.95, method: Method = "auto"
) -> int | None:
    """About how many inputs would certify `max_drop`, if the drops kept their distribution.

    The sample is stretched or thinned with its shares kept; the answer is a size at which that
    sample is certified, to half a percent the smallest. It is an estimate for planning, not a
    promise: the drops of new inputs vary.

    Returns:
        The number of inputs, or None where the observed mean drop is not below `max_drop`, or
        more than a million would be needed.

    Raises:
        InputError: as in `p_value` and `upper_bound`.
    """
    _check_limit(max_drop)
    level = _level(confidence)
    sample = _sample(drops)
    chosen = _resolve(sample, method)
    if sample.mean >= max_drop:
        return None

    def enough(n: int) -> bool:
        scaled = sample.stretched(n)
        return _test(scaled, chosen)(scaled, max_drop) <= level

    spread = float((sample.values - sample.mean) ** 2 @ sample.counts) / sample.n
    guess = spread / (max_drop - sample.mean) ** 2  # any start does; this one is near
    high = int(min(max(guess, 16), MOST_INPUTS))
    while not enough(high):
        if high >= MOST_INPUTS:
            return None
        high = min(2 * high, MOST_INPUTS)
    while high > 1 and enough(high // 2):
        high //= 2
    low = high // 2
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def is_integral(drops: npt.ArrayLike) -> bool:
    """Whether every drop is -1, 0 or 1, as the "exact" method needs."""
    array = np.asarray(drops, dtype=np.float64)
    return bool(np.isin(array, (-1.0, 0.0, 1.0)).all())


def hoeffding(sample: _Drops, max_drop: float) -> float:
    """exp(-N gap^2 / 2), gap = max_drop - mean (Hoeffding 1963, for a range of width 2).

    The inequality bounds P(mean <= mu - t); as a decreasing function of the mean put into its own
    tail bound, it is a p-value.
    """
    gap = max(max_drop - sample.mean, 0.0)
    return math.exp(-sample.n * gap * gap / 2)


def hoeffding_bentkus(sample: _Drops, max_drop: float) -> float:
    """The smaller of two tail bounds, on (drop + 1) / 2 in [0, 1] (Bates et al. 2021, 2101.02703).

    With risk r the sample mean and a the limit: exp(-N KL(r, a)) (Hoeffding 1963) and
    e P(Binomial(N, a) <= ceil(N r)) (Bentkus 2004). Both bound P(mean <= r) and both grow with r,
    so their minimum bounds it too, and a bound on its own tail is a p-value.
    """
    n = sample.n
    risk, limit = (sample.mean + 1) / 2, (max_drop + 1) / 2
    if risk >= limit:
        return 1.0
    failures = math.ceil(float((sample.values + 1) / 2 @ sample.counts))
    chernoff = math.exp(-n * _binary_divergence(risk, limit))
    return min(1.0, chernoff, math.e * float(bdtr(failures, n, limit)))


def empirical_bernstein(sample: _Drops, max_drop: float) -> float:
    """Maurer & Pontil 2009 (0907.3740), theorem 4, solved for the level.

    With L = ln(2/a) and V the sample variance, drops of width 2 satisfy, with probability at least
    1 - a: mu <= mean + sqrt(2 V L / N) + 14 L / (3 (N - 1)). The p-value is the least level at
    which the right side is at most `max_drop`, so p <= a means that the bound at a failed.
    """
    n, gap = sample.n, max_drop - sample.mean
    if n < 2 or gap <= 0:
        return 1.0
    variance = float((sample.values - sample.mean) ** 2 @ sample.counts) / (n - 1)
    slope, curve = math.sqrt(2 * variance / n), 14 / (3 * (n - 1))
    root = (math.sqrt(slope * slope + 4 * curve * gap) - slope) / (2 * curve)
    return min(1.0, 2 * math.exp(-root * root))


def betting(sample: _Drops, max_drop: float) -> float:
    """One over the final wealth of a fixed mixture of constant bets (2010.09686, section 4).

    A bet l turns wealth W into W (1 + l (max_drop - drop)). With 0 <= l <= 1 / (1 - max_drop) that
    is never negative, and its expected factor is at most 1 under the hypothesis; the bets and
    their weights are fixed beforehand, so the mixture's expected wealth is at most 1 as well and
    Markov's inequality makes 1 / W a p-value. The order of the inputs does not matter. With l a
    fixed share of 1 / (1 - max_drop), every factor grows with max_drop, so p falls.

    Where we depart from Waudby-Smith & Ramdas 2020: final wealth of a mixture of constant bets in
    place of adaptive ones, so that a shuffled file gives the same certificate.
    """
    factors = (max_drop - sample.values) / (1.0 - max_drop)
    with np.errstate(divide="ignore"):  # the boldest bet loses everything at a drop of 1
        wealth = [float(np.log1p(bet * factors) @ sample.counts) for bet in BETS]
    return math.exp(min(0.0, -float(logsumexp(wealth, b=PRIOR))))


def predictable_betting(sample: _Drops, max_drop: float) -> float:
    """One over the largest wealth ever reached by adaptive bets (2010.09686, "PrPl" bets).

    Each bet depends on earlier drops only, so wealth is a supermartingale under the hypothesis and
    Ville's inequality makes one over its running maximum a p-value. The bets are
    sqrt(2 ln(1/0.05) / (N v)), v the variance so far, cut off at 0.9 / (1 - max_drop); they do not
    depend on max_drop but through the cut, so every factor grows with max_drop and p falls.

    The value depends on the order of the rows, which is shuffled by a fixed seed first.
    """
    rows = np.repeat(sample.values, sample.counts) if sample.rows is None else sample.rows
    x = np.random.default_rng(SHUFFLE_SEED).permutation(rows)
    seen = np.arange(1, x.size + 1)
    mean = np.cumsum(x) / (seen + 1)  # one drop of zero and a variance of 1/4 to start from
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (seen + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    bold = np.sqrt(2 * math.log(1 / PLUG_IN_LEVEL) / (x.size * before))
    bets = np.minimum(bold, PLUG_IN_MOST / (1.0 - max_drop))
    best = float(np.cumsum(np.log1p(bets * (max_drop - x))).max())
    return math.exp(min(0.0, -best))


_TESTS: dict[str, Test] = {
    "betting": betting,
    "predictable_betting": predictable_betting,
    "hoeffding_bentkus": hoeffding_bentkus,
    "empirical_bernstein": empirical_bernstein,
    "hoeffding": hoeffding,
}


def _resolve(sample: _Drops, method: Method) -> Method:
    if method == "auto":
        return "exact" if is_integral(sample.values) else "betting"
    if method not in METHODS:
        raise InputError(f"no method {method!r}: choose auto or one of {', '.join(METHODS)}")
    if method == "exact" and not is_integral(sample.values):
        odd = sample.values[~np.isin(sample.values, (-1.0, 0.0, 1.0))][0]
        raise InputError(
            f'the method "exact" needs drops of -1, 0 or 1 (quality 0 or 1), got {odd:g}: '
            'use "betting"'
        )
    return method


def _test(sample: _Drops, method: Method) -> Test:
    chosen = _resolve(sample, method)
    if chosen != "exact":
        return _TESTS[chosen]
    count = {value: int(c) for value, c in zip(sample.values, sample.counts, strict=True)}
    # the region does not depend on the limit: built once for all limits that are tried
    region = Region.of(count.get(1.0, 0), count.get(-1.0, 0), sample.n)
    return lambda _, max_drop: exact(region, max_drop)


def _sample(drops: npt.ArrayLike) -> _Drops:
    rows = np.asarray(drops, dtype=np.float64)
    if rows.ndim != 1 or rows.size == 0:
        raise InputError(
            f"drops must be one number per input, for at least one input, got shape {rows.shape}"
        )
    wrong = ~((rows >= -1.0) & (rows <= 1.0))  # NaN fails too
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InputError(
            f"drops must lie in [-1, 1], got {rows[at]} at index {at}: "
            "rescale quality to [0, 1] and repair missing values"
        )
    values, counts = np.unique(rows, return_counts=True)
    return _Drops(values, counts.astype(np.int64), rows)


def _check_limit(max_drop: float) -> None:
    if not 0.0 <= max_drop < 1.0:
        raise InputError(
            f"max_drop must lie in [0, 1), got {max_drop}: 0.01 allows one percent of quality"
        )


def _level(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    return 1.0 - confidence


def _binary_divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(p) from Bernoulli(q), for p < q < 1, in nats."""
    left = p * math.log(p / q) if p > 0 else 0.0
    return left + (1 - p) * math.log((1 - p) / (1 - q))
