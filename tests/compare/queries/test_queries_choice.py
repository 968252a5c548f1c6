"""Candidates, their order and the pick."""

import numpy as np
import pytest

from pointsman.compare.queries.choice import choose, mixed, mixtures
from pointsman.compare.queries.choice import testing_order as order_of
from pointsman.frontier import Outcomes


def log(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    quality = np.stack([(rng.random(n) < p).astype(float) for p in (0.5, 0.55, 0.9)])
    cost = np.outer([1.0, 5.0, 20.0], np.ones(n))
    knobs = ("single: a", "single: b", "single: c")
    return Outcomes(knobs, quality, cost, quality[2], cost[2], "US$")


def settings(alone, shares, seed=1):
    """Settings that keep the reference's answer but for a share of harmless changes."""
    coin = np.random.default_rng(seed).random(len(alone))
    change = np.stack([coin < share for share in shares])
    return Outcomes(
        tuple(f"r: {share}" for share in shares),
        np.where(change, alone.reference_quality, alone.reference_quality),
        np.where(change, 1.0, alone.reference_cost),
        alone.reference_quality,
        alone.reference_cost,
        "US$",
    )


def test_mixtures_lie_between_the_corners_of_the_hull():
    alone = log()
    found = mixtures(alone)
    ends = {(mixture.low, mixture.high) for mixture in found}
    assert ends == {("single: a", "single: c")}  # b lies below the line
    outcomes = mixed(alone, found)
    for mixture, cost in zip(found, outcomes.cost.mean(axis=1), strict=True):
        assert cost == pytest.approx(1 + 19 * mixture.share, abs=1)
    assert set(np.unique(outcomes.quality)) <= {0.0, 1.0}


def test_the_same_coin_serves_every_mixture():
    alone = log()
    found = mixtures(alone)
    cost = mixed(alone, found).cost
    assert (np.diff(cost, axis=0) >= 0).all()  # a larger share only adds queries


def test_the_order_starts_with_the_reference_and_leaves_out_what_drops_too_much():
    alone = log()
    joined = Outcomes.join([alone, settings(alone, (0.1, 0.5, 0.9)), mixed(alone, mixtures(alone))])
    order = order_of(joined, "single: c", 0.01)
    assert order[0] == "single: c"
    assert "r: 0.9" in order
    assert "single: a" not in order


def test_where_all_drop_too_much_the_safest_is_still_tried():
    alone = log()
    order = order_of(alone, "single: c", 0.01)
    assert order[0] == "single: c"
    assert len(order) == 2


def test_the_reference_is_picked_where_nothing_cheaper_is_certified():
    alone = log()
    found, words = choose([alone], [log(seed=5)], "single: c", 0.01, 0.95)
    assert found.knob == "single: c"
    assert found.certificate.certified
    assert found.saved == 0
    assert words.startswith(
        "'single: c' is the reference itself, which loses nothing by definition."
    )
    assert "About the safest cheaper setting: No setting is certified" in words


def test_on_very_few_queries_the_reference_is_still_kept_and_says_how_many_are_missing():
    parts = [log(n=60, seed=seed) for seed in (0, 5)]
    validation, calibration = ([part, settings(part, (0.1, 0.5))] for part in parts)
    found, words = choose(validation, calibration, "single: c", 0.01, 0.95)
    assert found.knob == "single: c"
    assert found.certificate.certified
    assert "more would do" in words


def test_the_cheapest_certified_setting_is_picked():
    parts = [log(seed=seed) for seed in (0, 5)]
    validation, calibration = ([part, settings(part, (0.1, 0.5, 0.9))] for part in parts)
    found, words = choose(validation, calibration, "single: c", 0.01, 0.95)
    assert found.knob == "r: 0.9"
    assert found.certificate.certified
    assert words == found.certificate.words()


def test_only_settings_that_may_be_picked_are_picked_though_others_are_cheaper():
    parts = [log(seed=seed) for seed in (0, 5)]
    validation, calibration = ([part, settings(part, (0.1, 0.5, 0.9))] for part in parts)
    free, _ = choose(validation, calibration, "single: c", 0.01, 0.95)
    blind = set(parts[0].knobs)
    bound, words = choose(validation, calibration, "single: c", 0.01, 0.95, among=blind)
    assert free.knob == "r: 0.9"
    assert bound.knob == "single: c"
    assert bound.certificate.accepted == free.certificate.accepted  # tested all the same
    assert words.endswith("No cheaper setting that may be picked lost little enough on validation.")


def test_without_anything_cheaper_the_reference_stands_alone():
    alone = log().choose(["single: a"])
    cheap = Outcomes(alone.knobs, alone.quality, alone.cost, alone.quality[0], alone.cost[0], "US$")
    assert order_of(cheap, "single: a", 0.01) == ["single: a"]
