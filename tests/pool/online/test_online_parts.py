"""What single parts promise beyond the battery."""

import numpy as np
import pytest
from online_worlds import MEANS

from pointsman.errors import InputError, PolicyError
from pointsman.pool.online.automaton import RewardInaction
from pointsman.pool.online.bandit import greedy, thompson
from pointsman.pool.online.counts import Counts
from pointsman.pool.online.detection import ChangeDetection
from pointsman.pool.online.discounted import DiscountedThompson, DiscountedUpperConfidence
from pointsman.pool.online.explore_then_commit import explore_then_commit
from pointsman.pool.online.explore_then_commit import greedy as offline_greedy
from pointsman.pool.online.keeping import restored
from pointsman.pool.online.kinds import BANDITS
from pointsman.pool.online.knapsack import Knapsack
from pointsman.pool.online.linear import LinearThompson, LinearUpperConfidence
from pointsman.pool.online.tsallis import tsallis
from pointsman.pool.simulate.relaxation import best_omega, iterations, laplacian

COSTS = np.array([1.0, 0.1, 0.2, 0.05])


def spend(bandit, rounds, seed):
    """Rewards and costs in a world where the best arm is ten times as dear as the next."""
    rng = np.random.default_rng(seed)
    gained = paid = 0.0
    for _ in range(rounds):
        arm, _ = bandit.choose(None, None, rng)
        cost = float(COSTS[arm] * rng.uniform(0.5, 1.5))
        reward = float(rng.random() < MEANS[arm])
        bandit.update(arm, reward, cost=cost)
        gained, paid = gained + MEANS[arm], paid + cost
    return gained / rounds, paid


def test_a_knapsack_keeps_its_budget_and_uses_it_well():
    rounds, budget = 2000, 800.0
    found = [
        spend(Knapsack(DiscountedThompson(4, discount=1.0), budget, rounds, fallback=3), rounds, s)
        for s in range(3)
    ]
    gained = np.mean([g for g, _ in found])
    paid = np.array([p for _, p in found])
    assert (paid <= budget + rounds * 0.05 * 1.5).all()  # beyond it only the fallback is paid
    assert (paid > 0.9 * budget).all()
    # by the linear programme, a mix of arm 0 and arm 2 within 0.4 a round
    share = (budget / rounds - 0.2) / 0.8
    assert gained > 0.93 * (share * MEANS[0] + (1 - share) * MEANS[2])


def test_a_knapsack_takes_the_fallback_once_nothing_is_left():
    bandit = Knapsack(DiscountedUpperConfidence(4), 1.0, 10, fallback=3)
    bandit.update(0, 1.0, cost=1.0)
    np.testing.assert_array_equal(bandit.probabilities(), [0, 0, 0, 1])
    with pytest.raises(InputError, match="fallback"):
        bandit.probabilities(None, [0, 1])
    with pytest.raises(InputError, match="cost of each call"):
        bandit.update(0, 1.0)


def test_a_wide_budget_changes_nothing():
    plain = DiscountedThompson(4, discount=1.0)
    rich = Knapsack(DiscountedThompson(4, discount=1.0), 1e9, 100)
    rng = np.random.default_rng(0)
    for _ in range(100):
        arm = int(rng.integers(4))
        plain.update(arm, 1.0 * (arm == 0))
        rich.update(arm, 1.0 * (arm == 0), cost=1.0)
    np.testing.assert_array_equal(plain.probabilities(), rich.probabilities())


def test_thompson_probabilities_are_those_of_drawing():
    rng = np.random.default_rng(1)
    bandit = DiscountedThompson(3, discount=1.0)
    for arm, good, bad in ((0, 30, 20), (1, 5, 4), (2, 60, 50)):
        for reward in [1.0] * good + [0.0] * bad:
            bandit.update(arm, reward)
    draws = rng.beta([31, 6, 61], [21, 5, 51], size=(40_000, 3)).argmax(axis=1)
    np.testing.assert_allclose(
        bandit.probabilities(), np.bincount(draws, minlength=3) / 40_000, atol=0.015
    )


def test_linear_thompson_probabilities_are_those_of_drawing():
    rng = np.random.default_rng(2)
    bandit = LinearThompson(3, 2, spread=0.4)
    for _ in range(30):
        bandit.update(int(rng.integers(3)), float(rng.random()), rng.normal(size=2))
    x = np.array([0.3, -0.5])
    mean, deviation = bandit._fit.predict(np.append(x, 1.0))
    draws = rng.normal(mean, 0.4 * deviation, size=(40_000, 3)).argmax(axis=1)
    np.testing.assert_allclose(
        bandit.probabilities(x), np.bincount(draws, minlength=3) / 40_000, atol=0.015
    )


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_linear_bandits_are_ridge_regressions_of_faded_rewards(discount):
    rng = np.random.default_rng(3)
    bandit = LinearUpperConfidence(2, 3, ridge=0.7, discount=discount)
    x, arms, rewards = rng.normal(size=(40, 3)), rng.integers(2, size=40), rng.random(40)
    for t in range(40):
        bandit.update(int(arms[t]), float(rewards[t]), x[t])
    at = rng.normal(size=3)
    for arm in range(2):
        fade = discount ** (39 - np.arange(40)) * (arms == arm)
        wide = np.column_stack([x, np.ones(40)])
        squares = 0.7 * np.eye(4) + (wide * fade[:, None]).T @ wide
        expected = np.append(at, 1.0) @ np.linalg.solve(squares, wide.T @ (fade * rewards))
        assert bandit.expected(at)[arm] == pytest.approx(expected)
    with pytest.raises(InputError, match=r"a context is \(3,\)"):
        bandit.probabilities([1.0, 2.0])
    with pytest.raises(InputError, match="none"):
        bandit.probabilities()


def test_ties_are_shared_and_exploring_is_even():
    mask = np.array([True, True, False, True])
    np.testing.assert_allclose(greedy(np.array([1.0, 2.0, 9.0, 2.0]), mask), [0, 0.5, 0, 0.5])
    np.testing.assert_allclose(
        greedy(np.array([1.0, 2.0, 9.0, 0.0]), mask, 0.3), [0.1, 0.8, 0, 0.1]
    )
    same = np.full((4, 8), 1 / 8)
    np.testing.assert_allclose(thompson(same, mask), [1 / 3, 1 / 3, 0, 1 / 3])


def test_an_automaton_without_a_floor_is_absorbed_and_with_one_is_not():
    plain, floored = RewardInaction(3, step=0.5), RewardInaction(3, step=0.5, floor=0.05)
    for _ in range(200):
        plain.update(0, 1.0)
        floored.update(0, 1.0)
    assert plain.probabilities()[0] == 1.0
    np.testing.assert_allclose(floored.probabilities(), [0.9, 0.05, 0.05])
    np.testing.assert_allclose(plain.probabilities(None, [1, 2]), [0, 0.5, 0.5])


def test_tsallis_weights_solve_their_equation_at_the_extremes():
    for losses in (np.zeros(5), np.array([0.0, 1e9]), np.array([3.0])):
        p = tsallis(losses, 0.1)
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert (np.diff(p[np.argsort(losses)]) <= 1e-15).all()


def test_faded_counts_are_the_sums_of_their_definition():
    counts = Counts(2, 0.8)
    for at, arm, reward in ((5, 0, 1.0), (2, 1, 0.5), (9, 0, 0.0)):
        counts.add(arm, reward, at)
    np.testing.assert_allclose(counts.tried, [0.8**4 + 1, 0.8**7])
    np.testing.assert_allclose(counts.brought, [0.8**4, 0.5 * 0.8**7])


def test_a_change_of_one_arm_leaves_the_others_alone():
    bandit = ChangeDetection(DiscountedUpperConfidence(2, discount=1.0))
    for _ in range(150):
        bandit.update(0, 1.0)
        bandit.update(1, 0.0)
    for _ in range(60):
        bandit.update(0, 0.0)
    assert bandit.changes == 1
    assert bandit.bandit._counts.tried[1] == 150
    assert bandit.bandit._counts.tried[0] < 70


def test_a_shift_of_the_traffic_alone_is_no_change_to_a_contextual_bandit():
    rng = np.random.default_rng(5)
    bandit = ChangeDetection(LinearUpperConfidence(2, 1))
    for t in range(1200):
        x = rng.uniform(-1, 0) if t < 600 else rng.uniform(0, 1)
        arm = int(rng.integers(2))
        bandit.update(arm, 0.5 + 0.4 * x * (1 if arm else -1), [x])
    assert bandit.changes == 0


def test_a_part_of_an_unknown_kind_is_refused():
    with pytest.raises(PolicyError, match="'Oracle'"):
        restored(BANDITS, {"kind": "Oracle", "state": {}}, {})


def test_more_questions_than_announced_are_refused():
    with pytest.raises(InputError, match="more than the 2 questions"):
        explore_then_commit(
            lambda value: offline_greedy(value, "abc", 1),
            lambda action, times: np.ones(times),
            500,
            questions=2,
            delta=1,
        )
    with pytest.raises(InputError, match="too few for"):
        explore_then_commit(lambda value: "a", lambda a, n: np.ones(n), 20, questions=9, delta=9)


def test_committed_rounds_follow_the_offline_answer():
    worth = {"a": 0.2, "b": 0.9, "c": 0.5}
    rng = np.random.default_rng(6)
    found = explore_then_commit(
        lambda value: offline_greedy(value, "abc", 1),
        lambda action, times: (rng.random(times) < worth[next(iter(action))]).astype(float),
        3000,
        questions=3,
        delta=2,
    )
    assert found.action == frozenset("b")
    assert found.explored == 3 * found.repeats
    assert len(found.rewards) == 3000


def test_over_relaxation_is_fastest_at_youngs_parameter():
    matrix = laplacian(5)
    omegas = np.linspace(1.0, 1.9, 19)
    needed = iterations(matrix, omegas, np.array([0.2]), np.ones((1, 25)))[:, 0, 0]
    assert abs(omegas[needed.argmin()] - best_omega(matrix + 0.2 * np.eye(25))) <= 0.1
    assert needed[0] > 1.5 * needed.min()
    capped = iterations(matrix, omegas[:1], np.array([0.0]), np.ones((1, 25)), most=7)
    assert capped.max() == 7
    with pytest.raises(InputError, match="omega"):
        iterations(matrix, np.array([2.0]), np.array([0.0]), np.ones((1, 25)))
    with pytest.raises(InputError, match="spectral radius"):
        best_omega(matrix - 2 * np.eye(25))
