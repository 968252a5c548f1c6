"""ReMix: low-rank experts of equal weight, whose router learns from the losses of several draws.

Qiu et al., "ReMix: Reinforcement routing for mixtures of LoRAs in LLM finetuning" (2026, arXiv
2603.10160).

Learned weights tend to let one expert dominate. Here each of the k chosen experts has the same
constant weight, so their effective number is always k. No gradient reaches the router through a
constant; it learns from M independent draws of experts without putting back, each held against the
mean loss of the others. When served, the k likeliest are taken. The parts are
`learn.equal_weights`, `learn.log_prob_without_replacement` and `learn.leave_one_out`.

What was settled:
- Whether a decision covers a token or a sequence was not found. Here it is a token's, and each
  token's own loss teaches its own decision, which is far less noisy than one loss for all.
- Against a learned top-k softmax the method did not win in trials on this task; the criterion is
  what it adds by itself, so the same layer with its router as it started is the baseline. The
  learned softmax is shown beside, with its effective number of experts.
- The targets are sums of two of four maps of rank 2, one pair for each of six clusters of tokens,
  and six experts of rank 2 learn them from a base layer of zeros.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

    from pointsman.claims.worlds import Draw, Mixture
    from pointsman.moe import MoE

EXPERTS, K, RANK, WIDTH = 6, 2, 2, 16
DRAWS, UPDATES = 4, 600


def quick() -> None:
    """The mean estimate is the true gradient; weights are equal; serving is top-k."""
    from itertools import permutations

    import torch
    from torch.testing import assert_close

    from pointsman.learn import leave_one_out, log_prob_without_replacement
    from pointsman.route import Route

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    draws = list(permutations(range(4), 2))
    route = Route.from_indices(torch.tensor(draws), num_branches=4)
    log = log_prob_without_replacement(scores.expand(len(draws), 4), route)
    assert_close(log.exp().sum(), torch.ones((), dtype=torch.float64))
    costs = torch.rand(len(draws), generator=generator, dtype=torch.float64)
    (true,) = torch.autograd.grad((log.exp() * costs).sum(), scores, retain_graph=True)
    three = torch.cartesian_prod(*[torch.arange(len(draws))] * 3)  # every three draws
    chance = log.detach()[three].sum(dim=1).exp()
    # A loss for each decision is summed: here every three draws are one decision.
    each = (costs[three].T, log[three].T)
    weighed = leave_one_out(each[0], each[1] * chance)
    (expected,) = torch.autograd.grad(weighed, scores)
    assert_close(expected, true, rtol=0, atol=1e-12)

    layer, x = _layer(0, learned=False), torch.randn(32, WIDTH)
    routing = layer(x)[1]
    must(set(routing.route.weights.tolist()) == {1.0}, "every chosen expert has one weight")
    layer.eval()
    best = routing.scores.topk(K, dim=1).indices
    must(torch.equal(layer(x)[1].route.branches.reshape(32, K), best), "serving takes the k best")


def full(seed: int) -> Figures:
    """Relative error and effective number of experts, for three ways to route."""
    import torch

    from pointsman.claims import worlds

    world = _world(seed)
    found = {}
    for name in ("from draws", "frozen router", "learned softmax"):
        layer = _layer(seed, learned=name == "learned softmax")
        if name == "frozen router":
            layer.router.requires_grad_(False)
        loss = _over_draws if name == "from draws" else None
        worlds.regress(layer, world, seed=seed, updates=UPDATES, loss=loss)
        found[f"{name}: error"] = worlds.relative_error(layer, world, seed=seed)
        with torch.no_grad():
            route = layer(world.draw(4096, seed=70_000 + seed).x)[1].route
        weights = route.weights.reshape(-1, K)
        effective = weights.sum(dim=1).square() / weights.square().sum(dim=1)
        found[f"{name}: effective experts"] = float(effective.mean())
    return found


def _layer(seed: int, *, learned: bool) -> "MoE":
    """With weights of one each; or those of a softmax over the chosen, times k, in their place."""
    from functools import partial

    import torch

    from pointsman.moe import MoE
    from pointsman.moe.systems.estimated import remix
    from pointsman.select import top_k

    torch.manual_seed(seed)
    base = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    torch.nn.init.zeros_(base.weight)
    layer = remix(base, EXPERTS, K, rank=RANK, weight=1.0)
    torch.nn.init.normal_(layer.experts.b_EOR, std=0.1)  # type: ignore[arg-type]
    if not learned:
        return layer
    return MoE(
        layer.router,
        partial(top_k, k=K),
        layer.experts,
        shared=layer.shared,
        estimator=lambda scores, route: route.weighted(K * route.weights),
    )


def _over_draws(module: "torch.nn.Module", draw: "Draw") -> "torch.Tensor":
    """Mean loss of several draws, which teaches the experts, and what teaches the router."""
    import torch

    from pointsman.learn import leave_one_out, log_prob_without_replacement

    losses, chances = [], []
    for _ in range(DRAWS):
        y, routing = module(draw.x)
        losses.append((y - draw.y).square().mean(dim=1))
        chances.append(log_prob_without_replacement(routing.scores, routing.route))
    each = torch.stack(losses)
    return each.mean() + leave_one_out(each, torch.stack(chances)) / each.shape[1]


def _world(seed: int) -> "Mixture":
    """Six clusters, each mapped by the sum of another pair of four maps of rank 2."""
    from dataclasses import replace
    from itertools import combinations

    import torch

    from pointsman.claims import worlds

    world = worlds.mixture(seed, clusters=6, width=WIDTH, outputs=WIDTH)
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(2, 4, WIDTH, RANK, generator=generator)
    maps = factors[0] @ factors[1].transpose(1, 2)
    pairs = torch.tensor(list(combinations(range(4), 2)))
    summed = maps[pairs].sum(dim=1)
    return replace(world, maps_CDO=summed / (2 * RANK * WIDTH * (1 + world.spread**2)) ** 0.5)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    ours = mean(measurements, "from draws: error")
    even = all(abs(f["from draws: effective experts"] - K) < 1e-6 for f in measurements)
    return ours < mean(measurements, "frozen router: error") and even


CLAIM = Claim(
    slug="remix",
    paper="ReMix: Reinforcement routing for mixtures of LoRAs in LLM finetuning",
    year=2026,
    arxiv="2603.10160",
    level="moe",
    claim="A router over experts of equal, constant weight can be learned from the losses of a few "
    "draws, so that no expert dominates.",
    baseline="The same layer with its router as it started; and a learned softmax over the k best.",
    criterion="After equal updates of the experts: the relative error is below that of the frozen "
    "router in the mean over the seeds, and the effective number of experts is k for every token.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.remix",
    composition="linear router · drawn without replacement, top-k when served · low-rank experts "
    "on a frozen layer · equal weights, leave-one-out",
    key={
        "from draws": "from draws: error",
        "frozen": "frozen router: error",
        "softmax": "learned softmax: error",
        "softmax's effective": "learned softmax: effective experts",
    },
    note="The learned softmax has the lower error of the two ways to learn, with one expert "
    "dominating.",
)
