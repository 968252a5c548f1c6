"""Samplers on the frontier: faithfulness per sample, certificates, distances of crowds."""

import numpy as np
import pytest
import torch
from mixture_runs import run
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.frontier import Frontier, safest_first
from pointsman.steps.policies.guidance import AdaptiveGuidance, Guided
from pointsman.steps.policies.plain import Always
from pointsman.steps.quality import (
    energy_distance,
    faithfulness,
    frechet_distance,
    relative_distance,
    sliced_wasserstein,
    step_outcomes,
)


def crowd(seed, n=4000, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


def test_distance_is_relative_to_the_spread_of_the_references():
    reference = torch.tensor([[0.0, 3.0], [0.0, -3.0]])
    moved = reference + torch.tensor([[1.5, 0.0], [0.0, 9.0]])
    assert_close(relative_distance(moved, reference), torch.tensor([0.5, 3.0]))
    assert_close(faithfulness(moved, reference), torch.tensor([0.5, 0.0]))
    assert_close(relative_distance(10 * moved, 10 * reference), torch.tensor([0.5, 3.0]))


def test_policies_are_settings_on_one_frontier_and_are_certified():
    def outcomes(seed, n):
        reference = run(Guided(3.0), 20, n=n, seed=seed)
        thresholds = (1.1, 0.9999, 0.999, 0.99, 0.9)
        runs = {t: run(AdaptiveGuidance(3.0, t), 20, n=n, seed=seed) for t in thresholds}
        return step_outcomes(runs, reference)

    found = outcomes(0, 300)
    assert found.unit == "MFLOPs"
    np.testing.assert_array_equal(found.quality[0], 1)
    np.testing.assert_array_equal(found.cost[0], found.reference_cost)
    assert (np.diff(found.cost, axis=0) <= 0).all()
    order = safest_first(outcomes(1, 100))
    pick = Frontier.from_outcomes("adaptive guidance", found).pick(0.05, 0.95, order=order)
    assert pick.certificate.certified
    assert pick.saved > 0.1


def test_equal_crowds_are_near_and_shifted_ones_as_far_as_they_were_shifted():
    x, y, far = crowd(0), crowd(1), crowd(2, shift=2.0)
    generator = torch.Generator().manual_seed(0)
    assert sliced_wasserstein(x, y, generator=generator) < 0.08
    # A shift by 2 in each of three directions is 2 along a random one, in the root mean square.
    assert sliced_wasserstein(x, far, 500, generator) == pytest.approx(2, rel=0.1)
    assert abs(energy_distance(x[:1000], y[:1000])) < 0.02
    assert energy_distance(x[:1000], far[:1000]) > 2
    assert frechet_distance(x, y) < 0.02
    assert frechet_distance(x, far) == pytest.approx(12, rel=0.05)
    assert frechet_distance(x, crowd(3, scale=2.0)) == pytest.approx(3, rel=0.1)


def test_bad_input_is_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(InputError, match="of one shape"):
        relative_distance(x, torch.zeros(3, 3))
    with pytest.raises(InputError, match="references that differ"):
        faithfulness(x, x)
    for distance in (sliced_wasserstein, energy_distance, frechet_distance):
        with pytest.raises(InputError, match="samples of one size"):
            distance(x, torch.zeros(2, 4))
    reference = run(Always())
    with pytest.raises(InputError, match="at least one run"):
        step_outcomes({}, reference)
