"""Nested networks: every width is its own plain network, and a prefix of the wider ones."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet import (
    Nested,
    PrefixBatchNorm2d,
    PrefixConv2d,
    PrefixLayerNorm,
    PrefixLinear,
)
from pointsman.supernet.nested import prefix_layers, units_at
from pointsman.supernet.supernet import Supernet

WIDTHS = (0.1, 0.34, 0.5, 1.0)


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.branch(x)
        return x + changed


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 7, bias=False), nn.Linear(7, 3))


def layer_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 12),
        nn.LayerNorm(12),
        nn.GELU(),
        nn.LayerNorm(12, bias=False),
        nn.Linear(12, 3),
    )


def normalised_ends() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 12), nn.Linear(12, 3), nn.LayerNorm(3))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 10, (1, 3), padding=(0, 2), dilation=(1, 2)),
        nn.BatchNorm2d(10, eps=1e-3, momentum=0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 4),
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 9, 1),
        nn.Conv2d(9, 9, 3, padding=1, groups=9),
        nn.BatchNorm2d(9),
        nn.Conv2d(9, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 11),
        Residual(nn.LayerNorm(11), nn.Linear(11, 20), nn.ReLU(), nn.Linear(20, 11)),
        Residual(nn.Linear(11, 11)),
        nn.Linear(11, 3),
    )


BODIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (linear, (6, 5)),
    "layer norm": (layer_norm, (6, 4, 5)),
    "normalised ends": (normalised_ends, (6, 5)),
    "convolution": (convolution, (6, 3, 9, 8)),
    "depthwise": (depthwise, (6, 3, 5, 5)),
    "residual": (residual, (6, 5)),
}
each_body = pytest.mark.parametrize(("make", "shape"), BODIES.values(), ids=BODIES)


def trained(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Nested:
    """A nested network after a few steps at every width, so that nothing is at its start."""
    torch.manual_seed(0)
    net = Nested(make(), WIDTHS)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    for width in WIDTHS * 2:
        optimiser.zero_grad()
        net(torch.randn(shape) + 1, width).square().mean().backward()
        optimiser.step()
    return net


@each_body
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_equals_its_extracted_network(
    width: float, make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    net = trained(make, shape).eval()
    x = torch.randn(shape)
    plain = net.extract(width)
    assert not any(type(layer).__module__.startswith("pointsman.") for layer in plain.modules())
    torch.testing.assert_close(plain(x), net(x, width), rtol=1e-6, atol=1e-6)
    wider = net.extract(1.0)
    count, whole = (sum(p.numel() for p in m.parameters()) for m in (plain, wider))
    assert count <= whole
    assert (count == whole) == (width == 1.0)


@each_body
def test_the_whole_network_is_the_one_that_was_given(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    body = make().eval()
    x = torch.randn(shape)
    net = Nested(body, WIDTHS).eval()
    torch.testing.assert_close(net(x), body(x))
    with torch.no_grad():  # a copy: training one leaves the other alone
        for parameter in net.parameters():
            parameter.zero_()
    assert any(parameter.any() for parameter in body.parameters())


@each_body
def test_an_extracted_network_trains_as_the_width_does(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    net = trained(make, shape).train()
    plain = net.extract(0.34)
    assert all(layer.training for layer in plain.modules())
    x = torch.randn(shape)
    torch.testing.assert_close(plain(x), net(x, 0.34), rtol=1e-5, atol=1e-5)
    assert not any(layer.training for layer in net.eval().extract(0.34).modules())


@each_body
def test_an_extracted_network_has_weights_of_its_own(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    net = trained(make, shape).eval()
    x = torch.randn(shape)
    before = net(x, 0.5)
    for tensor in net.extract(0.5).state_dict().values():
        tensor.zero_()
    torch.testing.assert_close(net(x, 0.5), before)


@each_body
def test_double_precision_is_kept(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    net = trained(make, shape).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(net.extract(0.34)(x), net(x, 0.34), rtol=1e-12, atol=1e-12)


def test_gradients_stay_inside_the_prefix() -> None:
    net = Nested(convolution(), WIDTHS)
    net(torch.randn(6, 3, 9, 8), 0.34).square().sum().backward()
    first, second = (layer for layer in net.modules() if isinstance(layer, PrefixConv2d))
    used = units_at(0.34, 8), units_at(0.34, 10)
    for layer, outs, ins in ((first, used[0], 3), (second, used[1], used[0])):
        assert layer.weight.grad is not None
        assert layer.weight.grad[:outs, :ins].any()
        inside = torch.zeros_like(layer.weight)
        inside[:outs, :ins] = 1
        assert not (layer.weight.grad * (1 - inside)).any()
    norm = [layer for layer in net.modules() if isinstance(layer, PrefixBatchNorm2d)][1]
    assert norm.weight.grad is not None
    assert norm.weight.grad[: used[0]].any()
    assert not norm.weight.grad[used[0] :].any()


def test_batch_statistics_are_kept_for_each_width() -> None:
    net = Nested(convolution(), WIDTHS).train()
    norm = [layer for layer in net.modules() if isinstance(layer, PrefixBatchNorm2d)][1]
    before = norm.means.clone()
    net(torch.randn(6, 3, 9, 8) + 3, 0.5)
    row, used = WIDTHS.index(0.5), units_at(0.5, 8)
    assert (norm.means[row, :used] != before[row, :used]).all()
    others = torch.arange(len(WIDTHS)) != row
    torch.testing.assert_close(norm.means[others], before[others])
    torch.testing.assert_close(norm.means[row, used:], before[row, used:])
    after = norm.means.clone()
    net.eval()(torch.randn(6, 3, 9, 8), 0.5)
    torch.testing.assert_close(norm.means, after)


@each_body
def test_a_state_dict_restores_every_width(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    net = trained(make, shape).eval()
    torch.manual_seed(9)
    other = Nested(make(), WIDTHS).eval()
    x = torch.randn(shape)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    for width in WIDTHS:
        torch.testing.assert_close(other(x, width), net(x, width))


def test_a_body_may_be_made_of_elastic_layers() -> None:
    body = nn.Sequential(
        PrefixLinear(nn.Linear(4, 10), elastic_in=False),
        PrefixLayerNorm(nn.LayerNorm(10)),
        PrefixLinear(nn.Linear(10, 4), elastic_out=False),
        nn.Linear(4, 2),  # stays as it is
    )
    net = Nested(body, (0.5, 1.0)).eval()
    x = torch.randn(3, 4)
    assert net(x, 0.5).shape == (3, 2)
    torch.testing.assert_close(net.extract(0.5)(x), net(x, 0.5))


def test_a_nested_network_is_a_supernet_of_one_choice() -> None:
    net = Nested(residual(), WIDTHS).eval()
    searched = Supernet(net.body)
    assert searched.space.names == ("width",)
    x = torch.randn(6, 5)
    for at, width in enumerate(WIDTHS):
        expected = net(x, width)
        searched.use((at,))
        torch.testing.assert_close(searched(x), expected)
        torch.testing.assert_close(searched.extract((at,))(x), expected)


@settings(deadline=None)
@given(st.floats(1e-6, 1.0), st.integers(1, 2_000))
def test_a_width_uses_at_least_one_unit_and_no_more_than_its_share(width: float, n: int) -> None:
    used = units_at(width, n)
    assert 1 <= used <= n
    assert used - 1 < width * n + 1e-6
    assert used >= width * n - 1e-6
    assert units_at(1.0, n) == n


@pytest.mark.parametrize(
    ("widths", "what"),
    [
        ((0.5,), "width 1.0, must be a width"),
        ((), "width 1.0, must be a width"),
        ((0.5, 0.5, 1.0), "distinct shares"),
        ((0.0, 1.0), r"distinct shares in \(0, 1\]"),
        ((0.5, 1.0, 1.5), r"distinct shares in \(0, 1\]"),
        ((float("nan"), 1.0), r"distinct shares in \(0, 1\]"),
    ],
)
def test_widths_that_make_no_sense_are_refused(widths: tuple[float, ...], what: str) -> None:
    with pytest.raises(InputError, match=what):
        Nested(linear(), widths)


def test_a_width_that_was_not_built_is_refused() -> None:
    net = Nested(linear(), WIDTHS)
    for call in (lambda: net(torch.zeros(1, 5), 0.7), lambda: net.extract(0.7)):
        with pytest.raises(InputError, match=r"has the widths \(0.1, .*\), got 0.7"):
            call()


SHARED = nn.Linear(6, 6)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (nn.Linear(3, 3), "hidden size between two .* got 1"),
        (nn.ReLU(), "hidden size between two .* got 0"),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), "BatchNorm1d at '1'"),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.Conv1d(4, 2, 3)), "Conv1d at '0'"),
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)), "Embedding at '0'"),
        (nn.Sequential(nn.Linear(6, 6), SHARED, SHARED, nn.Linear(6, 2)), "'2' is used before"),
        (nn.Sequential(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, groups=4)), "groups=4 for 8"),
        (
            nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1)),
            "groups=4 for 4 channels in and 8 out",
        ),
        (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 2, 1)), "elastic_in=False"),
        (nn.Sequential(nn.Conv2d(2, 8, 3, padding="same"), nn.Conv2d(8, 8, 3)), "padding='same'"),
        (
            nn.Sequential(
                nn.Conv2d(2, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 8, 3)
            ),
            "padding_mode='reflect'",
        ),
        (
            nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 2, 3)),
            "affine and tracks",
        ),
        (
            nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.Conv2d(8, 2, 3)),
            "with a momentum",
        ),
        (
            nn.Sequential(nn.Linear(2, 8), nn.LayerNorm((3, 8)), nn.Linear(8, 2)),
            "affine, over the last dimension",
        ),
    ],
)
def test_bodies_that_cannot_be_cut_are_refused(body: nn.Module, what: str) -> None:
    with pytest.raises(InputError, match=what):
        prefix_layers(body, (0.5, 1.0))


def test_batch_statistics_must_be_there_for_every_width() -> None:
    body = prefix_layers(convolution(), (0.5, 1.0))
    with pytest.raises(InputError, match="statistics for every width of its network"):
        Nested(body, (0.25, 1.0))
