"""TangleNAS: widths are chosen by gradients, mixing overlapping slices of one weight.

Sukthanker et al., "Weight-Entanglement Meets Gradient-Based Neural Architecture Search" (2023,
arXiv 2312.10440).

Where small choices are slices of a large weight, the weights are mixed instead of the outputs:
W_mix = sum_i a_i pad(slice_i(W)), so a step costs one operation. Choices that meet in one weight
multiply. The mixture comes from any gate; the paper recommends that of DrNAS, a draw from a
Dirichlet distribution. The parts are `supernet.elastic.Sliced`, which mixes so, and
`supernet.relax.dirichlet_gate`.

What was settled:
- The space of 36 networks 64-W1-W2-10 on noisy digits: the choice of each width meets two weights,
  as rows of one and columns of the next.
- Single-path training with uniform sampling gets as many steps in all (those of the architecture
  included) and both halves of the training part; then ten of its subnets, drawn at random, are
  evaluated on the calibration part.
- Nine searches rather than the ten of the sheet.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.supernet.supernet import Supernet

RUNS = 3
UPDATES = 300
EVALUATIONS = 10
ARCHITECTURE_RATE = 1e-2


def supernet(seed: int) -> "Supernet":
    """Every network of the space of slices as prefixes of the largest."""
    from pointsman.claims.architectures import SLICES, WIDTHS
    from pointsman.claims.testbeds import mlp
    from pointsman.supernet.elastic.dial import Dial
    from pointsman.supernet.elastic.parts import Cut, prefixes
    from pointsman.supernet.elastic.sliced import Sliced
    from pointsman.supernet.supernet import Supernet

    widest = WIDTHS[-1]
    body = mlp(64, widest, widest, 10, seed=seed)
    kept = prefixes(WIDTHS, widest)
    cuts = []
    for choice, layer, following in zip(
        SLICES.choices, (body[0], body[2]), (body[2], body[4]), strict=True
    ):
        dial = Dial(choice)
        cuts += [Cut(layer, name, 0, dial, kept) for name in ("weight", "bias")]
        cuts.append(Cut(following, "weight", 1, dial, kept))
    return Supernet(Sliced(body, cuts))


def quick() -> None:
    """Mixed slices give the weighted sum of padded networks, with the same gradients."""
    import torch
    from torch.testing import assert_close

    from pointsman.claims.architectures import WIDTHS
    from pointsman.supernet.relax import Relaxation

    net = supernet(0).double()
    relaxation = Relaxation(net, spread=1.0).double()
    x = torch.rand(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    relaxation.mix(net)
    mixed = net(x)
    slopes = torch.autograd.grad(mixed.square().sum(), list(relaxation.alpha))
    layers = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
    shares = [
        sum(
            weight * (torch.arange(WIDTHS[-1]) < width)
            for weight, width in zip(alpha.softmax(0), WIDTHS, strict=True)
        )
        for alpha in relaxation.alpha
    ]
    hidden, before = x, torch.ones(64, dtype=torch.float64)
    for layer, after in zip(layers, (*shares, torch.ones(10, dtype=torch.float64)), strict=True):
        # Rows and columns have choices of their own: their weights multiply.
        weight = layer.weight * after[:, None] * before
        hidden = torch.nn.functional.linear(hidden, weight, layer.bias * after)
        hidden, before = (hidden if layer is layers[-1] else hidden.relu()), after
    assert_close(mixed, hidden)
    expected = torch.autograd.grad(hidden.square().sum(), list(relaxation.alpha))
    assert_close(slopes, expected)
    must(all(bool(slope.any()) for slope in slopes), "both choices learn")


def full(seed: int) -> Figures:
    """Accuracy of the derived network, and of the best found by single-path search."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    from pointsman.claims.architectures import NOISE, SLICES, noisy_digits, slice_table
    from pointsman.claims.relaxed_cells import Search, loss
    from pointsman.claims.testbeds import accuracy, fit
    from pointsman.supernet.relax import Relaxation, alternate, dirichlet_gate

    table, data = slice_table(seed), noisy_digits(seed)
    ours, theirs = [], []
    for run in range(RUNS):
        search = Search(seed, run)
        net = supernet(search.seed)
        relaxation = Relaxation(net, gate=dirichlet_gate, seed=search.seed)
        alternate(
            net,
            relaxation,
            loss,
            *search.halves(),
            updates=UPDATES,
            weights=torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2),
            architecture=torch.optim.Adam(relaxation.parameters(), ARCHITECTURE_RATE),
            seed=search.seed,
        )
        ours.append(table[relaxation.derive()][1])
        net = supernet(search.seed)
        rng = np.random.default_rng(search.seed)

        def single_path(module, x, y, rng=rng):  # type: ignore[no-untyped-def]
            module.use(SLICES.sample(rng))
            return cross_entropy(module(x), y)

        fit(
            net,
            data.train,
            seed=search.seed,
            updates=2 * UPDATES,
            loss=single_path,
            batch=48,
            noise=NOISE,
        )
        scores = {}
        every = list(SLICES.enumerate())
        for at in rng.choice(len(every), EVALUATIONS, replace=False):
            net.use(every[at])
            with torch.no_grad():
                scores[every[at]] = accuracy(net(data.calibration.x), data.calibration.y)
        theirs.append(table[max(scores, key=lambda genotype: scores[genotype])][1])
    return {
        "mixed slices: accuracy": sum(ours) / RUNS,
        "single path and random search: accuracy": sum(theirs) / RUNS,
        "all networks: best accuracy": max(test for _, test in table.values()),
    }


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return mean(measurements, "mixed slices: accuracy") >= mean(
        measurements, "single path and random search: accuracy"
    )


CLAIM = Claim(
    slug="tanglenas",
    paper="Weight-Entanglement Meets Gradient-Based Neural Architecture Search",
    year=2023,
    arxiv="2312.10440",
    level="supernet",
    claim="Gradient-based search over overlapping weight slices finds better networks than "
    "single-path training with random search, at the memory of one path.",
    baseline="Single-path uniform training with as many steps, then random search among its "
    "subnets.",
    criterion="Mean table accuracy of the networks derived in nine searches is at least that of "
    "the best of ten random subnets of a single-path supernet trained for as many steps.",
    quick=quick,
    full=full,
    decide=decide,
    composition="elastic widths · mixed weight slices · Dirichlet gate · alternating loop",
    entry="pointsman.supernet.relax.Relaxation",
    key={
        "mixed slices": "mixed slices: accuracy",
        "single path": "single path and random search: accuracy",
    },
)
