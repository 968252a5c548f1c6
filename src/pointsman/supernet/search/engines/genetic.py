"""Evolution of lists of units: networks whose depth is open, crossed at unit boundaries.

Sun et al., "Automatically Evolving CNN Architectures Based on Blocks" (2018, arXiv 1810.11875),
AE-CNN. A network is a list of units (residual, dense or pooling), each with parameters of its own.
Parents are chosen by binary tournament; with probability 0.9 they are cut at a unit boundary, each
at its own, and their tails exchanged, so that lengths change; with probability 0.2 a child gains a
unit, loses one, or has one altered. The survivors are drawn from parents and children by binary
tournament, and the best is always among them.

What was settled: published code selects survivors by roulette, the paper describes tournaments;
tournaments are taken here. A child that was evaluated before is mutated until it is new, so that no
evaluation is repeated (the paper looks fitness up).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pointsman.errors import InputError
from pointsman.supernet.search.drawing import Drawing
from pointsman.supernet.search.engine import Engine, Proposals
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Choice, Genotype, Option, Space

Unit = tuple[int, ...]  # index of the kind, then of each of its parameters' options
MIX = (0.4, 0.3, 0.3)  # of mutations: add a unit, remove one, alter one
TRIES = 50


@dataclass(frozen=True)
class Kind:
    """A kind of unit.

    Args:
        name: such as "residual".
        parameters: options by name, such as {"channels": (8, 16)}; may be empty.
        first: whether a list may begin with it.
        most: how many of them a list may have; None: any number.
    """

    name: str
    parameters: tuple[tuple[str, tuple[Option, ...]], ...] = ()
    first: bool = True
    most: int | None = None


class UnitLists:
    """Lists of 1 to `longest` units, as a space: choices for the length, and for every place.

    Args:
        kinds: of units.
        longest: number of units.

    Raises:
        InputError: no kind, none that a list may begin with, or no place.
    """

    def __init__(self, kinds: Sequence[Kind], longest: int) -> None:
        self.kinds, self.longest = tuple(kinds), longest
        if longest < 1 or not any(kind.first for kind in self.kinds):
            raise InputError(
                "lists of units have a place and a kind that may come first, got "
                f"{longest} places and {[kind.name for kind in self.kinds]}"
            )
        choices = [Choice("length", tuple(range(1, longest + 1)))]
        self._at: list[dict[int, list[int]]] = []  # by place and kind: where its parameters stand
        for place in range(longest):
            reached = ("length", tuple(range(place + 1, longest + 1)))
            choices.append(Choice(f"{place}.kind", tuple(k.name for k in self.kinds), reached))
            self._at.append({})
            for number, kind in enumerate(self.kinds):
                here = (f"{place}.kind", (kind.name,))
                self._at[place][number] = []
                for name, options in kind.parameters:
                    self._at[place][number].append(len(choices))
                    choices.append(Choice(f"{place}.{kind.name}.{name}", options, here))
        self.space = Space(choices)
        self._kind_at = [self.space.names.index(f"{place}.kind") for place in range(longest)]

    def units(self, genotype: Genotype) -> list[Unit]:
        """The list that a genotype stands for."""
        found = []
        for place in range(genotype[0] + 1):
            kind = genotype[self._kind_at[place]]
            found.append((kind, *(genotype[at] for at in self._at[place][kind])))
        return found

    def genotype(self, units: Sequence[Unit]) -> Genotype:
        """The genotype of a list.

        Raises:
            InputError: the list is empty or too long, or an index is none.
        """
        if not 1 <= len(units) <= self.longest:
            raise InputError(f"a list has 1 to {self.longest} units, got {len(units)}")
        taken = [0] * len(self.space.choices)
        taken[0] = len(units) - 1
        for place, (kind, *options) in enumerate(units):
            taken[self._kind_at[place]] = kind
            for at, index in zip(self._at[place][kind], options, strict=True):
                taken[at] = index
        return self.space.canonical(taken)

    def named(self, genotype: Genotype) -> list[tuple[str, dict[str, Option]]]:
        """Kind and parameters of every unit, to build a network from."""
        return [
            (
                self.kinds[kind].name,
                {
                    name: options[index]
                    for (name, options), index in zip(
                        self.kinds[kind].parameters, indices, strict=True
                    )
                },
            )
            for kind, *indices in self.units(genotype)
        ]

    def valid(self, units: Sequence[Unit]) -> bool:
        """Whether the list is of a permitted length, beginning and number of each kind."""
        if not 1 <= len(units) <= self.longest or not self.kinds[units[0][0]].first:
            return False
        counts = [sum(unit[0] == number for unit in units) for number in range(len(self.kinds))]
        return all(k.most is None or n <= k.most for k, n in zip(self.kinds, counts, strict=True))

    def unit(self, rng: np.random.Generator) -> Unit:
        """One at random: each kind, then each option with equal probability."""
        kind = int(rng.integers(len(self.kinds)))
        parameters = self.kinds[kind].parameters
        return (kind, *(int(rng.integers(len(options))) for _, options in parameters))

    def sample(self, rng: np.random.Generator) -> list[Unit]:
        """A valid list at random: its length, then its units."""
        while True:
            units = [self.unit(rng) for _ in range(int(rng.integers(1, self.longest + 1)))]
            if self.valid(units):
                return units

    def cross(
        self, one: Sequence[Unit], other: Sequence[Unit], rng: np.random.Generator
    ) -> tuple[list[Unit], list[Unit]]:
        """Two children with exchanged tails; the parents again where no valid cut is found."""
        for _ in range(TRIES):
            a, b = int(rng.integers(len(one) + 1)), int(rng.integers(len(other) + 1))
            children = [*one[:a], *other[b:]], [*other[:b], *one[a:]]
            if self.valid(children[0]) and self.valid(children[1]):
                return children
        return list(one), list(other)

    def mutate(self, units: Sequence[Unit], rng: np.random.Generator) -> list[Unit]:
        """One unit more, one fewer, or one altered; the list itself where nothing is valid."""
        for _ in range(TRIES):
            child, at = list(units), int(rng.integers(len(units)))
            how = int(rng.choice(3, p=MIX))
            if how == 0:
                child.insert(int(rng.integers(len(units) + 1)), self.unit(rng))
            elif how == 1:
                del child[at]
            else:
                child[at] = self.unit(rng)
            if self.valid(child) and child != list(units):
                return child
        return list(units)


def evolve_lists(
    lists: UnitLists, population: int = 20, crossover: float = 0.9, mutation: float = 0.2
) -> Engine:
    """An engine for problems over `lists.space`, by quality alone, within the problem's budget.

    Args:
        lists: of units.
        population: individuals, the first ones drawn at random; the paper has 20.
        crossover: probability that two parents exchange tails.
        mutation: probability that a child is changed.

    Raises:
        InputError: fewer than two individuals.
    """
    if population < 2:
        raise InputError(f"a population has at least 2 individuals, got {population}")

    def engine(problem: Problem, seed: int) -> Proposals:
        rng = np.random.default_rng(seed)
        drawing = Drawing(problem, rng)

        def new(units: list[Unit]) -> Genotype | None:
            """A child that was not evaluated before, mutated until it is none."""
            for _ in range(TRIES):
                genotype = lists.genotype(units)
                if drawing.new(genotype):
                    drawing.take([genotype])
                    return genotype
                units = lists.mutate(units, rng)
            return None

        first = [new(lists.sample(rng)) for _ in range(population)]
        people = list((yield [genotype for genotype in first if genotype is not None]))
        while people:
            children: list[Genotype] = []
            while len(children) < population:
                pair = [new(units) for units in _pair(lists, people, crossover, mutation, rng)]
                fresh = [genotype for genotype in pair if genotype is not None]
                children += fresh
                if not fresh:
                    break
            if not children:
                return
            answers = yield children[:population]
            people = _survivors([*people, *answers], population, rng)

    return engine


def _pair(
    lists: UnitLists,
    people: Sequence[Evaluation],
    crossover: float,
    mutation: float,
    rng: np.random.Generator,
) -> list[list[Unit]]:
    """The two children of two parents."""
    parents = [lists.units(_tournament(people, rng).genotype) for _ in range(2)]
    pair = parents
    if rng.random() < crossover:
        pair = list(lists.cross(parents[0], parents[1], rng))
    return [lists.mutate(u, rng) if rng.random() < mutation else u for u in pair]


def _tournament(people: Sequence[Evaluation], rng: np.random.Generator) -> Evaluation:
    """The better of two different ones."""
    if len(people) == 1:
        return people[0]
    one, other = rng.choice(len(people), 2, replace=False)
    return max(people[int(one)], people[int(other)], key=_fitness)


def _survivors(
    people: Sequence[Evaluation], size: int, rng: np.random.Generator
) -> list[Evaluation]:
    """The best of all, and others by tournament, each once."""
    left = sorted(people, key=_fitness, reverse=True)
    kept = [left.pop(0)]
    while left and len(kept) < size:
        winner = _tournament(left, rng)
        left.remove(winner)
        kept.append(winner)
    return kept


def _fitness(each: Evaluation) -> tuple[float, Genotype]:
    """By quality; a failure is below everything."""
    return (-np.inf if each.failed else each.quality), each.genotype
