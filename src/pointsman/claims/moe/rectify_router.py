"""Rectify-Router: overflow stays with an expert at home, and empty slots are filled.

Zeng et al., "Turn Waste into Worth: Rectifying Top-k Router of MoE" (2024, arXiv 2402.12399).

With a limit on capacity, some tokens find no room and some slots stay empty. A token that lost a
choice also goes to the best expert on its own device, which costs no exchange; an empty slot takes
the token for which the expert comes next. Weights are a softmax over what was taken, and in the
backward pass its denominator is a constant, so that the router learns even with k = 1. The parts
are `select.rectified` and `learn.rectified_straight_through`.

What was settled:
- Capacity and k of the paper's tables were not found; top-1 at capacity factor 1 is what its
  abstract compares with.
- A batch is cut into four equal parts and so are the experts, for four simulated devices.
- A token that lost its choice and was also given a slot has both experts; the paper's appendix
  gives each part by itself.
- "Dropped" is the same layer and gradient rule without either correction. Its dropped tokens get
  zeros, here as in every layer without a residual; they are about one in eight.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

    from pointsman.route import Route

EXPERTS, DEVICES, WIDTH, HIDDEN = 8, 4, 16, 32
TOKENS, UPDATES = 128, 400
CAPACITY = TOKENS // EXPERTS


def quick() -> None:
    """No token untouched, what travels keeps the capacity, with room for all it is top-k."""
    import torch
    from torch.testing import assert_close

    from pointsman.learn import rectified_straight_through
    from pointsman.select import rectified, top_k, with_capacity

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(TOKENS, EXPERTS, generator=generator, dtype=torch.float64)
    scores[:, 0] += 2
    must(bool(with_capacity(scores, 1, CAPACITY).dropped().any()), "some tokens find no room")
    route = rectified(scores, 1, CAPACITY, devices=DEVICES)
    must(not route.dropped().any(), "every token has an expert")
    must(_travelling(route) <= CAPACITY, "what travels to an expert keeps its capacity")
    for k in (1, 2):
        roomy = rectified(scores, k, TOKENS, fill=False, devices=DEVICES)
        must(torch.equal(roomy.mask(), top_k(scores, k).mask()), "with room for all it is top-k")
        assert_close(roomy.to_dense(), top_k(scores, k).to_dense())
    scores.requires_grad_()
    weights = rectified_straight_through(scores, top_k(scores, 1)).weights
    assert_close(weights.detach(), torch.ones(TOKENS, dtype=torch.float64))
    (grad,) = torch.autograd.grad(weights.sum(), scores)
    assert_close(grad, _softmax_gradient(scores))


def _travelling(route: "Route") -> int:
    """The most pairs that any expert receives from other devices."""
    import torch

    lives, asks = route.branches * DEVICES // EXPERTS, route.inputs * DEVICES // route.num_inputs
    return int(torch.bincount(route.branches[lives != asks], minlength=EXPERTS).max())


def _softmax_gradient(scores: "torch.Tensor") -> "torch.Tensor":
    """Of the probability of the best branch, divided by its value."""
    import torch

    best = scores.softmax(dim=1).amax(dim=1)
    return torch.autograd.grad((best / best.detach()).sum(), scores)[0]


def full(seed: int) -> Figures:
    """Relative error and untouched tokens, with none, either and both of the corrections."""
    import torch

    from pointsman.claims import worlds
    from pointsman.moe.systems.estimated import rectify_router

    world = worlds.mixture(seed, clusters=EXPERTS, width=WIDTH, outputs=WIDTH)
    found = {}
    for name, fill, devices in (
        ("both", True, DEVICES),
        ("fill-in", True, None),
        ("in-device", False, DEVICES),
        ("dropped", False, None),
    ):
        torch.manual_seed(seed)
        layer = rectify_router(WIDTH, HIDDEN, EXPERTS, CAPACITY, fill=fill, devices=devices)
        worlds.regress(layer, world, seed=seed, updates=UPDATES, batch=TOKENS)
        errors, untouched, travelling = [], [], []
        for part in range(16):  # in batches of the size that the capacity is meant for
            draw = world.draw(TOKENS, seed=50_000 + 100 * seed + part)
            with torch.no_grad():
                y, routing = layer(draw.x)
            errors.append(float((y - draw.y).square().mean() / draw.y.var()))
            untouched.append(float(routing.route.dropped().double().mean()))
            travelling.append(_travelling(routing.route))
        found[f"{name}: error"] = sum(errors) / len(errors)
        found[f"{name}: untouched"] = sum(untouched) / len(untouched)
        found[f"{name}: most travelling"] = max(travelling)
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    better = mean(measurements, "both: error") <= 0.9 * mean(measurements, "dropped: error")
    touched = all(figures["both: untouched"] == 0 for figures in measurements)
    return better and touched and mean(measurements, "both: most travelling") <= CAPACITY


CLAIM = Claim(
    slug="rectify-router",
    paper="Turn Waste into Worth: Rectifying Top-k Router of MoE",
    year=2024,
    arxiv="2402.12399",
    level="moe",
    claim="Keeping overflow on its own device and filling empty slots improves a router with "
    "limited capacity, without more communication.",
    baseline="The same top-1 layer that drops what finds no room, trained with equal updates.",
    criterion="At capacity factor 1 and after equal updates, in the mean over the seeds: the "
    "relative error with both corrections is at most 0.9 times that of dropping; no token is left "
    "untouched, and no expert receives more from other devices than its capacity.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.rectify_router",
    composition="linear router · top-1 with capacity, rectified · feed-forward experts · "
    "rectified straight-through",
    key={
        "both": "both: error",
        "dropped": "dropped: error",
        "dropped untouched": "dropped: untouched",
    },
)
