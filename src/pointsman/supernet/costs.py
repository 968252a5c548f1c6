"""What every subnet costs, exactly: multiply-adds and parameters counted, time measured.

A search asks for the costs of tens of thousands of subnets. What one module costs depends on a few
choices only: a convolution on the widths of two stages, its kernel and the depth of its stage. So a
`Count` keeps a table for each module, by the options of the choices that matter to it, fills it
from whole counts, and adds up. Which choices matter is found by changing one after the other from
several subnets, and the sums are held against whole counts of further random subnets; where a sum
is wrong, what was missed is learned from it, and if that does not end, every subnet is counted
whole.

Legend: M modules.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pointsman.cost import (
    UNCOUNTED_BY_TORCH,
    Cost,
    Latency,
    plain_attention,
)
from pointsman.modules import evaluating
from pointsman.supernet.channels import call_with
from pointsman.supernet.elastic.dial import Elastic
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.elastic.quantised import Quantised
from pointsman.supernet.elastic.sliced import Sliced
from pointsman.supernet.space import Genotype, Space
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.timing import clock_of, time_in_turns

Parts = Mapping[str, int]  # by module
STARTS = 3  # random subnets from which choices are changed one after the other
CHECKS = 8  # random subnets in a row whose sums must be right
LESSONS = 40  # corrections before sums are given up


class Count:
    """A cost that is a sum over modules, for any genotype of a space.

    Args:
        space: of the genotypes.
        whole: genotype → the cost of each module, in whole numbers; a module that costs nothing
            may be left out.
        unit: of the cost.
        per: how many of what `whole` counts make one unit.
        seed: of the subnets that are counted whole at first.

    Attributes:
        exact_sums: whether sums are used; else every subnet is counted whole, once.
        counted: how many subnets were counted whole.
    """

    def __init__(
        self,
        space: Space,
        whole: Callable[[Genotype], Parts],
        unit: str,
        *,
        per: int = 1,
        seed: int = 0,
    ) -> None:
        self.space = space
        self.unit = unit
        self.per = per
        self._whole = whole
        self._known: dict[Genotype, Parts] = {}
        self._matters: dict[str, list[int]] = {}
        self._tables: dict[str, dict[tuple[int, ...], int]] = {}
        self.exact_sums = True
        self._learn(np.random.default_rng(seed))

    @property
    def counted(self) -> int:
        """Subnets that were counted whole."""
        return len(self._known)

    def __call__(self, genotype: Sequence[int]) -> float:
        """The cost, in `unit`.

        Raises:
            InputError: this is no genotype of the space.
        """
        taken = self.space.canonical(genotype)
        total = self._sum(taken) if self.exact_sums and taken not in self._known else None
        return (sum(self._count(taken).values()) if total is None else total) / self.per

    def cost(self, genotype: Sequence[int]) -> Cost:
        """The same with its unit."""
        return Cost(self(genotype), self.unit)

    def _sum(self, genotype: Genotype) -> int | None:
        """None: something was never met."""
        total = 0
        for name, places in self._matters.items():
            part = self._tables[name].get(tuple(genotype[at] for at in places))
            if part is None:
                return None
            total += part
        return total

    def _count(self, genotype: Genotype) -> Parts:
        if genotype not in self._known:
            self._known[genotype] = self._whole(genotype)
            if any(name not in self._matters for name in self._known[genotype]):
                self._tabulate()
            else:
                self._enter(genotype)
        return self._known[genotype]

    def _enter(self, genotype: Genotype) -> None:
        found = self._known[genotype]
        for name, places in self._matters.items():
            key = tuple(genotype[at] for at in places)
            self._tables[name][key] = found.get(name, 0)

    def _tabulate(self) -> None:
        """All tables, from what was counted."""
        for found in self._known.values():
            for name in found:
                self._matters.setdefault(name, [])
        self._tables = {name: {} for name in self._matters}
        for genotype in self._known:
            self._enter(genotype)

    def _learn(self, rng: np.random.Generator) -> None:
        largest = self.space.canonical([len(c.options) - 1 for c in self.space.choices])
        for start in (largest, *(self.space.sample(rng) for _ in range(STARTS))):
            self._compare(start)
        right = lessons = 0
        while right < CHECKS and self.exact_sums:
            genotype = self.space.sample(rng)
            expected = self._sum(genotype)
            true = sum(self._count(genotype).values())
            # A sum that cannot be formed yet is no error: the subnet is counted then.
            if expected is None or expected == true:
                right += 1
                continue
            right, lessons = 0, lessons + 1
            self._compare(genotype)
            self.exact_sums = lessons < LESSONS

    def _compare(self, start: Genotype) -> None:
        """Find what matters to which module by changing each choice of a subnet."""
        before = self._count(start)
        for genotype in self.space.neighbours(start):
            after = self._count(genotype)
            changed = [at for at, (a, b) in enumerate(zip(start, genotype, strict=True)) if a != b]
            for name in before.keys() | after.keys():
                if before.get(name, 0) != after.get(name, 0):
                    known = self._matters.setdefault(name, [])
                    known.extend(at for at in changed if at not in known)
        self._tabulate()


def count_mflops(supernet: Supernet, example: Any, *, seed: int = 0) -> Count:
    """MFLOPs of the forward pass of each subnet, attention's own products included.

    A multiply and an add are two FLOPs, as in `pointsman.cost.count_flops`.

    Args:
        supernet: is left as it is.
        example: inputs of one call, as for `make_elastic`; a batch of one gives the cost of one.
        seed: of the subnets that are counted whole.
    """
    return Count(supernet.space, partial(_flops, supernet, example), "MFLOPs", per=10**6, seed=seed)


def count_parameters(supernet: Supernet, *, seed: int = 0) -> Count:
    """Parameters of each subnet as `extract` gives it, tied ones once.

    Args:
        supernet: is left as it is.
        seed: of the subnets that are counted whole.
    """
    return Count(supernet.space, partial(_parameters, supernet), "parameters", seed=seed)


def _flops(supernet: Supernet, example: Any, genotype: Genotype) -> Parts:
    """By module, each without what is inside of it."""
    before = supernet.in_force
    supernet.use(genotype)
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED_BY_TORCH)
    try:
        with evaluating(supernet), torch.no_grad(), plain_attention(), counter:
            call_with(supernet, example)
    finally:
        supernet.use(before)
    own = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    for name, total in list(own.items()):  # totals hold what is inside
        if name != "Global":
            above = name.rpartition(".")[0]
            while above and above not in own:  # such as a list, which is never called
                above = above.rpartition(".")[0]
            own[above or "Global"] -= total
    return {name: amount for name, amount in own.items() if amount}


def _parameters(supernet: Supernet, genotype: Genotype) -> Parts:
    """By module, each without what is inside of it."""
    before = supernet.in_force
    supernet.use(genotype)
    wholes = {
        (id(module), name): id(parameter)
        for module in supernet.modules()
        for name, parameter in module._parameters.items()
    }
    found: dict[str, int] = {}
    seen: set[int] = set()
    names = {id(module): name for name, module in supernet.named_modules()}

    def walk(module: nn.Module) -> None:
        own = 0
        for name, parameter in module._parameters.items():
            whole = wholes[id(module), name]
            if parameter is not None and whole not in seen:  # tied ones once
                seen.add(whole)
                own += parameter.numel()
        if own:
            found[names[id(module)]] = own
        if isinstance(module, OneOf):
            walk(module.plain())
        elif isinstance(module, Sliced):
            with module.in_force():
                walk(module.body)
        elif isinstance(module, Elastic) and not isinstance(module, Quantised):
            plain = copy.deepcopy(module).plain()
            found[names[id(module)]] = sum(p.numel() for p in plain.parameters())
        else:
            for child in module.children():
                walk(child)

    walk(supernet.body)
    supernet.use(before)
    return found


def measure_subnets(
    supernet: Supernet,
    example: Any,
    genotypes: Sequence[Sequence[int]],
    *,
    warmup: int = 3,
    repeats: int = 15,
) -> list[Latency]:
    """Time of one call of each subnet in ms, as the module that `extract` gives, in turns.

    Processor time where one thread does the work, see `timing.clock_of`.

    Args:
        supernet: is left as it is.
        example: inputs of one call, on the device that is meant.
        genotypes: of the subnets.
        warmup: rounds that are not counted, first.
        repeats: rounds that are counted.
    """
    alone: list[nn.Module] = [supernet.extract(genotype).eval() for genotype in genotypes]
    runs = {str(at): partial(call_with, subnet, example) for at, subnet in enumerate(alone)}
    found = time_in_turns(runs, clock_of(alone), warmup=warmup, repeats=repeats)
    return [found[str(at)] for at in range(len(alone))]
