"""Pairs by the rule, the switch on problems of known need, prefixes that part ways."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from pointsman.errors import InputError
from pointsman.pool.reasoning.modes import LONG, SHORT, ModeSwitch, mine_pairs
from pointsman.pool.reasoning.prefixes import DiversePrefixes, coverage


def problems(count=600, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3))
    hard = x[:, 0] + 0.3 * rng.normal(size=count)
    return x, np.stack([hard < 0, hard < 1.5], axis=1).astype(float)


def test_short_is_preferred_where_it_proves_and_long_where_only_long_does():
    pairs = mine_pairs([[1, 1], [1, 0], [0, 1], [0, 0], [0.5, 0.2], [0.4, 0.6], [np.nan, 1]])
    assert pairs.rows.tolist() == [0, 1, 2, 4, 5]
    assert pairs.chosen.tolist() == [SHORT, SHORT, LONG, SHORT, LONG]


@pytest.mark.parametrize("hidden", [0, 8])
def test_the_switch_finds_the_problems_that_need_long(hidden):
    x, proved = problems()
    switch = ModeSwitch(hidden=hidden).fit(x, proved)
    new, truth = problems(seed=1)
    does = truth.any(axis=1)
    needed = truth[:, SHORT] == 0
    assert ((switch.choose(new) == LONG) == needed)[does].mean() > 0.88
    assert switch.pairs_ == (int(proved[:, 0].sum()), int((proved[:, 1] > proved[:, 0]).sum()))


def test_the_probability_is_calibrated_on_pairs_whatever_beta():
    x, proved = problems(2000)
    rows, chosen = mine_pairs(proved)
    for beta in (0.2, 2.0):
        switch = ModeSwitch(beta=beta, hidden=0, updates=600, rate=0.05, decay=0).fit(x, proved)
        assert switch.needs_long(x[rows]).mean() == pytest.approx(chosen.mean(), abs=0.02)


def test_the_threshold_runs_from_always_to_never_and_is_monotone():
    x, proved = problems()
    switch = ModeSwitch(updates=50).fit(x, proved)
    shares = [switch.choose(x, threshold).mean() for threshold in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert shares[0] == 1
    assert shares[-1] == 0
    assert all(a >= b for a, b in pairwise(shares))


def test_scales_and_places_of_features_do_not_matter():
    x, proved = problems(200)
    plain = ModeSwitch(updates=50).fit(x, proved).needs_long(x)
    scaled = ModeSwitch(updates=50).fit(1000 * x + 7, proved).needs_long(1000 * x + 7)
    np.testing.assert_allclose(plain, scaled, atol=1e-6)


def test_what_cannot_be_learned_from_is_refused():
    x, proved = problems(50)
    with pytest.raises(InputError, match="nothing to switch"):
        ModeSwitch().fit(x, np.ones((50, 2)))
    with pytest.raises(InputError, match="as many rows"):
        ModeSwitch().fit(x[:10], proved)
    with pytest.raises(InputError, match=r"proved is \(problems, 2\)"):
        mine_pairs([[0.5, 2.0]])
    with pytest.raises(InputError, match="finite"):
        ModeSwitch().fit(np.full((50, 3), np.nan), proved)


ACTIONS = 4


def base(x, prefix):
    """Leans to the first action whatever the problem; a prefix moves the logits."""
    lean = torch.tensor([2.0, 1.0, 0.0, 0.0], dtype=x.dtype)
    return lean + 0 * x[:, :1] + prefix


def checker(solution):
    def check(rows, actions):
        return (solution[rows] == actions).astype(float)

    return check


def trained(**keywords):
    solution = np.array([0] * 40 + [2] * 40)  # half is easy for the base, half is hard
    x = torch.zeros(80, 1, dtype=torch.float64)
    model = DiversePrefixes(base, ACTIONS, parts=2, rounds=40, **keywords)
    return model.fit(x, checker(solution)), solution, x


def test_each_prefix_learns_what_solves_its_part():
    model, solution, x = trained()
    assert (model.part_ == (solution == 2)).mean() > 0.9
    likeliest = base(x[:2], model.prefixes_).argmax(dim=1).tolist()
    assert likeliest == [0, 2]


def test_attempts_take_turns_among_the_prefixes():
    model, _, x = trained()
    attempts = model.attempt(x, 4)
    assert attempts.shape == (80, 4)
    assert (attempts[:, 0] == 0).mean() > 0.8
    assert (attempts[:, 1] == 2).mean() > 0.8
    assert (attempts[:, 2] == 0).mean() > 0.8
    np.testing.assert_array_equal(attempts, model.attempt(x, 4))


def test_difficulty_parts_solve_more_than_one_prefix_for_all():
    solved = {}
    for parts in (1, 2):
        solution = np.array([0] * 40 + [2] * 40)
        x = torch.zeros(80, 1, dtype=torch.float64)
        model = DiversePrefixes(base, ACTIONS, parts=parts, rounds=60).fit(x, checker(solution))
        solved[parts] = (model.attempt(x, 2) == solution[:, None]).any(axis=1).mean()
    assert solved[2] > solved[1] + 0.1


def test_random_parts_mix_easy_and_hard():
    model, solution, _ = trained(split="random")
    assert 0.3 < (model.part_ == (solution == 2)).mean() < 0.7
    assert np.bincount(model.part_).tolist() == [40, 40]


def test_coverage_is_the_share_of_different_beginnings():
    assert coverage(np.array([[1, 1, 1, 1], [1, 2, 3, 4]])) == pytest.approx((0.25 + 1) / 2)


def test_wrong_keywords_are_refused():
    x = torch.zeros(3, 1)
    with pytest.raises(InputError, match="as many problems as parts"):
        DiversePrefixes(base, ACTIONS).fit(x, checker(np.zeros(3)))
    with pytest.raises(InputError, match='"difficulty" or "random", got \'size\''):
        DiversePrefixes(base, ACTIONS, parts=2, split="size").fit(x, checker(np.zeros(3)))
