"""How far routers are from the best paths, and what blind skipping reaches at the same cost.

Four policies on one data set, in one unit:

    routers    at each price, what decides is paid
    shuffled   each input skips and repeats as many blocks as the routers chose, at blocks drawn by
               chance: does it matter which blocks?
    exchanged  each input takes the path that the routers chose for another: does it matter which
               input?
    oracle     each input the path that is best for it, of those tried, by quality less a price on
               cost; known only in hindsight

A router that is worth its cost lies above the two blind ones; how far below the oracle is the gap.
The oracle picks the best of many paths with the answer in hand, so a part of the gap is luck that
no router can have.

Legend: N inputs, P paths, B blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointsman.depth.layers.execute import take_rows
from pointsman.depth.layers.network import (
    PRICES,
    Quality,
    SkipNetwork,
    correct,
    outcomes_of_runs,
)
from pointsman.depth.layers.paths import exchanged_runs, shuffled_runs
from pointsman.depth.layers.search import Tried
from pointsman.frontier.points import Frontier, Knob, Outcomes
from pointsman.run import State

# What quality 1 is worth, as a share of the whole network's cost: from "never mind the cost" on.
WORTHS = (1e6, 64.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.0)


@dataclass(frozen=True, eq=False)
class SkipGap:
    """Routers between blind skipping and the oracle.

    Attributes:
        routers: knob: price.
        shuffled: knob: price; the same counts at other blocks.
        exchanged: knob: price; the same paths on other inputs.
        oracle: knob: what a unit of quality is worth, in costs of the whole network.
        runs: price -> runs (N, B) of the routers.
    """

    routers: Frontier
    shuffled: Frontier
    exchanged: Frontier
    oracle: Frontier
    runs: dict[float, Tensor]

    def together(self) -> Frontier:
        """All settings of all four on one frontier; knobs read "routers 0.5"."""
        parts = []
        for frontier in (self.routers, self.shuffled, self.exchanged, self.oracle):
            outcomes = frontier.outcomes
            assert outcomes is not None
            knobs = tuple(f"{frontier.name} {knob:g}" for knob in outcomes.knobs)
            parts.append(_renamed(outcomes, knobs))
        return Frontier.from_outcomes("layers", Outcomes.join(parts))

    def at(self, price: float) -> dict[str, float]:
        """Quality at the cost that routers spend at a price, of all four, and the gaps.

        Returns:
            "cost" and "saved" (share of the whole network's), "routers", "shuffled", "exchanged",
            "oracle", "whole"; "over shuffled", "over exchanged" and "below oracle"; "skipped" and
            "repeated", shares of all blocks of all inputs.
        """
        found = {
            frontier.name: _point(frontier, price)[0]
            for frontier in (self.routers, self.shuffled, self.exchanged)
        }
        cost, whole = _point(self.routers, price)[1], self.routers.reference
        assert whole is not None
        cheapest = min(point.cost for point in self.oracle.points)
        found["oracle"] = self.oracle.quality_at(max(cost, cheapest))
        found |= {"whole": whole.quality, "cost": cost, "saved": 1 - cost / whole.cost}
        for other in ("shuffled", "exchanged"):
            found[f"over {other}"] = found["routers"] - found[other]
        found["below oracle"] = found["oracle"] - found["routers"]
        runs = self.runs[price]
        found["skipped"] = float((runs == 0).double().mean())
        found["repeated"] = float((runs > 1).double().mean())
        return found

    def words(self, price: float = 0.0) -> str:
        """One line: what routers reach at a price, and what lies around them."""
        at = self.at(price)
        return (
            f"at {at['saved']:.1%} of the cost saved, quality {at['routers']:.4f} (whole network "
            f"{at['whole']:.4f}), {at['over shuffled']:+.4f} over as many blocks by chance, "
            f"{at['over exchanged']:+.4f} over the same paths on other inputs, "
            f"{at['below oracle']:.4f} below the oracle"
        )


def skip_gap(
    network: SkipNetwork,
    x: State,
    y: Tensor,
    tried: Tried,
    prices: Sequence[float] = PRICES,
    *,
    quality: Quality = correct,
    seed: int = 0,
) -> SkipGap:
    """Hold routers against blind skipping and against the best of the paths tried.

    Args:
        network: with routers.
        x: N inputs that routers were not trained on.
        y: N targets.
        tried: paths tried on these inputs: `every_path` or `TreeSearch().search`.
        prices: of the routers, from -inf upwards.
        quality: logits, targets -> (n,) in [0, 1], the one that `tried` was found with.
        seed: of chance.

    Raises:
        InputError: no input, or paths tried on other inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    runs = {price: network.all_runs(x, price) for price in prices}
    # what cannot be edited stays where it is: chance moves counts among the other blocks only
    places = list(network.routers.editable)
    shuffled = {price: _within(table, places, generator) for price, table in runs.items()}
    exchanged = {price: exchanged_runs(table, generator) for price, table in runs.items()}

    def frontier(name: str, chosen: dict[float, Tensor]) -> Frontier:
        found = outcomes_of_runs(network, x, y, chosen, quality=quality)
        return Frontier.from_outcomes(name, found)

    return SkipGap(
        frontier("routers", runs),
        frontier("shuffled", shuffled),
        frontier("exchanged", exchanged),
        oracle_frontier(network, x, tried),
        runs,
    )


def oracle_frontier(network: SkipNetwork, x: State, tried: Tried) -> Frontier:
    """The best of the paths tried for each input, for what quality may be worth.

    Nobody is paid for deciding. At the first knob only quality counts, at the least cost that
    reaches it.

    Args:
        network: whose blocks are paid.
        x: the N inputs; the first is counted.
        tried: paths tried on them.
    """
    costs = network.layer_costs(take_rows(x, torch.arange(1)))
    table = torch.tensor(tried.paths, dtype=torch.int64)
    spent_P = np.asarray(costs.of(table).amount) - float(costs.deciding)
    whole = float(costs.whole)
    rows, paid = [], []
    for worth in WORTHS:
        value_PN = np.where(
            np.isfinite(tried.quality), tried.quality * worth - spent_P[:, None] / whole, -np.inf
        )
        chosen = value_PN.argmax(axis=0)
        rows.append(np.take_along_axis(tried.quality, chosen[None], axis=0)[0])
        paid.append(spent_P[chosen])
    found = Outcomes(
        knobs=WORTHS,
        quality=np.stack(rows),
        cost=np.stack(paid),
        reference_quality=tried.whole,
        reference_cost=np.full(len(tried.whole), whole),
        unit=costs.fixed.unit,
    )
    return Frontier.from_outcomes("oracle", found)


def _within(runs_NB: Tensor, places: list[int], generator: torch.Generator) -> Tensor:
    table = runs_NB.clone()
    table[:, places] = shuffled_runs(table[:, places], generator)
    return table


def _renamed(outcomes: Outcomes, knobs: tuple[Knob, ...]) -> Outcomes:
    arrays: dict[str, Any] = {
        name: getattr(outcomes, name)
        for name in ("quality", "cost", "reference_quality", "reference_cost", "unit")
    }
    return Outcomes(knobs=knobs, **arrays)


def _point(frontier: Frontier, knob: float) -> tuple[float, float]:
    outcomes = frontier.outcomes
    assert outcomes is not None
    row = outcomes.setting(knob)
    return float(outcomes.quality[row].mean()), float(outcomes.cost[row].mean())
