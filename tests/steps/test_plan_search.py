import numpy as np
import pytest

from pointsman.cost import Cost
from pointsman.errors import InputError
from pointsman.steps.search import PlanSearch, plan_cost, random_plans

COSTS = Cost(np.array([1.0, 2.0, 4.0]), "MFLOPs")


def distance(plan, wanted=(2, 0, 1, 1, 2, 0, 0, 1)):
    return float(sum(a != b for a, b in zip(plan, wanted, strict=True)))


def test_the_search_finds_the_plan_without_evaluating_one_twice():
    seen = []

    def loss(plan):
        seen.append(plan)
        return distance(plan)

    search = PlanSearch(3, 8, population=20, generations=40, seed=1).fit(loss)
    assert search.loss_ == 0
    assert search.plan_ == (2, 0, 1, 1, 2, 0, 0, 1)
    assert len(seen) == len(set(seen)) == len(search.losses_)
    assert len(seen) < 3**8 / 5
    assert search.history_ == sorted(search.history_, reverse=True)
    assert len(search.history_) == 41


def test_uniform_plans_come_first_and_a_seed_fixes_everything():
    search = PlanSearch(3, 8, population=4, generations=0)
    assert list(search.fit(distance).losses_)[:3] == [(0,) * 8, (1,) * 8, (2,) * 8]
    runs = [PlanSearch(3, 8, generations=3, seed=5).fit(distance).losses_ for _ in range(2)]
    assert runs[0] == runs[1]
    assert PlanSearch(3, 8, generations=3, seed=6).fit(distance).losses_ != runs[0]


def test_what_a_plan_costs():
    assert float(plan_cost((0, 2, 2, -1, 1), COSTS)) == 11.0
    assert plan_cost((0,), COSTS).unit == "MFLOPs"


def test_random_plans_lie_in_their_range_of_cost():
    low, high = Cost(14.0, "MFLOPs"), Cost(16.0, "MFLOPs")
    found = random_plans(30, 8, COSTS, at_least=low, at_most=high)
    assert len(set(found)) == 30
    assert all(14 <= float(plan_cost(plan, COSTS)) <= 16 for plan in found)
    with pytest.raises(InputError, match="held 1 that cost"):
        random_plans(2, 2, COSTS, at_least=Cost(8.0, "MFLOPs"), at_most=high, tries=500)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="got choices=0"):
        PlanSearch(0, 3).fit(distance)
    with pytest.raises(InputError, match="population=1"):
        PlanSearch(2, 3, population=1).fit(distance)
    with pytest.raises(InputError, match="NaN"):
        PlanSearch(2, 3).fit(lambda plan: float("nan"))
