"""SAM: switch to one group of experts, and mix several inside it, for the price of one journey.

Jiang et al., "Towards More Effective and Economic Sparsely-Activated Model" (2021, arXiv
2110.07431).

One softmax over all experts; a token goes to the group, such as a device, with the largest sum of
probabilities, and takes the k best experts there. An alignment loss lowers what experts outside of
that group have above the last chosen one, as a sum favours groups of many fair experts.

What was settled:
- One softmax for both steps. The abstract speaks of a hierarchical router; whether the paper has a
  second one was not found, nor the weights of the losses: 0.1 for alignment here, and no balancing
  loss in any row of the comparison.
- The loss in the form relu(p_outside - p_last chosen) is our reading of the name of an operator.
- 12 clusters of tokens, 16 experts in 4 groups, k = 2. Top-1 sends a token to one device as well;
  free top-2 sends it to up to two, and is shown beside.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

EXPERTS, GROUPS = 16, 4
CLUSTERS, WIDTH, HIDDEN = 12, 16, 16
UPDATES = 600


def quick() -> None:
    """One group is plain top-k, groups of one are top-1, and a token never leaves one group."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe.systems.two_level import alignment, sam
    from pointsman.select import top_k, within_best_group

    torch.manual_seed(0)
    scores = torch.randn(200, EXPERTS, dtype=torch.float64)
    for ours, plain in (
        (within_best_group(scores, 1, 3), top_k(scores, 3, renormalize=False)),
        (within_best_group(scores, EXPERTS, 1), top_k(scores, 1, renormalize=False)),
    ):
        must(torch.equal(ours.branches, plain.branches), "limit cases take the same experts")
        assert_close(ours.weights, plain.weights)
    layer = sam(WIDTH, HIDDEN, EXPERTS, GROUPS, 3).double()
    _, routing = layer(torch.randn(200, WIDTH, dtype=torch.float64))
    group = routing.route.branches.reshape(200, 3) // (EXPERTS // GROUPS)
    must(bool((group == group[:, :1]).all()), "all experts of a token are of one group")
    chance = routing.scores.detach().softmax(dim=1)
    total = chance.reshape(200, GROUPS, -1).sum(dim=2)
    must(torch.equal(group[:, 0], total.argmax(dim=1)), "the group of the largest sum")
    last = chance.gather(1, routing.route.branches.reshape(200, 3)).amin(dim=1)
    wanted = sum(
        max(float(chance[t, e] - last[t]), 0.0)
        for t in range(200)
        for e in range(EXPERTS)
        if e // (EXPERTS // GROUPS) != group[t, 0]
    )
    assert_close(float(alignment(routing, groups=GROUPS).detach()), wanted / 200)


def full(seed: int) -> Figures:
    """Error and devices that a token goes to: top-1, two in one group, the two best anywhere."""
    from collections.abc import Callable
    from functools import partial

    import torch
    from torch import nn

    from pointsman.claims import worlds
    from pointsman.moe import FeedForwardExperts, MoE
    from pointsman.moe.systems.two_level import sam
    from pointsman.select import top_k

    def free(k: int) -> MoE:
        return MoE(
            nn.Linear(WIDTH, EXPERTS, bias=False),
            partial(top_k, k=k, renormalize=False),
            FeedForwardExperts(EXPERTS, WIDTH, HIDDEN, activation="relu"),
        )

    makers: dict[str, Callable[[], MoE]] = {
        "two in one group": lambda: sam(WIDTH, HIDDEN, EXPERTS, GROUPS, 2, balance=0.0),
        "top-1": lambda: free(1),
        "free top-2": lambda: free(2),
    }
    mixture = worlds.mixture(seed, clusters=CLUSTERS, width=WIDTH)
    found: dict[str, float] = {}
    for row, make in makers.items():
        torch.manual_seed(seed)
        layer = make()
        worlds.regress(layer, mixture, seed=seed, updates=UPDATES)
        route = layer(mixture.draw(4096, seed=seed + 10_000).x)[1].route
        devices = route.mask().reshape(4096, GROUPS, -1).any(dim=2).sum(dim=1)
        found |= {
            f"{row}: relative error": worlds.relative_error(layer, mixture, seed=seed),
            f"{row}: devices a token": float(devices.double().mean()),
            f"{row}: most devices a token": int(devices.max()),
        }
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def of(row: str, column: str) -> float:
        return mean(measurements, f"{row}: {column}")

    better = of("two in one group", "relative error") <= 0.9 * of("top-1", "relative error")
    return better and of("two in one group", "most devices a token") == 1


CLAIM = Claim(
    slug="sam",
    paper="Towards More Effective and Economic Sparsely-Activated Model",
    year=2021,
    arxiv="2110.07431",
    level="moe",
    claim="Several experts of one device serve a token better than one expert does, and it travels "
    "no further.",
    baseline="Top-1 of all experts under the same training; the two best of all experts beside it.",
    criterion="In the mean over the seeds, two experts of one group have at most 0.9 times the "
    "error of top-1, and every token goes to exactly one group.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.two_level.sam",
    composition="linear router · best k of the best group · ReLU feed-forward experts · switch and "
    "alignment losses",
    key={
        "error": "two in one group: relative error",
        "top-1": "top-1: relative error",
        "free top-2": "free top-2: relative error",
        "devices, free top-2": "free top-2: devices a token",
    },
)
