"""Which experts tokens took, layer by layer: recorded from routes, or drawn from a Markov chain.

Legend: L routed layers, T tokens, K experts of a token, E experts of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from pointsman.errors import InputError
from pointsman.moe.parallel.cluster import Flags, Ids, Numbers
from pointsman.route import Route


@dataclass(frozen=True, eq=False)
class Trace:
    """The paths of tokens through the experts of all layers.

    Args:
        experts: (L, T, K) int64; -1 where a token took fewer.
        num_experts: E, of every layer.

    Raises:
        InputError: another shape, or an expert out of range.
    """

    experts: Ids
    num_experts: int

    def __post_init__(self) -> None:
        if self.experts.ndim != 3 or self.experts.dtype != np.int64:
            raise InputError(
                "a trace is an int64 array (layers, tokens, experts of a token), got "
                f"{self.experts.dtype} of shape {self.experts.shape}"
            )
        low, high = (self.experts.min(), self.experts.max()) if self.experts.size else (0, 0)
        if low < -1 or high >= max(self.num_experts, 1):
            raise InputError(
                f"experts of a trace are below {self.num_experts}, or -1 for none, "
                f"got {low} to {high}"
            )

    @classmethod
    def of(cls, routes: Sequence[Route]) -> Self:
        """From the routes of the layers for the same tokens, in the order that they run.

        Raises:
            InputError: no route, or routes of different numbers of tokens or experts.
        """
        kinds = {(route.num_inputs, route.num_branches) for route in routes}
        if len(kinds) != 1:
            raise InputError(
                "a trace needs one route for each layer, all of as many tokens and experts, got "
                f"(tokens, experts) {sorted(kinds)}"
            )
        tokens, experts = kinds.pop()
        widest = max(int(route.branches_per_input().max()) if tokens else 0 for route in routes)
        table_LTK = np.full((len(routes), tokens, widest), -1, dtype=np.int64)
        for layer, route in enumerate(routes):
            inputs, branches = route.inputs.numpy(force=True), route.branches.numpy(force=True)
            slot = np.arange(len(inputs)) - np.searchsorted(inputs, inputs)
            table_LTK[layer, inputs, slot] = branches
        return cls(table_LTK, experts)

    @property
    def layers(self) -> int:
        """L."""
        return int(self.experts.shape[0])

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.experts.shape[1])

    @cached_property
    def load(self) -> Numbers:
        """(L, E): tokens of each expert."""
        return np.stack(
            [
                np.bincount(layer[layer >= 0], minlength=self.num_experts).astype(np.float64)
                for layer in self.experts
            ]
        )

    @cached_property
    def transitions(self) -> Numbers:
        """(L - 1, E, E): tokens that took the one expert in a layer and the other in the next.

        A token of K experts in both makes K * K transitions.
        """
        count, experts = self.num_experts, self.experts
        table = np.zeros((max(self.layers - 1, 0), count, count))
        for at in range(len(table)):
            pairs = np.stack(np.broadcast_arrays(experts[at, :, :, None], experts[at + 1, :, None]))
            first, second = pairs.reshape(2, -1)
            there = (first >= 0) & (second >= 0)
            flat = np.bincount(first[there] * count + second[there], minlength=count * count)
            table[at] = flat.reshape(count, count)
        return table

    def routed_to(self) -> Flags:
        """(T, L, E) bool: whether a token took an expert."""
        table = np.zeros((self.tokens, self.layers, self.num_experts + 1), dtype=np.bool_)
        layer, token, _ = np.indices(self.experts.shape)
        table[token, layer, self.experts] = True  # -1 falls into the place beyond the last
        return table[:, :, :-1]

    def split(self, at: int) -> tuple["Trace", "Trace"]:
        """The first tokens, and the rest: one to place experts by, one to measure on."""
        return (
            Trace(self.experts[:, :at], self.num_experts),
            Trace(self.experts[:, at:], self.num_experts),
        )


@dataclass(frozen=True)
class MarkovTraces:
    """Traffic whose experts follow each other with a set affinity and a set skew.

    From expert a of one layer, expert b of the next follows in proportion to its popularity times
    exp(affinity * normal), with one draw of the normal for each pair.

    Args:
        seed: of the popularities and affinities.
        layers: L.
        experts: E.
        affinity: 0: the next expert does not depend on the last; 3: mostly one of a few follows.
        skew: experts are popular in proportion to rank ** -skew, in an order drawn by layer.
    """

    seed: int
    layers: int
    experts: int
    affinity: float = 2.0
    skew: float = 0.0

    @cached_property
    def chances(self) -> Numbers:
        """(L, E, E): of each expert, given the one before; the first layer has equal rows."""
        rng = np.random.default_rng(self.seed)
        shape = (self.layers, self.experts, self.experts)
        ranks = np.argsort(rng.random((self.layers, self.experts)), axis=1) + 1.0
        table = np.exp(self.affinity * rng.standard_normal(shape))
        table[:1] = 1
        table = table * ranks[:, None] ** -self.skew
        chances: Numbers = table / table.sum(axis=2, keepdims=True)
        return chances

    def draw(self, tokens: int, seed: int) -> Trace:
        """A trace of fresh tokens with one expert a layer, the same for the same seed."""
        rng = np.random.default_rng([self.seed, seed])
        found = np.zeros((self.layers, tokens, 1), dtype=np.int64)
        before = np.zeros(tokens, dtype=np.int64)
        for layer, table in enumerate(self.chances.cumsum(axis=2)):
            drawn = (table[before] < rng.random((tokens, 1))).sum(axis=1)
            before = np.minimum(drawn, self.experts - 1)
            found[layer, :, 0] = before
        return Trace(found, self.experts)
