"""Vehicle routes: best cuts, local search, a policy that learns to build, a genetic algorithm."""

from itertools import product

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.pool.simulate.routing_policy import (
    DEPOT,
    DISTANCE,
    FEATURES,
    ConstructionPolicy,
    build,
    nearest_neighbour,
)
from pointsman.pool.simulate.routing_search import GeneticAlgorithm, order_crossover
from pointsman.pool.simulate.vehicle_routing import (
    Array,
    Instance,
    Ints,
    draw_instance,
    split,
    two_opt,
)


def instance(customers: int = 12, seed: int = 0, capacity: float = 15.0) -> Instance:
    return draw_instance(np.random.default_rng(seed), customers=customers, capacity=capacity)


def orders(count: int, customers: int = 12, seed: int = 1) -> Ints:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(customers) + 1 for _ in range(count)])


def walked(problem: Instance, order: Ints, first: Ints) -> float:
    """Length of the routes that a cut describes, place by place; each must fit a vehicle."""
    total = 0.0
    for begin in np.unique(first):
        route = order[first == begin]
        assert problem.demand[route - 1].sum() <= problem.capacity
        stops = np.r_[0, route, 0]
        total += problem.distance[stops[:-1], stops[1:]].sum()
    return total


@pytest.mark.parametrize("seed", range(4))
def test_no_other_cut_is_shorter(seed: int) -> None:
    problem, order = instance(7, seed), orders(1, 7, seed)
    cut = split(problem, order)
    found = []
    for cuts in product((False, True), repeat=6):
        first = np.maximum.accumulate(np.where([True, *cuts], np.arange(7), 0))
        loads = [problem.demand[order[0][first == b] - 1].sum() for b in np.unique(first)]
        if max(loads) <= problem.capacity:
            found.append(walked(problem, order[0], first))
    assert cut.length[0] == pytest.approx(min(found))
    assert walked(problem, order[0], cut.first[0]) == pytest.approx(cut.length[0])


def test_two_opt_uncrosses_a_route_and_never_lengthens_one() -> None:
    angle = np.linspace(0, 2 * np.pi, 9)[:-1]
    ring = Instance(np.stack([np.cos(angle), np.sin(angle)], axis=1), np.ones(7), capacity=7.0)
    crossed = np.array([[1, 2, 5, 4, 3, 6, 7]])
    better, length = two_opt(ring, crossed)
    assert better[0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert length[0] == pytest.approx(8 * ring.distance[0, 1])
    problem, many = instance(), orders(30)
    before = split(problem, many).length
    improved, after = two_opt(problem, many, moves=5)
    assert (after <= before + 1e-9).all()
    assert after.mean() < before.mean()
    assert (np.sort(improved) == np.arange(1, 13)).all()


def test_routes_built_serve_everyone_within_capacity() -> None:
    problems = [instance(12, seed) for seed in range(3)]
    built = build(problems, -DISTANCE, 4, np.random.default_rng(0))
    assert (np.sort(built.orders) == np.arange(1, 13)).all()
    for problem, order, length in zip(problems, built.orders, built.length, strict=True):
        assert (split(problem, order).length <= length + 1e-9).all()  # cut as well as can be


def test_the_gradient_is_that_of_the_log_probability() -> None:
    problem, rng = instance(4, capacity=9.0), np.random.default_rng(0)
    weights = rng.normal(size=FEATURES)
    base = build([problem], weights, 4000, np.random.default_rng(1))
    # expected length, differentiated by common random numbers and by the score
    score = (base.gradient[0] * (base.length[0] - base.length[0].mean())[:, None]).mean(axis=0)
    for feature in (0, 2, 4):
        step = 0.2 * np.eye(FEATURES)[feature]
        up, down = (
            build([problem], weights + s, 5000, np.random.default_rng(2)).length.mean()
            for s in (step, -step)
        )
        assert score[feature] == pytest.approx((up - down) / 0.4, abs=0.06)


def test_nearest_neighbours_go_to_the_nearest_and_home_only_when_full() -> None:
    line = Instance(
        np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.5, 0.0], [-1.2, 0.0]]), np.ones(4), 3.0
    )
    built = nearest_neighbour(line, 3)
    assert built[0].tolist() == [1, 2, 3, 4]
    assert built.shape == (3, 4)
    fits = build([line], -DISTANCE - 1e6 * DEPOT, 1, np.random.default_rng(0), greedy=True)
    assert fits.length[0, 0] == pytest.approx(7.0 + 2.4)


def test_the_policy_learns_and_is_the_same_each_time() -> None:
    problems = [instance(12, seed) for seed in range(12)]
    policy = ConstructionPolicy(updates=25).fit(problems)
    assert policy.lengths_[-5:].mean() < 0.9 * policy.lengths_[:2].mean()
    again = ConstructionPolicy(updates=25).fit(problems)
    np.testing.assert_array_equal(policy.weights_, again.weights_)
    new = [instance(12, seed) for seed in range(50, 56)]
    learned = np.mean([split(p, policy.seeds(p, 1)).length[0] for p in new])
    nearest = np.mean([split(p, nearest_neighbour(p, 1)).length[0] for p in new])
    assert learned < nearest


def test_crossover_keeps_a_piece_of_one_and_the_order_of_the_other() -> None:
    one, other = np.array([1, 2, 3, 4, 5, 6]), np.array([6, 5, 4, 3, 2, 1])
    assert order_crossover(one, other, 2, 4).tolist() == [6, 5, 3, 4, 2, 1]
    assert order_crossover(one, other, 0, 6).tolist() == one.tolist()
    assert order_crossover(one, other, 3, 3).tolist() == other.tolist()


def test_the_search_counts_what_it_measures_and_keeps_good_seeds() -> None:
    problem = instance()
    search = GeneticAlgorithm(population=10, children=7, budget=61)
    plain = search.search(problem)
    assert plain.evaluations[-1] == 61
    assert (np.diff(plain.best) <= 0).all()
    assert split(problem, plain.order[None]).length[0] <= plain.length + 1e-9
    assert plain.reached(plain.length) <= 61
    assert plain.reached(0.0) == 62
    best: Array = GeneticAlgorithm(population=10, budget=400).search(problem).order
    seeded = search.search(problem, best[None])
    assert seeded.evaluations[0] == 1
    assert seeded.length <= plain.length
    with pytest.raises(InputError, match="11 seeds"):
        search.search(problem, orders(11))


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="capacity"):
        Instance(np.zeros((2, 2)), np.array([3.0]), 2.0)
    with pytest.raises(InputError, match="depot first"):
        Instance(np.zeros((3, 2)), np.array([1.0]), 2.0)
    with pytest.raises(InputError, match="as many"):
        build([instance(3), instance(4)], -DISTANCE, 1, np.random.default_rng(0))
    with pytest.raises(InputError, match="samples"):
        ConstructionPolicy(samples=1)
    with pytest.raises(InputError, match="budget"):
        GeneticAlgorithm(budget=3)
