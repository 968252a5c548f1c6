"""Where in a network to exit: by index, by name, or by what is spent until there.

Legend: B blocks, S exits.
"""

from collections.abc import Sequence
from itertools import pairwise

from pointsman.errors import InputError


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
