"""Differentiable Transportation Pruning: how many units stay is exact at every step of training.

Li, van Gemert, Hoefler, Moons, Eleftheriou, Verhoef, "Differentiable Transportation Pruning" (2023,
arXiv 2307.08483).

Importance scores, trained with the weights, are transported to the points 0 and 1 with room for
exactly k units at 1; the plan is the mask, sharpened by a proximal term from step to step. The part
is `supernet.pruning.TransportPruning`, where we depart is said there: the plan is exact instead of
one Sinkhorn iteration. The sheet is rated medium: constants were not found and are ours.

What was settled:
- The network is 64-64-10 on digits, of whose 64 hidden units 16 stay (25%). epsilon 10 and the
  rate of the scores, that of the weights, were chosen on seeds 100 and 101.
- Equal updates in all: 600 under masks and 300 of the narrow network; one-shot pruning by magnitude
  (and at random) after 600 updates of the whole network and 300 of the narrow one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import nn

    from pointsman.claims.testbeds import Digits

UNITS, KEPT = 64, 16
BEFORE, AFTER = 600, 300
EPSILON = 10.0


def quick() -> None:
    """Masks sum to the budget at every step, sort like the scores, and sharpen to the best ones."""
    import torch

    from pointsman.supernet.pruning import transport_mask

    scores = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for epsilon in (1.0, 0.1, 0.002):
        mask = transport_mask(scores, torch.zeros_like(scores), 10, epsilon).sigmoid()
        must(abs(float(mask.sum()) - 10) < 1e-8, f"masks sum to 10 at epsilon {epsilon}")
        must(bool((mask[scores.argsort()].diff() >= 0).all()), "masks sort like the scores")
    odds = torch.zeros_like(scores)
    for _ in range(200):
        odds = transport_mask(scores, odds, 10, 0.1)
    must(set(odds.topk(10).indices.tolist()) == set(scores.topk(10).indices.tolist()), "the best")
    sharp = odds.sigmoid()
    must(bool(((sharp < 0.01) | (sharp > 0.99)).all()), "repeating makes a mask of zeros and ones")
    scores.requires_grad_()

    def first(s: torch.Tensor) -> torch.Tensor:
        return transport_mask(s, torch.zeros_like(s), 10, 0.5).sigmoid()

    must(torch.autograd.gradcheck(first, (scores,)), "the gradient is that of the plan")


def full(seed: int) -> Figures:
    """Test accuracy with a quarter of the hidden units, right after the cut and fine-tuned."""
    from pointsman.claims import testbeds
    from pointsman.supernet.pruning import TransportPruning, at_random, magnitude, prune

    data = testbeds.digits(seed)
    example = data.train.x[:2]

    masked = TransportPruning(
        testbeds.mlp(64, UNITS, 10, seed=seed), example, keep=KEPT / UNITS, epsilon=EPSILON
    )
    testbeds.fit(masked, data.train, seed=seed, updates=BEFORE)
    whole = testbeds.mlp(64, UNITS, 10, seed=seed)
    testbeds.fit(whole, data.train, seed=seed, updates=BEFORE)
    found = {"whole network: accuracy": _accuracy(whole, data)}
    pruned: dict[str, nn.Module] = {"transport": masked.extract()}
    for name, criterion in (("magnitude", magnitude()), ("random", at_random(seed))):
        pruned[name] = prune(whole, example, to=KEPT / UNITS, criterion=criterion).model
    for name, network in pruned.items():
        found[f"{name}: units"] = float(len(next(network.parameters())))
        found[f"{name}: cut"] = _accuracy(network, data)
        testbeds.fit(network, data.train, seed=seed + 1, updates=AFTER)
        found[f"{name}: fine-tuned"] = _accuracy(network, data)
    return found


def _accuracy(network: "nn.Module", data: "Digits") -> float:
    from pointsman.claims.testbeds import accuracy

    return accuracy(network(data.test.x), data.test.y)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    exact = all(figures["transport: units"] == KEPT for figures in measurements)
    return exact and all(
        mean(measurements, f"transport: {when}") >= mean(measurements, f"magnitude: {when}")
        for when in ("cut", "fine-tuned")
    )


CLAIM = Claim(
    slug="transport-pruning",
    paper="Differentiable Transportation Pruning",
    year=2023,
    arxiv="2307.08483",
    level="supernet",
    claim="Masks found by optimal transport hold the budget exactly while they are trained with "
    "the weights, and prune at least as well as a cut by magnitude.",
    baseline="The same network trained without masks and cut once by magnitude (and at random), "
    "with the same number of updates before and after the cut.",
    criterion="Exactly 16 of 64 units stay in every seed, and the mean test accuracy over the "
    "seeds is at least that of the cut by magnitude, right after the cut and after fine-tuning.",
    quick=quick,
    full=full,
    decide=decide,
    composition="channel groups · gates on units · masks by two-point transport · cut",
    entry="pointsman.supernet.pruning.TransportPruning",
    key={
        "transport": "transport: fine-tuned",
        "magnitude": "magnitude: fine-tuned",
        "transport, cut": "transport: cut",
        "magnitude, cut": "magnitude: cut",
    },
    note="Right after the cut the masks are far ahead (91.8% against 63.0%); after fine-tuning "
    "they are one test input behind in one of three seeds, which the criterion does not allow.",
)
