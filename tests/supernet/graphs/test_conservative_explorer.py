"""The explorer that changes one class of choices at a time."""

import math

import pytest

from pointsman.errors import InputError
from pointsman.supernet.search import Problem, search
from pointsman.supernet.search.engines.conservative import conservative
from pointsman.supernet.search.engines.random_search import random_search
from pointsman.supernet.space import Choice, Space

KINDS = {"width": (8, 16, 32, 64), "attention": ("a", "b", "c"), "activation": ("x", "y", "z")}
SPACE = Space(
    [Choice(f"layers.{at}.{kind}", options) for at in range(2) for kind, options in KINDS.items()]
)


def quality(genotype):
    return -float(sum((index - at % 3) ** 2 for at, index in enumerate(genotype)))


def problem(**changes):
    return Problem(**{"space": SPACE, "quality": quality, "cost": sum, **changes})


def changed_kinds(one, other):
    pairs = zip(SPACE.names, one, other, strict=True)
    return {name.rpartition(".")[2] for name, a, b in pairs if a != b}


def test_each_step_changes_one_class_of_the_best_so_far():
    history = search(problem(), conservative, 25, seed=3)
    best = history[0]
    for each in history[1:]:
        assert len(changed_kinds(each.genotype, best.genotype)) == 1
        best = each if each.quality > best.quality else best
    assert best.quality > history[0].quality


def test_every_class_gets_its_turn():
    history = search(problem(quality=lambda g: 0.0), conservative, 30, seed=0)
    turns = [changed_kinds(each.genotype, history[0].genotype) for each in history[1:]]
    assert set().union(*turns) == set(KINDS)


def test_where_single_classes_hold_nothing_new_more_change_together():
    space = Space([Choice(name, (0, 1)) for name in "abc"])
    flat = Problem(space, lambda g: 0.0, lambda g: 1.0)
    history = search(flat, conservative, 100, seed=0)
    assert len(history) == 8
    start = history[0].genotype
    steps = [sum(a != b for a, b in zip(e.genotype, start, strict=True)) for e in history[1:]]
    assert steps == [1, 1, 1, 2, 2, 2, 3]


def test_one_seed_gives_one_history_and_nothing_is_evaluated_twice():
    histories = [search(problem(), conservative, 40, seed=seed) for seed in (5, 5, 6)]
    assert histories[0] == histories[1] != histories[2]
    assert len({each.genotype for each in histories[0]}) == 40


def test_budgets_hold_and_failures_do_not_end_it():
    def fails(genotype):
        return math.nan if genotype[0] == 1 or genotype[3] == 0 else quality(genotype)

    history = search(problem(quality=fails, budget=6), conservative, 40, seed=0)
    assert len(history) == 40
    assert all(each.cost <= 6 for each in history)
    assert any(each.failed for each in history)
    assert not all(each.failed for each in history)
    nothing = search(problem(quality=lambda g: math.nan), conservative, 10, seed=0)
    assert len(nothing) == 10


def test_it_finds_better_networks_than_chance():
    def found(engine):
        runs = [search(problem(), engine, 30, seed=seed) for seed in range(5)]
        return sum(max(each.quality for each in run) for run in runs)

    assert found(conservative) > found(random_search)


def test_settings_that_mean_nothing_are_refused():
    for settings in ({"first": 0}, {"uniform": 0.0}):
        with pytest.raises(InputError, match="at least one network"):
            next(conservative(problem(), 0, **settings))
