"""Single-Path NAS: one kernel holds all options, and trainable thresholds on its parts decide.

Stamoulis et al., "Single-Path NAS: Designing Hardware-Efficient ConvNets in less than 4 Hours"
(2019, arXiv 1904.02877).

The outer ring of a 5x5 kernel, the second half of a block's inner channels, and the block itself
are each on if the squared size of their weights is above a trained threshold (hard step, gradient
of a sigmoid). The loss is cross-entropy + lambda log R, R the cost of what is on. So weights,
architecture and cost are trained in one run, once for each lambda. The parts are
`supernet.relax.Thresholds` and `supernet.relax.expected_cost` on an elastic network.

What was settled:
- Two residual blocks (pointwise, depthwise 5x5, pointwise) of 8 channels with 16 inside, on noisy
  digits of 8x8; options a block: kernel 3 or 5, all or half of the inner channels, or skipped.
- R is counted in MFLOPs, not measured: the order of so small a network's times is noise. Sizes are
  in those of the start, thresholds start at a half, with a rate of their own (tuned, with lambda's
  values, on seed 100 alone).
- Derived networks keep the weights of the run; baselines are random members of the space, one for
  each lambda but 0, that with the nearest cost of 30, trained alone by the same updates.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

    from pointsman.claims.testbeds import Part
    from pointsman.supernet.costs import Count
    from pointsman.supernet.relax.thresholds import Thresholds
    from pointsman.supernet.space import Genotype
    from pointsman.supernet.supernet import Supernet

BLOCKS, WIDTH, INNER = 2, 8, 16
LAMBDAS = (0.0, 0.1, 0.15, 0.2, 0.3)
UPDATES, BATCH = 150, 48
RATE, THRESHOLD_RATE = 5e-3, 2e-2


def _network(seed: int) -> "Supernet":
    import torch
    from torch import nn

    from pointsman.supernet.elastic import Kernel, NamedWidth, Skip
    from pointsman.supernet.making import make_elastic

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm = nn.Conv2d(WIDTH, INNER, 1, bias=False), nn.BatchNorm2d(INNER)
            self.spread = nn.Conv2d(INNER, INNER, 5, padding=2, groups=INNER, bias=False)
            self.again = nn.BatchNorm2d(INNER)
            self.down = nn.Conv2d(INNER, WIDTH, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside = self.again(self.spread(self.norm(self.up(x)).relu())).relu()
            out: torch.Tensor = x + self.down(inside)
            return out

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, WIDTH, 3, padding=1),
            nn.Sequential(*(Block() for _ in range(BLOCKS))),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * WIDTH, 10),
        )
    widths = [
        NamedWidth(
            f"2.{at}",
            [f"2.{at}.{name}" for name in ("up", "norm", "spread", "again")],
            [f"2.{at}.down"],
            shares=(0.5, 1),
        )
        for at in range(BLOCKS)
    ]
    return make_elastic(body, None, [Skip("2"), *widths, Kernel("2.*.spread", (3, 5))])


def _thresholds(net: "Supernet") -> "Thresholds":
    from pointsman.supernet.relax.thresholds import Thresholds

    widths = {f"2.{at}.width": f"2.{at}.spread.weight" for at in range(BLOCKS)}
    kernels = {f"2.{at}.spread.kernel": f"2.{at}.spread.weight" for at in range(BLOCKS)}
    return Thresholds(net, widths | kernels, droppable=tuple(widths))


def _genotype(net: "Supernet", derived: dict[str, object]) -> "Genotype":
    values: dict[str, object] = {}
    for at in range(BLOCKS):
        width = derived[f"2.{at}.width"]
        values[f"2.{at}.kept"] = width is not None
        if width is not None:
            values[f"2.{at}.width"] = width
            values[f"2.{at}.spread.kernel"] = derived[f"2.{at}.spread.kernel"]
    return net.space.encode(values)


def _tables(net: "Supernet", count: "Count") -> "tuple[dict[tuple[str, ...], torch.Tensor], float]":
    """What each block adds to the cost, by width and kernel, and what the rest costs."""
    import torch

    nothing = {f"2.{at}.kept": False for at in range(BLOCKS)}
    rest = count(net.space.encode(nothing))
    tables: dict[tuple[str, ...], torch.Tensor] = {}
    for at in range(BLOCKS):
        names = f"2.{at}.width", f"2.{at}.spread.kernel"
        options = [net.space.choices[net.space.names.index(name)].options for name in names]
        costs = [
            [
                count(net.space.encode(nothing | {f"2.{at}.kept": True, names[0]: w, names[1]: k}))
                for k in options[1]
            ]
            for w in options[0]
        ]
        tables[names] = torch.tensor(costs) - rest
    return tables, rest


def quick() -> None:
    """With everything on a kernel is whole; without its ring it is the smaller kernel, exactly."""
    import torch
    from torch.testing import assert_close

    from pointsman.supernet.costs import count_mflops
    from pointsman.supernet.relax.thresholds import expected_cost

    net = _network(0).double().eval()
    thresholds = _thresholds(net).double()
    x = torch.rand(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = net(x)
    thresholds.mix()
    assert_close(net(x), whole)
    with torch.no_grad():
        thresholds.levels[0].fill_(2.0)  # the first block is skipped
        thresholds.levels[1][1] = 2.0  # the second has half of its channels
        thresholds.levels[BLOCKS + 1][1] = 2.0  # and a kernel without its ring
    shares = thresholds.mix()
    mixed = net(x)
    tables, rest = _tables(net, count := count_mflops(net, x[:1].to(x)))
    cost = expected_cost(shares, tables, rest)
    slopes = torch.autograd.grad(cost, list(thresholds.parameters()))
    must(all(bool((slope <= 0).all()) for slope in slopes), "higher thresholds cost less")
    genotype = _genotype(net, dict(thresholds.derive()))
    taken = net.space.decode(genotype)
    must(taken["2.0.kept"] is False, "the first block is skipped")
    must((taken["2.1.width"], taken["2.1.spread.kernel"]) == (INNER // 2, 3), "the second is small")
    assert_close(mixed, net.extract(genotype)(x))
    must(
        abs(float(cost.detach()) - count(genotype)) < 1e-6,
        "the cost is that of the derived network",
    )


def full(seed: int) -> Figures:
    """Cost and accuracy of the network that each lambda derives, beside random ones alike."""
    import numpy as np
    import torch
    from scipy.stats import spearmanr

    from pointsman.claims.architectures import NOISE, noisy_digits
    from pointsman.claims.testbeds import accuracy, fit
    from pointsman.supernet.costs import count_mflops

    data = noisy_digits(seed)
    count = count_mflops(_network(seed), data.test.x[:1])
    rng = np.random.default_rng(seed)
    found: dict[str, float] = {}
    costs, ours, theirs = [], [], []
    for weight in LAMBDAS:
        net = _network(seed)
        thresholds = _thresholds(net)
        _train(net, thresholds, data.train, weight, count, seed)
        genotype = _genotype(net, dict(thresholds.derive()))
        costs.append(count(genotype))
        net.eval().use(genotype)
        with torch.no_grad():
            right = accuracy(net(data.test.x), data.test.y)
        found[f"lambda {weight}: MFLOPs"], found[f"lambda {weight}: accuracy"] = costs[-1], right
        if weight == 0:
            levels = zip(thresholds._places, thresholds.levels, strict=True)
            on = torch.cat([place.sizes().detach() > level for place, level in levels])
            found["lambda 0.0: share of parts on"] = float(on.float().mean())
            continue
        ours.append(right)
        members = [net.space.sample(rng) for _ in range(30)]
        near = min(members, key=lambda g: abs(count(g) - costs[-1]))
        alone = _network(seed + 1000).extract(near)
        fit(alone, data.train, seed=seed, updates=UPDATES, rate=RATE, batch=BATCH, noise=NOISE)
        with torch.no_grad():
            theirs.append(accuracy(alone(data.test.x), data.test.y))
    found["cost with lambda: rank correlation"] = float(spearmanr(LAMBDAS, costs).statistic)
    found["derived: accuracy"] = float(np.mean(ours))
    found["random: accuracy"] = float(np.mean(theirs))
    return found


def _train(
    net: "Supernet",
    thresholds: "Thresholds",
    part: "Part",
    weight: float,
    count: "Count",
    seed: int,
) -> None:
    """Weights and thresholds together: cross-entropy + lambda log R."""
    import torch
    from torch.nn.functional import cross_entropy

    from pointsman.claims.architectures import NOISE
    from pointsman.supernet.relax.thresholds import expected_cost

    tables, rest = _tables(net, count)
    generator = torch.Generator().manual_seed(seed)
    groups = [
        {"params": list(net.parameters()), "lr": RATE},
        {"params": list(thresholds.parameters()), "lr": THRESHOLD_RATE, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, UPDATES)
    net.train()
    for _ in range(UPDATES):
        rows = torch.randint(len(part.x), (BATCH,), generator=generator)
        x = part.x[rows]
        x = x + NOISE * torch.randn(x.shape, generator=generator)
        optimiser.zero_grad()
        cost = expected_cost(thresholds.mix(), tables, rest)
        loss = cross_entropy(net(x), part.y[rows]) + weight * cost.log()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return (
        mean(measurements, "cost with lambda: rank correlation") <= -0.9
        and mean(measurements, "lambda 0.0: share of parts on") >= 0.8
        and mean(measurements, "derived: accuracy") >= mean(measurements, "random: accuracy") - 0.01
    )


CLAIM = Claim(
    slug="single-path-nas",
    paper="Single-Path NAS: Designing Hardware-Efficient ConvNets in less than 4 Hours",
    year=2019,
    arxiv="1904.02877",
    level="supernet",
    claim="Thresholds on the sizes of a kernel's parts, trained with its weights and a cost in the "
    "loss, choose the architecture in one training run.",
    baseline="Random members of the space of nearly the same cost, trained alone by the same "
    "updates.",
    criterion="Means over the seeds: the rank correlation of the derived cost with lambda is at "
    "most -0.9; at lambda 0 at least 80% of the parts are on; the derived networks, with the "
    "weights of their run, are right at most one point less often than the random ones.",
    quick=quick,
    full=full,
    decide=decide,
    key={
        "rank correlation": "cost with lambda: rank correlation",
        "derived": "derived: accuracy",
        "random": "random: accuracy",
    },
    note="Values of lambda were set on seed 100, where the correlation is -0.95. On two of the "
    "three seeds only the largest value switches anything off, and ties hold the correlation at "
    "-0.71.",
    composition="elastic widths and kernels · mixed weight slices · thresholds · exact cost",
    entry="pointsman.supernet.relax.thresholds.Thresholds",
)
