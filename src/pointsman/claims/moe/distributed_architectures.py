"""Distributed neural architectures: every token walks its own way through a pool of modules.

Cowsik et al., "Towards Distributed Neural Architectures" (2025, arXiv 2506.22389).

A pool of modules serves a number of routing steps. At each, a token is moved by the k modules it
chooses, h <- h + sum rho_i (M_i(h) - h), some of which are identities, so that choosing them is
skipping. A bias on the identities, for choosing only, is moved after each step by the sign of what
is missing from a target share of skips. The composition is
`moe.systems.stacked.distributed_architecture`.

What was settled:
- Modules are written as f = M - h, so that an identity is f = 0 and runs nothing; attention is
  among the tokens that chose the module.
- The controller's formula is read as one on counts of tokens.
- The task: tokens carry a flag. Flagged ones ("hard", half of them) are mapped by a matrix of their
  cluster, the others ("easy") are to be left alone. 2 steps, 6 feed-forward modules and one skip,
  top-1, target 0.5: the question is whether the half that is skipped is the easy half. Modules are
  narrow (8 hidden units), so that hard tokens have use for both steps; at 24 one step was enough
  for them, and a hard token could skip as well.
- The baseline has the same modules and steps and no skip, so that every token pays for every step.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor

WIDTH, CLUSTERS, MODULES, HIDDEN, STEPS = 12, 4, 6, 8, 2
UPDATES, BATCH, RATE, TARGET = 800, 256, 3e-3, 0.5


def quick() -> None:
    """Identities move nothing, fixed routes give the ordinary stack, skips meet their target."""
    import torch
    from torch import nn
    from torch.testing import assert_close

    from pointsman.moe.layer import Routing
    from pointsman.moe.systems.stacked import DistributedNetwork, RoutedAttention, SkipControl

    torch.manual_seed(0)
    x = torch.randn(2, 5, 6)
    skipping = DistributedNetwork(6, [nn.Linear(6, 6)], steps=3, k=1, skips=2)
    with torch.no_grad():
        for router in skipping.routers:
            router.bias.copy_(torch.tensor([-1e9, 0.0, 1.0]))  # type: ignore[operator]
    must(torch.equal(skipping(x)[0], x), "identities move nothing")

    pool = [RoutedAttention(6, 2), nn.Linear(6, 6), nn.Linear(6, 6)]
    ordered = DistributedNetwork(6, pool, steps=3, k=1, skips=0)
    with torch.no_grad():
        for step, router in enumerate(ordered.routers):
            router.weight.zero_()  # type: ignore[operator]
            router.bias.fill_(-1e9)[step] = 0.0  # type: ignore[operator]
    sequence, position = torch.arange(10) // 5, torch.arange(10) % 5
    h = x.reshape(10, 6)
    h = h + pool[0](h, sequence, position)
    h = h + pool[1](h)
    h = h + pool[2](h)
    assert_close(ordered(x)[0], h.reshape(2, 5, 6))
    changed = x.clone()
    changed[:, 3:] += 1.0
    assert_close(ordered(changed)[0][:, :3], ordered(x)[0][:, :3])  # no token sees later ones

    control = SkipControl(9, 2, target=0.3, rate=1e-2)
    generator, shares = torch.Generator().manual_seed(0), []
    for at in range(600):
        scores = torch.randn(256, 9, generator=generator)
        route = control(scores)
        control.after_step([Routing(scores, route, scores)])
        if at >= 300:
            shares.append(float(route.load()[-1]) / len(route))
    share = sum(shares) / len(shares)
    must(abs(share - 0.3) < 0.01, f"skips meet their target of 0.3, got {share:.3f}")


def full(seed: int) -> Figures:
    """Error and skip shares of easy and hard tokens, with skips and without."""
    import torch
    from torch import nn

    from pointsman.moe.systems.stacked import DistributedNetwork

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> "Tensor":
        return torch.randn(*shape, generator=generator)

    centres = normal(CLUSTERS, WIDTH)
    maps = normal(CLUSTERS, WIDTH, WIDTH) * WIDTH**-0.5

    def draw(count: int) -> "tuple[Tensor, Tensor, Tensor]":
        cluster = torch.randint(CLUSTERS, (count,), generator=generator)
        hard = torch.randint(2, (count,), generator=generator).bool()
        x = centres[cluster] + 0.3 * normal(count, WIDTH)
        x[:, 0] = 2.0 * hard - 1.0
        moved = torch.einsum("coi,ni->nco", maps, x)[torch.arange(count), cluster]
        return x, x + moved * hard[:, None], hard

    def module() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    found = {}
    for name, skips in (("with skips", 1), ("without", 0)):
        torch.manual_seed(seed)
        pool = [module() for _ in range(MODULES)]
        target = TARGET if skips else None
        net = DistributedNetwork(WIDTH, pool, STEPS, 1, skips=skips, target=target)
        optimiser = torch.optim.Adam(net.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, UPDATES)
        generator.manual_seed(seed + 1)
        for _ in range(UPDATES):
            x, y, _ = draw(BATCH)
            answer, routings = net(x)
            optimiser.zero_grad()
            (answer - y).square().mean().backward()
            optimiser.step()
            schedule.step()
            net.after_step(routings)
        with torch.no_grad():
            x, y, hard = draw(4000)
            answer, routings = net(x)
        moved = (y - x)[hard].square().mean()
        found[f"{name}: error of hard tokens"] = float((answer - y)[hard].square().mean() / moved)
        found[f"{name}: error of easy tokens"] = float((answer - y)[~hard].square().mean() / moved)
        if skips:
            chosen = torch.stack([each.route.branches == MODULES for each in routings]).float()
            found[f"{name}: skip share of hard tokens"] = float(chosen[:, hard].mean())
            found[f"{name}: skip share of easy tokens"] = float(chosen[:, ~hard].mean())
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def figure(name: str) -> float:
        return mean(measurements, name)

    apart = figure("with skips: skip share of easy tokens") - figure(
        "with skips: skip share of hard tokens"
    )
    errors = [
        figure(f"{name}: error of hard tokens") + figure(f"{name}: error of easy tokens")
        for name in ("with skips", "without")
    ]
    return apart >= 0.3 and errors[0] <= 1.1 * errors[1]


CLAIM = Claim(
    slug="distributed-architectures",
    paper="Towards Distributed Neural Architectures",
    year=2025,
    arxiv="2506.22389",
    level="moe",
    claim="Tokens that choose their modules learn to skip where nothing is to be done, at no loss, "
    "and a bias on the identities holds the share of skips at a target.",
    baseline="The same modules and steps without identities: every token pays for every step.",
    criterion="Where half of the tokens need no work and half of the slots are to be skipped, in "
    "the mean over the seeds: the skip share of tokens that need none is at least 30 points above "
    "that of the others, and the error at most 1.1 times that without skips.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.distributed_architecture",
    composition="a linear router a step · top-1 under a controlled share of skips · one pool of "
    "attention, feed-forward and identity modules",
    key={
        "skip share, easy": "with skips: skip share of easy tokens",
        "hard": "with skips: skip share of hard tokens",
        "error, hard": "with skips: error of hard tokens",
        "without skips": "without: error of hard tokens",
    },
)
