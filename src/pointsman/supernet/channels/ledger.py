"""What is known of every tensor while a network runs: labels of its positions, where it came from.

Legend: P positions of a dimension.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pointsman.supernet.channels.labels import Factors, Labels, as_factors


@dataclass(frozen=True)
class Call:
    """One operation that ran."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def option(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by place or by name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)


@dataclass(frozen=True, eq=False)
class Site:
    """Where a module may have a length written down: it split, merged or cut a dimension.

    Attributes:
        module: its name.
        factor: of what went in or came out, in full shape.
        dims: whose lengths are not on the other side.
    """

    module: str
    factor: Tensor
    dims: tuple[int, ...]


class Ledger:
    """Labels of all tensors met so far.

    A tensor is free if nothing but sizes made it: its dimensions take whatever labels they meet.
    It is moved if it depends on inputs or parameters that are no integers, so that a branch on it
    may go another way.
    """

    def __init__(self) -> None:
        self.labels = Labels()
        self.inexact: list[Tensor] = []
        self.sites: list[Site] = []
        self.module: str | None = None  # that runs
        self.numbers: frozenset[int] = (
            frozenset()
        )  # whole numbers that this module has as attributes
        self._factors: dict[int, Factors] = {}
        self._free: set[int] = set()
        self._moved: set[int] = set()
        self._alive: list[Tensor] = []  # or another tensor would come to have its id

    def give(self, x: Tensor, factors: Factors, *, free: bool = False) -> None:
        """Write down a tensor's labels."""
        self._alive.append(x)
        self._factors[id(x)] = factors
        (self._free.add if free else self._free.discard)(id(x))

    def move(self, x: Tensor) -> None:
        """Write down that it depends on real numbers of the input or of the network."""
        self._moved.add(id(x))

    def is_moved(self, x: Tensor) -> bool:
        """Whether it depends on real numbers of the input or of the network."""
        return id(x) in self._moved

    def note_length(self, vector: Tensor | None) -> None:
        """The module that runs may have this dimension's length as an attribute."""
        if vector is not None and self.module is not None:
            self.sites.append(Site(self.module, vector, (0,)))

    def written(self, sizes: Sequence[int]) -> bool:
        """Whether the module that runs has these lengths as attributes, so they can be changed."""
        return set(sizes) <= self.numbers

    def is_free(self, x: Tensor) -> bool:
        """Whether nothing but sizes made it."""
        return id(x) in self._free

    def factors(self, x: Tensor) -> Factors:
        """Its labels as they are by now."""
        factors = self.labels.simplified(self._factors.get(id(x), []))
        self._factors[id(x)] = factors
        return factors

    def vectors(self, x: Tensor) -> list[Tensor | None]:
        """(P,) labels of each dimension, or None: what an operation on the numbers goes by."""
        vectors = self.labels.settle(self._factors.get(id(x), []), x.dim())
        self._factors[id(x)] = as_factors(vectors)
        return vectors

    def fix(self, x: Tensor) -> None:
        """Nothing of this tensor can ever be removed."""
        for factor in self._factors.get(id(x), []):
            self.labels.fix(factor)
        self._factors[id(x)] = []

    def fix_dim(self, x: Tensor, dim: int) -> None:
        """Nothing along this dimension can ever be removed."""
        for factor in self._factors.get(id(x), []):
            if factor.shape[dim] > 1:
                self.labels.fix(factor)

    def set(self, out: Tensor, vectors: Sequence[Tensor | None]) -> None:
        """Write down labels by dimension."""
        self.give(out, as_factors(vectors))

    def meet(self, *meeting: tuple[Tensor | None, bool]) -> Tensor | None:
        """Labels of one dimension in which several tensors meet position by position.

        Args:
            *meeting: (P,) labels or None of each, and whether it is free.

        Returns:
            The labels of all; None if one of them has none and is not free: then all are fixed.
        """
        vectors = [vector for vector, _ in meeting if vector is not None]
        for vector in vectors[1:]:
            self.labels.tie(vectors[0], vector)
        if vectors and any(vector is None and not free for vector, free in meeting):
            self.labels.fix(vectors[0])
            return None
        return vectors[0] if vectors else None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


def expanded(factor: Tensor, shape: Sequence[int]) -> Tensor:
    """A factor in the full shape of its tensor, without copying."""
    return factor.expand(*shape) if len(shape) else factor.reshape(())
