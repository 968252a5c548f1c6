"""Capacitated vehicle routing: serve all customers from one depot, by routes of limited load.

A solution is an order of all customers, cut into routes: each route goes from the depot through a
run of customers that fit one vehicle, and back. Everything is done for many orders at once.

Legend: B instances, P orders, N customers, V = N + 1 places (0 is the depot).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Instance:
    """One problem.

    Args:
        places: (V, 2) coordinates, the depot first.
        demand: (N,) of the customers, above 0.
        capacity: of a vehicle.

    Raises:
        InputError: shapes that do not agree, or a demand that is not above 0 or exceeds a vehicle.
    """

    places: Array
    demand: Array
    capacity: float

    def __post_init__(self) -> None:
        if self.places.shape != (len(self.demand) + 1, 2):
            raise InputError(
                "places are (customers + 1, 2) with the depot first, got "
                f"{self.places.shape} for {len(self.demand)} customers"
            )
        if not (self.demand > 0).all() or not (self.demand <= self.capacity).all():
            raise InputError(f"demands must be above 0 and at most the capacity, {self.capacity:g}")

    @property
    def distance(self) -> Array:
        """(V, V) between places, as the crow flies."""
        gap = self.places[:, None] - self.places
        return np.hypot(gap[..., 0], gap[..., 1])


def draw_instance(
    rng: np.random.Generator, *, customers: int = 30, capacity: float = 35.0
) -> Instance:
    """Places and depot even in the unit square, demands from 1 to 9, as is usual since Kool."""
    demand = rng.integers(1, 10, size=customers).astype(float)
    return Instance(rng.random((customers + 1, 2)), demand, capacity)


class Cut(NamedTuple):
    """Lengths (P,), and `first` (P, N): where in the order each customer's route begins."""

    length: Array
    first: Ints


def split(instance: Instance, orders: Ints) -> Cut:
    """Cut each order (P, N) of customers 1 to N into the routes with the least total length.

    Source: Beasley (1983) and Prins (2004): shortest paths over the places at which to cut.
    """
    distance, demand = instance.distance, np.concatenate([[0.0], instance.demand])[orders]
    count, customers = orders.shape
    out = distance[0, orders]
    along = np.zeros((count, customers + 1))
    along[:, 2:] = distance[orders[:, :-1], orders[:, 1:]].cumsum(axis=1)
    loaded = np.concatenate([np.zeros((count, 1)), demand.cumsum(axis=1)], axis=1)
    best = np.zeros((count, customers + 1))
    begin = np.zeros((count, customers + 1), dtype=np.int64)
    longest = _longest(instance)
    rows = np.arange(count)
    for end in range(1, customers + 1):  # routes of the customers from i to end - 1
        i = np.arange(max(0, end - longest), end)
        length = best[:, i] + out[:, i] + out[:, [end - 1]] + along[:, [end]] - along[:, i + 1]
        fits = loaded[:, [end]] - loaded[:, i] <= instance.capacity
        length = np.where(fits, length, np.inf)
        chosen = length.argmin(axis=1)
        best[:, end], begin[:, end] = length[rows, chosen], i[chosen]
    first = np.empty((count, customers), dtype=np.int64)
    route = np.full(count, customers)
    for at in range(customers - 1, -1, -1):
        route = np.where(at < begin[rows, route], at + 1, route)
        first[:, at] = begin[rows, route]
    return Cut(best[:, -1], first)


def _longest(instance: Instance) -> int:
    """Most customers that one vehicle can serve."""
    load = np.sort(instance.demand).cumsum()
    return max(int((load <= instance.capacity).sum()), 1)


def two_opt(instance: Instance, orders: Ints, *, moves: int = 3) -> tuple[Ints, Array]:
    """Improve each order's routes by turning runs of customers round; new orders and lengths.

    Each move is the best one of all in an order; then the order is cut anew at the end.

    Args:
        instance: the problem.
        orders: (P, N).
        moves: at most; fewer once none makes an order shorter.

    Returns:
        Orders (P, N) and lengths (P,), none longer than before.
    """
    distance = instance.distance
    orders = orders.copy()
    first = split(instance, orders).first
    count, customers = orders.shape
    rows, at = np.arange(count), np.arange(customers)
    inside = (first[:, :, None] == first[:, None, :]) & (at[:, None] < at)
    for _ in range(moves):
        before = np.where(first == at, 0, np.roll(orders, 1, axis=1))
        ends = np.append(first[:, 1:], np.full((count, 1), customers), axis=1) == at + 1
        after = np.where(ends, 0, np.roll(orders, -1, axis=1))
        change = (
            distance[before[:, :, None], orders[:, None, :]]
            + distance[orders[:, :, None], after[:, None, :]]
            - distance[before, orders][:, :, None]
            - distance[orders, after][:, None, :]
        )
        change = np.where(inside, change, np.inf).reshape(count, -1)
        chosen = change.argmin(axis=1)
        better = change[rows, chosen] < -1e-12
        if not better.any():
            break
        i, j = chosen // customers, chosen % customers
        turn = better[:, None] & (at >= i[:, None]) & (at <= j[:, None])
        source = np.where(turn, (i + j)[:, None] - at, at)
        orders = orders[rows[:, None], source]
    return orders, split(instance, orders).length
