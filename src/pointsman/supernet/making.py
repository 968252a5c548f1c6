"""One's own network, or one of transformers, made elastic by declarations."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError, reason
from pointsman.modules import evaluating
from pointsman.supernet.channels import ChannelGroup, call_with, channel_groups, reorder
from pointsman.supernet.elastic.choices import Declaration, Depth, Skip
from pointsman.supernet.elastic.plan import Plan
from pointsman.supernet.elastic.widths import Heads, Width, are_heads
from pointsman.supernet.supernet import Supernet

Example = Tensor | tuple[Any, ...] | Mapping[str, Any] | None
QUARTERS = (0.25, 0.5, 0.75, 1.0)
# (model, group of units) -> (units,) how much each matters
Importance = Callable[[nn.Module, ChannelGroup], Tensor]


def make_elastic(
    model: nn.Module,
    example: Example,
    declarations: Sequence[Declaration] | None = None,
    *,
    importance: Importance | None = None,
) -> Supernet:
    """A copy of a network that is elastic as declared.

    Args:
        model: any module; stays as it is.
        example: inputs of one call, from which is found out which channels depend on each other,
            and on which every choice is tried: a tensor, a tuple of positional inputs or a
            dictionary of named ones. None will do without `Width` and `Heads`; nothing is tried.
        declarations: such as `Depth(counts=(2, 4))` and `Width("**.mlp", shares=(0.5, 1))`; what is
            said about depth is taken first, so that choices inside a block depend on whether it
            runs. None: every width and all attention heads, in quarters.
        importance: puts the units of each group in the order of their importance first, so that
            narrow subnets keep what matters; such as `magnitude`. None: they stay as they are.

    Raises:
        InputError: nothing declared, a declaration that does not fit the network, or a choice with
            which it does not run; the message names it.
    """
    ordered = copy.deepcopy(model) if importance is None else _sorted(model, example, importance)
    plan = Plan(ordered, example)
    declared = _every_width(plan) if declarations is None else declarations
    for declaration in sorted(declared, key=lambda d: not isinstance(d, Depth | Skip)):
        declaration.declare(plan)
    supernet = Supernet(plan.finish())
    broken = {} if example is None else broken_choices(supernet, example)
    for (name, option), error in broken.items():
        raise InputError(
            f"the network does not run with {name!r} at {option!r} ({error}): leave this out, or "
            "compute sizes in forward from the shapes of tensors"
        )
    return supernet


def _every_width(plan: Plan) -> list[Declaration]:
    kinds = {are_heads(group) for group in plan.groups}
    found: list[Declaration] = [] if kinds == {True} else [Width(shares=QUARTERS)]
    return [*found, Heads(shares=QUARTERS)] if True in kinds else found


def magnitude(model: nn.Module, group: ChannelGroup) -> Tensor:
    """(units,) squared size of all weights of each unit, in every layer that it lives in."""
    named = dict(model.named_parameters())
    total_U = torch.zeros(group.size)
    for part in group.slices:
        if part.name in named:
            rows = named[part.name].detach().movedim(part.dim, 0)[part.rows_UR]
            total_U += rows.float().square().flatten(1).sum(dim=1).cpu()
    return total_U


def broken_choices(supernet: Supernet, example: Example) -> dict[tuple[str, Any], str]:
    """What the network does not run with: (name, option) of a choice, and why.

    Every option is tried while all other choices stand at their last options.

    Args:
        supernet: in evaluation mode meanwhile.
        example: inputs of one call.
    """
    found: dict[tuple[str, Any], str] = {}
    before = supernet.in_force
    with evaluating(supernet), torch.no_grad():
        whole = [len(choice.options) - 1 for choice in supernet.space.choices]
        for at, choice in enumerate(supernet.space.choices):
            for index, option in enumerate(choice.options):
                supernet.use([*whole[:at], index, *whole[at + 1 :]])
                try:
                    call_with(supernet, example)
                except Exception as error:  # whatever a user's network raises
                    found[choice.name, option] = f"{type(error).__name__}: {reason(error)}"
    supernet.use(before)
    return found


def _sorted(model: nn.Module, example: Example, importance: Importance) -> nn.Module:
    if example is None:
        raise InputError("units are sorted along an example of the inputs, got None")
    groups = channel_groups(model, example)
    scores = {group: importance(model, group) for group in groups}
    orders = {g: score_U.argsort(descending=True).tolist() for g, score_U in scores.items()}
    return reorder(model, orders)
