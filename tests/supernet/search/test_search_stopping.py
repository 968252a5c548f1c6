"""Poor candidates are stopped early, by optuna's pruners and by regression on curves."""

import math
from collections.abc import Iterator

import numpy as np
import optuna
import pytest

from pointsman.errors import InputError
from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.search.run import search
from pointsman.supernet.search.stopping import (
    ByPrediction,
    ByPruner,
    CurveRegression,
    chance_below,
    stopping,
)
from pointsman.supernet.space import Choice, Genotype, Space

SPACE = Space([Choice("final", tuple(range(60))), Choice("speed", (1, 2, 3))])
STEPS = 12


def final(genotype: Genotype) -> float:
    return 0.3 + 0.01 * ((37 * genotype[0]) % 60)


def steps(genotype: Genotype) -> Iterator[float]:
    """Rises towards the final quality; fast ones lead at first."""
    for step in range(1, STEPS + 1):
        yield final(genotype) * (1 - math.exp(-step * (1 + genotype[1]) / 4))


def in_order(problem: Problem, seed: int) -> Proposals:
    every = list(problem.space.enumerate())
    for start in range(0, len(every), 6):
        yield every[start : start + 6]


PROBLEM = Problem(SPACE, final, lambda genotype: 1.0)


def spent(evaluations: list[Evaluation]) -> float:
    return sum(len(each.curve) for each in evaluations) / (STEPS * len(evaluations))


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2),
        optuna.pruners.HyperbandPruner(min_resource=2, max_resource=STEPS, reduction_factor=2),
        optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
    ],
    ids=["halving", "hyperband", "median"],
)
def test_pruners_save_steps_and_keep_a_good_candidate(pruner: optuna.pruners.BasePruner) -> None:
    found = search(PROBLEM, in_order, 120, evaluate=stopping(steps, ByPruner(pruner)))
    assert spent(found) < 0.7
    whole = [each for each in found if len(each.curve) == STEPS]
    assert max(final(e.genotype) for e in whole) > max(final(e.genotype) for e in found) - 0.05


def test_a_resumed_search_stops_the_same_candidates() -> None:
    def rule() -> ByPruner:
        return ByPruner(optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2))

    whole = search(PROBLEM, in_order, 60, evaluate=stopping(steps, rule()))
    known = whole[:25]
    again = search(PROBLEM, in_order, 60, known=known, evaluate=stopping(steps, rule(), known))
    assert again == whole


def test_prediction_stops_what_will_not_win_and_keeps_the_best() -> None:
    def features(genotype: Genotype) -> np.ndarray:
        return np.array([genotype[1]], dtype=float)

    rule = ByPrediction(STEPS, (3, 6), features, warm=30, candidates=3)
    found = search(PROBLEM, in_order, 120, evaluate=stopping(steps, rule))
    assert [len(each.curve) for each in found[:30]] == [STEPS] * 30
    assert spent(found) < 0.75
    best = max(found, key=lambda each: each.quality)
    assert best.quality == pytest.approx(max(final(e.genotype) for e in found), abs=0.02)


def test_a_regression_foresees_what_the_last_value_does_not() -> None:
    genotypes = list(SPACE.enumerate())
    curves = np.array([list(steps(genotype)) for genotype in genotypes])
    features = np.array([[genotype[1]] for genotype in genotypes], dtype=float)
    rows = np.random.default_rng(0).permutation(len(curves))
    some, rest = rows[:60], rows[60:]
    model = CurveRegression(candidates=4).fit(curves[some, :3], curves[some, -1], features[some])
    error = model.predict(curves[rest, :3], features[rest]) - curves[rest, -1]
    last = curves[rest, 2] - curves[rest, -1]
    assert np.abs(error).mean() < 0.1 * np.abs(last).mean()
    assert np.abs(error).mean() < 2 * model.spread_
    with pytest.raises(InputError, match="at least 10, got 9"):
        CurveRegression().fit(curves[:9, :3], curves[:9, -1])


def test_a_step_that_fails_is_a_failure_with_its_reason() -> None:
    def breaks(genotype: Genotype) -> Iterator[float]:
        if genotype[1] == 2:
            return
        yield 0.5
        if genotype[1] == 1:
            raise RuntimeError("diverged")
        yield math.nan

    evaluate = stopping(breaks, ByPruner(optuna.pruners.NopPruner()))
    found = list(evaluate(PROBLEM, [(0, 0), (0, 1), (0, 2)]))
    assert [each.failure for each in found] == [
        "the quality is not a number",
        "RuntimeError: diverged",
        "no step was reported",
    ]
    assert all(each.failed for each in found)


def test_the_chance_of_being_no_better_is_the_normal_one() -> None:
    assert chance_below(0.5, 0.5, 0.1) == 0.5
    assert chance_below(0.5, 0.3, 0.1) == pytest.approx(0.97725, abs=1e-5)
    assert chance_below(-math.inf, 0.3, 0.1) == 0.0
