"""Population based training: the paper's toy, copying and changing, seeds and refusals."""

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.supernet.search.population import (
    Knobs,
    Member,
    perturb,
    population_based_training,
    tournament,
    truncation,
)

RANGES = {"h0": (1e-3, 1.0), "h1": (1e-3, 1.0)}


def climb(theta: list[float], knobs: Knobs, turn: int) -> list[float]:
    """Four steps of ascent on the surrogate 1.2 - h0 x^2 - h1 y^2."""
    for _ in range(4):
        theta = [v * (1 - 2 * 0.05 * knobs[f"h{at}"]) for at, v in enumerate(theta)]
    return theta


def quality(theta: list[float]) -> float:
    return 1.2 - sum(v**2 for v in theta)


def trained(seed: int = 0, alone: bool = False) -> list[Member[list[float]]]:
    stay = (lambda qualities, rng: list(range(len(qualities)))) if alone else truncation(0.5)
    return population_based_training(
        lambda number: [0.9, 0.9], climb, quality, RANGES, rounds=12, size=4, exploit=stay,
        explore=perturb((0.8, 1.25)), seed=seed,
    )  # fmt: skip


def test_a_population_climbs_further_than_its_members_alone() -> None:
    together = np.mean([trained(seed)[0].quality for seed in range(5)])
    alone = np.mean([trained(seed, alone=True)[0].quality for seed in range(5)])
    assert together > alone + 0.02


def test_the_schedule_leads_to_the_weights() -> None:
    best = trained()[0]
    assert best.schedule[0][0] == 0
    assert len(best.schedule) > 1
    theta = [0.9, 0.9]
    for turn in range(12):
        knobs = [knobs for begun, knobs in best.schedule if begun <= turn][-1]
        theta = climb(theta, knobs, turn)
    assert theta == best.state


def test_one_seed_gives_one_result() -> None:
    assert trained(3) == trained(3)
    assert trained(3) != trained(4)


def test_the_worst_copy_the_best_and_nobody_else_changes() -> None:
    rng = np.random.default_rng(0)
    chosen = truncation(0.2)([3.0, 0.0, 9.0, 1.0, 5.0, 6.0, 7.0, 8.0, 2.0, 4.0], rng)
    assert {at for at, other in enumerate(chosen) if at != other} == {1, 3}
    assert {chosen[1], chosen[3]} <= {2, 7}
    met = tournament()([1.0, 2.0, 3.0], rng)
    assert all(other == at or other > at for at, other in enumerate(met))
    assert truncation()([1.0], rng) == tournament()([1.0], rng) == [0]


def test_knobs_stay_in_their_ranges() -> None:
    rng = np.random.default_rng(0)
    knobs = {"h0": 1.0, "h1": 1e-3}
    for _ in range(50):
        knobs = perturb(resampled=0.2)(knobs, RANGES, rng)
        assert all(low <= knobs[name] <= high for name, (low, high) in RANGES.items())


def test_a_member_that_diverged_is_replaced() -> None:
    def judge(theta: list[float]) -> float:
        return float("nan") if theta[0] == 0 else quality(theta)

    found = population_based_training(
        lambda number: [float(number > 0), 0.5], climb, judge, RANGES, rounds=3, size=5
    )
    assert all(member.state[0] > 0 for member in found)


def test_what_cannot_be_trained_is_refused() -> None:
    def call(rounds: int, ranges: dict[str, tuple[float, float]]) -> None:
        population_based_training(
            lambda number: [1.0], climb, quality, ranges, rounds=rounds, size=2
        )

    with pytest.raises(InputError, match=r"'rate' got \(0.0, 1.0\)"):
        call(1, {"rate": (0.0, 1.0)})
    with pytest.raises(InputError, match="at least one round"):
        call(0, RANGES)
