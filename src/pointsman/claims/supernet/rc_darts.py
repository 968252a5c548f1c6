"""RC-DARTS: the expected cost of the relaxed network is kept below a bound.

Jin et al., "RC-DARTS: Resource Constrained Differentiable Architecture Search" (2019, arXiv
1912.12814).

After every few steps of DARTS the architecture parameters are projected onto those whose expected
cost, sum over edges and operations of softmax(alpha) times the operation's cost, lies within the
bounds. Every edge has parameters of its own. The part is `supernet.relax.Projection`.

What was settled (the sheet is rated medium: the form of the projection is the paper's, its
constants are not known):
- Costs are parameters of the operations; the bound is 40% of what the largest cell has.
- Projected every 10 updates, onto the nearest point (the paper: a few gradient steps towards it).
- A bound on the mixture does not bound what is derived: it is lowered until the derived cell fits.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

RUNS = 2
SHARE = 0.4


def quick() -> None:
    """A projection meets the bound, moves along the cost's slope, and leaves what fits alone."""
    import torch
    from torch.testing import assert_close

    from pointsman.supernet.relax import project

    costs = torch.tensor([0.0, 80.0, 592.0], dtype=torch.float64)

    def cost(logits: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([alpha.softmax(dim=0) @ costs for alpha in logits]).sum()

    alpha = [torch.tensor(row, dtype=torch.float64) for row in ([0.0, 0.5, 1.0], [1.0, 0.0, 0.3])]
    fits = project(alpha, cost, upper=1e3)
    must(all(torch.equal(a, b) for a, b in zip(alpha, fits, strict=True)), "what fits stays")
    for bound in (400.0, 200.0):
        points = [point.requires_grad_() for point in project(alpha, cost, upper=bound)]
        must(float(cost(points).detach()) <= bound * 1.001, f"the bound {bound} is met")
        slope = torch.cat(torch.autograd.grad(cost(points), points))
        way = torch.cat([a - p.detach() for a, p in zip(alpha, points, strict=True)])
        along = torch.cosine_similarity(way, slope, dim=0)
        assert_close(along, torch.ones_like(along), rtol=0, atol=1e-2)


def full(seed: int) -> Figures:
    """Cost and accuracy of what is derived with and without the bound."""
    from statistics import median

    from pointsman.claims.architectures import (
        CELL_COSTS,
        CELLS,
        EDGES,
        OPERATIONS,
        cell_parameters,
        cell_table,
    )
    from pointsman.claims.relaxed_cells import NEVER, Search
    from pointsman.supernet.relax import ExpectedCost, Projection, Relaxation

    costs = [CELL_COSTS[name] for name in OPERATIONS]
    bound = SHARE * len(EDGES) * max(costs)
    table = cell_table(seed)
    feasible = [table[g][1] for g in CELLS.enumerate() if cell_parameters(g) <= bound]
    within, without = [], []
    for run in range(RUNS):
        search = Search(seed, run)
        without.append(search.first_order()[1].derive())
        supernet = search.supernet()
        relaxation = Relaxation(supernet, never=NEVER, seed=search.seed)
        expected = ExpectedCost(relaxation, dict.fromkeys(EDGES, costs), "parameters")
        projection = Projection(expected, bound)
        search.relaxed(supernet, relaxation, after=projection)
        within.append(projection.derive())
    found = {"feasible cells: median accuracy": median(feasible), "bound: parameters": bound}
    for name, genotypes in (("RC-DARTS", within), ("DARTS", without)):
        spent = [cell_parameters(genotype) for genotype in genotypes]
        found[f"{name}: largest cost, parameters"] = max(spent)
        found[f"{name}: accuracy"] = sum(table[genotype][1] for genotype in genotypes) / RUNS
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    kept = all(
        figures["RC-DARTS: largest cost, parameters"] <= figures["bound: parameters"]
        for figures in measurements
    )
    return kept and mean(measurements, "RC-DARTS: accuracy") >= mean(
        measurements, "feasible cells: median accuracy"
    )


CLAIM = Claim(
    slug="rc-darts",
    paper="RC-DARTS: Resource Constrained Differentiable Architecture Search",
    year=2019,
    arxiv="1912.12814",
    level="supernet",
    claim="Projecting the architecture parameters of DARTS keeps what it derives within a budget, "
    "and good among what the budget allows.",
    baseline="First-order DARTS without a bound, and all cells within the budget.",
    criterion="In each of six searches the derived cell has at most 40% of the largest cell's "
    "parameters, and their mean table accuracy is at least the median of all cells within it.",
    quick=quick,
    full=full,
    decide=decide,
    composition="softmax gates · alternating loop · projection onto an expected cost",
    entry="pointsman.supernet.relax.Projection",
    key={
        "RC-DARTS": "RC-DARTS: accuracy",
        "median": "feasible cells: median accuracy",
        "DARTS": "DARTS: accuracy",
    },
)
