"""Every p-value is valid at the edge of its hypothesis, falls with the limit, and is inverted."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from pointsman.errors import InputError
from pointsman.frontier import METHODS, inputs_needed, p_value, upper_bound

RUNS = 2000
# Distributions of drops: how to draw (runs, n), and the true mean, which is then the limit tested.
DISTRIBUTIONS = {
    "rare losses": (lambda rng, size: trinomial(rng, size, 0.02, 0.0), 0.02),
    "many wins and losses": (lambda rng, size: trinomial(rng, size, 0.42, 0.36), 0.06),
    "few of both": (lambda rng, size: trinomial(rng, size, 0.04, 0.02), 0.02),
    "continuous": (lambda rng, size: rng.uniform(-0.07, 0.11, size), 0.02),
    "skewed": (lambda rng, size: np.where(rng.random(size) < 0.05, 0.95, -0.03), 0.019),
}
INTEGRAL = ("rare losses", "many wins and losses", "few of both")
ORDER_FREE = tuple(method for method in METHODS if method != "predictable_betting")
CASES = [
    (method, name)
    for method in METHODS
    for name in DISTRIBUTIONS
    if method != "exact" or name in INTEGRAL
]


def trinomial(rng, size, loss, win):
    u = rng.random(size)
    return np.where(u < loss, 1.0, np.where(u < loss + win, -1.0, 0.0))


def simulated_p_values(method, draw, limit, n, seed):
    """p-values of many samples; samples that differ in order only are computed once."""
    samples = draw(np.random.default_rng(seed), (RUNS, n))
    if method in ORDER_FREE:
        samples = np.sort(samples, axis=1)
    distinct, place = np.unique(samples, axis=0, return_inverse=True)
    return np.array([p_value(row, limit, method) for row in distinct])[place.ravel()]


def some_drops(kind, n=400, seed=5):
    rng = np.random.default_rng(seed)
    if kind == "integral":
        return trinomial(rng, n, 0.03, 0.025)
    return np.clip(rng.normal(0.004, 0.03, n), -1, 1)


@pytest.mark.parametrize(("method", "name"), CASES)
def test_false_alarms_are_no_more_frequent_than_the_level(method, name):
    draw, limit = DISTRIBUTIONS[name]
    for n, seed in ((25, 11), (80, 12)):
        p = simulated_p_values(method, draw, limit, n, seed)
        for level in (0.01, 0.05, 0.2):
            most = binom.ppf(1 - 1e-4, RUNS, level)
            assert (p <= level).sum() <= most, (n, seed, level)


@pytest.mark.parametrize("method", METHODS)
def test_p_values_have_power(method):
    drops = trinomial(np.random.default_rng(1), 3000, 0.01, 0.01)
    assert p_value(drops, 0.1, method) < 0.02


@pytest.mark.parametrize(
    ("method", "kind"),
    [(method, "integral") for method in METHODS]
    + [(method, "continuous") for method in METHODS if method != "exact"],
)
def test_p_value_falls_as_the_limit_rises(method, kind):
    limits = np.concatenate([np.linspace(0, 0.05, 40), np.linspace(0.05, 0.999, 20)])
    for n in (1, 2, 7, 400):
        drops = some_drops(kind, n)
        p = np.array([p_value(drops, limit, method) for limit in limits])
        assert (np.diff(p) <= 1e-12).all(), n
        assert ((p >= 0) & (p <= 1)).all()
        assert p[0] > p[-1] or n <= 2


# the methods left out estimate the spread, so a better input that widens it can look worse
@pytest.mark.parametrize("method", ["exact", "betting", "hoeffding_bentkus", "hoeffding"])
def test_worse_inputs_raise_the_p_value_and_better_ones_lower_it(method):
    drops = some_drops("integral")
    limit = 0.08
    before = p_value(drops, limit, method)
    worse = drops.copy()
    worse[np.flatnonzero(drops == 0)[:4]] = 1.0
    assert p_value(worse, limit, method) > before
    better = drops.copy()
    better[np.flatnonzero(drops == 0)[:4]] = -1.0
    assert p_value(better, limit, method) < before


@pytest.mark.parametrize("method", ORDER_FREE)
def test_the_order_of_rows_does_not_matter(method):
    drops = some_drops("integral" if method == "exact" else "continuous")
    shuffled = np.random.default_rng(8).permutation(drops)
    assert p_value(shuffled, 0.01, method) == p_value(drops, 0.01, method)
    assert upper_bound(shuffled, 0.9, method) == upper_bound(drops, 0.9, method)


def test_predictable_betting_gives_the_same_value_every_time():
    drops = some_drops("continuous")
    assert p_value(drops, 0.01, "predictable_betting") == p_value(
        drops, 0.01, "predictable_betting"
    )


def test_nothing_lost_at_all():
    for n, limit in ((100, 0.02), (300, 0.01), (60, 0.05), (550, 0.005)):
        ideal = (1 - limit) ** n  # the chance of no loss when losses are all there is
        assert p_value(np.zeros(n), limit, "exact") == pytest.approx(ideal, abs=2e-4)
        # a quarter of the stake is on the bet that is best here
        assert ideal < p_value(np.zeros(n), limit, "betting") <= 4 * ideal
    assert p_value(np.zeros(299), 0.01) <= 0.0502  # 0.99 ** 299 is 0.0495


def test_nothing_but_losses():
    for method in METHODS:
        assert p_value(np.ones(50), 0.5, method) == 1.0
        assert upper_bound(np.ones(50), 0.95, method) == 1.0


def test_hoeffding_closed_form():
    drops = np.array([0.5, -0.5, 0.0, -0.2] * 50)  # mean -0.05
    assert p_value(drops, 0.1, "hoeffding") == pytest.approx(math.exp(-200 * 0.15**2 / 2))
    assert p_value(drops + 0.3, 0.1, "hoeffding") == 1.0
    bound = upper_bound(drops, 0.95, "hoeffding")
    assert bound == pytest.approx(-0.05 + math.sqrt(2 * math.log(20) / 200), abs=2e-6)


def test_hoeffding_bentkus_by_hand():
    drops = np.array([-1.0] * 8 + [1.0] * 2)  # on [0, 1]: mean 0.2 of 10
    bentkus = math.e * binom.cdf(2, 10, 0.55)
    chernoff = math.exp(-10 * (0.2 * math.log(0.2 / 0.55) + 0.8 * math.log(0.8 / 0.45)))
    found = p_value(drops, 0.1, "hoeffding_bentkus")
    assert found == pytest.approx(min(bentkus, chernoff))


def test_empirical_bernstein_solves_its_bound():
    drops = some_drops("continuous", 2000)
    p = p_value(drops, 0.02, "empirical_bernstein")
    log, n = math.log(2 / p), drops.size
    bound = drops.mean() + math.sqrt(2 * drops.var(ddof=1) * log / n) + 14 * log / (3 * (n - 1))
    assert 0 < p < 0.1
    assert bound == pytest.approx(0.02)


def test_betting_is_the_wealth_of_its_mixture():
    from pointsman.frontier.bounds import BETS, PRIOR

    drops, limit = some_drops("continuous", 50), 0.05
    wealth = sum(
        weight * np.prod(1 + bet / (1 - limit) * (limit - drops))
        for bet, weight in zip(BETS, PRIOR, strict=True)
    )
    assert wealth > 1
    assert PRIOR.sum() == pytest.approx(1)
    assert p_value(drops, limit, "betting") == pytest.approx(1 / wealth)


def test_predictable_betting_is_the_plain_loop():
    from pointsman.frontier.bounds import SHUFFLE_SEED

    drops, limit = some_drops("continuous", 120), 0.03
    seen, total, squares, wealth, best = 0, 0.0, 0.0, 1.0, 1.0
    for x in np.random.default_rng(SHUFFLE_SEED).permutation(drops):
        variance = (0.25 + squares) / (seen + 1)  # of earlier rows alone
        bet = min(math.sqrt(2 * math.log(20) / (drops.size * variance)), 0.9 / (1 - limit))
        wealth *= 1 + bet * (limit - x)
        best = max(best, wealth)
        seen, total = seen + 1, total + x
        squares += (x - total / (seen + 1)) ** 2
    assert best > 2
    assert p_value(drops, limit, "predictable_betting") == pytest.approx(1 / best)


def test_predictable_bets_look_at_the_past_only():
    from pointsman.frontier.bounds import SHUFFLE_SEED

    order = np.random.default_rng(SHUFFLE_SEED).permutation(60)
    drops = np.zeros(60)
    drops[order[-1]] = 1.0  # the last row that is bet on cannot change what was won before
    clean, spoilt = (p_value(d, 0.1, "predictable_betting") for d in (np.zeros(60), drops))
    early = np.zeros(60)
    early[order[0]] = 1.0
    assert clean < spoilt < 1.25 * clean
    assert p_value(early, 0.1, "predictable_betting") > 2 * spoilt


@pytest.mark.parametrize("method", METHODS)
def test_upper_bound_inverts_the_p_value(method):
    drops = some_drops("integral" if method == "exact" else "continuous", 1500)
    for confidence in (0.5, 0.9, 0.99):
        bound = upper_bound(drops, confidence, method)
        assert p_value(drops, bound, method) <= 1 - confidence
        assert p_value(drops, bound - 2e-6, method) > 1 - confidence
    assert upper_bound(drops, 0.99, method) > upper_bound(drops, 0.9, method)


def test_upper_bound_at_the_ends():
    assert upper_bound(-np.ones(50), 0.95) == 0.0  # every input was won
    assert upper_bound(np.array([1.0]), 0.95) == 1.0
    assert upper_bound(np.zeros(1), 0.95, "hoeffding") == 1.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [50, 800])
def test_inputs_needed_suffice_when_the_sample_is_scaled(method, n):
    drops = np.zeros(n)
    drops[: n // 25], drops[-n // 25 :] = 1.0, -1.0
    if method != "exact":
        drops = drops / 2
    limit, level = 0.02, 0.05
    needed = inputs_needed(drops, limit, 0.95, method)
    # bets that depend on the order vary with the shuffle, so allow them half as many again
    spare = 1.5 if method == "predictable_betting" else 1.0
    copies = np.repeat(drops, math.ceil(spare * needed / n))
    assert p_value(copies, limit, method) <= level
    fewer = np.sort(drops)[((np.arange(needed // 2) + 0.5) * n / (needed // 2)).astype(int)]
    assert p_value(fewer, limit, method) > level


def test_inputs_needed_for_a_clean_sample_is_the_known_number():
    assert inputs_needed(np.zeros(40), 0.01, 0.95) == pytest.approx(299, abs=2)


def test_inputs_needed_is_none_when_no_number_helps():
    drops = np.array([1.0, 0.0, 0.0, 0.0])
    assert inputs_needed(drops, 0.25) is None
    assert inputs_needed(drops, 0.2) is None
    assert inputs_needed(np.repeat([0.1, 0.0999999], 5), 0.1, 0.95, "hoeffding") is None


def test_auto_is_exact_for_right_or_wrong_and_betting_else():
    drops = some_drops("integral")
    assert p_value(drops, 0.03) == p_value(drops, 0.03, "exact")
    halves = np.append(drops, 0.5)
    assert p_value(halves, 0.03) == p_value(halves, 0.03, "betting")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=30),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([method for method in METHODS if method != "exact"]),
)
def test_any_drops_give_a_probability(drops, limit, method):
    assert 0 <= p_value(drops, limit, method) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_million_inputs_are_no_trouble(method):
    drops = np.zeros(1_000_000)
    drops[:2000], drops[-1000:] = 1.0, -1.0
    assert p_value(drops, 0.01, method) <= 0.0002  # the exact test adds 0.0001
    assert p_value(drops, 0.001, method) > 0.4


@pytest.mark.parametrize(
    ("drops", "limit", "method", "words"),
    [
        ([], 0.01, "auto", "at least one input"),
        ([[0.0]], 0.01, "auto", "one number per input"),
        ([0.0, np.nan], 0.01, "auto", r"\[-1, 1\], got nan at index 1"),
        ([0.0, 1.5], 0.01, "auto", r"got 1.5 at index 1"),
        ([0.0], 1.0, "auto", r"max_drop must lie in \[0, 1\), got 1.0"),
        ([0.0], -0.1, "auto", "max_drop"),
        ([0.0], float("nan"), "auto", "max_drop"),
        ([0.0], 0.01, "magic", "no method 'magic'"),
        ([0.5], 0.01, "exact", "got 0.5"),
    ],
)
def test_bad_input_is_refused(drops, limit, method, words):
    with pytest.raises(InputError, match=words):
        p_value(drops, limit, method)
    with pytest.raises(InputError, match=words):
        inputs_needed(drops, limit, 0.95, method)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, float("nan")])
def test_a_confidence_outside_its_range_is_refused(confidence):
    with pytest.raises(InputError, match="confidence"):
        upper_bound([0.0], confidence)
    with pytest.raises(InputError, match="confidence"):
        inputs_needed([0.0], 0.1, confidence)
