"""Structured pruning in one call: to a share of MACs, of parameters, or of measured latency.

Legend: U units of a group.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from pointsman.cost import Latency, count_flops
from pointsman.errors import InputError, UnreachableError
from pointsman.modules import evaluating
from pointsman.supernet.channels import ChannelGroup, call_with, channel_groups, narrow
from pointsman.supernet.pruning.importance import Criterion, Scores, magnitude
from pointsman.supernet.timing import clock_of, time_in_turns

Measure = Callable[[nn.Module, nn.Module, Any], float]  # of a small and the whole network
PASSES = 3  # that latency is measured anew, cutting more, until it holds


def macs(small: nn.Module, whole: nn.Module, example: Any) -> float:
    """Share of multiply-accumulates that is left, attention's own products included."""
    return counted_macs(small, example) / counted_macs(whole, example)


def parameters(small: nn.Module, whole: nn.Module, example: Any) -> float:
    """Share of parameters that is left."""
    return counted_parameters(small) / counted_parameters(whole)


def latency(small: nn.Module, whole: nn.Module, example: Any) -> float:
    """Share of the time that is left: medians, measured in turns, on the device of the network.

    Of processor time where one thread does the work, see `pointsman.supernet.timing.clock_of`.
    """
    times = _latencies(whole, small, example)
    return float(times["after"].median / times["before"].median)


def counted_macs(model: nn.Module, example: Any) -> float:
    """Multiply-accumulates of one call, in MMACs: half of the FLOPs that torch counts."""
    with evaluating(model):
        return float(count_flops(lambda: call_with(model, example))) / 2


def counted_parameters(model: nn.Module) -> int:
    """Entries of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class PruningReport:
    """What pruning changed.

    Attributes:
        widths: units of each group before and after.
        macs: MMACs of one call on the example, before and after.
        parameters: before and after.
        latency: of one call on the example, before and after, measured in turns: for what a batch
            takes, give an example of that batch.
        clock: of the latency, "processor" or "wall".
        goal: share that was to be left at most.
        reached: share that is left, by the same measure.
    """

    widths: Mapping[str, tuple[int, int]]
    macs: tuple[float, float]
    parameters: tuple[int, int]
    latency: tuple[Latency, Latency]
    clock: str
    goal: float
    reached: float

    @property
    def speed_up(self) -> float:
        """How many times faster the device really is."""
        return float(self.latency[0].median / self.latency[1].median)

    def __str__(self) -> str:
        less = self.macs[1] / self.macs[0] if self.macs[0] else 1.0
        held = self.parameters[1] / self.parameters[0]
        times = " → ".join(_with_quartiles(time) for time in self.latency)
        return (
            f"{less:.1%} of the MACs ({self.macs[0]:.4g} → {self.macs[1]:.4g} MMACs), "
            f"{held:.1%} of the parameters ({self.parameters[0]:,} → {self.parameters[1]:,}), "
            f"{self.speed_up:.2f} times as fast on this device ({times} ms of "
            f"{self.clock} time per call, quartiles in brackets)"
        )


class Pruned(NamedTuple):
    """A smaller network and what changed."""

    model: nn.Module
    report: PruningReport


def prune(
    model: nn.Module,
    example: Any,
    *,
    to: float,
    of: Measure = macs,
    criterion: Criterion | None = None,
    across: bool = True,
    multiple: int = 1,
    least: int = 1,
    rounds: int = 1,
    inexact: bool = False,
    only: Callable[[ChannelGroup], bool] = lambda group: True,
) -> Pruned:
    """A smaller copy of the network, to be fine-tuned, that is within the goal.

    Units are removed in the order of their importance, as few as reach the goal (by bisection), and
    the result is checked: its outputs are those of the network with these units at zero.

    Args:
        model: is left as it is.
        example: inputs as for `channel_groups`; costs are of one call on it.
        to: share of the whole network's cost that may be left, in (0, 1].
        of: `macs`, `parameters`, `latency`, or any function of the small network, the whole one and
            the example.
        criterion: gives the importance; None: `magnitude()`.
        across: units of all groups compete, by importance over the mean of their group; False:
            every group loses the same share.
        multiple: of which the units that stay in a group are (or all); 8 suits most devices.
        least: units that stay in every group.
        rounds: importance is computed anew so many times on the way, as suits gradients.
        inexact: whether to touch groups over which a statistic is taken, such as the residual
            stream of a transformer: nothing then ensures the outputs.
        only: which groups to touch.

    Raises:
        InputError: a goal outside (0, 1], no group to prune, scores that are no numbers, or a
            network that cannot be cut.
        UnreachableError: nothing that may be removed reaches the goal; says the least share.
    """
    if not 0 < to <= 1:
        raise InputError(f"a goal is a share of the whole network above 0 and up to 1, got {to}")
    if min(multiple, least, rounds) < 1:
        raise InputError(
            f"multiple, least and rounds are at least 1, got {multiple}, {least}, {rounds}"
        )
    small = model
    widths: dict[str, tuple[int, int]] = {}
    for turn in range(1, rounds + 1):
        groups = [g for g in channel_groups(small, example) if (g.exact or inexact) and only(g)]
        if not groups:
            raise InputError(
                f"{type(model).__name__} has no group of units that may be pruned: see "
                "channel_groups, and inexact=True for groups that a statistic is taken over"
            )
        ranking = Ranking((criterion or magnitude())(small, groups), across, multiple, least)
        small = _reach(small, model, example, ranking, to ** (turn / rounds), of)
        after = {group.name: group.size for group in channel_groups(small, example)}
        for group in groups:  # a group of one unit is none any more
            widths[group.name] = widths.get(group.name, (group.size,))[0], after.get(group.name, 1)
    return Pruned(small, _report(model, small, example, widths, to, of))


class Ranking:
    """All units of all groups in the order in which they go.

    Args:
        scores: (U,) importance of each group's units.
        across: as for `prune`.
        multiple: as for `prune`.
        least: as for `prune`.

    Raises:
        InputError: scores of another shape or that are no numbers.
    """

    def __init__(self, scores: Scores, across: bool, multiple: int, least: int) -> None:
        self.multiple, self.least = multiple, least
        self.best: dict[ChannelGroup, list[int]] = {}
        going: list[tuple[float, int, ChannelGroup]] = []
        for place, (group, importance) in enumerate(scores.items()):
            if importance.shape != (group.size,) or not bool(importance.isfinite().all()):
                raise InputError(
                    f"a criterion gives {group.size} finite scores for {group.name!r}, got "
                    f"{importance}"
                )
            ascending = importance.argsort(stable=True).tolist()
            self.best[group] = ascending[::-1]
            mean = float(importance.mean()) or 1.0
            for rank, unit in enumerate(ascending[: max(0, group.size - least)]):
                key = float(importance[unit]) / mean if across else (rank + 1) / group.size
                going.append((key, place, group))
        self.going = [group for _, _, group in sorted(going, key=lambda unit: unit[:2])]

    def kept(self, gone: int) -> dict[ChannelGroup, list[int]]:
        """The units that stay when so many are to go; more stay where they come in multiples."""
        fewer = Counter(self.going[:gone])
        found = {}
        for group, best in self.best.items():
            stay = max(self.least, group.size - fewer[group], 1)
            stay = min(group.size, math.ceil(stay / self.multiple) * self.multiple)
            found[group] = sorted(best[:stay])
        return found


def _reach(
    small: nn.Module, whole: nn.Module, example: Any, ranking: Ranking, goal: float, of: Measure
) -> nn.Module:
    """The network with the fewest units gone that is within the goal."""

    def share(gone: int) -> float:
        return of(narrow(small, ranking.kept(gone)), whole, example)

    most = len(ranking.going)
    least = share(most)
    if least > goal:
        raise UnreachableError(
            f"pruning reaches {least:.3g} of the whole network at least, asked for {goal:.3g}: "
            "ask for more, allow inexact groups, or lower `least` and `multiple`"
        )
    low, high = -1, most  # at `high` units gone the goal is met
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share(middle) <= goal else (middle, high)
    for _ in range(PASSES):  # a measured share may be met by luck
        if high == most or share(high) <= goal:
            break
        high = min(most, high + max(1, most // 20))
    return narrow(small, ranking.kept(high), example)


def _latencies(whole: nn.Module, small: nn.Module, example: Any) -> dict[str, Latency]:
    with evaluating(whole, small):
        return time_in_turns(
            {
                "before": lambda: call_with(whole, example),
                "after": lambda: call_with(small, example),
            },
            clock_of([whole, small]),
        )


def _with_quartiles(time: Latency) -> str:
    """In ms."""
    return f"{float(time.median):.3g} [{float(time.low):.3g} to {float(time.high):.3g}]"


def _report(
    model: nn.Module,
    small: nn.Module,
    example: Any,
    widths: Mapping[str, tuple[int, int]],
    goal: float,
    of: Measure,
) -> PruningReport:
    times = _latencies(model, small, example)
    reached = (
        float(times["after"].median / times["before"].median)
        if of is latency
        else of(small, model, example)
    )
    return PruningReport(
        widths,
        (counted_macs(model, example), counted_macs(small, example)),
        (counted_parameters(model), counted_parameters(small)),
        (times["before"], times["after"]),
        clock_of([model, small]),
        goal,
        reached,
    )
