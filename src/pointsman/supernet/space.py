"""What may vary in a network: named choices, and the genotypes that take one option of each.

A `Space` is data without weights: search, predictors and histories work on it alone, so that they
serve networks, data pipelines or anything else that a function of the chosen options can judge.

Legend: N genotypes, C choices, F features (the options of all choices, one after another).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from pointsman.errors import InputError

Option = int | float | str | bool
Genotype = tuple[int, ...]  # for every choice of a space, the index of the option taken


@dataclass(frozen=True)
class Choice:
    """One decision: a name and at least one option.

    Args:
        name: such as "stages.1.depth"; unique in its space.
        options: distinct plain values, in the order of their size where they have one.
        when: (name of an earlier choice, options of it) under which this choice matters; None:
            always. A genotype that differs only in a choice that does not matter is the same.

    Raises:
        InputError: no option, two alike, or one that is no plain value.
    """

    name: str
    options: tuple[Option, ...]
    when: tuple[str, tuple[Option, ...]] | None = None

    def __post_init__(self) -> None:
        kinds = {(type(option), option) for option in self.options}
        if not self.options or len(kinds) < len(self.options):
            raise InputError(
                f"a choice has distinct options, {self.name!r} got {list(self.options)}"
            )
        for option in self.options:
            if not isinstance(option, int | float | str | bool):
                raise InputError(
                    f"an option is a number, a text or a truth value, {self.name!r} got {option!r}"
                )

    def index(self, option: Any) -> int:
        """Where an option stands.

        Raises:
            InputError: it is none of them.
        """
        try:
            return self.options.index(option)
        except ValueError:
            raise InputError(
                f"{self.name!r} is one of {list(self.options)}, got {option!r}"
            ) from None


class Space:
    """A finite set of genotypes: every combination of options of its choices.

    All methods that give genotypes give canonical ones, in which a choice that does not matter
    takes its first option, so equal networks have equal genotypes.

    Args:
        choices: in order; one that depends on another comes after it.

    Raises:
        InputError: no choice, two of one name, or a `when` that names no earlier choice's option.
    """

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.choices = tuple(choices)
        if not self.choices:
            raise InputError("a space has at least one choice, got none")
        self._parents: list[tuple[int, frozenset[int]] | None] = []
        at: dict[str, int] = {}
        for place, choice in enumerate(self.choices):
            if choice.name in at:
                raise InputError(
                    f"the choices of a space have names of their own, {choice.name!r} stands twice"
                )
            self._parents.append(self._parent(choice, at))
            at[choice.name] = place
        self._at = at
        sizes = [len(choice.options) for choice in self.choices]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def _parent(self, choice: Choice, at: Mapping[str, int]) -> tuple[int, frozenset[int]] | None:
        if choice.when is None:
            return None
        name, options = choice.when
        if name not in at:
            raise InputError(
                f"{choice.name!r} depends on {name!r}, which is no earlier choice: "
                f"those are {list(at)}"
            )
        parent = self.choices[at[name]]
        return at[name], frozenset(parent.index(option) for option in options)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the choices, in order."""
        return tuple(choice.name for choice in self.choices)

    @cached_property
    def digest(self) -> str:
        """One text for one space: two spaces that have it share every name and option."""
        plain = [[c.name, list(c.options), c.when] for c in self.choices]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]

    def active(self, genotype: Genotype) -> tuple[bool, ...]:
        """Which choices matter, given the others."""
        active: list[bool] = []
        for parent in self._parents:
            active.append(
                parent is None or (active[parent[0]] and genotype[parent[0]] in parent[1])
            )
        return tuple(active)

    def canonical(self, genotype: Sequence[int]) -> Genotype:
        """The genotype with the first option wherever a choice does not matter.

        Raises:
            InputError: another number of choices, or an index beyond a choice's options.
        """
        given = tuple(int(index) for index in genotype)
        if len(given) != len(self.choices):
            raise InputError(
                f"a genotype of this space has {len(self.choices)} choices, got {len(given)}"
            )
        for choice, index in zip(self.choices, given, strict=True):
            if not 0 <= index < len(choice.options):
                raise InputError(
                    f"{choice.name!r} has {len(choice.options)} options, got index {index}"
                )
        active = self.active(given)
        return tuple(i if on else 0 for i, on in zip(given, active, strict=True))

    def decode(self, genotype: Sequence[int]) -> dict[str, Option]:
        """The option of each choice that matters, by name.

        Raises:
            InputError: this is no genotype of the space.
        """
        taken = self.canonical(genotype)
        return {
            choice.name: choice.options[index]
            for choice, index, on in zip(self.choices, taken, self.active(taken), strict=True)
            if on
        }

    def encode(self, values: Mapping[str, Any]) -> Genotype:
        """The genotype of these options; a choice that does not matter need not be there.

        Raises:
            InputError: a choice that matters is missing, a name is unknown, or an option is none.
        """
        unknown = set(values) - set(self._at)
        if unknown:
            raise InputError(f"the choices are {list(self.names)}, got {sorted(unknown)[0]!r} too")
        taken = tuple(c.index(values[c.name]) if c.name in values else 0 for c in self.choices)
        for choice, on in zip(self.choices, self.active(taken), strict=True):
            if on and choice.name not in values:
                raise InputError(
                    f"no option for {choice.name!r}: give one of {list(choice.options)}"
                )
        return self.canonical(taken)

    def count(self) -> int:
        """How many genotypes there are."""
        counts: list[list[int]] = [[1] * len(choice.options) for choice in self.choices]
        for place in reversed(range(len(self.choices))):
            parent = self._parents[place]
            if parent is not None:
                below = sum(counts[place])
                for option in parent[1]:
                    counts[parent[0]][option] *= below
        roots = (place for place, parent in enumerate(self._parents) if parent is None)
        return prod(sum(counts[place]) for place in roots)

    def enumerate(self) -> Iterator[Genotype]:
        """Every genotype once, in lexicographic order."""
        taken: list[int] = []

        def below(place: int) -> Iterator[Genotype]:
            if place == len(self.choices):
                yield tuple(taken)
                return
            parent = self._parents[place]
            on = parent is None or (live[parent[0]] and taken[parent[0]] in parent[1])
            live.append(on)
            for index in range(len(self.choices[place].options) if on else 1):
                taken.append(index)
                yield from below(place + 1)
                taken.pop()
            live.pop()

        live: list[bool] = []
        return below(0)

    def sample(self, rng: np.random.Generator) -> Genotype:
        """A genotype whose choices are drawn one by one, each option with equal probability."""
        return self.canonical([int(rng.integers(len(choice.options))) for choice in self.choices])

    def mutate(
        self, genotype: Genotype, rng: np.random.Generator, rate: float | None = None
    ) -> Genotype:
        """Another genotype: each choice that matters takes another option at this rate.

        Args:
            genotype: is left as it is.
            rng: of the draw.
            rate: probability of each; None: one change on average. At least one choice changes,
                unless there is nothing to change.
        """
        mutable = [
            place
            for place, on in enumerate(self.active(genotype))
            if on and len(self.choices[place].options) > 1
        ]
        if not mutable:
            return genotype
        share = 1 / len(mutable) if rate is None else rate
        changed = [place for place in mutable if rng.random() < share]
        child = list(genotype)
        for place in changed or [mutable[rng.integers(len(mutable))]]:
            other = int(rng.integers(len(self.choices[place].options) - 1))
            child[place] = other + (other >= genotype[place])
        return self.canonical(child)

    def cross(self, one: Genotype, other: Genotype, rng: np.random.Generator) -> Genotype:
        """A child that takes every choice from either parent with equal probability."""
        from_one = rng.random(len(self.choices)) < 0.5
        return self.canonical(
            [a if first else b for a, b, first in zip(one, other, from_one, strict=True)]
        )

    def neighbours(self, genotype: Genotype) -> Iterator[Genotype]:
        """Every genotype that differs in one choice that matters."""
        for place, on in enumerate(self.active(genotype)):
            for index in range(len(self.choices[place].options) if on else 0):
                if index != genotype[place]:
                    yield self.canonical((*genotype[:place], index, *genotype[place + 1 :]))

    def features(self, genotypes: Sequence[Genotype]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(N, F) of 0 and 1: one column an option; all 0 where a choice does not matter."""
        features_NF = np.zeros((len(genotypes), int(self.starts[-1])))
        for row, genotype in enumerate(genotypes):
            for place, on in enumerate(self.active(genotype)):
                if on:
                    features_NF[row, self.starts[place] + genotype[place]] = 1
        return features_NF

    def __contains__(self, genotype: object) -> bool:
        try:
            return self.canonical(genotype) == genotype  # type: ignore[arg-type]
        except (InputError, TypeError, ValueError):
            return False

    def __repr__(self) -> str:
        return f"Space({len(self.choices)} choices, {self.count():,} genotypes)"
