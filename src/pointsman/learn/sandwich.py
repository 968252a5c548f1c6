"""The sandwich rule: what a network of several widths is trained on at one update.

The widest, the narrowest, and random ones between (Yu & Huang 2019, "Universally slimmable
networks", arXiv 1903.05134): the two ends bound what lies between, so they are always trained.
"""

from collections.abc import Sequence

import torch

from pointsman.errors import InputError


def sandwich(
    widths: Sequence[float], generator: torch.Generator | None = None, between: int = 1
) -> list[float]:
    """The widths whose losses are added up for one update: the ends, and some between.

    Args:
        widths: all that there are, in any order.
        generator: of the random ones.
        between: how many, drawn without replacement; fewer where there are not so many.

    Raises:
        InputError: no width, or a negative count.
    """
    if not widths or between < 0:
        raise InputError(f"give at least one width and a count of at least 0, got {widths}")
    rising = sorted(set(widths))
    middle = rising[1:-1]
    drawn = torch.randperm(len(middle), generator=generator)[:between].tolist()
    ends = rising[-1:] if len(rising) == 1 else [rising[-1], rising[0]]
    return ends + [middle[at] for at in drawn]
