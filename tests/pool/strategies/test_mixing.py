"""Mixtures of settings as outcomes that can be certified."""

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.frontier import Frontier, Outcomes, certify
from pointsman.pool.strategies.mixing import along_the_hull, mixture


def measured(n: int = 400) -> Outcomes:
    rng = np.random.default_rng(0)
    good = (rng.random(n) < 0.8).astype(float)
    bad = good * (rng.random(n) < 0.9)
    middling = good * (rng.random(n) < 0.97)
    return Outcomes(
        ("dear", "middling", "cheap"),
        np.stack([good, middling, bad]),
        np.stack([np.full(n, 9.0), np.full(n, 4.0), np.full(n, 1.0)]),
        good,
        np.full(n, 9.0),
        "US$",
    )


def test_a_mixture_is_expected_to_reach_the_mean_of_its_settings() -> None:
    found = mixture(measured(), {"dear": 0.25, "cheap": 0.75})
    whole = measured()
    assert found.quality[0].mean() == pytest.approx(
        0.25 * whole.quality[0].mean() + 0.75 * whole.quality[2].mean()
    )
    assert found.cost[0] == pytest.approx(np.full(400, 3.0))
    assert found.knobs == ("25.0000% dear + 75.0000% cheap",)


def test_what_chance_does_agrees_with_what_is_expected() -> None:
    whole, rng = measured(), np.random.default_rng(1)
    found = mixture(whole, {"dear": 0.5, "cheap": 0.5}, "half")
    chance = [
        np.where(rng.random(400) < 0.5, whole.quality[0], whole.quality[2]).mean()
        for _ in range(400)
    ]
    assert np.mean(chance) == pytest.approx(found.quality.mean(), abs=0.003)


def test_a_mixture_can_be_certified_where_its_cheaper_setting_cannot() -> None:
    whole = measured(3000)
    assert not certify(whole.choose(["cheap"]), 0.05, 0.95).certificate.certified
    pick = certify(mixture(whole, {"dear": 0.6, "cheap": 0.4}, "mix"), 0.05, 0.95)
    assert pick.certificate.certified
    assert pick.certificate.method == "betting"


def test_candidates_run_along_the_hull_from_dear_to_cheap() -> None:
    whole = measured()
    found = along_the_hull(whole, steps=3)
    corners = len(Frontier.from_outcomes("", whole).hull().points)
    assert len(found) == 3 * (corners - 1) + 1
    cost = [mixture(whole, shares).cost.mean() for shares in found]
    assert cost == sorted(cost, reverse=True)
    assert found[0] == {"dear": 1.0}
    assert found[-1] == {"cheap": 1.0}


@pytest.mark.parametrize("shares", [{}, {"dear": 0.5}, {"dear": 1.5, "cheap": -0.5}])
def test_shares_that_are_no_distribution_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(InputError, match="positive and sum to 1"):
        mixture(measured(), shares)
