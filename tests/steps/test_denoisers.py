"""Exact mixtures against autograd, and the small network that learns to predict noise."""

import pytest
import torch
from mixture_runs import MIXTURE, SCHEDULE
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.steps.denoisers import Denoiser, fit_denoiser, noise_loss
from pointsman.steps.mixtures import EVERY, GaussianMixture
from pointsman.steps.policies.guidance import Guided
from pointsman.steps.policies.plain import Always
from pointsman.steps.samplers import DDIM
from pointsman.steps.sampling import sample
from pointsman.steps.schedules import linear


class Zero(nn.Module):
    """A body that adds nothing; it writes down its options."""

    def __init__(self, dimensions):
        super().__init__()
        self.weight, self.dimensions, self.seen = nn.Parameter(torch.zeros(1)), dimensions, []

    def forward(self, x, **options):
        self.seen.append(options)
        return self.weight * x[:, : self.dimensions]


def body(dimensions=2, classes=2, width=24):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(Denoiser.features(dimensions, classes), width),
            nn.ReLU(),
            nn.Linear(width, dimensions),
        )


@pytest.mark.parametrize("label", [EVERY, 0, 1])
def test_the_noise_of_a_mixture_is_minus_sigma_times_its_score(label):
    x = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    condition = torch.full((7,), label)
    t = 0.3
    alpha, sigma = SCHEDULE.signal(t), SCHEDULE.noise(t)
    parts, _ = MIXTURE._components(x, alpha, sigma, condition)
    (score,) = torch.autograd.grad(parts.logsumexp(1).sum(), x)
    assert_close(MIXTURE.noise(SCHEDULE)(x.detach(), t, condition), -sigma * score)


def test_the_density_of_a_mixture_integrates_to_one_and_fits_its_draws():
    side = torch.linspace(-5, 5, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    for condition in (None, torch.ones(len(grid), dtype=torch.int64)):
        mass = MIXTURE.log_density(grid, condition).exp().sum() * (side[1] - side[0]) ** 2
        assert float(mass) == pytest.approx(1, abs=1e-3)
    x, labels = MIXTURE.draw(4000, torch.Generator().manual_seed(0))
    shares = torch.bincount(labels) / 4000
    assert_close(shares, torch.tensor([0.25, 0.75]), rtol=0, atol=0.03)
    assert_close(x.mean(0), (MIXTURE.weights / 4) @ MIXTURE.means, rtol=0, atol=0.1)


def test_a_denoiser_whose_body_gives_nothing_is_exact_for_gaussian_data():
    gaussian = GaussianMixture(
        torch.zeros(1, 3), torch.tensor([0.7]), torch.ones(1), torch.zeros(1, dtype=torch.int64)
    )
    net = Denoiser(Zero(3), linear(), dimensions=3, spread=0.7)
    x = torch.randn(5, 3)
    for t in (0.05, 0.5, 1.0):
        assert_close(net(x, t), gaussian.noise(linear())(x, t, None), rtol=1e-4, atol=1e-5)


def test_times_one_by_one_and_labels_are_what_the_network_sees():
    net = Denoiser(body(), SCHEDULE, dimensions=2, classes=2)
    x, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, 2])
    whole = net(x, torch.full((4,), 0.4), labels)
    assert_close(net(x, 0.4, labels), whole)
    assert_close(net(x[2:], 0.4), whole[2:])  # no label is the label after the last
    assert not torch.allclose(net(x, 0.4, labels.flip(0)), whole)
    assert not torch.allclose(net(x, 0.5, labels), whole)


def test_evaluations_pass_options_on_and_are_priced_by_what_runs():
    net = Denoiser(Zero(2), SCHEDULE, dimensions=2, classes=2)
    net.evaluation("narrow", width=0.5).run(torch.zeros(1, 2), 0.5, None)
    assert net.body.seen[-1] == {"width": 0.5}
    net = Denoiser(body(), SCHEDULE, dimensions=2, classes=2)
    having, without = net.guided()
    flops = 2 * (Denoiser.features(2, 2) * 24 + 24 * 2)
    assert float(having.cost) == pytest.approx(flops / 1e6)
    assert having.cost.unit == without.cost.unit == "MFLOPs"
    x, y = torch.randn(3, 2), torch.tensor([0, 1, 0])
    assert_close(without.run(x, 0.5, y), net(x, 0.5))
    assert_close(having.run(x, 0.5, y), net(x, 0.5, y))


def test_training_teaches_the_data_and_the_labels():
    data, labels = MIXTURE.draw(2000, torch.Generator().manual_seed(0))
    data = data.float()
    net = Denoiser(body(width=48), SCHEDULE, dimensions=2, classes=2, spread=1.5)

    @torch.no_grad()
    def error():
        generator = torch.Generator().manual_seed(1)
        return float(noise_loss(net, SCHEDULE, data, labels, generator))

    before = error()
    fit_denoiser(net, data, labels, seed=0, updates=200, rate=1e-2, averaging=0.9)
    assert error() < 0.7 * before
    assert not net.training
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(2))
    y = torch.arange(200) % 2
    found = sample(net.guided(), Guided(1.5), DDIM(SCHEDULE), x, SCHEDULE.times(20), condition=y)
    nearest = torch.cdist(found.x.double(), MIXTURE.means).argmin(dim=1)
    assert float((MIXTURE.labels[nearest] == y).float().mean()) > 0.85


def test_a_seed_fixes_the_training_and_options_add_their_losses():
    data = torch.randn(50, 2)

    def trained(seed, **more):
        net = Denoiser(body(), SCHEDULE, dimensions=2, classes=2)
        fit_denoiser(net, data, seed=seed, updates=5, batch=8, **more)
        return net.body[0].weight

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))
    net = Denoiser(Zero(2), SCHEDULE, dimensions=2)
    fit_denoiser(
        net, data, seed=0, updates=2, batch=4, options=lambda g: [{"width": 1.0}, {"width": 0.5}]
    )
    assert net.body.seen == [{"width": 1.0}, {"width": 0.5}] * 2


def test_bad_input_is_refused():
    net = Denoiser(body(), SCHEDULE, dimensions=2, classes=2)
    with pytest.raises(InputError, match="flatten images"):
        net(torch.zeros(2, 1, 2), 0.5)
    with pytest.raises(InputError, match="labels are 0 to 1, or 2 for none, got 0 to 3"):
        net(torch.zeros(2, 2), 0.5, torch.tensor([0, 3]))
    with pytest.raises(InputError, match="must be positive"):
        Denoiser(body(), SCHEDULE, dimensions=2, spread=0)
    with pytest.raises(InputError, match="a spread, weight and label per component"):
        GaussianMixture(torch.zeros(2, 2), torch.ones(3), torch.ones(2), torch.zeros(2))
    with pytest.raises(InputError, match="must be positive"):
        GaussianMixture(torch.zeros(1, 2), torch.zeros(1), torch.ones(1), torch.zeros(1))
    assert sample(net.guided(), Always(), DDIM(SCHEDULE), torch.zeros(0, 2), (0.5, 0)).x.shape == (
        0,
        2,
    )
