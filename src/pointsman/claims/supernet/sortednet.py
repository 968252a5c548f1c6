"""SortedNet: many nested networks trained as one, so that every budget takes its prefix.

Valipour et al., "SortedNet, a Place for Every Network and Every Network in its Place: Towards a
Generalized Solution for Training Many-in-One Neural Networks" (2023, arXiv 2309.00255).

Sub-network b is a prefix of the weights in a fixed order, theta(b) within theta(b') for b <= b',
and training minimises sum_b p(b) L(f(x; theta(b))): each part of a batch goes through one sampled
sub-network, and the gradients of several parts are accumulated before an update. Inference takes
the largest prefix that fits a budget; nothing is searched or distilled. The part is
`supernet.Nested`.

What was settled:
- Widths only: a network 64-W-W-10 with both hidden sizes W in 8, 16, 24, 32, 48, 64; depth is
  another claim's matter. p is uniform, the paper's default.
- The number of accumulated gradients is tuned in the paper. Here an update sees 128 inputs in any
  case: the sorted network four times 32, each under a width of its own, the others all at once. So
  updates and inputs seen are equal, and accumulation gives no one more data.
- The whole network is one of the sampled widths like any other, so it is held against the same
  network trained alone.
- "Truncated" cuts the prefix out of the normally trained network, without any further training;
  "alone" trains a network of that size from its start, one for each width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.claims.testbeds import Loss

UNITS = (8, 16, 24, 32, 48, 64)
WIDTHS = tuple(units / UNITS[-1] for units in UNITS)
ACCUMULATED = 4  # sub-networks sampled for one update
UPDATES = 1200
COLUMNS = ("sorted", "truncated", "alone")


def quick() -> None:
    """Prefixes are networks of their own, nested, and learn without touching the rest."""
    import torch
    from torch.testing import assert_close

    from pointsman.claims import testbeds
    from pointsman.supernet import Nested

    net = Nested(testbeds.mlp(64, 64, 64, 10, seed=0), WIDTHS)
    x = torch.rand(20, 64, generator=torch.Generator().manual_seed(0))
    whole = dict(net.extract(1.0).named_parameters())
    for width, units in zip(WIDTHS, UNITS, strict=True):
        alone = net.extract(width)
        assert_close(net(x, width), alone(x), rtol=0, atol=1e-6)
        net.zero_grad()
        net(x, width).square().sum().backward()
        for name, small in alone.named_parameters():
            prefix = tuple(slice(0, size) for size in small.shape)
            must(torch.equal(small, whole[name][prefix]), f"{name} at {units} units is a prefix")
            grad = net.body.get_parameter(name).grad
            must(grad is not None and bool(grad[prefix].any()), f"{name} learns at {units} units")
            assert grad is not None
            grad[prefix] = 0
            must(not grad.any(), f"no gradient for {name} beyond {units} units")
        hidden = {
            len(small) for name, small in alone.named_parameters() if not name.startswith("4")
        }
        must(hidden == {units}, f"hidden layers have {units} units, got {hidden}")


def full(seed: int) -> Figures:
    """Test accuracy at every width: sorted training, a truncated network, one of that size."""
    import torch

    from pointsman.claims import testbeds
    from pointsman.supernet import Nested

    data = testbeds.digits(seed)

    def trained(units: int) -> torch.nn.Sequential:
        module = testbeds.mlp(64, units, units, 10, seed=seed)
        testbeds.fit(module, data.train, seed=seed, updates=UPDATES)
        return module

    alone = [trained(units) for units in UNITS]
    truncated = Nested(alone[-1], WIDTHS)
    together = Nested(testbeds.mlp(64, 64, 64, 10, seed=seed), WIDTHS)
    testbeds.fit(together, data.train, seed=seed, updates=UPDATES, loss=_sampled(seed))
    found = {}
    for units, width, single in zip(UNITS, WIDTHS, alone, strict=True):
        outputs = together(data.test.x, width), truncated(data.test.x, width), single(data.test.x)
        for column, logits in zip(COLUMNS, outputs, strict=True):
            found[f"{units} units: {column}"] = testbeds.accuracy(logits, data.test.y)
    for column in COLUMNS:
        values = [found[f"{units} units: {column}"] for units in UNITS]
        found[f"mean over widths: {column}"] = sum(values) / len(values)
    return found


def _sampled(seed: int) -> "Loss":
    """Loss of a batch cut into parts, each under a width drawn for it: accumulated gradients."""
    import torch
    from torch.nn.functional import cross_entropy

    generator = torch.Generator().manual_seed(seed)

    def loss(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        drawn = torch.randint(len(WIDTHS), (ACCUMULATED,), generator=generator).tolist()
        parts = zip(drawn, x.chunk(ACCUMULATED), y.chunk(ACCUMULATED), strict=True)
        return torch.stack([cross_entropy(net(x, WIDTHS[at]), y) for at, x, y in parts]).mean()

    return loss


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def gain(row: str) -> float:
        return mean(measurements, f"{row}: sorted") - mean(measurements, f"{row}: truncated")

    return gain("mean over widths") >= 0.20 and gain("64 units") >= -0.02


CLAIM = Claim(
    slug="sortednet",
    paper="SortedNet, a Place for Every Network and Every Network in its Place: Towards a "
    "Generalized Solution for Training Many-in-One Neural Networks",
    year=2023,
    arxiv="2309.00255",
    level="supernet",
    claim="One training run over sampled nested prefixes gives sub-networks for every budget that "
    "keep nearly the accuracy of the whole, without search or separate training.",
    baseline="The same network trained normally and truncated; and networks of each size trained "
    "alone; all with equal updates and inputs.",
    criterion="After equal updates, on the test part and in the mean over the seeds: accuracy "
    "averaged over the six widths is at least 20 points above truncating the normally trained "
    "network, and at full width at most 2 points below it.",
    quick=quick,
    full=full,
    decide=decide,
    composition="elastic widths (prefixes) · one sampled width a micro-batch",
    entry="pointsman.supernet.Nested",
    key={
        "sorted": "mean over widths: sorted",
        "truncated": "mean over widths: truncated",
        "alone": "mean over widths: alone",
    },
)
