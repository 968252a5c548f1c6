"""The parts that routers share: tables, sums, groups, costs, trees."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from router_logs import made
from scipy.sparse import csr_matrix
from sklearn.ensemble import HistGradientBoostingRegressor

from pointsman.errors import InputError
from pointsman.pool.features.features import Features
from pointsman.pool.routers.arithmetic import dot
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.design import Design, directions
from pointsman.pool.routers.groups import Groups, task_names, task_rows
from pointsman.pool.routers.table import folds, tabulate
from pointsman.pool.routers.trees import planted


def plain(dense: list[list[float]], length: float = 10.0) -> Features:
    rows = np.array(dense, dtype=np.float32)
    return Features(rows, None, np.full(len(rows), length, dtype=np.float32))


def test_importing_routers_loads_nothing_heavy() -> None:
    heavy = ["torch", "sklearn", "scipy.stats", "scipy.optimize", "usearch", "pandas", "matplotlib"]
    code = f"import sys, pointsman.pool.routers; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_table_gathers_equal_queries_and_counts_known_cells() -> None:
    features = plain([[1.0], [2.0], [1.0], [-0.0], [0.0]])
    quality = [[1.0, np.nan], [0.0, 1.0], [0.0, np.nan], [1.0, 0.0], [np.nan, 0.0]]
    table = tabulate(features, quality)
    at = {float(x): row for row, x in enumerate(table.features.dense[:, 0])}
    assert len(table) == 3
    mean = (table.deviation + table.mean)[:, table.model]
    count = table.count[:, table.model]
    assert_array_equal(count[at[1.0]], [2, 0])
    assert_array_equal(mean[at[1.0]], [0.5, 1 / 3])  # nothing known: the model's mean
    assert_array_equal(count[at[0.0]], [1, 2])
    assert_array_equal(table.mean[table.model], [0.5, 1 / 3])


@pytest.mark.parametrize("kind", ["length", "task", "sparse"])
def test_queries_that_differ_in_anything_are_two(kind: str) -> None:
    differ = {
        "length": np.array([1, 2], np.float32),
        "task": np.array(["a", "b"], object),
        "sparse": csr_matrix(np.array([[0, 1.0], [1.0, 0]], np.float32)),
    }
    parts = {"sparse": None, "length": np.ones(2, np.float32), "task": None, kind: differ[kind]}
    features = Features(np.ones((2, 1), np.float32), **parts)
    assert len(tabulate(features, np.ones((2, 1)))) == 2


def test_a_table_is_the_same_whatever_the_order_of_rows_and_models() -> None:
    log = made(80)
    order = np.random.default_rng(0).permutation(80)
    one = tabulate(log.features, log.quality)
    other = tabulate(log.features.take(order), log.quality[order][:, [1, 2, 0]])
    assert_array_equal(one.features.dense, other.features.dense)
    assert_array_equal(one.deviation, other.deviation)
    assert_array_equal(one.model[[1, 2, 0]], other.model)


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        tabulate(plain([[np.nan], [1.0]]), np.ones((2, 1)))


def test_folds_are_of_equal_size() -> None:
    assert_array_equal(np.bincount(folds(20, 5, 0)), [4] * 5)
    assert folds(2, 5, 0).max() == 1


def test_products_are_right_and_the_same_bits_for_every_batch() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3000, 131)), rng.normal(size=(7, 131))
    whole = dot(x, w)
    assert_allclose(whole, x @ w.T, atol=1e-12)
    for row in (0, 1, 1234, 2999):
        assert_array_equal(dot(x[[row]], w), whole[[row]])
    assert_array_equal(dot(x, w[[3]]), whole[:, [3]])


def test_leaving_a_query_out_is_what_fitting_without_it_gives() -> None:
    rng = np.random.default_rng(1)
    features = plain(rng.normal(size=(30, 1)).tolist())
    table = tabulate(features, rng.random((30, 2)))
    group = rng.integers(0, 4, size=30)
    left_out = Groups(table, group, 4).left_out(2.0)
    keep = np.arange(30) != 5
    mates = keep & (group == group[5])
    expected = table.deviation[mates].sum(axis=0) / (mates.sum() + 2.0)
    assert_allclose(left_out[5], expected)


@pytest.mark.parametrize(("spread", "least", "most"), [(0.0, 30, np.inf), (0.5, 1, 10)])
def test_the_strength_follows_what_there_is_to_find(
    spread: float, least: float, most: float
) -> None:
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(40), 20)
    effect = spread * rng.choice([-1, 1], size=40)
    table = tabulate(
        plain(rng.normal(size=(800, 1)).tolist()), np.zeros((800, 1)) + rng.normal(size=(800, 1))
    )
    deviation = (effect[group] + 0.3 * rng.normal(size=800))[:, None]
    table = type(table)(table.features, deviation, table.count, table.mean, table.model)
    strength, _ = Groups(table, group, 40).best_strength()
    assert least <= strength <= most


def test_unknown_tasks_stand_last() -> None:
    task = np.array(["b", "", "a", "c"], dtype=object)
    assert task_names(task) == ["a", "b", "c"]
    assert_array_equal(task_rows(["a", "b"], task, 4), [1, 2, 0, 2])
    assert_array_equal(task_rows(["a"], None, 2), [1, 1])


def test_costs_follow_length_and_task_and_leave_unknown_cells_out() -> None:
    rng = np.random.default_rng(3)
    length = rng.integers(10, 1000, size=600).astype(np.float32)
    task = np.array(["essay", "quiz"], object)[rng.integers(0, 2, size=600)]
    truth = np.stack([0.01 * length + np.where(task == "essay", 20, 5), 0.1 * length + 2], axis=1)
    cost = truth * rng.uniform(0.9, 1.1, size=truth.shape)
    cost[rng.random(cost.shape) < 0.3] = np.nan
    features = Features(np.zeros((600, 0), np.float32), None, length, task)
    costs = Costs().fit(features, cost)
    predicted = costs.predict(features)
    assert np.abs(predicted - truth).sum() / truth.sum() < 0.03
    back = Costs.from_state(*costs.to_state())
    assert_array_equal(back.predict(features), predicted)


def test_costs_that_do_not_depend_on_length_get_no_slope() -> None:
    rng = np.random.default_rng(4)
    features = plain([[0.0]] * 400)
    features.length[:] = rng.integers(10, 1000, size=400)
    costs = Costs().fit(features, rng.uniform(1, 2, size=(400, 1)))
    assert abs(costs.slope_[0]) * 1000 < 0.2


def test_costs_never_fall_below_what_was_seen() -> None:
    features = plain([[0.0], [1.0], [2.0], [3.0]])
    features.length[:] = [1000, 2000, 3000, 4000]
    costs = Costs().fit(features, np.array([[1.0], [2.0], [3.0], [4.0]]))
    features.length[:] = [0, 1, 2, 10_000]
    assert_allclose(costs.predict(features)[:3, 0], 1.0)
    assert costs.predict(features)[3, 0] == pytest.approx(10.0, rel=0.1)


def test_design_centres_and_gives_dense_features_one_scale() -> None:
    log = made(200)
    x = Design().fit(log.features).transform(log.features)
    assert_allclose(x.mean(axis=0), 0, atol=1e-9)
    assert_allclose((x[:, :-1] ** 2).mean(), 1.0)
    assert_allclose((x[:, -1] ** 2).mean(), 1.0)


def test_directions_have_length_one_but_at_the_centre() -> None:
    unit = directions(plain([[3.0, 4.0], [1.0, 1.0]]), np.array([1.0, 1.0], np.float32))
    assert_allclose(unit[0], np.array([2.0, 3.0]) / np.sqrt(13), rtol=1e-6)
    assert_array_equal(unit[1], [0.0, 0.0])


def test_flat_trees_say_what_the_estimator_says() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(400, 5))
    y = np.sin(2 * x[:, 0]) + x[:, 1] * (x[:, 2] > 0)
    boosters = [
        HistGradientBoostingRegressor(max_iter=trees, random_state=0).fit(x, y) for trees in (3, 20)
    ]
    forests = [[trees[0].nodes for trees in booster._predictors] for booster in boosters]
    flat = planted([forests[0], [], forests[1]], [1.0, 1.0, 0.5])
    sums = flat.predict(x)
    assert_allclose(sums[:, 0] + y.mean(), boosters[0].predict(x), atol=1e-9)
    assert_array_equal(sums[:, 1], 0.0)
    assert_allclose(2 * sums[:, 2] + y.mean(), boosters[1].predict(x), atol=1e-9)
