"""Interpolated widths and depths: aligned outputs, drawn pairs, the band of a budget."""

import pytest
import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.costs import count_mflops, count_parameters
from pointsman.supernet.relax import Draw, Relaxation, release
from pointsman.supernet.relax.two_widths import (
    AnyInput,
    Chain,
    InterpolatedDepth,
    InterpolatedWidth,
    PairGate,
    budget_loss,
    interpolate_channels,
)
from pointsman.supernet.supernet import Supernet

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def network() -> Supernet:
    torch.manual_seed(0)
    first = InterpolatedWidth("first", nn.Linear(4, 6), (2, 4, 6))
    head = Chain(first, nn.ReLU())
    second = InterpolatedWidth("second", nn.Linear(6, 6), (3, 6), before=head)
    third = InterpolatedWidth("third", nn.Linear(6, 6), (2, 5), before=second, when=("stage", (2,)))
    stage = InterpolatedDepth("stage", [Chain(second, nn.ReLU()), Chain(third, nn.ReLU())], (1, 2))
    net = Supernet(nn.Sequential(head, stage, AnyInput(nn.Linear(6, 3), stage)))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -1, 1)
    return net.eval()


def test_interpolation_keeps_constants_and_is_the_identity_at_equal_width() -> None:
    torch.testing.assert_close(interpolate_channels(X, 4), X, rtol=0, atol=0)
    torch.testing.assert_close(
        interpolate_channels(torch.full((2, 3), 7.0), 5), torch.full((2, 5), 7.0)
    )
    images = torch.arange(24.0).view(1, 4, 2, 3)
    halves = interpolate_channels(images, 2)
    torch.testing.assert_close(halves[:, 0], (images[:, 0] + images[:, 1]) / 2)
    torch.testing.assert_close(interpolate_channels(images, 8)[:, 6], images[:, 3])


def test_every_subnet_alone_gives_the_outputs_it_gives_inside() -> None:
    net = network()
    for genotype in net.space.enumerate():
        net.use(genotype)
        torch.testing.assert_close(net.extract(genotype)(X), net(X))


def test_costs_are_those_of_the_small_layers() -> None:
    net = network()
    taken = {"first": 4, "stage": 2, "second": 3, "third": 2}
    genotype = net.space.encode(taken)
    assert count_mflops(net, X[:1])(genotype) == pytest.approx(
        2e-6 * (4 * 4 + 4 * 3 + 3 * 2 + 2 * 3)
    )
    alone = sum(p.numel() for p in net.extract(genotype).parameters())
    assert count_parameters(net)(genotype) == alone


def test_a_width_beyond_the_depth_does_not_matter() -> None:
    net = network()
    assert net.space.count() == 3 * 2 * (1 + 2)


def test_a_mixture_is_the_weighted_sum_of_aligned_outputs() -> None:
    net = network()
    width = next(m for m in net.modules() if isinstance(m, InterpolatedWidth))
    outs = []
    for at in (0, 2):
        width.dial.index = at
        outs.append(interpolate_channels(width(X), 6))
    width.dial.mixture = torch.tensor([0.25, 0.0, 0.75])
    torch.testing.assert_close(width(X), 0.25 * outs[0] + 0.75 * outs[1])


def test_depths_mix_at_the_widest_of_their_outputs() -> None:
    net = network()
    stage = net.body[1]  # type: ignore[index]
    x = torch.rand(5, 6)
    with torch.no_grad():
        once = stage.blocks[0](x)
        twice = stage.blocks[1](once)
        stage.dial.mixture = torch.tensor([0.5, 0.5])
        expected = (once + interpolate_channels(twice, 6)) / 2
        torch.testing.assert_close(stage(x), expected)


def test_a_relaxation_trains_widths_and_depths_and_one_hot_is_the_subnet() -> None:
    net = network()
    relaxation = Relaxation(net, gate=PairGate())
    assert [choice.name for choice in relaxation.choices] == ["first", "stage", "second", "third"]
    relaxation.mix(net, Draw(0.0, torch.Generator().manual_seed(0)))
    net(X).square().sum().backward()
    assert all(alpha.grad is not None and alpha.grad.any() for alpha in relaxation.alpha)
    with torch.no_grad():
        for alpha in relaxation.alpha:
            alpha[0] = 200.0
        relaxation.gate = lambda logits, keep, draw: logits.softmax(dim=0).round()
        relaxation.mix(net)
        mixed = net(X)
        release(net)
        net.use(relaxation.derive())
        torch.testing.assert_close(net(X), mixed)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_pair_never_repeats_and_its_weights_sum_to_one(size: int) -> None:
    logits = torch.linspace(-1, 1, size, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(50):
        weights = PairGate()(logits, 1, Draw(0.0, generator))
        drawn = weights.detach().nonzero().flatten().tolist()
        assert len(drawn) == min(2, size)
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
        (slopes,) = torch.autograd.grad(weights @ torch.arange(float(size)), logits)
        assert size == 1 or slopes[drawn].any()
        seen.add(tuple(drawn))
    assert len(seen) == {1: 1, 2: 1, 5: 10}[size]


def test_the_temperature_falls_and_draws_follow_the_logits() -> None:
    logits = torch.tensor([4.0, 4.0, 0.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    late = [PairGate()(logits, 1, Draw(1.0, generator)) for _ in range(40)]
    assert torch.stack([w.max() for w in late]).mean() > 0.95
    assert sum(bool(w[:2].sum() > 0.9) for w in late) > 30


def test_a_budget_pulls_into_the_band_and_rests_there() -> None:
    def slope(derived: float) -> float:
        expected = torch.tensor(50.0, requires_grad=True)
        budget_loss(expected, derived, 100.0).backward()
        assert isinstance(expected.grad, Tensor)
        return float(expected.grad)

    assert slope(100.1) == pytest.approx(1 / 50)
    assert slope(94.9) == pytest.approx(-1 / 50)
    assert slope(95.0) == slope(100.0) == 0


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: InterpolatedWidth("w", nn.Linear(2, 4), (4, 2)), "rise within 1 to 4"),
        (lambda: InterpolatedWidth("w", nn.Linear(2, 4), (2, 5)), "rise within 1 to 4"),
        (lambda: InterpolatedWidth("w", nn.Conv2d(4, 4, 3, groups=4), (2,)), "ungrouped"),
        (lambda: InterpolatedDepth("d", [nn.Identity()], (0, 1)), "from 1 or more"),
        (lambda: PairGate(end=0.0), "above 0"),
        (lambda: budget_loss(torch.ones(()), 1.0, 0.0), "target is above 0"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, what: str) -> None:
    with pytest.raises(InputError, match=what):
        make()  # type: ignore[operator]
