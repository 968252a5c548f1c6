"""ProxylessNAS: one path at a time for the weights, two for the architecture, and expected latency.

Cai, Zhu and Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware"
(2018, arXiv 1812.00332).

Binary gates drawn from the options' probabilities leave one path in memory while weights are
trained; a step of the architecture draws two paths, learns which of them is better, and rescales
both so that the other probabilities stay. Expected cost is added to the loss. The parts are
`supernet.relax.two_path_gate`, `keep_unsampled` and `ExpectedCost`.

What was settled:
- The cost is the share of parameters (an operation's parameters over those of the largest cell):
  on a shared machine a latency of microseconds would be noise, and here it is an exact number.
- The gradient form of the paper, loss + lambda E[cost]; not its REINFORCE form.
- Weights alone for the first quarter of the updates; the architecture's rate is 0.03, as two of
  five options move in a step.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

RUNS = 2
UPDATES = 160
RATE = 3e-2
LAMBDAS = (0.0, 0.3, 3.0)


def quick() -> None:
    """The gradient is that of the expected loss of two paths; other probabilities stay the same."""
    import torch
    from torch.testing import assert_close

    from pointsman.supernet.relax import Draw, keep_unsampled, two_path_gate

    losses = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    logits = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64))
    optimiser = torch.optim.Adam([logits], lr=0.3, betas=(0.0, 0.999))
    keep_unsampled(optimiser)
    draw = Draw(0.0, torch.Generator().manual_seed(0))
    for _ in range(10):
        optimiser.zero_grad()
        weights = two_path_gate(logits, 1, draw)
        (weights @ losses).backward()  # type: ignore[no-untyped-call]
        drawn = weights.detach() != 0
        must(int(drawn.sum()) == 2, "two paths are run")
        among = logits[drawn].softmax(dim=0) @ losses[drawn]
        assert_close(logits.grad, torch.autograd.grad(among, logits)[0], rtol=0, atol=1e-12)
        before = logits.detach().softmax(dim=0)
        optimiser.step()
        after = logits.detach().softmax(dim=0)
        assert_close(after[~drawn], before[~drawn], rtol=0, atol=1e-9)


def full(seed: int) -> Figures:
    """Accuracy and cost of what is derived at each lambda, and the activations kept in a step."""
    from statistics import median

    import torch

    from pointsman.claims.architectures import (
        CELL_COSTS,
        EDGES,
        OPERATIONS,
        cell_parameters,
        cell_table,
    )
    from pointsman.claims.relaxed_cells import NEVER, Search
    from pointsman.supernet.relax import (
        ExpectedCost,
        GumbelGate,
        Relaxation,
        keep_unsampled,
        two_path_gate,
    )

    largest = len(EDGES) * max(CELL_COSTS.values())
    costs = [CELL_COSTS[name] / largest for name in OPERATIONS]
    table = cell_table(seed)
    found = {
        "all cells: median accuracy": median(accuracy for _, accuracy in table.values()),
        "two paths: activations kept, share of the largest single path": _kept(seed),
    }
    for weight in LAMBDAS:
        genotypes = []
        for run in range(RUNS):
            search = Search(seed, run)
            supernet = search.supernet()
            relaxation = Relaxation(supernet, gate=two_path_gate, never=NEVER, seed=search.seed)
            expected = ExpectedCost(relaxation, dict.fromkeys(EDGES, costs), "of the parameters")
            optimiser = torch.optim.Adam(relaxation.parameters(), RATE, betas=(0.0, 0.999))
            keep_unsampled(optimiser)
            search.relaxed(
                supernet,
                relaxation,
                updates=UPDATES,
                architecture=optimiser,
                weights_gate=GumbelGate(),
                penalty=lambda _, expected=expected, weight=weight: weight * expected(),
                warm_up=UPDATES // 4,
            )
            genotypes.append(relaxation.derive())
        row = f"lambda {weight:g}"
        found[f"{row}: accuracy"] = sum(table[genotype][1] for genotype in genotypes) / RUNS
        found[f"{row}: parameters"] = sum(map(cell_parameters, genotypes)) / RUNS
    return found


def _kept(seed: int) -> float:
    """The most activations that steps with two paths keep, over what the largest path keeps."""
    from functools import partial

    import torch

    from pointsman.claims.architectures import OPERATIONS
    from pointsman.claims.relaxed_cells import Search, stored
    from pointsman.supernet.relax import Draw, Relaxation, two_path_gate

    search = Search(seed, 0)
    supernet = search.supernet()
    x, _ = next(search.halves()[0])
    supernet.use([OPERATIONS.index("conv3x3")] * 3)
    single = stored(supernet, partial(supernet, x))
    relaxation = Relaxation(supernet, gate=two_path_gate)
    draw = Draw(0.0, torch.Generator().manual_seed(seed))
    most = 0
    for _ in range(20):
        relaxation.mix(supernet, draw)
        most = max(most, stored(supernet, partial(supernet, x)))
    return most / single


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    spent = [mean(measurements, f"lambda {weight:g}: parameters") for weight in LAMBDAS]
    kept = "two paths: activations kept, share of the largest single path"
    return (
        mean(measurements, "lambda 0.3: accuracy")
        >= mean(measurements, "all cells: median accuracy")
        and spent[0] > spent[-1]
        and spent == sorted(spent, reverse=True)
        and mean(measurements, kept) <= 2
    )


CLAIM = Claim(
    slug="proxylessnas",
    paper="ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware",
    year=2018,
    arxiv="1812.00332",
    level="supernet",
    claim="Binary gates search with the memory of one or two paths, and an expected cost in the "
    "loss trades accuracy for it.",
    baseline="All cells of the space, and the same search without the cost.",
    criterion="Over six searches each: at lambda 0.3 the derived cells are at least as accurate as "
    "the median cell; parameters do not rise from lambda 0 to 0.3 to 3 and fall over the whole; "
    "and a step on two paths keeps at most twice the activations of the largest single path.",
    quick=quick,
    full=full,
    decide=decide,
    composition="one-path gates for weights · two-path gates for the architecture · rescaling · "
    "expected cost",
    entry="pointsman.supernet.relax.two_path_gate",
    note="The lambdas were set without trying any. Without the cost the derived cells are far "
    "above the median cell, and the cost falls with lambda as it should; but 0.3 already weighs "
    "more than what operations differ in loss, and leaves cells with hardly a convolution.",
    key={
        "lambda 0.3": "lambda 0.3: accuracy",
        "median": "all cells: median accuracy",
        "parameters": "lambda 0.3: parameters",
        "without cost": "lambda 0: parameters",
    },
)
