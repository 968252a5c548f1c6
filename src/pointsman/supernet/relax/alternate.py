"""The search loop of relaxations: weights on one half of the data, the architecture on the other.

Liu, Simonyan and Yang, "DARTS" (2018, arXiv 1806.09055). First order: the architecture follows the
gradient of the validation loss at the present weights. Unrolled ("second order"): at the weights
after one imagined step of gradient descent on the training loss.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pointsman.errors import InputError
from pointsman.supernet.relax.gates import Draw, Gate
from pointsman.supernet.relax.relaxation import Relaxation, release
from pointsman.supernet.supernet import Supernet

# (network, batch) -> scalar
Loss = Callable[[nn.Module, Any], Tensor]
Closed = Callable[[nn.Module], Tensor]  # a loss with its batch
# (network, architecture parameters, training loss, validation loss) -> gradients of the parameters
ArchitectureGradient = Callable[[nn.Module, Sequence[Tensor], Closed, Closed], Sequence[Tensor]]


def first_order(
    network: nn.Module, architecture: Sequence[Tensor], training: Closed, validation: Closed
) -> Sequence[Tensor]:
    """Gradients of the validation loss at the present weights."""
    return torch.autograd.grad(
        validation(network), architecture, allow_unused=True, materialize_grads=True
    )


def unrolled(rate: float) -> ArchitectureGradient:
    """Gradients of the validation loss at weights one step further on the training loss.

    DARTS approximates the product with the Hessian by finite differences; here it is exact, by
    differentiating twice, and the imagined step has neither momentum nor decay.

    Args:
        rate: of the imagined step.
    """

    def gradient(
        network: nn.Module, architecture: Sequence[Tensor], training: Closed, validation: Closed
    ) -> Sequence[Tensor]:
        weights = {name: w for name, w in network.named_parameters() if w.requires_grad}
        slopes = torch.autograd.grad(
            training(network),
            list(weights.values()),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        ahead = {
            name: weight - rate * slope
            for (name, weight), slope in zip(weights.items(), slopes, strict=True)
        }
        return torch.autograd.grad(
            validation(_With(network, ahead)),
            architecture,
            allow_unused=True,
            materialize_grads=True,
        )

    return gradient


class _With(nn.Module):
    """A network with other weights."""

    def __init__(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._call = lambda *inputs, **options: functional_call(network, weights, inputs, options)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self._call(*inputs, **options)  # type: ignore[no-untyped-call]


def alternate(
    supernet: Supernet,
    relaxation: Relaxation,
    loss: Loss,
    training: Iterable[Any],
    validation: Iterable[Any],
    *,
    updates: int,
    weights: torch.optim.Optimizer,
    architecture: torch.optim.Optimizer,
    gradient: ArchitectureGradient = first_order,
    weights_gate: Gate | None = None,
    penalty: Callable[[Relaxation], Tensor] | None = None,
    warm_up: int = 0,
    draws: int = 1,
    seed: int = 0,
    after: Callable[[int], None] = lambda update: None,
) -> None:
    """Train weights and architecture in turns; then mixtures end and evaluation mode is on.

    Args:
        supernet: its weights are changed in place.
        relaxation: of it; changed in place.
        loss: of a network on a batch.
        training: batches for the weights; begun again when they end.
        validation: batches for the architecture, which the weights never see.
        updates: of the weights.
        weights: optimiser of the supernet's parameters.
        architecture: optimiser of the relaxation's parameters.
        gradient: of the architecture.
        weights_gate: gate of options in the steps of the weights; None: the relaxation's.
        penalty: added to the architecture's loss, such as an expected cost.
        warm_up: updates before the architecture learns too.
        draws: sub-networks or mixtures drawn for one step, whose gradients are averaged. (The sum
            that ROME takes differs by a factor that the rate of learning holds here.)
        seed: of the gates' draws.
        after: called after each update with its number, from 1.

    Raises:
        InputError: fewer than one draw, or no batches.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = list(relaxation.parameters())
    supernet.train()
    for update, seen, held_out in zip(
        range(updates), endless(training), endless(validation), strict=False
    ):
        draw = Draw(update / updates, generator)
        on_seen, on_held_out = _on(loss, seen), _on(loss, held_out)
        if update >= warm_up:
            slopes = architecture_gradients(
                supernet,
                relaxation,
                on_seen,
                on_held_out,
                gradient=gradient,
                draw=draw,
                draws=draws,
            )
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.grad = slope
            if penalty is not None:
                penalty(relaxation).backward()  # type: ignore[no-untyped-call]
            architecture.step()
        weights.zero_grad()
        for _ in range(draws):
            with torch.no_grad():
                relaxation.mix(supernet, draw, weights_gate)
            (on_seen(supernet) / draws).backward()  # type: ignore[no-untyped-call]
        weights.step()
        after(update + 1)
    release(supernet)
    supernet.eval()


def architecture_gradients(
    supernet: Supernet,
    relaxation: Relaxation,
    training: Closed,
    validation: Closed,
    *,
    gradient: ArchitectureGradient = first_order,
    draw: Draw | None = None,
    draws: int = 1,
) -> list[Tensor]:
    """Mean gradients of the relaxation's parameters over several draws of its gates.

    Args:
        supernet: mixtures stay in force on it.
        relaxation: of it.
        training: loss of a network on data for the weights.
        validation: on data for the architecture.
        gradient: how one is taken.
        draw: for the gates.
        draws: of mixtures, at least one.

    Raises:
        InputError: fewer than one draw.
    """
    if draws < 1:
        raise InputError(f"a step takes at least one draw, got {draws}")
    parameters = list(relaxation.parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(draws):
        relaxation.mix(supernet, draw)
        for total, slope in zip(
            sums, gradient(supernet, parameters, training, validation), strict=True
        ):
            total += slope / draws
    return sums


def _on(loss: Loss, batch: Any) -> Closed:
    return lambda network: loss(network, batch)


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches again and again.

    Raises:
        InputError: there are none, or they came from an iterator that is used up.
    """
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise InputError(
                "the data gave no batch: give a DataLoader or a list, not a spent iterator"
            )
