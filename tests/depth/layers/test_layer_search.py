import numpy as np
import pytest
import torch

from pointsman.depth.layers.execute import run_paths
from pointsman.depth.layers.network import correct
from pointsman.depth.layers.paths import enumerate_paths, longest_gap, whole_path
from pointsman.depth.layers.search import TreeSearch, Tried, every_path
from pointsman.errors import InputError


def test_every_path_reaches_what_it_reaches_alone(residual):
    trunk, paths = residual(blocks=3), enumerate_paths(3)
    x, y = torch.randn(300, 5).double(), torch.randint(3, (300,))
    tried = every_path(trunk, x, y, paths)
    assert tried.quality.shape == (27, 300)
    for place, path in enumerate(paths):
        alone = correct(run_paths(trunk, x, torch.tensor(path)).output, y)
        np.testing.assert_array_equal(tried.quality[place], alone)
    np.testing.assert_array_equal(tried.whole, correct(trunk(x), y))
    some = every_path(trunk, x, y, [(0, 0, 0)])
    assert some.paths == ((0, 0, 0), (1, 1, 1))
    with pytest.raises(InputError, match="each of 3 blocks"):
        every_path(trunk, x, y, [(1, 1)])


def test_the_label_is_the_shortest_path_that_is_good_enough():
    paths = ((1, 1, 1), (0, 1, 1), (0, 0, 1), (0, 2, 1), (2, 1, 1))
    nan = np.nan
    quality = np.array(
        [
            [1, 0, 0.5, 0, 0.0],
            [1, 0, 0.4, 0, nan],
            [0, 0, 0.3, 0, 0.0],
            [1, 0, 0.5, 1, 1.0],
            [1, 1, 0.6, 1, 1.0],
        ]
    )
    tried = Tried(paths, quality)
    runs, found = tried.best(least=1.0)
    # the third has no right path: it keeps the whole network
    assert runs.tolist() == [[0, 1, 1], [2, 1, 1], [1, 1, 1], [0, 2, 1], [0, 2, 1]]
    assert found.tolist() == [True, True, False, True, True]
    assert tried.best(tolerance=0.1)[0][2].tolist() == [0, 1, 1]
    # the first is as long as the fourth and, by this bar, good enough for more inputs
    assert tried.best()[0][2].tolist() == [1, 1, 1]
    assert tried.counts().tolist() == [5, 5, 5, 5, 4]


def planted(needed):
    """An evaluation in which each input needs some blocks, and a path is right that runs them."""

    def evaluate(paths):
        pairs = zip(paths, needed, strict=True)
        return np.array([float(all(path[block] == 1 for block in some)) for path, some in pairs])

    return evaluate


def test_a_tree_search_keeps_budget_and_rules_and_is_repeatable():
    search = TreeSearch(simulations=20, max_gap=1, editable=[0, 2, 3, 4], max_length=1.2, seed=5)
    good = [[0], [2], [5]]
    tried = search.explore(planted(good), 3, 6)
    assert tried.counts().tolist() == [20, 20, 20]
    assert tried.whole.tolist() == [1.0, 1.0, 1.0]
    for path in tried.paths:
        assert (path[1], path[5]) == (1, 1)
        assert longest_gap(path) <= 1
        assert sum(path) <= 7
    again = search.explore(planted(good), 3, 6)
    assert again.paths == tried.paths
    np.testing.assert_array_equal(again.quality, tried.quality)


def test_a_search_that_has_tried_all_paths_stops():
    tried = TreeSearch(simulations=1000, actions=2, max_gap=None).explore(planted([[1], [2]]), 2, 4)
    assert set(tried.paths) == set(enumerate_paths(4, actions=2))
    assert tried.counts().tolist() == [16, 16]
    assert tried.best(least=1.0)[0].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]


def test_the_search_finds_shorter_paths_than_as_many_drawn_at_random():
    blocks, inputs, budget = 10, 40, 60
    rng = np.random.default_rng(0)
    needed = [rng.choice(blocks, 5, replace=False) for _ in range(inputs)]
    search = TreeSearch(simulations=budget, actions=2, max_gap=None)
    tried = search.explore(planted(needed), inputs, blocks)
    found = tried.best(least=1.0)[0].sum(dim=1).double().mean()
    drawn = []
    for some in needed:
        paths = rng.integers(2, size=(budget - 1, blocks))
        drawn.append(min([blocks, *(path.sum() for path in paths if path[some].all())]))
    assert float(found) < np.mean(drawn) - 0.5


def test_searching_a_network_reaches_what_its_paths_reach(residual):
    trunk = residual()
    x, y = torch.randn(9, 5).double(), torch.randint(3, (9,))
    tried = TreeSearch(simulations=12).search(trunk, x, y)
    whole = every_path(trunk, x, y, enumerate_paths(4))
    for place, path in enumerate(tried.paths):
        known = np.isfinite(tried.quality[place])
        expected = whole.quality[whole.paths.index(path)]
        np.testing.assert_array_equal(tried.quality[place][known], expected[known])
    assert tried.paths[0] == whole_path(4)
    with pytest.raises(InputError, match="at least one path"):
        TreeSearch(simulations=0)
