"""M6-T: experts in groups, of which a token takes the best of each.

Yang et al., "M6-T: Exploring Sparse Expert Models and Beyond" (2021, arXiv 2105.15082).

The experts are split into groups, each with its own softmax and its own best expert, so that a
token has as many experts as there are groups, found by independent choices instead of one ranking.
The parts are `select.prototypes` and a linear router.

What was settled:
- Top-1 is what the paper improves on. Both run without a limit on capacity and without a balancing
  loss, which the paper found to matter little; two experts a token cost twice the products of one.
- Top-2 of all experts has the same cost and is shown beside. That grouping beats it is not the
  criterion: on a task this small it does not.
- A mixture of 12 clusters and 8 experts, so that no expert can have a cluster of its own.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

EXPERTS, WIDTH, HIDDEN, CLUSTERS = 8, 16, 16, 12
UPDATES = 600


def quick() -> None:
    """One expert of each group, weights that sum to one per group, one group is top-1."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe.systems.estimated import expert_prototyping
    from pointsman.select import prototypes, top_k

    torch.manual_seed(0)
    layer, x = expert_prototyping(WIDTH, HIDDEN, EXPERTS, groups=4), torch.randn(64, WIDTH)
    _, routing = layer(x)
    route = routing.route
    groups = route.branches.reshape(64, 4) // 2
    must(bool((groups == torch.arange(4)).all()), "exactly one expert of each group, in order")
    inside = routing.scores.reshape(64, 4, 2).softmax(dim=2)
    assert_close(route.weights.reshape(64, 4), inside.amax(dim=2))
    alone, plain = prototypes(routing.scores, 1), top_k(routing.scores, 1, renormalize=False)
    must(torch.equal(alone.branches, plain.branches), "one group is top-1")
    assert_close(alone.weights, plain.weights)
    limited = prototypes(routing.scores, 4, capacity=20)
    must(int(limited.load().max()) <= 20, "no expert beyond its capacity")


def full(seed: int) -> Figures:
    """Relative error on fresh draws: best of two groups, best of all, best two of all."""
    from functools import partial

    import torch

    from pointsman.claims import worlds
    from pointsman.moe import MoE
    from pointsman.moe.systems.estimated import expert_prototyping
    from pointsman.select import top_k

    world = worlds.mixture(seed, clusters=CLUSTERS, width=WIDTH, outputs=WIDTH)
    found = {}
    for name, groups in (("two groups", 2), ("top-1", 1), ("top-2", 0)):
        torch.manual_seed(seed)
        layer = expert_prototyping(WIDTH, HIDDEN, EXPERTS, groups=max(groups, 1))
        if groups == 0:
            layer = MoE(layer.router, partial(top_k, k=2), layer.experts)
        worlds.regress(layer, world, seed=seed, updates=UPDATES)
        found[f"{name}: error"] = worlds.relative_error(layer, world, seed=seed)
        x = world.draw(4096, seed=seed + 1).x
        found[f"{name}: fullest expert"] = worlds.max_violation(layer(x)[1].route.load())
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    ours = mean(measurements, "two groups: error")
    return ours <= 0.9 * mean(measurements, "top-1: error")


CLAIM = Claim(
    slug="expert-prototyping",
    paper="M6-T: Exploring Sparse Expert Models and Beyond",
    year=2021,
    arxiv="2105.15082",
    level="moe",
    claim="Taking the best expert of each of several groups is better than taking one expert.",
    baseline="The best of all the experts, trained with equal updates.",
    criterion="After equal updates without balancing or limits, and in the mean over the seeds, "
    "the relative error with the best of two groups is at most 0.9 times that of top-1.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.expert_prototyping",
    composition="linear router · best of each group · feed-forward experts",
    key={
        "two groups": "two groups: error",
        "top-1": "top-1: error",
        "top-2": "top-2: error",
    },
    note="Taking the best two of all the experts is better than one, so it is the groups that "
    "cost here: they leave a token no choice of two experts in one group.",
)
