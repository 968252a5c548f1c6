"""The pacer uses the budget and keeps to it: bursts, nights, new prices, floors."""

import math

import numpy as np
import pytest
from online_worlds import saved_and_loaded
from pacing_world import CHEAPEST, DEAREST, PERIOD, arrivals, serve

from pointsman.errors import InputError
from pointsman.pool.online.pacing import Pacer

NUMBER = 1500
BUDGET = NUMBER * 0.006


def pacer(**keywords):
    given = {"floor": CHEAPEST, "ceiling": DEAREST, "clock": lambda: 0.0, **keywords}
    return Pacer(BUDGET, PERIOD, **given)


@pytest.mark.parametrize("kind", ["even", "day and night", "bursts"])
@pytest.mark.parametrize("doubled_at", [math.inf, 2.5])
def test_the_mean_spend_is_within_two_percent_of_the_budget(kind, doubled_at):
    shares = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        times = arrivals(kind, NUMBER, rng, periods=4)
        spent = serve(
            pacer(), times, rng, price=lambda now: 2.0 if now >= doubled_at * PERIOD else 1.0
        )
        shares.append(spent / BUDGET)
    shares = np.array(shares)
    assert abs(shares[:, 1:].mean() - 1) < 0.02  # once a usual day was seen
    assert abs(shares.mean() - 1) < 0.025
    assert shares.max() < 1.06


def test_spending_is_even_over_an_even_day():
    rng = np.random.default_rng(0)
    one = pacer()
    targets = []
    for now in arrivals("even", NUMBER, rng, periods=2):
        expected = one.target_cost(now)
        one.request(expected, now)
        one.spend(expected, expected, now)
        targets.append(expected)
    later = np.array(targets[NUMBER:-20])  # the last few share what is left
    assert later.std() < 0.15 * later.mean()


def test_the_floor_comes_before_the_budget_and_is_said():
    one = pacer(floor=0.01)
    now = 0.0
    for now in np.linspace(1, 0.5 * PERIOD, NUMBER // 2):
        assert one.target_cost(now) >= 0.01
        one.request(0.01, now)
        one.spend(0.012, 0.01, now)
    assert "floor alone" in one.words(now)
    assert one.spent > BUDGET / 2


def test_spending_stays_even_where_prices_have_doubled():
    rng = np.random.default_rng(1)
    times = arrivals("even", NUMBER, rng, periods=2)
    one = pacer()
    serve(one, times[times < PERIOD], rng)
    half = times[(times >= PERIOD) & (times < 1.5 * PERIOD)]
    spent = serve(one, half, rng, price=lambda now: 2.0)
    assert spent.sum() == pytest.approx(BUDGET / 2, rel=0.1)


def test_a_change_of_prices_is_followed_within_a_few_dozen_calls():
    one = pacer()
    for now in range(200):
        one.request(0.004, now)
        one.spend(0.008, 0.004, now)
    assert one.correction == pytest.approx(2.0, rel=0.1)
    for now in range(200, 400):
        one.request(0.004, now)
        one.spend(0.004, 0.004, now)
    assert one.correction == pytest.approx(1.0, rel=0.1)


def test_calls_that_failed_say_nothing_of_prices():
    one = pacer()
    for now in range(100):
        one.request(0.004, now)
        one.spend(0.0, 0.004, now)
    assert one.correction == 1.0


def test_calls_under_way_count_as_spent_until_they_are_settled():
    one = Pacer(1.0, PERIOD, requests=100, clock=lambda: 0.0)
    for _ in range(50):
        one.request(0.02, 0.5 * PERIOD)
    assert one.target_cost(0.5 * PERIOD) == 0.0
    assert one.spent == 0.0


def test_a_used_up_budget_leaves_the_floor():
    one = pacer()
    one.request(0.0, 10.0)
    one.spend(BUDGET, 0.0, 10.0)
    assert one.target_cost(11.0) == CHEAPEST
    assert "used up" in one.words(11.0)


def test_a_new_period_starts_with_the_whole_budget():
    one = pacer()
    one.request(0.0, 10.0)
    one.spend(BUDGET, 0.0, 10.0)
    one.target_cost(PERIOD + 1)
    assert one.spent == 0.0


def test_calendar_periods_begin_at_midnight_and_on_the_first():
    at = 1_772_280_000.0  # 28 February 2026, 12:00 UTC
    day = Pacer(1.0, "day", requests=100, clock=lambda: at)
    month = Pacer(1.0, "month", requests=100, clock=lambda: at)
    for one, left in ((day, 12 * 3600), (month, 12 * 3600)):
        one.request(0.5, at)
        one.spend(0.5, 0.5, at)
        one.target_cost(at + left - 1)
        assert one.spent == 0.5
        one.target_cost(at + left)
        assert one.spent == 0.0


def test_the_ledger_of_several_processes_is_taken_over():
    alone, shared = (Pacer(10.0, PERIOD, clock=lambda: 0.0) for _ in range(2))
    for now in np.linspace(1, PERIOD / 2, 400):
        alone.request(0.0, now)
        alone.spend(0.01, 0.0, now)
    for now in np.linspace(1, PERIOD / 2, 100):  # a quarter of the requests come here
        shared.request(0.0, now)
        shared.spend(0.01, 0.0, now)
    shared.sync(4.0, 400, PERIOD / 2)
    assert shared.target_cost(PERIOD / 2) == pytest.approx(alone.target_cost(PERIOD / 2), rel=0.02)


def test_a_pacer_kept_midway_goes_on_as_the_other_does():
    rng = np.random.default_rng(3)
    times = arrivals("bursts", 300, rng, periods=3)
    one = pacer()
    serve(one, times[:500], np.random.default_rng(1))
    two = saved_and_loaded(one)
    spent = [serve(each, times[500:], np.random.default_rng(2)) for each in (one, two)]
    np.testing.assert_array_equal(*spent)


@pytest.mark.parametrize(
    "keywords",
    [{"budget": 0.0}, {"period": 0.0}, {"period": "total"}, {"floor": -1.0}, {"ceiling": 1e-9}],
)
def test_numbers_out_of_range_are_refused(keywords):
    given = {"budget": 1.0, "period": "day", "floor": 0.001, **keywords}
    with pytest.raises(InputError):
        Pacer(given.pop("budget"), given.pop("period"), **given)


def test_a_policy_is_paced_on_its_hull_through_a_change_of_prices(pool, policy):
    """What queries really cost, with prices that double unknown to the policy, above a floor."""
    number = 900
    log = pool.log(number, seed=8)
    cheap, best = policy.points[0].cost, policy.points[-1].cost
    floor, budget = policy.point(0.1).cost, number * (cheap + 0.5 * (best - cheap))
    rng = np.random.default_rng(0)
    one = Pacer(budget, PERIOD, floor=floor, ceiling=best, clock=lambda: 0.0)
    spent = 0.0
    for at, now in enumerate(np.sort(rng.uniform(0, PERIOD, number))):
        point = policy.at_cost(one.target_cost(now))
        assert point.cost >= floor * (1 - 1e-9)
        decision = policy.decide(log.queries[at], point=point, chance=float(rng.random()))
        cost = float(log.cost[at, decision.step.model]) * (1 if at < number / 2 else 1.5)
        one.request(point.cost, now)
        one.spend(cost, point.cost, now)
        spent += cost
    assert spent == pytest.approx(budget, rel=0.03)
