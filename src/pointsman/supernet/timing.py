"""Times of networks against one another, by the steadiest clock that the device allows.

Where one thread of this process does all the work, its processor time is what is measured: other
programs of the machine do not change it. With more threads, or another device, it is the time that
passes.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from pointsman.cost import Latency, compare_latency


def clock_of(networks: Iterable[nn.Module]) -> str:
    """The clock to time networks by: "processor" or "wall".

    Args:
        networks: all that take part; "processor" if they are on the CPU and torch runs one thread.
    """
    devices = {
        tensor.device.type
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
    }
    return "processor" if devices <= {"cpu"} and torch.get_num_threads() == 1 else "wall"


def time_in_turns(
    runs: Mapping[str, Callable[[], Any]], clock: str, *, warmup: int = 3, repeats: int = 15
) -> dict[str, Latency]:
    """Time of one call of each in ms, called in turns, without gradients.

    Args:
        runs: name to a callable without arguments.
        clock: see `clock_of`.
        warmup: rounds that are not counted, first.
        repeats: rounds that are counted, at least one.

    Raises:
        InputError: fewer than one counted round was asked for.
    """
    if clock == "wall":
        return compare_latency(runs, warmup=warmup, repeats=repeats)
    spent: dict[str, list[float]] = {name: [] for name in runs}

    def timed(name: str) -> None:
        start = time.process_time()
        runs[name]()
        spent[name].append(time.process_time() - start)

    in_turns = {name: partial(timed, name) for name in runs}
    compare_latency(in_turns, warmup=warmup, repeats=repeats)
    return {name: Latency.from_seconds(times[warmup:]) for name, times in spent.items()}
