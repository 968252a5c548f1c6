"""Synthetic mixtures whose best routing is known, one way to train on them, and their figures.

A token lies near one of C centres, and its target is the token times that centre's own matrix: a
layer of C linear experts solves the task exactly if each token goes to its cluster's expert, and
one shared network of the same cost does not.

Legend: T tokens, C clusters, D width, O outputs, E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from pointsman.route import Route


@dataclass(frozen=True, eq=False)
class Draw:
    """Tokens (T, D), targets (T, O) and the cluster of each token (T,) int64."""

    x: Tensor
    y: Tensor
    cluster: Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """Clusters of tokens, each with a linear map of its own.

    Attributes:
        centres_CD: means of the clusters.
        maps_CDO: y = x @ maps[cluster], scaled so that targets have about unit variance.
        shares_C: how often each cluster is drawn; sums to one.
        spread: standard deviation of a token around its centre, in every direction.
    """

    centres_CD: Tensor  # noqa: N815
    maps_CDO: Tensor  # noqa: N815
    shares_C: Tensor  # noqa: N815
    spread: float

    def draw(self, count: int, seed: int) -> Draw:
        """Fresh tokens, the same for the same seed.

        Args:
            count: T.
            seed: of the clusters drawn and the noise.
        """
        generator = torch.Generator().manual_seed(seed)
        cluster_T = torch.multinomial(self.shares_C, count, replacement=True, generator=generator)
        noise_TD = torch.randn(count, self.centres_CD.shape[1], generator=generator)
        x_TD = self.centres_CD[cluster_T] + self.spread * noise_TD
        # All maps at once and one of them picked: quicker than a matrix gathered for each token.
        every_CTO = x_TD @ self.maps_CDO
        return Draw(x_TD, every_CTO[cluster_T, torch.arange(count)], cluster_T)


def mixture(
    seed: int,
    *,
    clusters: int = 8,
    width: int = 16,
    outputs: int = 16,
    spread: float = 0.3,
    zipf: float = 0.0,
) -> Mixture:
    """A mixture with random centres of unit variance and random maps.

    Args:
        seed: of the centres and maps.
        clusters: C.
        width: D.
        outputs: O.
        spread: standard deviation of the noise around a centre; centres have 1 in each direction.
        zipf: cluster c is drawn in proportion to (c + 1) ** -zipf; 0 draws all alike.
    """
    generator = torch.Generator().manual_seed(seed)
    centres_CD = torch.randn(clusters, width, generator=generator)
    variance = width * (1 + spread**2)
    maps_CDO = torch.randn(clusters, width, outputs, generator=generator) / variance**0.5
    shares_C = torch.arange(1, clusters + 1, dtype=torch.float32) ** -zipf
    return Mixture(centres_CD, maps_CDO, shares_C / shares_C.sum(), spread)


def regress(
    module: nn.Module,
    mixture: Mixture,
    *,
    seed: int,
    updates: int = 500,
    batch: int = 256,
    rate: float = 3e-3,
    loss: Callable[[nn.Module, Draw], Tensor] | None = None,
) -> list[float]:
    """Train on fresh draws with Adam; gives the loss of each update. Then evaluation mode.

    A module that returns `(y, Routing)` has `routing.loss` added, and is told of each step if it
    has `after_step`.

    Args:
        module: x → y or (y, Routing); changed in place.
        mixture: to draw from.
        seed: of the draws, and of torch's own generator meanwhile (noise of routers).
        updates: of the optimiser.
        batch: tokens an update.
        rate: of learning, constant.
        loss: of a draw, instead of the mean squared error plus the routing's loss. `after_step`
            is then the loss's own business.
    """
    optimiser = torch.optim.Adam(
        [w for w in module.parameters() if w.requires_grad], rate, fused=True
    )
    losses: list[float] = []
    module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for update in range(updates):
            draw = mixture.draw(batch, seed=(seed + 1) * 1_000_003 + update)
            routings: list[Any] = []
            if loss is not None:
                value = loss(module, draw)
            else:
                y_TO, routings = _answer(module, draw.x)
                value = functional.mse_loss(y_TO, draw.y)
                value = value + sum(routing.loss for routing in routings)
            optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            after_step = getattr(module, "after_step", None)
            if after_step is not None and routings:
                after_step(routings)
            losses.append(float(value.detach()))
    module.eval()
    return losses


@torch.no_grad()
def relative_error(module: nn.Module, mixture: Mixture, *, seed: int, count: int = 4096) -> float:
    """Mean squared error over the variance of the targets, on fresh draws: 0 is exact.

    Args:
        module: x → y or (y, Routing).
        mixture: to draw from.
        seed: of the draw; its tokens are none that `regress` trained on.
        count: tokens.
    """
    draw = mixture.draw(count, seed=2_000_000_011 + seed)
    y_TO, _ = _answer(module, draw.x)
    return float(functional.mse_loss(y_TO, draw.y) / draw.y.var())


def routing_accuracy(route: Route, cluster_T: Tensor) -> float:
    """Share of tokens whose first expert is their cluster's, under the best matching of the two.

    Each expert is matched to one cluster at most, and each cluster to one expert; dropped tokens
    count as wrong.

    Args:
        route: of T tokens; the first pair of each token counts.
        cluster_T: int64.
    """
    first_T = torch.full((route.num_inputs,), -1, dtype=torch.int64)
    # Pairs of one token are in order of preference, so the last write, in reverse, is the first.
    first_T[route.inputs.flip(0)] = route.branches.flip(0)
    taken = first_T >= 0
    shape = (route.num_branches, int(cluster_T.max()) + 1)
    agree_EC = torch.zeros(shape, dtype=torch.int64)
    ones = torch.ones(int(taken.sum()), dtype=torch.int64)
    agree_EC.index_put_((first_T[taken], cluster_T[taken]), ones, accumulate=True)
    rows, columns = linear_sum_assignment(agree_EC.numpy(), maximize=True)
    return int(agree_EC[rows, columns].sum()) / len(cluster_T)


def max_violation(load_E: Tensor) -> float:
    """Load of the fullest expert over the mean load, less one: 0 when all are equally full."""
    load_E = load_E.to(torch.float64)
    return float(load_E.max() / load_E.mean().clamp_min(1e-12) - 1)


def _answer(module: nn.Module, x_TD: Tensor) -> tuple[Tensor, list[Any]]:
    found = module(x_TD)
    if isinstance(found, Tensor):
        return found, []
    y_TO, routing = found
    return y_TO, list(routing) if isinstance(routing, list | tuple) else [routing]
