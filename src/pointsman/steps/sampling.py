"""A sampler's run in which a policy decides, per step and per sample, which evaluations happen.

Four things, each replaced without touching the others:

    policy.choose    a `Route`: which samples see which evaluations of the network at this step
    evaluations      run on exactly those rows, and paid for
    policy.settle    one prediction for every sample: what was computed, or made from earlier steps
    sampler.step     from time t to the next

The weights of the route mix what a sample's evaluations gave. Guidance at scale s is the two
evaluations "conditional" and "unconditional" under the weights s and 1 - s; a sample with one
evaluation has the weight 1, and one with none is left out of the route and costs nothing.

Legend: n samples, K steps, E evaluations, N routed pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pointsman.cost import Cost, flops_per_input
from pointsman.errors import InputError, RouteError, UnitError
from pointsman.route import Route

# x (m, ...), time t, condition (m, ...) or None -> prediction (m, ...)
Run = Callable[[Tensor, float, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One way of asking a network, with what a sample pays for it.

    Attributes:
        name: shown in errors and tables.
        run: x of m samples, the time, and their conditions -> predictions (m, ...).
        cost: of one sample, a single number with a unit.
    """

    name: str
    run: Run
    cost: Cost

    @classmethod
    def counted(
        cls, name: str, run: Run, x: Tensor, condition: Tensor | None = None
    ) -> "Evaluation":
        """An evaluation whose cost is counted, in MFLOPs, on an example.

        Args:
            name: of it.
            run: see above.
            x: example of at least one sample.
            condition: of these samples.
        """
        return cls(name, run, flops_per_input(lambda x: run(x, 0.5, condition), x))

    def under(self, name: str, condition: float) -> "Evaluation":
        """The same evaluation with one condition for all samples: none at all, or a negative one.

        Args:
            name: of the new evaluation.
            condition: put in the place of every sample's own.
        """

        def run(x: Tensor, t: float, own: Tensor | None) -> Tensor:
            if own is None:
                raise InputError(
                    f"evaluation {name!r} replaces the conditions of samples that have some: "
                    "give sample(..., condition=)"
                )
            return self.run(x, t, torch.full_like(own, condition))

        return Evaluation(name, run, self.cost)


@dataclass(frozen=True, eq=False)
class Moment:
    """Where a run stands when it decides about one step.

    Attributes:
        step: k, from 0.
        steps: K.
        t: the time that x is at.
        s: the time that this step goes to, below t.
        x: (n, ...), of all samples.
        evaluations: E.
    """

    step: int
    steps: int
    t: float
    s: float
    x: Tensor
    evaluations: int

    def everyone(self, evaluation: int) -> Route:
        """The route on which every sample sees this one evaluation."""
        chosen = torch.full((len(self.x), 1), evaluation, device=self.x.device)
        return Route.from_indices(chosen, num_branches=self.evaluations)


@dataclass(frozen=True, eq=False)
class Computed:
    """What the evaluations of one step gave.

    Attributes:
        route: that was run.
        rows: (N, ...) predictions, sorted by evaluation; None where nothing was run.
        earlier: (n, ...) predictions for samples that were left out; None: there are none.
    """

    route: Route
    rows: Tensor | None
    earlier: Tensor | None = None

    def of(self, evaluation: int) -> tuple[Tensor, Tensor]:
        """Which samples (m,) saw this evaluation, and what it predicted for them, (m, ...).

        Raises:
            RouteError: nothing was run at this step.
        """
        if self.rows is None:
            raise RouteError("no evaluation was run at this step: ask for none of them")
        order = self.route.by_branch()
        start, end = order.offsets[evaluation : evaluation + 2].tolist()
        return order.inputs[start:end], self.rows[start:end]

    def prediction(self) -> Tensor:
        """One prediction for every sample: what was computed, mixed; else the earlier one.

        Raises:
            RouteError: a sample was left out and there is nothing from earlier.
        """
        out, earlier = self.route.dropped(), self.earlier
        if earlier is None and bool(out.any()):
            raise RouteError(
                f"a step may leave out samples that were evaluated before, got sample "
                f"{int(out.nonzero()[0])} left out without: evaluate everything at the first step"
            )
        if self.rows is None:
            assert earlier is not None  # somebody was left out
            return earlier
        route = self.route.weighted(self.route.weights.to(self.rows.dtype))
        mixed = route.combine(self.rows)
        if earlier is None or not bool(out.any()):
            return mixed
        return torch.where(per_sample(out, mixed), earlier, mixed)


def per_sample(values_n: Tensor, like: Tensor) -> Tensor:
    """(n,) → (n, 1, ...), to be broadcast over samples (n, ...)."""
    return values_n.view(-1, *[1] * (like.ndim - 1))


class Settled(NamedTuple):
    """What a policy hands the sampler.

    Fields: `prediction` (n, ...) for every sample; `memory`, for the next step; `x` (n, ...), the
    state to step from where that is not the moment's own.
    """

    prediction: Tensor
    memory: Any
    x: Tensor | None = None


class StepPolicy(Protocol):
    """Which evaluations happen, and what stands in for those that do not.

    A policy holds nothing about a run: what it has to remember is handed to it and taken back.
    """

    def choose(self, now: Moment, memory: Any) -> Route:
        """Which samples see which evaluations: a route of n inputs over E branches.

        Args:
            now: the moment.
            memory: what `settle` gave at the step before; None at the first.
        """
        ...

    def settle(self, now: Moment, computed: Computed, memory: Any) -> Settled:
        """A prediction for every sample.

        Args:
            now: the moment, as for `choose`.
            computed: what the chosen evaluations gave.
            memory: as for `choose`.
        """
        ...


class Sampler(Protocol):
    """How a prediction takes samples from one time to the next."""

    def step(
        self, now: Moment, prediction: Tensor, memory: Any, generator: torch.Generator | None
    ) -> tuple[Tensor, Any]:
        """x at the time `now.s`, and what the sampler has to remember.

        Random numbers are drawn for all samples at every step, so that two policies that start
        from one seed meet the same ones.

        Args:
            now: with x at the time `now.t`.
            prediction: (n, ...).
            memory: what it gave at the step before; None at the first.
            generator: of random numbers; None: torch's own.
        """
        ...


@dataclass(frozen=True, eq=False)
class Sampled:
    """What came out, and how.

    Attributes:
        x: (n, ...) at the last time.
        routes: one a step; which samples saw which evaluations.
        per_evaluation: amount (E,), what a sample pays for each.
        memory: what the policy remembered at the end.
        path: x at every time, if it was kept; K + 1 of them.
    """

    x: Tensor
    routes: tuple[Route, ...]
    per_evaluation: Cost
    memory: Any = None
    path: tuple[Tensor, ...] = ()

    @property
    def cost(self) -> Cost:
        """Amount (n,): what each sample spent in all."""
        amount = np.zeros(len(self.x))
        for route in self.routes:
            amount = amount + route.cost(self.per_evaluation).amount
        return Cost(amount, self.per_evaluation.unit)

    @property
    def evaluations(self) -> Tensor:
        """(n,) int64: how many evaluations each sample saw."""
        counts = [route.branches_per_input() for route in self.routes]
        return torch.stack(counts).sum(dim=0)

    @property
    def route(self) -> Route:
        """All steps as one route: its input i K + k is sample i at step k."""
        steps = len(self.routes)
        return Route.from_triples(
            torch.cat([route.inputs * steps + k for k, route in enumerate(self.routes)]),
            torch.cat([route.branches for route in self.routes]),
            torch.cat([route.weights for route in self.routes]),
            num_inputs=len(self.x) * steps,
            num_branches=self.routes[0].num_branches,
        )


@torch.no_grad()
def sample(
    evaluations: Sequence[Evaluation],
    policy: StepPolicy,
    sampler: Sampler,
    x: Tensor,
    times: Sequence[float],
    *,
    condition: Tensor | None = None,
    generator: torch.Generator | None = None,
    keep_path: bool = False,
) -> Sampled:
    """Take samples from the first time to the last, evaluating only what the policy asks for.

    Args:
        evaluations: E of them, priced in one unit.
        policy: decides.
        sampler: steps.
        x: (n, ...), at the first time.
        times: K + 1 of them, falling.
        condition: (n, ...), handed to the evaluations row by row.
        generator: of the sampler's random numbers.
        keep_path: keep x at every time.

    Raises:
        InputError: no evaluation, times that do not fall, or conditions of another number.
        UnitError: evaluations priced in different units.
        RouteError: the policy's route does not fit, or leaves out a sample too early.
    """
    per_evaluation = _prices(evaluations)
    _check(times, x, condition)
    routes, path = [], [x]
    memory = solver = None
    for step, (t, s) in enumerate(pairwise(times)):
        now = Moment(step, len(times) - 1, t, s, x, len(evaluations))
        route = policy.choose(now, memory)
        computed = _run(evaluations, now, route, condition)
        settled = policy.settle(now, computed, memory)
        memory = settled.memory
        if settled.x is not None:
            now = replace(now, x=settled.x)
        x, solver = sampler.step(now, settled.prediction, solver, generator)
        routes.append(route)
        path.append(x)
    return Sampled(x, tuple(routes), per_evaluation, memory, tuple(path) if keep_path else ())


def _run(
    evaluations: Sequence[Evaluation], now: Moment, route: Route, condition: Tensor | None
) -> Computed:
    """Every evaluation on the rows that the route sends to it; those without rows do not run."""
    if (route.num_inputs, route.num_branches) != (len(now.x), len(evaluations)):
        raise RouteError(
            f"a policy routes {len(now.x)} samples over {len(evaluations)} evaluations, got "
            f"{route.num_inputs} and {route.num_branches} at step {now.step}"
        )
    if not len(route) and len(now.x):
        return Computed(route, None)
    rows = list(_predictions(evaluations, now, route, condition))
    if not rows:  # an empty batch: one evaluation shows the shape
        rows = [evaluations[0].run(now.x, now.t, condition)]
    return Computed(route, torch.cat(rows))


def _predictions(
    evaluations: Sequence[Evaluation], now: Moment, route: Route, condition: Tensor | None
) -> Iterator[Tensor]:
    order = route.by_branch()
    x = now.x.index_select(0, order.inputs)
    own = None if condition is None else condition.index_select(0, order.inputs)
    for evaluation, (start, end) in zip(evaluations, pairwise(order.offsets.tolist()), strict=True):
        if start == end:
            continue
        rows = slice(start, end)
        found = evaluation.run(x[rows], now.t, None if own is None else own[rows])
        if found.ndim == 0 or len(found) != end - start:
            raise InputError(
                f"evaluation {evaluation.name!r} predicts one row per sample, got shape "
                f"{tuple(found.shape)} for {end - start} samples"
            )
        yield found


def _prices(evaluations: Sequence[Evaluation]) -> Cost:
    """Amount (E,)."""
    if not evaluations:
        raise InputError("a sampler needs at least one evaluation, got none")
    units = {evaluation.cost.unit for evaluation in evaluations}
    if len(units) > 1:
        raise UnitError(
            f"evaluations are priced in one unit, got {sorted(units)}: convert with .to(...)"
        )
    amounts = [float(evaluation.cost) for evaluation in evaluations]
    return Cost(np.array(amounts), units.pop())


def _check(times: Sequence[float], x: Tensor, condition: Tensor | None) -> None:
    if len(times) < 2 or not all(t > s for t, s in pairwise(times)):
        raise InputError(f"the times of a run are at least two and fall, got {tuple(times)}")
    if x.ndim < 2:
        raise InputError(f"samples are (n, ...) of at least two dimensions, got {tuple(x.shape)}")
    if condition is not None and len(condition) != len(x):
        raise InputError(f"every sample has a condition, got {len(condition)} for {len(x)} samples")
