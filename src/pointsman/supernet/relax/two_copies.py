"""RARTS: relaxed search on one level, with two copies of the weights that pull at each other.

Xue et al., "RARTS: An Efficient First-Order Relaxed Architecture Search Method" (2020, arXiv
2008.03901). One objective for all, L_val(y, alpha) + lambda L_train(w, alpha) + beta / 2 |y - w|^2,
descended in turns: w, then y, then alpha at the new copies. So the architecture sees what the
training half says, which first-order DARTS ignores, without any second derivative.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.relax.alternate import Closed, Loss, endless
from pointsman.supernet.relax.gates import Draw
from pointsman.supernet.relax.relaxation import Relaxation, release
from pointsman.supernet.supernet import Supernet


def two_copies_step(
    y: nn.Module,
    w: nn.Module,
    architecture: Sequence[Tensor],
    training: Closed,
    validation: Closed,
    optimisers: tuple[torch.optim.Optimizer, torch.optim.Optimizer, torch.optim.Optimizer],
    *,
    training_weight: float,
    pull: float,
) -> None:
    """One turn: w, y, architecture.

    Args:
        y: network whose weights fit the validation half.
        w: its copy, whose weights fit the training half.
        architecture: parameters that both losses depend on.
        training: loss of a network on the training half.
        validation: on the validation half.
        optimisers: of w, of y, of the architecture.
        training_weight: lambda.
        pull: beta.
    """
    of_w, of_y, of_architecture = optimisers

    def weighted(network: nn.Module) -> Tensor:
        return training_weight * training(network)

    for loss, one, other, optimiser in ((weighted, w, y, of_w), (validation, y, w, of_y)):
        ours, theirs = list(one.parameters()), list(other.parameters())
        _set_gradients(ours, loss(one))
        for weight, anchor in zip(ours, theirs, strict=True):
            assert weight.grad is not None
            weight.grad += pull * (weight.detach() - anchor.detach())
        optimiser.step()
    _set_gradients(architecture, validation(y) + weighted(w))
    of_architecture.step()


def _set_gradients(parameters: Sequence[Tensor], loss: Tensor) -> None:
    slopes = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    for parameter, slope in zip(parameters, slopes, strict=True):
        parameter.grad = slope


def two_copies(
    supernet: Supernet,
    relaxation: Relaxation,
    loss: Loss,
    training: Iterable[Any],
    validation: Iterable[Any],
    *,
    updates: int,
    weights: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    architecture: torch.optim.Optimizer,
    training_weight: float = 1.0,
    pull: float = 1.0,
    seed: int = 0,
    after: Callable[[int], None] = lambda update: None,
) -> None:
    """Train both copies and the architecture; then mixtures end and evaluation mode is on.

    The copies start equal. The supernet holds y, the weights of the validation half, in the end.
    What the paper sets for lambda and beta could not be checked; a small lambda diverges on its own
    toy problem.

    Args:
        supernet: its weights are changed in place.
        relaxation: of it; changed in place.
        loss: of a network on a batch.
        training: batches of the training half; begun again when they end.
        validation: batches of the validation half.
        updates: turns of w, y and the architecture.
        weights: makes the optimiser of a copy's parameters.
        architecture: optimiser of the relaxation's parameters.
        training_weight: lambda, above 0.
        pull: beta, at least 0.
        seed: of the gates' draws.
        after: called after each turn with its number, from 1.

    Raises:
        InputError: a lambda or beta out of range, or no batches.
    """
    if training_weight <= 0 or pull < 0:
        raise InputError(
            "the training loss weighs more than 0 and the pull is not negative, got "
            f"{training_weight} and {pull}"
        )
    draw_from = torch.Generator().manual_seed(seed)
    twin = copy.deepcopy(supernet)
    optimisers = weights(twin.parameters()), weights(supernet.parameters()), architecture
    for network in (supernet, twin):
        network.train()
    turns = zip(range(updates), endless(training), endless(validation), strict=False)
    for update, seen, held_out in turns:
        draw = Draw(update / updates, draw_from)

        def mixed(batch: Any, draw: Draw = draw) -> Closed:
            def closed(network: nn.Module) -> Tensor:
                assert isinstance(network, Supernet)
                relaxation.mix(network, draw)
                return loss(network, batch)

            return closed

        two_copies_step(
            supernet,
            twin,
            list(relaxation.parameters()),
            mixed(seen),
            mixed(held_out),
            optimisers,
            training_weight=training_weight,
            pull=pull,
        )
        after(update + 1)
    release(supernet)
    supernet.eval()
