"""The integrator that trains factors and settles ranks."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.low_rank import DynamicalLowRank, LowRank, make_low_rank


def teacher(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(12, rank, generator=generator, dtype=torch.float64)
    x = torch.randn(200, 10, generator=generator, dtype=torch.float64)
    other = torch.randn(10, rank, generator=generator, dtype=torch.float64)
    return x, x @ other @ basis.T / rank


def student(rank: int) -> LowRank:
    torch.manual_seed(1)
    return LowRank(nn.Linear(10, 12, bias=False).double(), rank)


def squared(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (net(x) - y).square().sum(dim=1).mean()


def test_the_rank_of_a_linear_teacher_is_found() -> None:
    x, y = teacher(3)
    net = student(8)
    integrator = DynamicalLowRank(net, rate=0.1, threshold=0.02)
    for _ in range(150):
        integrator.step(lambda: squared(net, x, y))
    assert integrator.ranks == [3]
    assert float(squared(net, x, y).detach()) < 1e-10


def test_bases_stay_orthonormal_and_cores_diagonal() -> None:
    x, y = teacher(3)
    net = student(4)
    integrator = DynamicalLowRank(net, rate=0.1, threshold=0.05)
    for _ in range(5):
        integrator.step(lambda: squared(net, x, y))
    eye = torch.eye(net.rank, dtype=torch.float64)
    assert_close(net.u_OR.T @ net.u_OR, eye)
    assert_close(net.v_IR.T @ net.v_IR, eye)
    assert_close(net.s_RR, torch.diag(net.s_RR.diagonal()))


def test_one_step_of_fixed_rank_is_the_published_one() -> None:
    x, y = teacher(3)
    net, rate = student(4), 0.05
    u, s, v = (factor.detach().clone() for factor in (net.u_OR, net.s_RR, net.v_IR))

    def gradient(weight: Tensor) -> Tensor:
        weight = weight.clone().requires_grad_()
        return torch.autograd.grad((x @ weight.T - y).square().sum(1).mean(), weight)[0]

    by_w = gradient(u @ s @ v.T)
    new_u = torch.linalg.qr(u @ s - rate * by_w @ v).Q
    new_v = torch.linalg.qr(v @ s.T - rate * by_w.T @ u).Q
    core = new_u.T @ u @ s @ v.T @ new_v
    core = core - rate * new_u.T @ gradient(new_u @ core @ new_v.T) @ new_v
    DynamicalLowRank(net, rate=rate, adaptive=False).step(lambda: squared(net, x, y))
    assert_close(net.matrix, new_u @ core @ new_v.T)
    assert net.rank == 4


def test_a_rank_grows_at_most_to_double_and_to_the_sides_of_the_matrix() -> None:
    x, y = teacher(9)
    net = student(3)
    integrator = DynamicalLowRank(net, rate=0.1, threshold=0.0)
    ranks = []
    for _ in range(3):
        integrator.step(lambda: squared(net, x, y))
        ranks.append(net.rank)
    assert ranks == [6, 10, 10]


def test_biases_and_kept_layers_learn_in_the_second_pass() -> None:
    torch.manual_seed(0)
    net = make_low_rank(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)), keep=["3"]
    )
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    x = torch.randn(8, 1, 4, 4)
    integrator = DynamicalLowRank(net, rate=0.1, rest=lambda weights: torch.optim.Adam(weights))
    value = integrator.step(lambda: net(x).square().mean())
    assert float(net(x).square().mean().detach()) < float(value)
    assert not value.requires_grad
    for name in ("0.bias", "3.weight", "3.bias"):
        assert not torch.equal(net.get_parameter(name), before[name])


def test_an_error_in_the_loss_leaves_no_probes_behind() -> None:
    net = student(3)

    def broken() -> Tensor:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError):
        DynamicalLowRank(net, rate=0.1).step(broken)
    assert net.probes is None


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="make_low_rank"):
        DynamicalLowRank(nn.Linear(2, 2), rate=0.1)
    with pytest.raises(InputError, match="rate=0"):
        DynamicalLowRank(student(2), rate=0.0)
