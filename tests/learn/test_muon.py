import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.learn.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_singular_values_are_brought_near_one(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix, rounds=5))
    assert values.min() > 0.3
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (orthogonal(matrix, rounds=5) * (left @ right)).sum() > 0.7 * min(shape)  # same sides


def test_a_matrix_of_zeros_stays_zeros():
    assert_close(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_filters_take_the_written_step_and_the_rest_a_nesterov_step():
    torch.manual_seed(0)
    net = nn.Conv2d(2, 4, 3)
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    optimiser = Muon(net.parameters(), 0.1, rest=0.2, momentum=0.5, decay=0.01)
    net.weight.grad, net.bias.grad = torch.randn_like(weight), torch.randn_like(bias)
    gradients = net.weight.grad.clone(), net.bias.grad.clone()
    optimiser.step()
    step = orthogonal(1.5 * gradients[0].flatten(1)).view_as(weight)
    assert_close(net.weight.detach(), 2 * weight / weight.norm() - 0.1 * step)
    assert_close(net.bias.detach(), bias - 0.2 * 1.5 * (gradients[1] + 0.01 * bias))


def test_parameters_and_groups_of_them_are_taken_alike():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    for given in (net.parameters(), [{"params": list(net.parameters())}]):
        groups = Muon(given, 0.3, rest=0.4).param_groups
        assert [(group["lr"], len(group["params"])) for group in groups] == [(0.3, 1), (0.4, 3)]


def test_it_fits_a_small_network():
    torch.manual_seed(0)
    x = torch.randn(64, 1, 6, 6)
    y = (x[:, 0, :3].mean((1, 2)) > x[:, 0, 3:].mean((1, 2))).long()
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    )
    optimiser = Muon(net.parameters(), 0.1, rest=0.05)
    for _ in range(30):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
    assert loss < 0.1


@pytest.mark.parametrize("broken", [{"rate": 0.0}, {"rest": -1.0}, {"momentum": 1.0}])
def test_rates_and_momentum_out_of_range_are_refused(broken):
    with pytest.raises(InputError, match="rates are above 0"):
        Muon([nn.Parameter(torch.zeros(2))], **broken)
