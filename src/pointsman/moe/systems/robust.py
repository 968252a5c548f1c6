"""A system whose path through a network withstands attacks: one router for all layers.

Legend: n inputs, E experts.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.learn import straight_through
from pointsman.moe.experts import ConvolutionExperts
from pointsman.moe.layer import Routing
from pointsman.select import top_k


class OneRoute(nn.Module):
    """A network whose layers are banks that all follow one route: an input takes one path through.

    Args:
        router: inputs to scores (n, E).
        banks: each with E experts.
        head: the last layer, for all.
        activation: after each bank.
    """

    def __init__(
        self,
        router: nn.Module,
        banks: Sequence[nn.Module],
        head: nn.Module,
        activation: Callable[[Tensor], Tensor] = functional.relu,
    ) -> None:
        super().__init__()
        self.router, self.banks, self.head = router, nn.ModuleList(banks), head
        self.activation = activation

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Logits and the route, the expert of largest score with a straight-through gradient."""
        scores = self.router(x)
        route = straight_through(scores, top_k(scores, 1, renormalize=False))
        rows, offsets = route.dispatch(x), route.by_branch().offsets
        for bank in self.banks:
            rows = self.activation(bank(rows, offsets))
        logits: Tensor = self.head(route.combine(rows))
        return logits, Routing(scores, route, scores, num_tokens=len(x))

    def backbone(self) -> list[nn.Parameter]:
        """Weights of all but the router."""
        return [*self.banks.parameters(), *self.head.parameters()]


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL divergence of softmax(other) from softmax(clean), the mean over rows."""
    return functional.kl_div(
        other.log_softmax(dim=1), clean.log_softmax(dim=1), reduction="batchmean", log_target=True
    )


def attack(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    radius: float,
    step: float,
    steps: int,
    noise: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Inputs in [0, 1] near x in every coordinate that make a loss large, by signs of gradients.

    Source: Madry et al. 2017, arXiv 1706.06083.

    Args:
        loss: of the inputs, a scalar.
        x: where to start; in [0, 1].
        radius: how far a coordinate may move.
        step: how far it moves in one step.
        steps: how many.
        noise: standard deviation of what the start is moved by.
        generator: of the noise.
    """
    start = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    moved = (x + noise * start).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_()
        (grad,) = torch.autograd.grad(loss(moved), moved)
        moved = (moved.detach() + step * grad.sign()).clamp(x - radius, x + radius).clamp(0, 1)
    return moved.detach()


def robust_paths(
    channels: Sequence[int], num_experts: int = 2, *, classes: int = 10, router_width: int = 16
) -> OneRoute:
    """A convolutional network in E parts and a small one that picks the part for each image.

    Train both in turn with `attack`s of their own: the network for its answers under a fixed
    router, then the router for scores that an attack does not move, under a fixed network. In one
    joint step the router tends to send everything one way.

    Where we depart: the router is two convolutions instead of a small residual network; experts of
    a layer have all its inputs from their own part of the layer before; there is no normalisation.

    Args:
        channels: of the image and after each layer of one expert; every layer but the first halves
            the image.
        num_experts: E.
        classes: of the answer.
        router_width: channels of the router.

    Source: Zhang et al. 2023, "Robust mixture-of-expert training for convolutional neural
    networks", arXiv 2308.10110.
    """
    banks = [
        ConvolutionExperts(num_experts, before, after, 3, stride=1 if at == 0 else 2)
        for at, (before, after) in enumerate(pairwise(channels))
    ]
    router = nn.Sequential(
        nn.Conv2d(channels[0], router_width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(router_width, router_width, 3, 2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(router_width, num_experts),
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))
    return OneRoute(router, banks, head)
