import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.scores import (
    ZERO_COST,
    epsinas,
    flops,
    grad_norm,
    gradsign,
    jacob_cov,
    naswot,
    parameters,
    score_networks,
    snip,
    synflow,
)


def convolutions(seed: int = 0, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(width * 16, 3),
    )


def batch(size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(size, 1, 4, 4), torch.arange(size) % 3


@pytest.mark.parametrize("score", ZERO_COST, ids=lambda score: score.__name__)
def test_a_score_is_finite_repeats_itself_and_leaves_the_network_alone(score: object) -> None:
    net, (x, y) = convolutions(), batch()
    before = {name: each.clone() for name, each in net.state_dict().items()}
    value = score(net, x, y)
    assert math.isfinite(value)
    assert score(net, x, y) == value
    assert all(torch.equal(before[name], each) for name, each in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())
    assert net.training


def test_gradsign_equals_a_loop_over_single_inputs() -> None:
    net, (x, y) = convolutions(), batch()
    alone = convolutions()
    alone[3].eval()
    total = {n: torch.zeros_like(w) for n, w in alone.named_parameters() if w.ndim > 1}
    for at in range(len(x)):
        alone.zero_grad()
        nn.functional.cross_entropy(alone(x[at : at + 1]), y[at : at + 1]).backward()
        for name, weight in alone.named_parameters():
            if name in total:
                total[name] += weight.grad.sign()
    assert gradsign(net, x, y, chunk=5) == float(sum(each.abs().sum() for each in total.values()))


def test_gradsign_counts_every_weight_for_equal_inputs_whatever_the_loss_is_scaled_by() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 3)
    x, y = torch.rand(1, 5).repeat(8, 1) + 0.1, torch.zeros(8, dtype=torch.long)
    assert gradsign(linear, x, y) == 8 * 15
    tenfold = gradsign(linear, x, y, loss=lambda o, t: 10 * nn.functional.cross_entropy(o, t))
    assert tenfold == 8 * 15


def test_gradient_scores_by_hand() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(5, 3), torch.randn(6, 5), torch.arange(6) % 3
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), net.weight)
    assert grad_norm(net, x, y) == pytest.approx(float(gradient.norm()))
    assert snip(net, x, y) == pytest.approx(float((gradient * net.weight.detach()).abs().sum()))


def test_synflow_sums_the_products_of_weights_along_all_ways() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False))
    flow = (net[2].weight.abs() @ net[0].weight.abs()).sum()  # once for each of two layers
    assert synflow(net, torch.randn(3, 4)) == pytest.approx(math.log(2 * float(flow)), rel=1e-5)


def test_jacob_cov_is_lower_where_inputs_are_treated_alike() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    linear = nn.Linear(6, 3)
    bent = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))
    assert jacob_cov(bent, 3 * x) > jacob_cov(linear, x)


def test_naswot_tells_inputs_apart_and_needs_a_relu() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 64), nn.ReLU()), torch.randn(5, 6)
    apart, same = naswot(net, x), naswot(net, x[:1].repeat(5, 1))
    assert apart > same
    with pytest.raises(InputError, match="this network has none"):
        naswot(nn.Linear(6, 2), x)


def test_epsinas_is_zero_without_anything_that_saturates() -> None:
    torch.manual_seed(0)
    relu = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    tanh = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(20, 6)
    assert epsinas(relu, x, constants=(1e-3, 1.0)) < 1e-9
    assert epsinas(tanh, x, constants=(1e-3, 1.0)) > 0.05
    other = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    assert epsinas(other, x) == epsinas(tanh, x)


def test_epsinas_has_no_value_for_constant_outputs() -> None:
    assert math.isnan(epsinas(nn.Linear(6, 1), torch.zeros(4, 6)))


def test_the_trivial_scores() -> None:
    net, (x, y) = convolutions(), batch()
    assert parameters(net, x, y) == sum(weight.numel() for weight in net.parameters())
    assert flops(net, x, y) == pytest.approx(2 * (16 * 9 * 6 + 96 * 3) / 1e6)


def test_a_network_without_matrices_is_refused() -> None:
    with pytest.raises(InputError, match="this network has none"):
        grad_norm(nn.BatchNorm1d(3), torch.randn(4, 3), torch.zeros(4, dtype=torch.long))


def test_a_table_has_the_trivial_scores_and_keeps_failures_as_missing_values() -> None:
    widths = {(at,): width for at, width in enumerate((2, 4, 8, 12))}
    x, y = batch()

    def broken(network: nn.Module, x: object, y: object) -> float:
        if network[0].out_channels == 4:
            raise RuntimeError("boom")
        return float(network[0].out_channels)

    def constant(network: nn.Module, x: object, y: object) -> float:
        return 1.0

    table = score_networks(lambda g: convolutions(0, widths[g]), widths, x, y, (broken, constant))
    assert list(table.values) == ["parameters", "flops", "broken", "constant"]
    assert table.failures == {("broken", (1,)): "RuntimeError: boom"}
    truth = {genotype: float(width) for genotype, width in widths.items()}
    found = table.agreement(truth, resamples=50)
    assert found["parameters"].kendall == found["broken"].kendall == 1.0
    assert found["broken"].dropped == 1
    assert math.isnan(found["constant"].spearman)
    assert set(table.beyond_size(truth)) == {"flops", "broken", "constant"}
    with pytest.raises(InputError, match="2 have none"):
        table.agreement({(0,): 1.0, (1,): 2.0})


def test_a_score_that_fails_everywhere_has_no_correlation() -> None:
    def never(network: nn.Module, x: object, y: object) -> float:
        raise RuntimeError("boom")

    x, y = batch()
    table = score_networks(lambda g: convolutions(), [(0,), (1,)], x, y, (never,))
    assert math.isnan(table.agreement({(0,): 1.0, (1,): 2.0})["never"].kendall)


def test_normalisation_is_that_of_the_batch() -> None:
    net, (x, y) = convolutions(), batch()
    value = grad_norm(net, x, y)
    net[1].running_mean.fill_(7.0)
    assert_close(grad_norm(net.eval(), x, y), value)
