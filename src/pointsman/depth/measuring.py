"""What an exit network saves: FLOPs counted and time measured, beside each other.

FLOPs fall by what inputs that left do not run. Whether time falls as much depends on what every
stage costs besides (heads, taking rows out of the batch, smaller batches), so both are shown.

Legend: T inputs, S exits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pointsman.cost import Cost, Latency, compare_latency


@dataclass(frozen=True)
class Savings:
    """FLOPs and time of one batch, with exits and without.

    Attributes:
        flops: MFLOPs per input with exits, on the mean.
        whole_flops: MFLOPs per input of the whole network without exits.
        time: of the batch with exits.
        whole_time: of the batch through the whole network.
        answered: (S,) how many inputs each exit answered.
    """

    flops: Cost
    whole_flops: Cost
    time: Latency
    whole_time: Latency
    answered: tuple[int, ...]

    @property
    def flops_saved(self) -> float:
        """Share of the FLOPs; below 0 where exits cost more than they save."""
        return 1 - float(self.flops / self.whole_flops)

    @property
    def time_saved(self) -> float:
        """Share of the time, from the medians."""
        return 1 - float(self.time.median / self.whole_time.median)

    @property
    def realised(self) -> float:
        """Share of the saving in FLOPs that is one in time; NaN where no FLOPs are saved."""
        return self.time_saved / self.flops_saved if self.flops_saved > 0 else float("nan")

    def words(self) -> str:
        """One line."""
        inputs = sum(self.answered)
        return (
            f"{self.flops} instead of {self.whole_flops} per input ({self.flops_saved:.0%} saved), "
            f"{float(self.time.median):.3g} instead of {float(self.whole_time.median):.3g} ms for "
            f"{inputs} inputs ({self.time_saved:.0%} saved)"
        )


def timed_savings(
    exits: Callable[[], Any],
    whole: Callable[[], Any],
    *,
    flops: Cost,
    whole_flops: Cost,
    answered: Any,
    warmup: int,
    repeats: int,
) -> Savings:
    """Both runs timed in turn, so that a drift of the machine hits both alike."""
    times = compare_latency({"exits": exits, "whole": whole}, warmup=warmup, repeats=repeats)
    counts = tuple(int(count) for count in np.asarray(answered))
    return Savings(flops, whole_flops, times["exits"], times["whole"], counts)
