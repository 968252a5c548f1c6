"""What a relaxed network is expected to cost, and architecture parameters kept within a bound.

Legend: E options of a choice.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pointsman.errors import InputError, UnreachableError
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.relax.relaxation import Relaxation
from pointsman.supernet.space import Genotype
from pointsman.supernet.supernet import Supernet

TOLERANCE = 1e-4  # of a bound, in shares of it


class ExpectedCost:
    """The sum over choices of sum_o p(o) cost(o): differentiable, and exact once p is one-hot.

    Args:
        relaxation: whose choices are counted.
        costs: of every option of each relaxed choice, in their order.
        unit: of the costs, such as "MFLOPs" or "ms".

    Raises:
        InputError: a relaxed choice without costs, or another number of them than it has options.
    """

    def __init__(
        self, relaxation: Relaxation, costs: Mapping[str, Sequence[float]], unit: str = "MFLOPs"
    ) -> None:
        self.unit = unit
        self.relaxation = relaxation
        for choice in relaxation.choices:
            given = costs.get(choice.name, ())
            if len(given) != len(choice.options):
                raise InputError(
                    f"{choice.name!r} has {len(choice.options)} options, got {len(given)} costs"
                )
        self.costs = {c.name: tuple(costs[c.name]) for c in relaxation.choices}

    def __call__(self, logits: Sequence[Tensor] | None = None) -> Tensor:
        """Scalar, with a gradient to the logits; None: the relaxation's present ones."""
        given = list(self.relaxation.alpha) if logits is None else logits
        parts = [
            alpha.softmax(dim=0) @ torch.tensor(costs, dtype=alpha.dtype, device=alpha.device)
            for alpha, costs in zip(given, self.costs.values(), strict=True)
        ]
        return torch.stack(parts).sum()

    def of(self, genotype: Genotype) -> float:
        """Of one genotype: what its relaxed choices cost together."""
        taken = self.relaxation.space.decode(genotype)
        choices = {choice.name: choice for choice in self.relaxation.choices}
        return sum(
            self.costs[name][choices[name].index(option)]
            for name, option in taken.items()
            if name in choices
        )


def operation_costs(
    supernet: Supernet, *inputs: Tensor, measure: Callable[[nn.Module, Tensor], float]
) -> dict[str, list[float]]:
    """What each operation of every `OneOf` costs alone, at the input that reaches it there.

    Args:
        supernet: run once, with what is in force.
        *inputs: of its forward.
        measure: of an operation and its input, such as `lambda op, x: measure_latency(op,
            x).median` or counted FLOPs.

    Returns:
        Costs by name of the choice; places that share a choice add up.
    """
    reached: list[tuple[OneOf, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda place, given: reached.append((place, given[0])))
        for module in supernet.modules()
        if isinstance(module, OneOf)
    ]
    try:
        with torch.no_grad():
            supernet(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    costs: dict[str, list[float]] = {}
    for place, x in reached:
        found = [float(measure(operation, x)) for operation in place.operations]
        name = place.dial.choice.name
        costs[name] = [
            a + b for a, b in zip(costs.get(name, [0.0] * len(found)), found, strict=True)
        ]
    return costs


def project(
    logits: Sequence[Tensor],
    cost: Callable[[Sequence[Tensor]], Tensor],
    *,
    upper: float = math.inf,
    lower: float = -math.inf,
    rounds: int = 200,
) -> list[Tensor]:
    """The nearest logits whose expected cost lies within bounds; they themselves if it does.

    Jin et al. 2019, "RC-DARTS: Resource constrained differentiable architecture search" (arXiv
    1912.12814), project by a few gradient steps on 0.5 |p - alpha|^2 plus the violation. Here the
    bound is linearised at the present point and alpha is projected onto that half-space, again and
    again: a fixed point meets the conditions of the nearest point, and no step size or weight has
    to be set.

    Args:
        logits: any number of tensors; left as they are.
        cost: scalar of such tensors, differentiable.
        upper: bound of the cost from above.
        lower: from below.
        rounds: at most.

    Returns:
        Tensors without gradients, within the bounds up to a share of 1e-4.

    Raises:
        InputError: a lower bound above the upper one.
        UnreachableError: no logits within the bounds were found.
    """
    if lower > upper:
        raise InputError(f"the lower bound is at most the upper one, got {lower} and {upper}")
    alpha = [tensor.detach().clone() for tensor in logits]
    value = float(cost(alpha).detach())
    if lower <= value <= upper:
        return alpha
    target = upper if value > upper else lower
    point, length = alpha, math.inf
    for round_ in range(rounds):
        value, slopes = _at(cost, point)
        near = abs(value - target) <= TOLERANCE * abs(target)
        if near and (length < TOLERANCE or round_ >= rounds // 2):
            break
        # First towards the nearest point, half of the way each time; then, should that not have
        # settled, straight to the bound.
        start = alpha if round_ < rounds // 2 else point
        aim = _onto(start, point, slopes, value - target)
        share = 0.5 if round_ < rounds // 2 else 1.0
        moved = [share * (a - p) for a, p in zip(aim, point, strict=True)]
        length = float(sum(move.square().sum() for move in moved)) ** 0.5
        point = [p + move / max(length, 1.0) for p, move in zip(point, moved, strict=True)]
    else:
        raise UnreachableError(
            f"no logits cost between {lower:g} and {upper:g}: the last tried cost {value:g}; "
            "give wider bounds"
        )
    return point


def _at(
    cost: Callable[[Sequence[Tensor]], Tensor], point: Sequence[Tensor]
) -> tuple[float, Sequence[Tensor]]:
    """The cost and its slopes."""
    free = [tensor.detach().requires_grad_() for tensor in point]
    value = cost(free)
    return float(value.detach()), torch.autograd.grad(value, free)


def _onto(
    start: Sequence[Tensor], point: Sequence[Tensor], slopes: Sequence[Tensor], excess: float
) -> list[Tensor]:
    """The point nearest to `start` at which the cost, linear around `point`, has no excess."""
    pairs = list(zip(start, point, slopes, strict=True))
    along = excess + sum(float((slope * (s - p)).sum()) for s, p, slope in pairs)
    size = sum(float(slope.square().sum()) for slope in slopes)
    return [s - along / max(size, 1e-30) * slope for s, _, slope in pairs]


class Projection:
    """Keeps a relaxation's expected cost below a bound during its search, and its result too.

    To be given to `alternate` as `after`.

    Args:
        expected: cost of a relaxation.
        budget: upper bound, in the unit of the cost.
        every: updates between projections.
        shrink: factor by which `derive` lowers the bound while the genotype costs too much.

    Raises:
        UnreachableError: the budget is below the cheapest genotype, whose cost is named.
    """

    def __init__(
        self, expected: ExpectedCost, budget: float, *, every: int = 10, shrink: float = 0.9
    ) -> None:
        never = expected.relaxation.never
        cheapest = sum(
            min(
                cost
                for option, cost in zip(c.options, expected.costs[c.name], strict=True)
                if option not in never
            )
            for c in expected.relaxation.choices
        )
        if cheapest > budget:
            raise UnreachableError(
                f"the cheapest genotype costs {cheapest:g} {expected.unit}, above the budget of "
                f"{budget:g}"
            )
        self.expected, self.budget, self.every, self.shrink = expected, budget, every, shrink

    def __call__(self, update: int) -> None:
        """Project, when it is time."""
        if update % self.every == 0:
            self._onto(self.budget)

    def derive(self) -> Genotype:
        """The relaxation's genotype, which costs at most the budget.

        What is bounded is the cost of the mixture, and the strongest options may cost more: then
        the bound falls until they do not. The relaxation is changed with it.

        Raises:
            UnreachableError: no bound led to a genotype within the budget.
        """
        bound = self.budget
        genotype = self.expected.relaxation.derive()
        while self.expected.of(genotype) > self.budget:
            bound *= self.shrink
            self._onto(bound)
            genotype = self.expected.relaxation.derive()
        return genotype

    def _onto(self, bound: float) -> None:
        alpha = list(self.expected.relaxation.alpha)
        points = project(alpha, self.expected, upper=bound)
        with torch.no_grad():
            for parameter, point in zip(alpha, points, strict=True):
                parameter.copy_(point)
