"""TAS: widths and depth searched by gradients towards a target of FLOPs, then trained by the whole.

Dong and Yang, "Network Pruning via Transformable Architecture Search" (2019, arXiv 1905.09717).

Of each layer's candidate widths two are drawn and their outputs, aligned by interpolation along the
channels, are mixed; depth likewise. The loss of the architecture has the logarithm of the expected
FLOPs, up while the derived network is too large and down while it is too small. The derived sizes
are trained anew, with distillation from the whole network. The parts are `InterpolatedWidth`,
`InterpolatedDepth`, `PairGate` and `budget_loss` of `supernet.relax.two_widths`, with `Relaxation`,
`alternate` and `expected_cost`.

What was settled:
- A network of four hidden layers of 32 units on noisy digits; eight widths for each, of which the
  last three layers may run one, two or three. The target is half of the FLOPs of the whole.
- The search may end on a step out of the band: the derived sizes are the last ones in it, or those
  at the end if there were none.
- All networks are trained from new weights by the same updates; found sizes three times each with
  and without distillation, ten random sizes in the same band once each.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

    from pointsman.supernet.relax import Relaxation
    from pointsman.supernet.space import Genotype
    from pointsman.supernet.supernet import Supernet

HIDDEN, LAYERS = 32, 4
WIDTHS = (10, 13, 16, 20, 23, 26, 29, 32)  # shares of 0.3, 0.4, ..., 1
TARGET, TOLERANCE = 0.5, 0.05
SEARCH, BATCH, RATE, ARCHITECTURE_RATE, WEIGHT = 250, 64, 5e-3, 3e-2, 2.0
UPDATES, TIMES, RANDOM = 200, 3, 10
SHARE, TEMPERATURE = 0.9, 4.0  # of the distillation


def _network(seed: int) -> "Supernet":
    import torch
    from torch import nn

    from pointsman.supernet.relax.two_widths import (
        AnyInput,
        Chain,
        InterpolatedDepth,
        InterpolatedWidth,
    )
    from pointsman.supernet.supernet import Supernet

    def block(at: int, before: Any) -> Chain:
        layer = nn.Linear(HIDDEN if at else 64, HIDDEN)
        when = ("depth", tuple(range(at, LAYERS))) if at > 1 else None
        width = InterpolatedWidth(f"width {at}", layer, WIDTHS, before=before, when=when)
        return Chain(width, nn.ReLU())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks: list[Chain] = []
        for at in range(LAYERS):
            blocks.append(block(at, blocks[-1] if blocks else None))
        stage = InterpolatedDepth("depth", blocks[1:], tuple(range(1, LAYERS)))
        return Supernet(nn.Sequential(blocks[0], stage, AnyInput(nn.Linear(HIDDEN, 10), stage)))


def _cost(net: "Supernet", genotype: "Genotype") -> float:
    """FLOPs of the linear layers."""
    taken = net.space.decode(genotype)
    sizes = [64, *(int(taken[f"width {at}"]) for at in range(int(taken["depth"]) + 1)), 10]
    return float(sum(2 * a * b for a, b in pairwise(sizes)))


def _expected(shares: "dict[str, torch.Tensor]") -> "torch.Tensor":
    """FLOPs expected under these probabilities of the options."""
    import torch

    from pointsman.supernet.relax.thresholds import expected_cost

    widths = torch.tensor(WIDTHS, dtype=torch.float32)
    tables: dict[tuple[str, ...], torch.Tensor] = {("width 0",): 2 * 64 * widths}
    for at in range(1, LAYERS):
        runs = (torch.arange(1, LAYERS) >= at).float()
        pair = 2 * widths[:, None] * widths
        tables["depth", f"width {at - 1}", f"width {at}"] = runs[:, None, None] * pair
        last = (torch.arange(1, LAYERS) == at).float()
        tables["depth", f"width {at}"] = 2 * 10 * last[:, None] * widths
    return expected_cost(shares, tables)


def _shares(relaxation: "Relaxation") -> "dict[str, torch.Tensor]":
    pairs = zip(relaxation.choices, relaxation.alpha, strict=True)
    return {choice.name: alpha.softmax(dim=0) for choice, alpha in pairs}


def quick() -> None:
    """Interpolation keeps constants and equal widths; draws never repeat; subnets are exact."""
    import numpy as np
    import torch
    from torch.testing import assert_close

    from pointsman.supernet.costs import count_mflops
    from pointsman.supernet.relax import Draw, Relaxation
    from pointsman.supernet.relax.two_widths import PairGate, interpolate_channels

    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    must(bool((interpolate_channels(x, 8) == x).all()), "equal widths stay as they are")
    assert_close(interpolate_channels(torch.ones(2, 5), 9), torch.ones(2, 9))
    draw = Draw(0.5, torch.Generator().manual_seed(0))
    for _ in range(50):
        weights = PairGate()(torch.zeros(8), 1, draw)
        must(int((weights > 0).sum()) == 2, "two widths are drawn, never one twice")
    net = _network(0).eval()
    relaxation = Relaxation(net)
    rng = np.random.default_rng(0)
    genotypes = [net.space.sample(rng) for _ in range(5)]
    count = count_mflops(net, x := torch.rand(4, 64))
    for genotype in genotypes:
        shares = {
            choice.name: torch.eye(len(choice.options))[at]
            for choice, at in zip(relaxation.choices, genotype, strict=True)
        }
        cost = _cost(net, genotype)
        must(abs(float(_expected(shares)) - cost) < 1e-2, "the expected cost ends in the true one")
        must(abs(count(genotype) * 1e6 / len(x) - cost) < 1e-2, "which is the counted one")
        net.use(genotype)
        assert_close(net.extract(genotype)(x), net(x))


def full(seed: int) -> Figures:
    """Accuracy of the found sizes, with and without distillation, and of random ones alike."""
    import numpy as np
    import torch

    from pointsman.claims.architectures import NOISE, noisy_digits
    from pointsman.claims.testbeds import accuracy, fit

    data = noisy_digits(seed)
    net = _network(seed)
    whole = _cost(net, net.space.canonical(net.in_force))
    target = TARGET * whole

    def in_band(genotype: "Genotype") -> bool:
        return (1 - TOLERANCE) * target <= _cost(net, genotype) <= target

    def trained(genotype: "Genotype", run: int, loss: Any = None) -> tuple[float, torch.nn.Module]:
        alone = _network(1000 * seed + run + 1).extract(genotype)
        options = {} if loss is None else {"loss": loss}
        fit(alone, data.train, seed=run, updates=UPDATES, rate=RATE, noise=NOISE, **options)
        with torch.no_grad():
            return accuracy(alone(data.test.x), data.test.y), alone

    largest = net.space.canonical([len(c.options) - 1 for c in net.space.choices])
    found = {}
    found["whole: accuracy"], teacher = trained(largest, 0)
    genotype = _search(net, data.train, target, in_band, seed)
    found["found: FLOPs in shares of the target"] = _cost(net, genotype) / target
    runs = range(1, TIMES + 1)
    found["found: accuracy"] = float(np.mean([trained(genotype, run)[0] for run in runs]))
    taught = _taught(teacher)
    with_it = [trained(genotype, run, taught)[0] for run in runs]
    found["found, distilled: accuracy"] = float(np.mean(with_it))
    rng = np.random.default_rng(seed)
    others: list[Genotype] = []
    while len(others) < RANDOM:
        other = net.space.sample(rng)
        if in_band(other) and other not in others:
            others.append(other)
    right = [trained(other, run)[0] for run, other in enumerate(others, start=1)]
    found["random: accuracy"] = float(np.mean(right))
    return found


def _search(net: "Supernet", part: Any, target: float, in_band: Any, seed: int) -> "Genotype":
    """The sizes derived last within the band; else, those at the end."""
    from itertools import count

    import torch
    from torch.nn.functional import cross_entropy

    from pointsman.claims.architectures import NOISE
    from pointsman.supernet.relax import Relaxation, alternate
    from pointsman.supernet.relax.two_widths import PairGate, budget_loss

    relaxation = Relaxation(net, gate=PairGate(), seed=seed)

    def batches(rows: slice, stream: int) -> Any:
        x, y = part.x[rows], part.y[rows]
        generator = torch.Generator().manual_seed(2 * seed + stream)
        for _ in count():
            drawn = torch.randint(len(x), (BATCH,), generator=generator)
            yield x[drawn] + NOISE * torch.randn(BATCH, 64, generator=generator), y[drawn]

    def penalty(relaxation: Relaxation) -> torch.Tensor:
        derived = _cost(net, relaxation.derive())
        cost = budget_loss(_expected(_shares(relaxation)), derived, target, tolerance=TOLERANCE)
        return WEIGHT * cost

    best: list[Genotype] = []

    def remember(_: int) -> None:
        genotype = relaxation.derive()
        if in_band(genotype):
            best[:] = [genotype]

    alternate(
        net,
        relaxation,
        lambda network, batch: cross_entropy(network(batch[0]), batch[1]),
        batches(slice(0, 500), 0),
        batches(slice(500, 1000), 1),
        updates=SEARCH,
        weights=torch.optim.AdamW(net.parameters(), RATE),
        architecture=torch.optim.Adam(
            relaxation.parameters(), ARCHITECTURE_RATE, weight_decay=1e-3
        ),
        penalty=penalty,
        seed=seed,
        after=remember,
    )
    return best[0] if best else relaxation.derive()


def _taught(teacher: "torch.nn.Module") -> Any:
    """(1 - l) cross-entropy + l T² KL(teacher, network), both at temperature T."""
    import torch
    from torch.nn.functional import cross_entropy, kl_div

    def loss(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = module(x)
        with torch.no_grad():
            soft = (teacher(x) / TEMPERATURE).log_softmax(dim=1)
        mine = (logits / TEMPERATURE).log_softmax(dim=1)
        taught = kl_div(mine, soft, reduction="batchmean", log_target=True) * TEMPERATURE**2
        return (1 - SHARE) * cross_entropy(logits, y) + SHARE * taught

    return loss


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    shares = [figures["found: FLOPs in shares of the target"] for figures in measurements]
    found = mean(measurements, "found: accuracy")
    return (
        all(1 - TOLERANCE <= share <= 1 for share in shares)
        and found >= mean(measurements, "random: accuracy")
        and mean(measurements, "found, distilled: accuracy") >= found
    )


CLAIM = Claim(
    slug="tas",
    paper="Network Pruning via Transformable Architecture Search",
    year=2019,
    arxiv="1905.09717",
    level="supernet",
    claim="Widths and depth found by mixing two aligned widths at a time, at a target of FLOPs, "
    "are better than random sizes, and distillation from the whole network makes them better "
    "still.",
    baseline="Ten random sizes in the same band of FLOPs; the found sizes without distillation.",
    criterion="The derived FLOPs are at most the target and at least 95% of it for every seed; "
    "over the seeds, the found sizes are on average as accurate as the random ones or more so, and "
    "with distillation as accurate as without or more so.",
    quick=quick,
    full=full,
    decide=decide,
    key={
        "found": "found: accuracy",
        "distilled": "found, distilled: accuracy",
        "random": "random: accuracy",
    },
    note="With one seed of three the search never came into the band in its 250 updates, and ended "
    "14% above the target. The whole network, which teaches, is hardly better than the found sizes "
    "trained alone, and distillation from it lowers them.",
    composition="interpolated widths and depth · pairs drawn without putting back · expected cost "
    "with a dead zone · distillation",
    entry="pointsman.supernet.relax.two_widths.InterpolatedWidth",
)
