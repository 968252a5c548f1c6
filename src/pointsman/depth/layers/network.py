"""A network with routers over its blocks: skip, run or repeat, by input.

Legend: N inputs, B blocks, C classes, A actions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.cost import Cost, count_flops
from pointsman.depth.layers.execute import (
    LayerAnswer,
    LayerCosts,
    layer_costs,
    rows_of,
    run_layers,
    run_paths,
    take_rows,
)
from pointsman.depth.layers.routers import LayerRouters, choose_runs
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError
from pointsman.frontier.points import Frontier, Outcomes
from pointsman.modules import evaluating
from pointsman.run import State

# From the network as it was trained to the cheapest path; fixed before any data is seen, as the
# test behind a certified pick requires.
PRICES = (-math.inf, -6.0, -4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
ROWS_AT_ONCE = 256

# logits of n inputs, their targets -> quality (n,) in [0, 1]
Quality = Callable[[Tensor, Tensor], Tensor]


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """(n,): 1 where the largest logit is the label, else 0; over places their mean.

    Args:
        logits: (n, C) or (n, S, C).
        y: (n,) or (n, S).
    """
    right = (logits.argmax(dim=-1) == y).to(torch.float32)
    return right.flatten(1).mean(dim=1) if right.ndim > 1 else right


def likelihood(logits: Tensor, y: Tensor) -> Tensor:
    """(n,): probability of the target; over places their geometric mean, 1 over the perplexity.

    Finer than `correct` where paths are searched: a path that is right by a hair is not as good as
    one that is right by far.

    Args:
        logits: (n, C) or (n, S, C).
        y: (n,) or (n, S).
    """
    log = logits.log_softmax(dim=-1).gather(-1, y[..., None].long()).squeeze(-1)
    return (log.flatten(1).mean(dim=1) if log.ndim > 1 else log).exp()


@dataclass(frozen=True, eq=False)
class PricedRouters:
    """A `LayerPolicy`: routers at a price."""

    routers: LayerRouters
    price: float

    def begin(self, features: Tensor) -> Tensor | None:
        """The scores (N, B, A) of routers that decide ahead."""
        if math.isinf(self.price):
            return None
        return self.routers.ahead(self.routers.pool(features))

    def runs(self, at: int, features: Tensor, memory: Any) -> Tensor:
        """By score and price; blocks that cannot be edited run once, all of them at -inf."""
        ones = torch.ones(len(features), dtype=torch.int64, device=features.device)
        if at not in self.routers.editable or self.price == -math.inf:
            return ones
        if self.price == math.inf:
            return torch.zeros_like(ones)
        if memory is None:
            scores = self.routers.scores(at, self.routers.pool(features))
        else:
            scores = memory[:, at]
        return choose_runs(scores, self.price)


class SkipNetwork(nn.Module):
    """A residual network whose blocks each input skips, runs or repeats.

    Args:
        trunk: a network as a row of blocks, shared, not copied.
        routers: that decide, such as `WindowRouters(len(trunk.names), width)`. At price -inf they
            are not asked and the outcome is exactly the trunk's.

    Raises:
        InputError: routers for another number of blocks.
    """

    def __init__(self, trunk: Trunk, routers: LayerRouters) -> None:
        super().__init__()
        if routers.blocks != len(trunk.names):
            raise InputError(
                f"the network has {len(trunk.names)} blocks, the routers are for {routers.blocks}"
            )
        self.trunk, self.routers = trunk, routers

    def forward(self, x: State, price: float = 0.0) -> Tensor:
        """Logits (N, ..., C) at a price; with gradients, through the output alone."""
        return run_layers(self.trunk, x, PricedRouters(self.routers, price)).output

    def run(self, x: State, price: float = 0.0) -> LayerAnswer:
        """Answer a batch, each input on its own path.

        In evaluation mode and without gradients, whatever the mode of the module is.

        Args:
            x: a batch of N inputs; an empty one gives an empty answer.
            price: of a run, see `choose_runs`; -inf is the network as it was trained.

        Returns:
            Output, runs (N, B), and the route over runs of blocks. Its cost:
            `network.layer_costs(example).of(answer.runs)`.
        """
        with evaluating(self), torch.no_grad():
            return run_layers(self.trunk, x, PricedRouters(self.routers, price))

    def layer_costs(self, example: State) -> LayerCosts:
        """MFLOPs per input: fixed, of each run of a block, and of deciding; counted.

        Args:
            example: a batch of at least one input.

        Raises:
            InputError: an empty batch.
        """
        return layer_costs(self.trunk, example, self._deciding(example))

    def _deciding(self, example: State) -> Cost:
        """MFLOPs per input that all decisions of one pass cost."""
        spent, rows = 0.0, max(rows_of(example), 1)
        with evaluating(self), torch.no_grad():
            state = self.trunk.begin(example)
            pooled = self.routers.pool(self.trunk.features(state))
            spent += float(count_flops(self.routers.ahead, pooled)) / rows
            if self.routers.ahead(pooled) is None:
                for at in self.routers.editable:
                    spent += float(count_flops(self.routers.scores, at, pooled)) / rows
        return Cost(spent, "MFLOPs")

    def outcomes(
        self,
        x: State,
        y: Tensor,
        prices: Sequence[float] = PRICES,
        *,
        quality: Quality = correct,
        example: State | None = None,
    ) -> Outcomes:
        """What each price does, input by input, beside the network as it was trained.

        Every price runs on all inputs, and what decides is paid at every finite price.

        Args:
            x: N inputs, for a certified pick not trained on.
            y: N targets.
            prices: the knobs, from the safest (-inf) to the cheapest.
            quality: logits, targets -> (n,) in [0, 1].
            example: to count costs on. None: the first input.

        Raises:
            InputError: no input, or prices from cheap to safe.
        """
        if any(a >= b for a, b in pairwise(prices)):
            raise InputError(f"prices rise, from the safest to the cheapest, got {list(prices)}")
        runs = {price: self.all_runs(x, price) for price in prices}
        return outcomes_of_runs(self, x, y, runs, quality=quality, example=example)

    def all_runs(self, x: State, price: float) -> Tensor:
        """Which runs each input makes at a price, (N, B), batch by batch."""
        return torch.cat([self.run(part, price).runs for part in batches(x)])

    def frontier(
        self,
        x: State,
        y: Tensor,
        prices: Sequence[float] = PRICES,
        *,
        quality: Quality = correct,
        example: State | None = None,
        name: str = "routers",
    ) -> Frontier:
        """`outcomes` as a frontier whose knob is the price; arguments as there."""
        found = self.outcomes(x, y, prices, quality=quality, example=example)
        return Frontier.from_outcomes(name, found)


def batches(x: State) -> list[State]:
    """A data set in batches of at most 256 inputs; at least one batch."""
    count = rows_of(x)
    if count <= ROWS_AT_ONCE:
        return [x]
    starts = range(0, count, ROWS_AT_ONCE)
    return [take_rows(x, torch.arange(a, min(a + ROWS_AT_ONCE, count))) for a in starts]


@torch.no_grad()
def outcomes_of_runs(
    network: SkipNetwork,
    x: State,
    y: Tensor,
    runs: Mapping[Any, Tensor],
    *,
    quality: Quality = correct,
    example: State | None = None,
    decided: bool = True,
) -> Outcomes:
    """What given paths reach, with the trained network as the reference.

    Args:
        network: whose trunk runs.
        x: N inputs.
        y: N targets.
        runs: knob -> runs (N, B).
        quality: logits, targets -> (n,) in [0, 1].
        example: to count costs on. None: the first input.
        decided: whether routers were paid to find these paths (never at a knob of +-inf).

    Raises:
        InputError: no input, or runs of another shape.
    """
    if not rows_of(x):
        raise InputError("outcomes need at least one input, got none")
    first = take_rows(x, torch.arange(1)) if example is None else example
    costs = network.layer_costs(first)
    whole = torch.ones(len(network.trunk.names), dtype=torch.int64)
    reference = _quality(network, x, y, whole.expand(rows_of(x), -1), quality)
    rows, spent = [], []
    for knob, runs_NB in runs.items():
        rows.append(_quality(network, x, y, runs_NB, quality))
        free = not decided or (isinstance(knob, float) and math.isinf(knob))
        extra = float(costs.deciding) if free else 0.0
        spent.append(np.asarray((costs.of(runs_NB) - Cost(extra, costs.fixed.unit)).amount))
    return Outcomes(
        knobs=tuple(runs),
        quality=np.stack(rows),
        cost=np.stack(spent),
        reference_quality=reference,
        reference_cost=np.full(len(reference), float(costs.whole)),
        unit=costs.fixed.unit,
    )


def _quality(
    network: SkipNetwork, x: State, y: Tensor, runs_NB: Tensor, quality: Quality
) -> np.ndarray[Any, Any]:
    found, start = [], 0
    with evaluating(network):
        for part in batches(x):
            stop = start + rows_of(part)
            output = run_paths(network.trunk, part, runs_NB[start:stop]).output
            found.append(quality(output, y[start:stop]).double())
            start = stop
    return torch.cat(found).cpu().numpy()
