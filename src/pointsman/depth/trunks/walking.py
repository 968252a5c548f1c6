"""Whether a row of blocks is the network that it was made from.

Legend: n rows.
"""

from typing import Any

import torch
from torch import Tensor

from pointsman.depth.trunks.rows import count_rows, take_rows
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError, PointsmanError, reason
from pointsman.modules import evaluating

# How far answers may lie apart when other rows are in the batch: multiples of sqrt(epsilon) of the
# type, of the largest logit.
ROOM = 10.0


def walk(trunk: Trunk, x: Any) -> Tensor:
    """All blocks between `begin` and `finish`: the network's own logits."""
    state = trunk.begin(x)
    for at in range(len(trunk.names)):
        state = trunk.block(at, state)
    return trunk.finish(state)


def check_walk(trunk: Any, x: Any) -> None:
    """Refuse a row of blocks that answers differently from its network.

    Walked in evaluation mode over a batch whose rows are turned round before every block, and of
    which one leaves after the first: every state must be made of rows.

    Args:
        trunk: an nn.Module whose `forward` is the network itself.
        x: at least two rows.

    Raises:
        InputError: the answers differ, or a block does not run.
    """
    kind = type(getattr(trunk, "model", trunk)).__name__
    rows = torch.arange(count_rows(x))
    with evaluating(trunk), torch.no_grad():
        whole = trunk(x)
        try:
            state = trunk.begin(x)
            for at in range(len(trunk.names)):
                turn = torch.arange(len(rows)).flip(0)[: len(rows) - (at == 1)]
                state, rows = take_rows(state, turn.to(whole.device)), rows[turn]
                state = trunk.block(at, state)
            found = trunk.finish(state)
        except PointsmanError:
            raise
        except Exception as error:
            raise InputError(
                f"{kind} cannot be run block by block, {reason(error)}: give its parts as a list"
            ) from error
    wanted = whole[rows.to(whole.device)]
    apart = _apart(found, wanted)
    if not apart <= ROOM * torch.finfo(whole.dtype).eps ** 0.5:
        raise InputError(
            f"{kind} run block by block answers differently from {kind} itself (by {apart:.1g} of "
            "the largest number), so its blocks hand each other more than a trunk knows of: give "
            "its parts as a list"
        )


def _apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    if found.shape != wanted.shape:
        return float("inf")
    largest = float(wanted.abs().max()) or 1.0
    return float((found - wanted).abs().max()) / largest
