"""Sparsity-constrained transport: a plan with few entries matches tokens to experts.

Liu et al., "Sparsity-Constrained Optimal Transport" (2022, arXiv 2209.15466).

A plan between tokens and experts, of best total score less a quadratic term, in which every expert
has the same mass and at most k tokens. Prices of the tokens are found by L-BFGS on the semi-dual,
and the plan's column of each expert follows in closed form: its k dearest tokens, projected on a
simplex. k leads from an assignment to quadratically regularised transport. The part is
`select.sparse_transport`.

What was settled:
- Masses are one for each token and T / E for each expert, so that entries are weights of a layer as
  they are; the paper's plans sum to one in all, and its regularisation is T times as large for it.
- Gradients take the prices for constant; how the paper's layers differentiate was not found.
- The limit makes the problem non-convex: columns are exact, the rows' sums can miss one. The gap is
  shown.
- The layer is compared with the usual way to keep the same limit: each token's best expert, first
  come, first served, the rest dropped, with the usual balancing loss. Clusters are of unequal size
  (share 1 / rank), where a limit hurts, and dropped tokens get zeros, as without a residual. All
  are measured in batches of the training size, since the plan is of a batch. Sinkhorn's plan with
  the same limit is shown beside.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.moe import MoE
    from pointsman.route import Route

EXPERTS, WIDTH, HIDDEN = 8, 16, 16
TOKENS, UPDATES = 128, 250
CAPACITY = 20  # five in four of an even share


def quick() -> None:
    """At most k a column, exact columns, an assignment at one end and quadratic at the other."""
    import torch
    from scipy.optimize import linear_sum_assignment
    from torch.testing import assert_close

    from pointsman.select import sparse_transport

    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(24, 8, generator=generator, dtype=torch.float64)
    even, totals = torch.full((8,), 3.0, dtype=torch.float64), []
    for k in (3, 4, 6, 12, 24):
        route = sparse_transport(scores, k, 0.1)
        plan = route.to_dense()
        must(int(route.load().max()) <= k, f"no expert has more than {k} tokens")
        assert_close(plan.sum(dim=0), even)
        totals.append(float((plan > 0).sum()))
    must(totals == sorted(totals), "a higher limit gives more entries")
    tokens, places = linear_sum_assignment(scores.repeat_interleave(3, dim=1), maximize=True)
    nearly = sparse_transport(scores, 3, 0.005).to_dense()
    best = torch.zeros_like(nearly)
    best[torch.as_tensor(tokens), torch.as_tensor(places) // 3] = 1.0
    assert_close(nearly, best, rtol=0, atol=1e-3)
    free = sparse_transport(scores, 24, 2.0).to_dense()
    assert_close(free.sum(dim=1), torch.ones(24, dtype=torch.float64), rtol=0, atol=1e-3)
    # Optimal: where there is mass, score - gamma * mass is a price of the row plus the column's.
    slope = torch.where(free > 1e-6, scores - 2.0 * free, torch.nan)
    for row in range(1, 24):
        step = slope[row] - slope[0]
        step = step[step.isfinite()]
        must(len(step) < 2 or float(step.max() - step.min()) < 1e-2, "prices fit the plan")


def full(seed: int) -> Figures:
    """Score against the best assignment; relative error of a layer with a limit, three ways."""
    import torch

    from pointsman.claims import worlds

    found = _matching(seed)
    world = worlds.mixture(seed, clusters=EXPERTS, width=WIDTH, outputs=WIDTH, zipf=1.0)
    for name in ("transport", "dropped", "Sinkhorn"):
        layer = _layer(name, seed)
        worlds.regress(layer, world, seed=seed, updates=UPDATES, batch=TOKENS)
        errors, fullest, gaps = [], [], []
        for part in range(8):
            draw = world.draw(TOKENS, seed=80_000 + 100 * seed + part)
            with torch.no_grad():
                y, routing = layer(draw.x)
            errors.append(float((y - draw.y).square().mean() / draw.y.var()))
            fullest.append(int(routing.route.load().max()))
            gaps.append(float((routing.route.to_dense().sum(dim=1) - 1).abs().mean()))
        found[f"{name}: error"] = sum(errors) / len(errors)
        found[f"{name}: fullest expert"] = max(fullest)
        if name == "transport":
            found["transport: mean gap of rows"] = sum(gaps) / len(gaps)
    return found


def _matching(seed: int) -> dict[str, float]:
    """Total score of the plan, as a share of the best assignment's."""
    import torch
    from scipy.optimize import linear_sum_assignment

    from pointsman.select import sparse_transport

    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(24, 8, generator=generator, dtype=torch.float64)
    places = scores.repeat_interleave(3, dim=1)
    best = float(places[linear_sum_assignment(places, maximize=True)].sum())
    plan = sparse_transport(scores, 3, 0.01).to_dense()
    return {
        "matching: share of the best score": float((plan * scores).sum()) / best,
        "matching: largest gap of rows": float((plan.sum(dim=1) - 1).abs().max()),
    }


def _layer(name: str, seed: int) -> "MoE":
    from functools import partial

    import torch

    from pointsman.moe import MoE
    from pointsman.moe.balance import switch
    from pointsman.moe.systems.estimated import sparse_transport
    from pointsman.select import guarantees, with_capacity
    from pointsman.select.balanced import sinkhorn_plan

    torch.manual_seed(seed)
    layer = sparse_transport(WIDTH, HIDDEN, EXPERTS, CAPACITY)
    if name == "transport":
        return layer
    served = partial(with_capacity, k=1, capacity=CAPACITY, renormalize=False)
    if name == "dropped":
        return MoE(layer.router, served, layer.experts, balance=((0.01, switch),))

    @guarantees(batch_independent=False, causal=False)
    def planned(scores: torch.Tensor) -> "Route":
        """The best of Sinkhorn's plan, first come, first served, weighed by the plain softmax."""
        route = served(sinkhorn_plan(scores))
        weights = scores.softmax(dim=1)[route.inputs, route.branches]
        return route.weighted(weights)

    return MoE(layer.router, planned, layer.experts)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    better = mean(measurements, "transport: error") <= 0.9 * mean(measurements, "dropped: error")
    kept = all(figures["transport: fullest expert"] <= CAPACITY for figures in measurements)
    return better and kept and mean(measurements, "matching: share of the best score") >= 0.99


CLAIM = Claim(
    slug="sparse-transport",
    paper="Sparsity-Constrained Optimal Transport",
    year=2022,
    arxiv="2209.15466",
    level="moe",
    claim="Transport with a limit on the entries of each column can be solved well through its "
    "semi-dual, and matches tokens to experts of limited capacity.",
    baseline="The best assignment, for the plan; the best expert of each token with the same "
    "limit, overflow dropped, for the layer.",
    criterion="In the mean over the seeds, with just enough places and little regularisation the "
    "plan's score is at least 0.99 of the best assignment's; and after equal updates a layer "
    "routed by the plan has at most 0.9 times the relative error of dropping under the same limit, "
    "which no expert ever exceeds.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.sparse_transport",
    composition="linear router · sparse transport plan · feed-forward experts",
    key={
        "transport": "transport: error",
        "dropped": "dropped: error",
        "score": "matching: share of the best score",
    },
)
