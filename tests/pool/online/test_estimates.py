"""Off-policy estimates: unbiased, covered as often as they say, refused where the log is blind."""

import math

import numpy as np
import pytest

from pointsman.errors import InputError, UnreachableError
from pointsman.pool.online.estimates import (
    Checks,
    doubly_robust,
    effective_rows,
    inverse_propensity,
    self_normalized,
    weights,
)

MODELS = 4
GUARANTEED = Checks(interval="bernstein", largest_weight=MODELS / 0.5)


def served(n, seed, *, explored=0.5, quality_of_prediction=0.1):
    """Rewards, weights and predictions of a log whose policy looks at a part of the query only."""
    rng = np.random.default_rng(seed)
    x = rng.random(n)
    quality = np.stack([0.3 + 0.5 * x, 0.8 - 0.4 * x, 0.5 + 0 * x, 0.2 + 0.7 * x**2], axis=1)
    logged = np.full((n, MODELS), explored / MODELS)
    logged[np.arange(n), (x * MODELS).astype(int)] += 1 - explored
    target = np.full((n, MODELS), 0.02 / MODELS)
    target[np.arange(n), quality.argmax(axis=1)] += 0.98
    chosen = (rng.random(n)[:, None] > logged.cumsum(axis=1)).sum(axis=1).clip(0, MODELS - 1)
    rows = np.arange(n)
    reward = (rng.random(n) < quality[rows, chosen]).astype(float)
    predicted = quality + quality_of_prediction * np.sin(9 * x)[:, None]
    return (
        reward,
        weights(target[rows, chosen], logged[rows, chosen]),
        (target * predicted).sum(axis=1),
        predicted[rows, chosen],
        (target * quality).sum(axis=1),
    )


TRUTH = float(served(200_000, 99)[4].mean())


def made(n, seed, checks=None, **world):
    reward, weight, other, chosen, _ = served(n, seed, **world)
    given = {} if checks is None else {"checks": checks}
    found = {
        "inverse propensity": inverse_propensity(reward, weight, **given),
        "doubly robust": doubly_robust(reward, weight, other, chosen, **given),
    }
    if checks is None or checks.interval == "bootstrap":
        found["self-normalised"] = self_normalized(reward, weight, **given)
    return found


def test_estimates_are_unbiased_and_cover_the_truth_as_often_as_they_say():
    runs = [made(700, seed) for seed in range(120)]
    for method in runs[0]:
        values = np.array([run[method].value for run in runs])
        assert abs(values.mean() - TRUTH) < 4 * values.std() / math.sqrt(len(runs))
        covered = np.mean([run[method].low <= TRUTH <= run[method].high for run in runs])
        assert 0.89 <= covered <= 0.995


def test_the_guaranteed_interval_covers_always_and_is_wider():
    for seed in range(40):
        sure = made(700, seed, GUARANTEED)
        usual = made(700, seed)
        for method, estimate in sure.items():
            assert estimate.low <= TRUTH <= estimate.high
            assert estimate.high - estimate.low > usual[method].high - usual[method].low


def test_a_good_prediction_and_normalising_make_estimates_steadier():
    spread = {}
    for seed in range(60):
        for method, estimate in made(600, seed, quality_of_prediction=0.02).items():
            spread.setdefault(method, []).append(estimate.value)
    deviation = {method: np.std(values) for method, values in spread.items()}
    assert deviation["doubly robust"] < 0.8 * deviation["inverse propensity"]
    assert deviation["self-normalised"] < 0.8 * deviation["inverse propensity"]


def test_a_wrong_prediction_does_no_harm_on_average():
    values = []
    for seed in range(150):
        reward, weight, other, chosen, _ = served(600, seed)
        values.append(doubly_robust(reward, weight, 0 * other + 1.0, 0 * chosen + 1.0).value)
    assert abs(np.mean(values) - TRUTH) < 4 * np.std(values) / math.sqrt(150)


def test_the_policy_that_served_gets_its_own_mean():
    reward = (np.random.default_rng(0).random(200) < 0.6).astype(float)
    ones = np.ones(200)
    for estimate in (
        inverse_propensity(reward, ones),
        self_normalized(reward, ones),
        doubly_robust(reward, ones, 0.3 * ones, 0.3 * ones),
    ):
        assert estimate.value == pytest.approx(reward.mean())
        assert estimate.effective == pytest.approx(200)


def test_too_little_overlap_is_refused():
    reward, weight, *_ = served(400, 1, explored=0.02)
    assert effective_rows(weight) < 50
    for refused in (
        lambda: inverse_propensity(reward, weight),
        lambda: self_normalized(reward, weight),
        lambda: doubly_robust(reward, weight, reward, reward),
        lambda: inverse_propensity(reward, np.zeros(400)),
    ):
        with pytest.raises(UnreachableError, match="no estimate: 400 rows tell as much as"):
            refused()


def test_what_had_no_chance_widens_the_interval_and_is_refused_beyond_a_share():
    reward, weight, *_ = served(700, 2)
    whole, part = (
        inverse_propensity(reward, weight),
        inverse_propensity(reward, weight, uncovered=0.03),
    )
    assert part.low == pytest.approx(whole.low - 0.03)
    assert part.high == pytest.approx(whole.high + 0.03)
    with pytest.raises(UnreachableError, match="had no chance"):
        self_normalized(reward, weight, uncovered=0.2)


def test_one_seed_gives_one_interval():
    assert made(400, 3) == made(400, 3)
    assert made(400, 3, Checks(seed=1)) != made(400, 3)


def test_more_confidence_is_wider():
    narrow, wide = (made(400, 4, Checks(confidence=c)) for c in (0.8, 0.99))
    for method, estimate in narrow.items():
        assert wide[method].low < estimate.low < estimate.high < wide[method].high


@pytest.mark.parametrize(
    ("target", "propensity", "said"),
    [
        ([0.5], [0.0], "propensity must lie"),
        ([0.5], [np.nan], "propensity must lie"),
        ([1.5], [0.5], "target must lie"),
        ([0.5, 0.5], [0.5], "one number a row"),
    ],
)
def test_probabilities_that_are_none_are_refused(target, propensity, said):
    with pytest.raises(InputError, match=said):
        weights(target, propensity)


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="one number a row"):
        inverse_propensity([1.0, 0.0], [1.0])
    with pytest.raises(InputError, match="finite"):
        inverse_propensity([1.0, np.nan], [1.0, 1.0])
    with pytest.raises(InputError, match="largest_weight"):
        Checks(interval="bernstein")
    with pytest.raises(InputError, match="bootstrap"):
        self_normalized([1.0, 0.0], [1.0, 1.0], checks=GUARANTEED)
    with pytest.raises(InputError, match="give bounds that hold"):
        inverse_propensity(
            np.linspace(0, 9, 80),
            np.ones(80),
            checks=Checks(interval="bernstein", largest_weight=2.0),
        )
