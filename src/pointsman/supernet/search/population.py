"""Population based training: hyperparameters that are found, and changed, while training.

Jaderberg et al., "Population Based Training of Neural Networks" (2017, arXiv 1711.09846). A
population trains side by side, each member under hyperparameters of its own. Every so many steps a
member that does poorly takes over the weights and hyperparameters of one that does well (exploit)
and changes the hyperparameters a little (explore). What comes out is a trained member and the
schedule of hyperparameters that led to it, at the cost of a random search of the same size.

Where we depart: members take turns in rounds (the paper's are asynchronous), so that one seed gives
one result.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from pointsman.errors import InputError

State = TypeVar("State")
Knobs = dict[str, float]

# (qualities of all members, random generator) -> for each member, whom it copies: itself or another
Exploit = Callable[[Sequence[float], np.random.Generator], list[int]]
# (hyperparameters, their ranges, random generator) -> others
Explore = Callable[[Knobs, Mapping[str, tuple[float, float]], np.random.Generator], Knobs]


@dataclass
class Member(Generic[State]):
    """One of the population.

    Args:
        state: weights and whatever else training carries along.
        knobs: hyperparameters in force.
        quality: after the last round; higher is better.
        schedule: (round, hyperparameters) from which they were in force, along its ancestors.
    """

    state: State
    knobs: Knobs
    quality: float = float("-inf")
    schedule: list[tuple[int, Knobs]] = field(default_factory=list)


def truncation(share: float = 0.2) -> Exploit:
    """The worst share of the population copies members of the best share, drawn at random."""

    def exploit(qualities: Sequence[float], rng: np.random.Generator) -> list[int]:
        order = np.argsort(qualities, kind="stable").tolist()
        count = max(1, round(share * len(order))) if len(order) > 1 else 0
        chosen = list(range(len(order)))
        for poor in order[:count]:
            chosen[poor] = int(order[len(order) - 1 - rng.integers(count)])
        return chosen

    return exploit


def tournament() -> Exploit:
    """Every member meets another at random and copies it if that one is better."""

    def exploit(qualities: Sequence[float], rng: np.random.Generator) -> list[int]:
        size = len(qualities)
        if size < 2:
            return list(range(size))
        met = [(at + 1 + int(rng.integers(size - 1))) % size for at in range(size)]
        return [m if qualities[m] > qualities[at] else at for at, m in enumerate(met)]

    return exploit


def perturb(factors: tuple[float, float] = (0.8, 1.2), resampled: float = 0.0) -> Explore:
    """Each hyperparameter times one of two factors, kept in its range; or drawn anew.

    Args:
        factors: of which one is drawn.
        resampled: probability of drawing anew from the range (uniform in the logarithm).
    """

    def explore(
        knobs: Knobs, ranges: Mapping[str, tuple[float, float]], rng: np.random.Generator
    ) -> Knobs:
        changed = {}
        for name, value in knobs.items():
            low, high = ranges[name]
            anew = rng.random() < resampled
            moved = drawn(low, high, rng) if anew else value * factors[int(rng.integers(2))]
            changed[name] = float(np.clip(moved, low, high))
        return changed

    return explore


def drawn(low: float, high: float, rng: np.random.Generator) -> float:
    """Uniform in the logarithm between two positive bounds."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def population_based_training(
    start: Callable[[int], State],
    train: Callable[[State, Knobs, int], State],
    judge: Callable[[State], float],
    ranges: Mapping[str, tuple[float, float]],
    *,
    rounds: int,
    size: int = 10,
    exploit: Exploit | None = None,
    explore: Explore | None = None,
    seed: int = 0,
) -> list[Member[State]]:
    """The population after training, best first; each with the schedule that led to it.

    Args:
        start: gives the state of a member by its number.
        train: a state after one more round under hyperparameters (state, hyperparameters, round);
            it may change the state that it was given.
        judge: quality of a state; higher is better.
        ranges: smallest and largest value of each hyperparameter, positive; first drawn uniformly
            in the logarithm.
        rounds: of training.
        size: of the population.
        exploit: who copies whom after a round; None: `truncation()`. A function that gives each its
            own number makes this a random search.
        explore: changes the hyperparameters of a copy; None: `perturb()`.
        seed: of every draw.

    Raises:
        InputError: no round, no member, or a range that is not positive and rising.
    """
    for name, (low, high) in ranges.items():
        if not 0 < low <= high:
            raise InputError(f"a range is positive and rising, {name!r} got ({low}, {high})")
    if rounds < 1 or size < 1:
        raise InputError(f"training has at least one round and member, got {rounds} and {size}")
    rng = np.random.default_rng(seed)
    exploit, explore = exploit or truncation(), explore or perturb()
    members = []
    for number in range(size):
        knobs = {name: drawn(low, high, rng) for name, (low, high) in ranges.items()}
        members.append(Member(start(number), knobs, schedule=[(0, dict(knobs))]))
    for turn in range(rounds):
        for member in members:
            member.state = train(member.state, member.knobs, turn)
            member.quality = judge(member.state)
        if turn < rounds - 1:
            _renew(members, exploit, explore, ranges, turn + 1, rng)
    return sorted(members, key=lambda member: _rank(member.quality), reverse=True)


def _rank(quality: float) -> float:
    """A member that diverged comes last."""
    return -np.inf if np.isnan(quality) else quality


def _renew(
    members: list[Member[State]],
    exploit: Exploit,
    explore: Explore,
    ranges: Mapping[str, tuple[float, float]],
    turn: int,
    rng: np.random.Generator,
) -> None:
    chosen = exploit([_rank(member.quality) for member in members], rng)
    kept = list(members)
    for at, other in enumerate(chosen):
        if other == at:
            continue
        source = kept[other]
        knobs = explore(dict(source.knobs), ranges, rng)
        members[at] = Member(
            copy.deepcopy(source.state), knobs, source.quality, [*source.schedule, (turn, knobs)]
        )
