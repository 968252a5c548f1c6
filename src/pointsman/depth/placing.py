"""Where in a network to exit: by index, by name, or by what is spent until there.

Legend: B blocks, S exits.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from pointsman.cost import Cost, count_flops
from pointsman.depth.trunks import trunk_of
from pointsman.depth.trunks.rows import checked_batch
from pointsman.errors import InputError
from pointsman.modules import evaluating


def by_cost(
    backbone: nn.Module | Iterable[nn.Module],
    example: Any,
    shares: Sequence[float] | None = None,
    *,
    exits: int | None = None,
) -> list[str]:
    """Names of the blocks until whose end about such shares of the network's cost are spent.

        net = EarlyExit(model, at=by_cost(model, x, shares=[0.25, 0.5]), example=x)

    Args:
        backbone: as for `EarlyExit`.
        example: a batch of at least one input.
        shares: of the whole network's MFLOPs, ascending, between 0 and 1; each becomes the block
            after which what was spent is nearest.
        exits: instead, so many early exits at even steps of cost: 1/(exits + 1), ...

    Raises:
        InputError: neither or both of shares and exits, shares out of order or range, or two of
            them nearest to one block.
    """
    if (shares is None) == (exits is None):
        raise InputError("exits are placed by shares of the cost or by how many, give one of both")
    if shares is None:
        count = exits or 0
        shares = [(at + 1) / (count + 1) for at in range(count)]
    wanted = list(shares)
    ordered = all(a < b for a, b in pairwise(wanted))
    if not wanted or not ordered or not 0 < wanted[0] <= wanted[-1] < 1:
        raise InputError(
            f"shares of the cost ascend between 0 and 1, at least one of them, got {wanted}"
        )
    trunk: Any = trunk_of(backbone, example)
    spent = np.cumsum(block_costs(trunk, example).amount)
    if spent[-1] == 0:
        raise InputError("no block of the network costs anything that is counted: name the exits")
    reached = spent[:-1] / spent[-1]
    chosen = [int(np.abs(reached - share).argmin()) for share in wanted]
    for (first, a), (second, b) in pairwise(zip(wanted, chosen, strict=True)):
        if a >= b:
            raise InputError(
                f"the shares {first:g} and {second:g} are both nearest to the end of "
                f"{trunk.names[a]!r}: the {len(trunk.names)} blocks end at "
                f"{', '.join(f'{share:.2f}' for share in reached)}"
            )
    return [trunk.names[at] for at in chosen]


def block_costs(trunk: Any, example: Any) -> Cost:
    """MFLOPs per input of each block, (B,); with the first what comes before it, with the last
    what the network does after its blocks.

    Raises:
        InputError: an empty batch.
    """
    rows = checked_batch(example)
    spent = []
    with evaluating(trunk), torch.no_grad():
        begun = float(count_flops(trunk.begin, example))
        state = trunk.begin(example)
        for at in range(len(trunk.names)):
            spent.append(float(count_flops(trunk.block, at, state)))
            state = trunk.block(at, state)
        spent[-1] += float(count_flops(trunk.finish, state))
    spent[0] += begun
    return Cost(np.array(spent) / rows, "MFLOPs")


def places(at: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Indices of the blocks after which to exit.

    Args:
        at: indices (negative ones count from the end) or names, in the order of the blocks. The
            last block is not one of them: the network's end is the final exit anyway.
        names: of the B blocks.

    Raises:
        InputError: no place, one that does not exist, comes twice, is out of order or is the last.
    """
    if isinstance(at, str | int) or not len(at):
        raise InputError(f"at is a list of at least one exit, got {at!r}")
    cuts = [_place(place, names) for place in at]
    if len(names) - 1 in cuts:
        raise InputError(
            f"the last child {names[-1]!r} is the final exit already: leave it out of {list(at)}"
        )
    for (first, a), (second, b) in pairwise(zip(at, cuts, strict=True)):
        if a >= b:
            raise InputError(
                f"exits come once each, in the order of the backbone, got {second!r} "
                f"after {first!r}: the order is {', '.join(names)}"
            )
    return cuts


def _place(place: int | str, names: Sequence[str]) -> int:
    if isinstance(place, str) and place in names:
        return list(names).index(place)
    if type(place) is int and -len(names) <= place < len(names):
        return place % len(names)
    raise InputError(
        f"there is no child {place!r} to exit after: the backbone has "
        f"{', '.join(names)} (0 to {len(names) - 1})"
    )
