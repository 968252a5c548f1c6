"""Which evaluation to use at which step: evolutionary search of a plan.

Denoising diffusion step-aware models (Yang et al. 2023, arXiv 2310.03337) search one width of a
slimmable network for each step. A plan is a row of K choices; the search starts from the uniform
plans and random ones, and makes children by one-point crossover and mutation of single entries.

Where we depart from the paper: no plan is evaluated twice, the better half of parents and children
together survive, and entries mutate at a rate of about one a plan (theirs, 0.001 of 1,000 entries,
is the same number).

Legend: K steps, E choices.
"""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from pointsman.cost import Cost
from pointsman.errors import InputError

PlanOf = tuple[int, ...]


class PlanSearch:
    """Evolutionary search of a plan of least loss.

    Args:
        choices: E; a plan's entries are 0 to E - 1.
        steps: K.
        population: plans that survive a generation; at least the E uniform ones are evaluated.
        generations: rounds of children.
        mutation: probability of an entry to change; None: 1 / K.
        seed: of everything random.

    Attributes:
        plan_: the best plan.
        loss_: its loss.
        losses_: plan → loss, of all that were evaluated.
        history_: best loss after each generation, the first one included.
    """

    plan_: PlanOf
    loss_: float
    losses_: dict[PlanOf, float]
    history_: list[float]

    def __init__(
        self,
        choices: int,
        steps: int,
        *,
        population: int = 16,
        generations: int = 10,
        mutation: float | None = None,
        seed: int = 0,
    ) -> None:
        self.choices, self.steps = choices, steps
        self.population, self.generations = population, generations
        self.mutation, self.seed = mutation, seed

    def fit(self, loss: Callable[[PlanOf], float]) -> Self:
        """Search.

        Args:
            loss: of a plan; the same for the same plan (fix the noise that it samples from).

        Raises:
            InputError: counts below 1, fewer than 2 survivors, or a loss that is NaN.
        """
        if min(self.choices, self.steps) < 1 or self.population < 2 or self.generations < 0:
            raise InputError(
                "a search needs a choice, a step and a population of at least 2, got "
                f"choices={self.choices}, steps={self.steps}, population={self.population}, "
                f"generations={self.generations}"
            )
        rng = np.random.default_rng(self.seed)
        self.losses_, self.history_ = {}, []
        plans = [(choice,) * self.steps for choice in range(self.choices)]
        while len(plans) < self.population:
            plans.append(_plan(rng.integers(self.choices, size=self.steps)))
        self._evaluate(loss, plans)
        for _ in range(self.generations):
            parents = self._best(self.population)
            self._evaluate(loss, [self._child(parents, rng) for _ in range(self.population)])
        self.plan_ = self._best(1)[0]
        self.loss_ = self.losses_[self.plan_]
        return self

    def _child(self, parents: Sequence[PlanOf], rng: np.random.Generator) -> PlanOf:
        one, two = (parents[at] for at in rng.integers(len(parents), size=2))
        cut = int(rng.integers(self.steps + 1))
        child = np.array(one[:cut] + two[cut:])
        rate = 1 / self.steps if self.mutation is None else self.mutation
        changed = rng.random(self.steps) < rate
        return _plan(np.where(changed, rng.integers(self.choices, size=self.steps), child))

    def _evaluate(self, loss: Callable[[PlanOf], float], plans: Sequence[PlanOf]) -> None:
        for plan in plans:
            if plan not in self.losses_:
                self.losses_[plan] = float(loss(plan))
                if np.isnan(self.losses_[plan]):
                    raise InputError(f"the loss of a plan must be a number, got NaN for {plan}")
        self.history_.append(min(self.losses_.values()))

    def _best(self, count: int) -> list[PlanOf]:
        return sorted(self.losses_, key=lambda plan: self.losses_[plan])[:count]


def plan_cost(plan: Sequence[int], per_choice: Cost) -> Cost:
    """What one sample spends on a plan's evaluations in all; -1 is free.

    Args:
        plan: K choices.
        per_choice: amount (E,).
    """
    amounts = np.asarray(per_choice.amount, dtype=float)
    return Cost(float(sum(amounts[choice] for choice in plan if choice >= 0)), per_choice.unit)


def random_plans(
    count: int,
    steps: int,
    per_choice: Cost,
    *,
    at_least: Cost,
    at_most: Cost,
    seed: int = 0,
    tries: int = 100_000,
) -> list[PlanOf]:
    """Different random plans whose cost lies in a range: what a searched plan is held against.

    Each plan draws its entries with shares of its own, so that costs all over the range come up.

    Args:
        count: how many.
        steps: K.
        per_choice: amount (E,).
        at_least: of the whole plan.
        at_most: of the whole plan.
        seed: of the draws.
        tries: draws until it is given up.

    Raises:
        InputError: too few plans in the range were found.
        UnitError: costs in different units.
    """
    rng = np.random.default_rng(seed)
    choices, found = len(np.asarray(per_choice.amount)), dict[PlanOf, None]()
    for _ in range(tries):
        if len(found) == count:
            break
        shares = rng.dirichlet(np.ones(choices))
        plan = _plan(rng.choice(choices, size=steps, p=shares))
        if at_least <= plan_cost(plan, per_choice) <= at_most:
            found[plan] = None
    if len(found) < count:
        raise InputError(
            f"{tries} random plans held {len(found)} that cost between {at_least} and {at_most}, "
            f"{count} were asked for: widen the range"
        )
    return list(found)


def _plan(entries: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> PlanOf:
    return tuple(int(entry) for entry in entries)
