"""Lists of units: a space of their own, crossed and mutated into valid lists only."""

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.supernet.search.engines.genetic import Kind, UnitLists, evolve_lists
from pointsman.supernet.search.problem import Problem
from pointsman.supernet.search.run import search
from pointsman.supernet.space import Genotype

LISTS = UnitLists(
    [
        Kind("residual", (("blocks", (1, 2)), ("channels", (8, 16)))),
        Kind("pool", (("how", ("max", "mean")),), first=False, most=1),
    ],
    longest=4,
)


def length(genotype: Genotype) -> float:
    return float(len(LISTS.units(genotype)))


def test_a_list_is_its_genotype_and_back() -> None:
    units = [(0, 1, 0), (1, 1), (0, 0, 1)]
    genotype = LISTS.genotype(units)
    assert LISTS.units(genotype) == units
    assert LISTS.named(genotype) == [
        ("residual", {"blocks": 2, "channels": 8}),
        ("pool", {"how": "mean"}),
        ("residual", {"blocks": 1, "channels": 16}),
    ]
    assert LISTS.space.count() == sum(6**n for n in range(1, 5))


def test_a_thousand_children_are_all_valid() -> None:
    rng = np.random.default_rng(0)
    people = [LISTS.sample(rng) for _ in range(20)]
    lengths = set()
    for _ in range(500):
        one, other = (people[int(at)] for at in rng.integers(20, size=2))
        for child in LISTS.cross(one, other, rng):
            mutant = LISTS.mutate(child, rng)
            assert mutant != child
            for units in (child, mutant):
                assert LISTS.valid(units)
                assert LISTS.units(LISTS.genotype(units)) == units
                lengths.add(len(units))
    assert lengths == {1, 2, 3, 4}


def test_evolution_repeats_nothing_never_gets_worse_and_is_fixed_by_its_seed() -> None:
    def quality(genotype: Genotype) -> float:
        return sum(unit[0] == 0 and unit[2] == 1 for unit in LISTS.units(genotype)) / 4

    problem = Problem(LISTS.space, quality, length)
    found = search(problem, evolve_lists(LISTS, population=8), 80, seed=3)
    again = search(problem, evolve_lists(LISTS, population=8), 80, seed=3)
    assert found == again
    assert len({each.genotype for each in found}) == len(found) == 80
    assert all(LISTS.valid(LISTS.units(each.genotype)) for each in found)
    assert max(each.quality for each in found) == 1.0
    assert np.mean([e.quality for e in found[40:]]) > np.mean([e.quality for e in found[:8]])


def test_evolution_keeps_the_budget_and_survives_failures() -> None:
    def fails(genotype: Genotype) -> float:
        if length(genotype) == 2:
            raise RuntimeError("two")
        return length(genotype)

    problem = Problem(LISTS.space, fails, length, budget=3.0)
    found = search(problem, evolve_lists(LISTS, population=4), 40)
    assert max(each.cost for each in found) == 3.0
    assert any(each.failed for each in found)


def test_what_is_no_list_is_refused() -> None:
    with pytest.raises(InputError, match="a kind that may come first"):
        UnitLists([Kind("pool", first=False)], 3)
    with pytest.raises(InputError, match="1 to 4 units, got 0"):
        LISTS.genotype([])
    with pytest.raises(InputError, match="at least 2 individuals"):
        evolve_lists(LISTS, population=1)
