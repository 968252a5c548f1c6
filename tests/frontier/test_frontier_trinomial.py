"""The exact test by full enumeration: its size for small n, and the geometry its proof rests on."""

import math

import numpy as np
import pytest
from scipy.stats import multinomial

from pointsman.frontier.trinomial import BETA, ROOT, Region, _deviance, _limit, _most_losses, exact


def tables(n):
    return [(i, j) for i in range(n + 1) for j in range(n + 1 - i)]


def brute_order(n):
    return {(i, j): _limit(i, j, n) if i < n else 1.0 for i, j in tables(n)}


@pytest.mark.parametrize(("n", "limit"), [(9, 0.05), (9, 0.3), (24, 0.1), (24, 0.0)])
def test_its_size_is_never_above_the_level(n, limit):
    every = tables(n)
    p_values = np.array([exact(Region.of(i, j, n), limit) for i, j in every])
    counts = np.array([(i, j, n - i - j) for i, j in every])
    for extra in (0.0, 0.03):  # at the edge of the hypothesis and inside
        for win in np.linspace(0, (1 - limit - extra) / 2, 25):
            loss = limit + extra + win
            chances = np.array([loss, win, max(0.0, 1 - loss - win)])
            mass = multinomial.pmf(counts, n, chances / chances.sum())
            for level in (0.001, 0.01, 0.05, 0.1, 0.2, 0.5):
                assert mass[p_values <= level].sum() <= level + 1e-9, (win, level)


def test_it_is_not_needlessly_careful():
    n, limit = 24, 0.1
    every = tables(n)
    p_values = np.array([exact(Region.of(i, j, n), limit) for i, j in every])
    counts = np.array([(i, j, n - i - j) for i, j in every])
    sizes = [
        multinomial.pmf(counts, n, [limit + win, win, 1 - limit - 2 * win])[p_values <= 0.2].sum()
        for win in np.linspace(0, 0.4, 25)
    ]
    assert max(sizes) > 0.12


@pytest.mark.parametrize("n", [5, 13])
def test_region_is_the_tables_at_or_below_in_the_order_and_barnard_convex(n):
    order = brute_order(n)
    for i, j in tables(n):
        if i == n:
            continue
        wins = np.arange(n + 1)
        most = _most_losses(wins, n, order[i, j])
        for (a, b), place in order.items():
            if abs(place - order[i, j]) > 1e-7:  # ties may fall either way by rounding
                assert (a <= most[b]) == (place < order[i, j]), (i, j, a, b)
        room = most < n - wins  # a further win keeps a table inside
        assert (np.diff(most)[room[:-1] & room[1:]] >= 0).all()


def test_order_rises_with_losses_and_falls_with_wins():
    order = brute_order(12)
    for (i, j), place in order.items():
        if (i + 1, j) in order:
            assert order[i + 1, j] >= place - 1e-9
        if (i, j + 1) in order:
            assert order[i, j + 1] <= place + 1e-9


def test_deviance_matches_a_search_for_the_restricted_estimate():
    for i, j, n, d in ((3, 2, 40, 0.1), (0, 0, 30, 0.05), (0, 4, 30, 0.02), (5, 0, 50, 0.3)):
        ties = n - i - j
        q = np.linspace(1e-9, (1 - d) / 2 - 1e-9, 200_001)
        inner = i * np.log(q + d) + j * np.log(q) + ties * np.log(1 - 2 * q - d)
        free = sum(c * math.log(c / n) for c in (i, j, ties) if c)
        found = _deviance(np.array(i), np.array(j), n, d)
        assert float(found) == pytest.approx(2 * (free - inner.max()), abs=1e-5)


def test_limit_is_where_the_root_reaches_its_level():
    for i, j, n in ((0, 0, 300), (4, 3, 200), (0, 9, 50), (1, 0, 2)):
        d = _limit(i, j, n)
        assert d > (i - j) / n
        assert float(_deviance(np.array(i), np.array(j), n, d)) == pytest.approx(ROOT**2)


def test_cells_bound_every_nuisance_value():
    n, i, j, limit = 200, 6, 5, 0.05
    region = Region.of(i, j, n)
    p = exact(region, limit)
    counts = np.array(tables(n))
    order_limit = _limit(i, j, n)
    most = _most_losses(np.arange(n + 1), n, order_limit)
    inside = counts[counts[:, 0] <= most[counts[:, 1]]]
    full = np.column_stack([inside, n - inside.sum(axis=1)])
    point = max(
        multinomial.pmf(full, n, [limit + q, q, 1 - limit - 2 * q]).sum()
        for q in np.linspace(region.left[0], region.right[-1], 400)
    )
    assert point + BETA <= p <= 1.15 * point + BETA
