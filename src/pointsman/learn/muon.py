"""Muon: updates of matrices and filters brought to equal size in every direction.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024,
kellerjordan.github.io/posts/muon), as used for small image networks in Jordan, "94% on CIFAR-10 in
3.29 Seconds on a Single GPU" (2024, arXiv:2404.00498, later versions of its code):

    M <- m M + G;    U = orthogonal(G + m M);    W <- sqrt(outputs) W / |W| - rate U

where orthogonal(A) replaces the singular values of A, taken as (outputs, everything else), by
numbers near 1, through a polynomial of odd powers applied a few times. Few updates train a
convolutional network far, which is why it is here: on little time everything learns. Where we
depart: one optimiser for all weights. Those with fewer than `matrix_from` dimensions (biases,
normalisation, and linear layers unless asked) take Nesterov steps with a rate of their own.

Right only for filters whose size does not matter, as under batch normalisation: W is brought to
the norm sqrt(outputs) at every step.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError

# Coefficients of x -> a x + b x^3 + c x^5, which takes (0, 1] near 1 in a few rounds.
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
ROUNDS = 3


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for filters, Nesterov momentum for the rest.

    Args:
        params: parameters, or groups with "params" as torch's optimisers take them; each group is
            split in two.
        rate: of filters: share of their norm that an update changes, about.
        rest: rate of the other weights.
        momentum: of both.
        decay: of the other weights.
        matrix_from: dimensions from which on a weight counts as filters.

    Raises:
        InputError: a rate that is not above 0, or a momentum outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        rate: float = 0.1,
        *,
        rest: float = 0.1,
        momentum: float = 0.85,
        decay: float = 5e-4,
        matrix_from: int = 4,
    ) -> None:
        if not (rate > 0 and rest > 0 and 0 <= momentum < 1):
            raise InputError(
                "rates are above 0 and the momentum lies in [0, 1), got "
                f"{rate}, {rest} and {momentum}"
            )
        groups = []
        for given in params:
            weights = list(given["params"]) if isinstance(given, dict) else [given]
            filters = [weight for weight in weights if weight.ndim >= matrix_from]
            others = [weight for weight in weights if weight.ndim < matrix_from]
            groups += [{"params": filters, "lr": rate, "filters": True}] * bool(filters)
            groups += [{"params": others, "lr": rest, "filters": False}] * bool(others)
        super().__init__(_joined(groups), {"lr": rate, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient; there is no closure."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        momentum, state = group["momentum"], self.state[weight]
        if not group["filters"]:
            gradient = gradient.add(weight, alpha=group["decay"])
        if "before" not in state:
            state["before"] = torch.zeros_like(weight)
        before = state["before"].mul_(momentum).add_(gradient)
        update = gradient.add(before, alpha=momentum)
        if group["filters"]:
            weight.mul_(len(weight) ** 0.5 / weight.norm().clamp_min(1e-7))
            update = orthogonal(update.reshape(len(update), -1)).view_as(weight)
        weight.add_(update, alpha=-group["lr"])


def orthogonal(matrix: Tensor, rounds: int = ROUNDS) -> Tensor:
    """A matrix (R, C) with its singular values brought near 1 (to about 0.3 to 1.2 in 5 rounds).

    Args:
        matrix: of zeros, it stays zeros.
        rounds: of the polynomial; small singular values need more.
    """
    a, b, c = POLYNOMIAL
    x = matrix / matrix.norm().clamp_min(1e-7)
    if x.shape[0] > x.shape[1]:
        return orthogonal(matrix.T, rounds).T
    for _ in range(rounds):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x
    return result


def _joined(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group of filters and one of the rest, for each group of several weights given."""
    if all(len(group["params"]) == 1 for group in groups):  # parameters were given one by one
        kinds = [[g for g in groups if g["filters"] is kind] for kind in (True, False)]
        return [{**k[0], "params": [w for g in k for w in g["params"]]} for k in kinds if k]
    return groups
