"""How much a unit matters: criteria by which units are ranked.

A criterion is any function of the network and its groups that gives (U,) scores for each group,
larger for what matters more. Scores of one group are divided by their mean before groups are
compared, so only their proportions count.

Legend: U units of a group, R positions of a unit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.supernet.channels import ChannelGroup, call_with

Scores = dict[ChannelGroup, Tensor]
Criterion = Callable[[nn.Module, Sequence[ChannelGroup]], Scores]
NORMALISED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def unit_sums(
    model: nn.Module, group: ChannelGroup, of: Callable[[nn.Parameter], Tensor]
) -> Tensor:
    """(U,) sums over everything trained that a unit owns.

    Args:
        model: that the group was found in.
        group: whose units.
        of: gives a value for each entry of a parameter, in its shape.
    """
    trained = dict(model.named_parameters(remove_duplicate=False))
    total = torch.zeros(group.size, device=next(iter(trained.values())).device)
    for part in group.slices:
        if part.name in trained:
            values = of(trained[part.name]).movedim(part.dim, 0)
            rows = values.reshape(len(values), -1).sum(dim=1)
            total = total + rows[part.rows_UR.to(rows.device)].sum(dim=1)
    return total.detach().cpu()


def magnitude(power: int = 2) -> Criterion:
    """Norm of all weights that a unit owns, on the side that makes it and on that which takes it.

    Args:
        power: 1 for the sum of absolute values, 2 for the root of the sum of squares (Li et al.
            2017, "Pruning filters for efficient convnets", arXiv 1608.08710, for whole groups).
    """

    def scores(model: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
        return {
            group: unit_sums(model, group, lambda w: w.abs() ** power) ** (1 / power)
            for group in groups
        }

    return scores


def taylor(loss: Callable[[nn.Module], Tensor]) -> Criterion:
    """How much the loss would change, to first order, without a unit: |sum of weight x gradient|.

    Molchanov et al. 2019, "Importance estimation for neural network pruning", arXiv 1906.10771,
    for all that a unit owns together.

    Args:
        loss: of a network, on data of your own: one number.
    """

    def scores(model: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
        held = {parameter: parameter.grad for parameter in model.parameters()}
        try:
            model.zero_grad()
            with evaluating(model), torch.enable_grad():
                loss(model).backward()  # type: ignore[no-untyped-call]
            return {group: _first_order(model, group) for group in groups}
        finally:
            for parameter, gradient in held.items():
                parameter.grad = gradient

    return scores


def _first_order(model: nn.Module, group: ChannelGroup) -> Tensor:
    def change(weight: nn.Parameter) -> Tensor:
        return torch.zeros_like(weight) if weight.grad is None else weight * weight.grad

    return unit_sums(model, group, change).abs()


def at_random(seed: int = 0) -> Criterion:
    """Any units: what every other criterion must beat."""

    def scores(model: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
        generator = torch.Generator().manual_seed(seed)
        return {group: torch.rand(group.size, generator=generator) for group in groups}

    return scores


def batch_norm_scale() -> Criterion:
    """Absolute scale of the batch normalisation behind a channel (Liu et al. 2017, "Learning
    efficient convolutional networks through network slimming", arXiv 1708.06519).

    Raises:
        InputError: a group has no batch normalisation; the criterion says which.
    """

    def scores(model: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
        return {group: _scales(model, group) for group in groups}

    return scores


def _scales(model: nn.Module, group: ChannelGroup) -> Tensor:
    found = [
        model.get_parameter(part.name).detach().abs()[part.rows_UR].sum(dim=1).cpu()
        for part in group.slices
        if part.name.endswith("weight")
        and isinstance(model.get_submodule(part.name.rpartition(".")[0]), NORMALISED)
    ]
    if not found:
        raise InputError(
            f"batch_norm_scale ranks channels behind batch normalisation, {group.name!r} has none: "
            "use magnitude() or taylor(...)"
        )
    return torch.stack(found).sum(dim=0)


def activation(example: Any) -> Criterion:
    """Mean absolute output of the module that makes a unit, on these inputs.

    Args:
        example: inputs as for `channel_groups`, the more the better.
    """

    def scores(model: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
        found: Scores = {}

        def watch(group: ChannelGroup, rows_UR: Tensor) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                features = -1 if isinstance(module, nn.Linear | nn.Embedding) else 1
                if type(module).__name__ == "Conv1D":  # of transformers, a linear layer
                    features = -1
                means = output.detach().abs().movedim(features, 0).flatten(1).mean(dim=1)
                found[group] = means[rows_UR].mean(dim=1).cpu()

            return hook

        handles = []
        for group in groups:
            name = group.name.split("#")[0]
            part = next(part for part in group.slices if part.name.rpartition(".")[0] == name)
            hook = watch(group, part.rows_UR)
            handles.append(model.get_submodule(name).register_forward_hook(hook))
        try:
            with evaluating(model), torch.no_grad():
                call_with(model, example)
        finally:
            for handle in handles:
                handle.remove()
        return found

    return scores
