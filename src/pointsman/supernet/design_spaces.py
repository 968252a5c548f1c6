"""Design spaces: compared by the errors of the networks drawn from them, and made simple.

Radosavovic et al., "Designing Network Design Spaces" (2020, arXiv 2003.13678). A space is judged by
the distribution of errors of networks drawn from it, F(e) = share of networks with an error below
e, at equal cost. From a free space (AnyNet: every stage has its own width and depth) restrictions
that do not harm F lead to RegNet, in which a network is six numbers: the widths of its blocks lie
on a line that is quantised to powers,

    u_j = w_0 + w_a j,   s_j = round(log(u_j / w_0) / log(w_m)),   w_j = w_0 w_m^s_j,

rounded to a multiple; blocks of one width in a row are a stage.

Where we depart: any multiple may be asked for, since eight is coarse for small networks.

Legend: D blocks, S stages, N networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError, UnreachableError

Array = npt.NDArray[np.float64]
DRAWS = 100_000  # before a space is taken to have nothing in a range of cost


@dataclass(frozen=True)
class Stages:
    """A network as stages.

    Args:
        widths: (S,) channels or units of each.
        depths: (S,) blocks of each.
        bottleneck: width of a block's inside is the width over this.
        group: width of a group of channels, at most the inside's; it divides it.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    bottleneck: int = 1
    group: int = 1

    @property
    def rising(self) -> bool:
        """Whether no stage is narrower than the one before it."""
        return all(a <= b for a, b in pairwise(self.widths))

    @property
    def deepening(self) -> bool:
        """Whether no stage is shallower than the one before it, but perhaps the last."""
        return all(a <= b for a, b in pairwise(self.depths[:-1]))


def linear_widths(
    depth: int, start: float, slope: float, factor: float, multiple: int = 8
) -> tuple[int, ...]:
    """(D,) widths of the blocks by the quantised linear rule.

    Args:
        depth: D.
        start: w_0, at least the multiple.
        slope: w_a, not negative.
        factor: w_m, above 1.
        multiple: that widths are rounded to.

    Raises:
        InputError: a number out of its range.
    """
    if depth < 1 or slope < 0 or start < multiple or factor <= 1:
        raise InputError(
            "a quantised line has at least one block, a start of at least the multiple, no "
            f"negative slope and a factor above 1, got {depth}, {start}, {slope}, {factor}"
        )
    line_D = start + slope * np.arange(depth)
    steps_D = np.round(np.log(line_D / start) / np.log(factor))
    widths_D = np.round(start * factor**steps_D / multiple) * multiple
    return tuple(int(width) for width in widths_D)


def regnet(
    depth: int,
    start: float,
    slope: float,
    factor: float,
    bottleneck: int = 1,
    group: int = 1,
    multiple: int = 8,
) -> Stages:
    """The network of six numbers, its widths made divisible by the group.

    Args:
        depth: number of blocks.
        start: w_0.
        slope: w_a.
        factor: w_m.
        bottleneck: of every block.
        group: width of a group; a narrower stage is one group.
        multiple: that widths are rounded to.

    Raises:
        InputError: as `linear_widths`.
    """
    rows = linear_widths(depth, start, slope, factor, multiple)
    fitted = [_divisible(width, bottleneck, group) for width in rows]
    runs = [(width, len(list(blocks))) for width, blocks in groupby(fitted)]
    return Stages(tuple(w for w, _ in runs), tuple(d for _, d in runs), bottleneck, group)


def _divisible(width: int, bottleneck: int, group: int) -> int:
    """The nearest width whose inside is a multiple of the group, or smaller than one."""
    inside = width // bottleneck
    if inside < group:
        return width
    return max(1, round(inside / group)) * group * bottleneck


def draw_within(
    draw: Callable[[np.random.Generator], Stages],
    cost: Callable[[Stages], float],
    within: tuple[float, float],
    count: int,
    rng: np.random.Generator,
) -> list[Stages]:
    """Networks of a space within a range of cost, so that spaces are compared at equal cost.

    Args:
        draw: one network of the space at random.
        cost: of a network, counted.
        within: smallest and largest.
        count: how many, different from each other.
        rng: of the draws.

    Raises:
        UnreachableError: so many are not found.
    """
    found: dict[Stages, None] = {}
    for _ in range(DRAWS):
        stages = draw(rng)
        if within[0] <= cost(stages) <= within[1]:
            found[stages] = None
        if len(found) == count:
            return list(found)
    raise UnreachableError(
        f"the space has {len(found)} networks that cost {within[0]:g} to {within[1]:g} in "
        f"{DRAWS:,} draws, {count} were asked for: widen the range"
    )


def error_distribution(errors: Sequence[float], at: npt.ArrayLike) -> Array:
    """Share of networks whose error lies below each value: F(e).

    Args:
        errors: (N,) of networks drawn from a space.
        at: errors e.

    Raises:
        InputError: no network.
    """
    if not len(errors):
        raise InputError("a distribution of errors needs at least one network, got none")
    ranked = np.sort(np.asarray(errors, dtype=np.float64))
    places: npt.NDArray[Any] = np.searchsorted(ranked, np.asarray(at), side="left")
    return places / len(ranked)
