import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.learn import PolyStep, polytope_step


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start() -> Tensor:
    return torch.randn(3, 4, generator=seeded(9), dtype=torch.float64)


def test_equal_costs_leave_particles_where_they_are() -> None:
    moved = polytope_step(start(), lambda x: 1.0, epsilon=0.1, generator=seeded())
    assert_close(moved, start(), rtol=0, atol=1e-12)


def test_a_small_epsilon_takes_each_particle_to_its_best_vertex() -> None:
    costs: list[tuple[Tensor, float]] = []

    def cost(x: Tensor) -> float:
        found = float((x - 1.0).square().sum())
        costs.append((x.clone(), found))
        return found

    moved = polytope_step(start(), cost, epsilon=1e-9, step=0.3, probe=0.3, generator=seeded())
    assert len(costs) == 3 * 8
    for particle in range(3):
        tried = costs[8 * particle : 8 * particle + 8]
        for there, _ in tried:
            others = [p for p in range(3) if p != particle]
            assert torch.equal(there[others], start()[others])
            assert_close((there[particle] - start()[particle]).norm().item(), 0.3)
        best = min(tried, key=lambda pair: pair[1])[0]
        assert_close(moved[particle], best[particle])


def test_a_step_follows_the_softmax_of_costs_and_the_seed_decides_the_axes() -> None:
    x = torch.zeros(1, 1, dtype=torch.float64)
    moved = polytope_step(x, lambda x: float(x), epsilon=2.0, step=0.5, probe=1.0)
    # Vertices at -1 and 1 cost as much: weights are those of a softmax over 0.5 and -0.5.
    assert_close(moved.item(), -0.5 * math.tanh(0.5))
    slope = torch.randn(3, 4, generator=seeded(2), dtype=torch.float64)
    a, b, other = (
        polytope_step(start(), lambda x: (x * slope).sum(), generator=seeded(s)) for s in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.allclose(a, other)


def test_costs_that_are_not_finite_are_avoided_or_refused() -> None:
    x = torch.zeros(1, 1)
    moved = polytope_step(x, lambda x: math.nan if x > 0 else 0.0, step=0.5)
    assert_close(moved.item(), -0.5)
    with pytest.raises(InputError, match="no vertex around particle 0 has a finite cost"):
        polytope_step(x, lambda x: math.inf)


@pytest.mark.parametrize("name", ["epsilon", "step", "probe"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be a finite number above 0, got 0"):
        polytope_step(torch.zeros(1, 1), lambda x: 0.0, **{name: 0})
    with pytest.raises(InputError, match=r"shape \(P, Q\), got \(3,\)"):
        polytope_step(torch.zeros(3), lambda x: 0.0)
    with pytest.raises(InputError, match="got none"):
        PolyStep([])
    with pytest.raises(InputError, match="rank must be at least 1, got 0"):
        PolyStep([torch.zeros(2)], rank=0)


@pytest.mark.parametrize("particle", [1, 2, 4, None])
@pytest.mark.parametrize("rank", [None, 2])
def test_polystep_lowers_a_loss_without_gradients(particle: int | None, rank: int | None) -> None:
    net = nn.Linear(3, 2).double()
    with torch.no_grad():
        net.weight.fill_(2.0)
    wanted = torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.0, 0.0]], dtype=torch.float64)

    def loss() -> Tensor:
        assert not torch.is_grad_enabled()
        return (net.weight - wanted).square().sum() + (net.bias - 1).square().sum()

    with torch.no_grad():
        before = float(loss())
    optimiser = PolyStep(
        net.parameters(),
        particle=particle,
        rank=rank,
        epsilon=0.2,
        step_size=0.3,
        probe=0.3,
        absorb_every=3,
        generator=seeded(),
    )
    steps = 60
    lowest = [optimiser.step(loss) for _ in range(steps)]
    with torch.no_grad():
        after = float(loss())
    assert after < 0.2 * before
    assert 0 < lowest[-1] < 0.2 * before
    coordinates = 2 + (6 if rank is None else 2)
    width = coordinates if particle is None else particle
    assert optimiser.evaluations == steps * 2 * width * -(-coordinates // width)


def test_polystep_keeps_types_and_leaves_what_it_was_not_given() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    PolyStep([a], generator=seeded()).step(lambda: (a + b).sum())
    assert a.dtype == torch.float32
    assert not torch.equal(a.detach(), torch.ones(3))
    assert torch.equal(b.detach(), torch.ones(3))
