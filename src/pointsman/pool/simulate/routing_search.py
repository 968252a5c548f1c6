"""A genetic algorithm for vehicle routing, which may be handed solutions to begin with.

Legend: P orders in the population, C children of a generation, N customers, G generations.
"""

from typing import NamedTuple

import numpy as np

from pointsman.errors import InputError
from pointsman.pool.simulate.vehicle_routing import Array, Instance, Ints, two_opt


class Searched(NamedTuple):
    """`order` (N,) and its `length`; `evaluations` (G,) so far and the `best` length (G,) then."""

    order: Ints
    length: float
    evaluations: Ints
    best: Array

    def reached(self, length: float) -> int:
        """Evaluations until so short a length was found; one more than all if it never was."""
        there = self.best <= length + 1e-9
        return int(self.evaluations[there.argmax()] if there.any() else self.evaluations[-1] + 1)


def order_crossover(one: Ints, other: Ints, begin: int, end: int) -> Ints:
    """`one` from begin up to end in place, then on from there what is missing as in `other`.

    Source: Davis (1985).
    """
    kept = one[begin:end]
    rest = np.roll(other, -end)
    rest = rest[~np.isin(rest, kept)]
    child = np.empty_like(one)
    child[begin:end] = kept
    child[(end + np.arange(len(rest))) % len(one)] = rest
    return child


class GeneticAlgorithm:
    """Order crossover, swaps, cutting into routes, and 2-opt in them.

    Args:
        population: P.
        children: C a generation.
        budget: orders that may be improved and measured in all, those handed over included.
        mutate: chance that two customers of a child are swapped.
        moves: of 2-opt for each order.
        seed: of all draws.

    Raises:
        InputError: a number out of range, or more orders handed over than the population holds.

    Source: Prins, "A simple and effective evolutionary algorithm for the vehicle routing problem"
    (2004), of which this is a plain form.
    """

    def __init__(
        self,
        *,
        population: int = 40,
        children: int = 40,
        budget: int = 2500,
        mutate: float = 0.8,
        moves: int = 6,
        seed: int = 0,
    ) -> None:
        if population < 2 or children < 1 or budget < population or not 0 <= mutate <= 1:
            raise InputError(
                "population must be 2 or more, children 1 or more, budget at least the population "
                f"and mutate in [0, 1], got {population}, {children}, {budget} and {mutate}"
            )
        self.population = population
        self.children = children
        self.budget = budget
        self.mutate = mutate
        self.moves = moves
        self.seed = seed

    def search(self, instance: Instance, seeds: Ints | None = None) -> Searched:
        """Improve a random population, in which seeds (at most P, N) take the first places."""
        rng = np.random.default_rng(self.seed)
        customers = len(instance.demand)
        start = np.stack([rng.permutation(customers) + 1 for _ in range(self.population)])
        handed = start[:0] if seeds is None else np.asarray(seeds)
        if len(handed) > self.population:
            raise InputError(f"{len(handed)} seeds do not fit a population of {self.population}")
        start[: len(handed)] = handed
        used: list[int] = []
        best: list[float] = []
        orders, length = start[:0], np.zeros(0)
        fresh = start[: max(len(handed), 1)]  # these are measured first
        waiting = start[len(fresh) :]
        while True:
            improved, found = two_opt(instance, fresh, moves=self.moves)
            orders, length = self._survive(
                np.concatenate([orders, improved]), np.concatenate([length, found])
            )
            used.append(len(fresh) + (used[-1] if used else 0))
            best.append(float(length[0]))
            left = self.budget - used[-1]
            if not left:
                return Searched(orders[0], best[-1], np.array(used), np.array(best))
            fresh, waiting = (
                (waiting, waiting[:0])
                if len(waiting)
                else (self._breed(orders, rng, min(self.children, left)), waiting)
            )

    def _survive(self, orders: Ints, length: Array) -> tuple[Ints, Array]:
        """The shortest P of different lengths, best first."""
        _, distinct = np.unique(length.round(9), return_index=True)
        kept = distinct[: self.population]
        return orders[kept], length[kept]

    def _breed(self, orders: Ints, rng: np.random.Generator, count: int) -> Ints:
        """Children of parents that each won a tournament of two."""
        customers = orders.shape[1]
        parents = rng.integers(len(orders), size=(count, 2, 2)).min(axis=2)  # best come first
        cuts = np.sort(rng.integers(customers + 1, size=(count, 2)), axis=1)
        born = np.stack(
            [
                order_crossover(orders[a], orders[b], *cut)
                for (a, b), cut in zip(parents, cuts, strict=True)
            ]
        )
        rows = np.flatnonzero(rng.random(count) < self.mutate)
        i, j = rng.integers(customers, size=(2, len(rows)))
        born[rows, i], born[rows, j] = born[rows, j], born[rows, i]
        return born
