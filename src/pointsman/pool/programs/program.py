"""A cascade of models as a probabilistic program whose random variables are texts.

Dohan et al., "Language Model Cascades" (2022, arXiv 2207.10342). A program is a plain function
that draws its variables from a `Run` and gives its answer back:

    def scratchpad(run):
        thought = run.sample("thought", think(question))
        return run.sample("answer", answer(question, thought))

The same function is drawn from, conditioned on what is known (`given`), or enumerated in full: see
`pool.programs.inference`. A conditional is a call of a model, of which nothing but draws are
known (`Call`), or a table of probabilities (`Table`).

Where we depart from the paper, which sketches a library: a variable is conditioned on by its name,
from outside of the program, and every trace carries what its calls cost.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from pointsman.errors import InputError

TOLERANCE = 1e-6  # how far from one the probabilities of a table may sum up


class Distribution(Protocol):
    """One random variable given everything that it hangs on.

    Attributes:
        cost: of one draw, in the unit that the caller uses throughout.
    """

    @property
    def cost(self) -> float:
        """Of one draw."""
        ...

    def draw(self, rng: np.random.Generator) -> str:
        """A value."""
        ...

    def log_probability(self, value: str) -> float:
        """Logarithm of a value's probability; -inf where it is impossible.

        Raises:
            InputError: it is not known.
        """
        ...

    def support(self) -> Mapping[str, float]:
        """Every possible value with its probability.

        Raises:
            InputError: they are not known.
        """
        ...


@dataclass(frozen=True)
class Table:
    """Finitely many values with their probabilities.

    Args:
        probabilities: not negative, summing to one.
        cost: of one draw.

    Raises:
        InputError: no value, a negative probability, or another sum.
    """

    probabilities: Mapping[str, float]
    cost: float = 0.0

    def __post_init__(self) -> None:
        values = self.probabilities.values()
        total = math.fsum(values)
        if not values or not min(values) >= 0 or not abs(total - 1) <= TOLERANCE:
            raise InputError(
                f"probabilities must not be negative and sum to one, got {dict(self.probabilities)}"
            )

    def draw(self, rng: np.random.Generator) -> str:
        """A value."""
        left = rng.random()
        value = ""
        for value, probability in self.probabilities.items():
            left -= probability
            if left < 0 and probability > 0:
                return value
        return max(self.probabilities, key=self.probabilities.__getitem__)  # rounding of the sum

    def log_probability(self, value: str) -> float:
        """Logarithm of a value's probability; -inf for a value that is not in the table."""
        probability = self.probabilities.get(value, 0.0)
        return math.log(probability) if probability > 0 else -math.inf

    def support(self) -> Mapping[str, float]:
        """Every value of positive probability."""
        return {value: p for value, p in self.probabilities.items() if p > 0}


@dataclass(frozen=True)
class Call:
    """A call of a model that gives a text and no probabilities: it can be drawn from, no more.

    Args:
        model: the call itself; it gets the generator of the run, for its seed.
        cost: of one call.
    """

    model: Callable[[np.random.Generator], str]
    cost: float = 0.0

    def draw(self, rng: np.random.Generator) -> str:
        """What the model says."""
        return self.model(rng)

    def log_probability(self, value: str) -> float:
        """Not known: a call that only gives text cannot be conditioned on."""
        raise InputError(
            f"a call of a model does not say how likely {value!r} is: condition on a variable that "
            "has a Table, such as the verdict of a verifier"
        )

    def support(self) -> Mapping[str, float]:
        """Not known."""
        raise InputError(
            "a call of a model does not list its values: draw from the program instead"
        )


@dataclass(frozen=True)
class Conditional:
    """Tables by the values of the parents: `conditional(question, thought)` is a `Table`.

    Args:
        tables: values of the parents to the probabilities of this variable.
        cost: of one draw.
    """

    tables: Mapping[tuple[str, ...], Mapping[str, float]]
    cost: float = 0.0

    def __call__(self, *parents: str) -> Table:
        """The table at these parents.

        Raises:
            InputError: there is none.
        """
        if parents not in self.tables:
            raise InputError(
                f"there is no table for {parents}: the parents known are "
                f"{', '.join(map(str, list(self.tables)[:4]))} …"
            )
        return Table(self.tables[parents], self.cost)


@dataclass(frozen=True)
class Trace:
    """One run of a program.

    Attributes:
        values: name to value, of every variable and tool, in order.
        result: what the program gave back.
        log_weight: logarithm of how likely what was conditioned on is, given the rest; for an
            enumerated run, of the whole run.
        cost: of all that was called.
    """

    values: Mapping[str, str]
    result: str
    log_weight: float
    cost: float


@dataclass
class Run:
    """What a program draws from while it runs once.

    Args:
        choose: gives the value of a variable that is not conditioned on.
        given: values conditioned on, by name.
    """

    choose: Callable[[str, Distribution], str]
    given: Mapping[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    log_weight: float = 0.0
    cost: float = 0.0

    def sample(self, name: str, distribution: Distribution) -> str:
        """The value of a random variable: drawn, or as given, which weighs the run.

        Raises:
            InputError: a variable of this name was there before.
        """
        if name in self.given:
            value = self.given[name]
            self.log_weight += distribution.log_probability(value)
        else:
            value = self.choose(name, distribution)
        self.cost += distribution.cost
        return self._keep(name, value)

    def observe(self, name: str, distribution: Distribution, value: str) -> None:
        """Weigh the run by how likely a value is that the program itself conditions on."""
        self.log_weight += distribution.log_probability(value)
        self.cost += distribution.cost
        self._keep(name, value)

    def tool(
        self, name: str, function: Callable[..., str], *arguments: str, cost: float = 0.0
    ) -> str:
        """A deterministic node, such as a calculator: computed, never drawn."""
        self.cost += cost
        return self._keep(name, function(*arguments))

    def _keep(self, name: str, value: str) -> str:
        if name in self.values:
            raise InputError(
                f"variables of one run have different names, {name!r} is there twice: "
                f'number it, as in "{name} 2"'
            )
        self.values[name] = value
        return value


Program = Callable[[Run], str]


def once(
    program: Program,
    choose: Callable[[str, Distribution], str],
    given: Mapping[str, str],
) -> Trace:
    """Run a program once.

    Raises:
        InputError: something was given that is no variable of this run.
    """
    run = Run(choose, given)
    result = program(run)
    unknown = [name for name in given if name not in run.values]
    if unknown:
        raise InputError(
            f"{unknown[0]!r} was given but the program has no such variable: it has "
            f"{', '.join(run.values)}"
        )
    return Trace(run.values, result, run.log_weight, run.cost)


@dataclass
class _Replay:
    """Takes the first values as told and then the first possible ones; the others wait."""

    told: Sequence[str]
    taken: list[str] = field(default_factory=list)
    waiting: list[tuple[str, ...]] = field(default_factory=list)
    log_probability: float = 0.0

    def __call__(self, name: str, distribution: Distribution) -> str:
        values = distribution.support()
        if len(self.taken) < len(self.told):
            value = self.told[len(self.taken)]
        else:
            value, *others = values
            self.waiting += [(*self.taken, other) for other in others]
        self.log_probability += math.log(values[value])
        self.taken.append(value)
        return value


def every(program: Program, given: Mapping[str, str]) -> Iterator[Trace]:
    """All runs of a program whose variables have finitely many values, weighed by probability."""
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        replay = _Replay(waiting.pop())
        trace = once(program, replay, given)
        waiting += replay.waiting
        yield replace(trace, log_weight=trace.log_weight + replay.log_probability)
