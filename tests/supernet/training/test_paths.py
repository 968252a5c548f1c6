import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.supernet.space import Choice, Space
from pointsman.supernet.training import FairPaths, SandwichPaths, SortedPaths, UniformPaths

SPACE = Space([Choice("a", (1, 2, 3)), Choice("b", (1, 2)), Choice("c", (1, 2, 3))])


def test_uniform_paths_take_each_option_within_three_standard_deviations_of_its_share() -> None:
    paths = UniformPaths(SPACE, seed=0)
    drawn = np.array([paths.draw(0.0)[0].genotype for _ in range(3000)])
    for place, choice in enumerate(SPACE.choices):
        share = 1 / len(choice.options)
        counts = np.bincount(drawn[:, place], minlength=len(choice.options))
        assert (abs(counts - 3000 * share) < 3 * (3000 * share * (1 - share)) ** 0.5).all()


def test_paths_beyond_a_limit_are_drawn_again_and_an_impossible_limit_is_refused() -> None:
    paths = UniformPaths(SPACE, accept=lambda genotype: sum(genotype) <= 1)
    assert all(sum(paths.draw(0.0)[0].genotype) <= 1 for _ in range(50))
    with pytest.raises(InputError, match="10,000 draws in a row"):
        UniformPaths(SPACE, accept=lambda genotype: False).draw(0.0)


def test_fair_paths_take_every_option_once_an_update() -> None:
    paths = FairPaths(SPACE, seed=0)
    for _ in range(20):
        drawn = [path.genotype for path in paths.draw(0.0)]
        assert sorted(g[0] for g in drawn) == sorted(g[2] for g in drawn) == [0, 1, 2]


def test_fair_counts_of_a_smaller_choice_never_differ_by_more_than_one() -> None:
    paths = FairPaths(SPACE, seed=0)
    counts = np.zeros(2)
    for _ in range(25):
        for path in paths.draw(0.0):
            counts[path.genotype[1]] += 1
            assert abs(counts[0] - counts[1]) <= 1


def test_the_sandwich_has_both_ends_and_random_ones_between() -> None:
    drawn = [path.genotype for path in SandwichPaths(SPACE, between=3).draw(0.0)]
    assert drawn[:2] == [(2, 1, 2), (0, 0, 0)]
    assert len(drawn) == 5


def test_sorted_paths_are_a_nested_chain_from_the_smallest_to_the_largest() -> None:
    paths = SortedPaths(SPACE, count=4)
    assert paths.chain[0] == (0, 0, 0)
    assert paths.chain[-1] == (2, 1, 2)
    for small, large in zip(paths.chain, paths.chain[1:], strict=False):
        assert all(a <= b for a, b in zip(small, large, strict=True))
    assert {path.genotype for path in paths.draw(0.0)} <= set(paths.chain)
    assert len(SortedPaths(SPACE, length=1).chain) == 1
