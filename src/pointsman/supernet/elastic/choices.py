"""What is elastic in a network, said in a line each: depth, kernel, width, heads, experts, bits.

Each declaration finds its modules by a pattern of their names ("*" stands for anything within one
part of a dotted name, "**." for any parts), and gives every module that matches a choice of its
own, or all of them one choice (`together=True`). `make_elastic` puts declarations on a network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, Protocol

import torch
from torch import nn

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.elastic.names import longest_stack, matching
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.elastic.parts import Blocks, Cut, Setting, centred, prefixes
from pointsman.supernet.elastic.plan import Plan
from pointsman.supernet.elastic.quantised import Quantised
from pointsman.supernet.space import Option


class Declaration(Protocol):
    """Something elastic about a network."""

    def declare(self, plan: Plan) -> None:
        """Add its dials and parts to the plan.

        Raises:
            InputError: the network has nothing of the kind.
        """
        ...


def counts_of(
    size: int,
    shares: Sequence[float] | None,
    counts: Sequence[int] | None,
    multiple: int = 1,
    least: int = 1,
) -> tuple[int, ...]:
    """How many units each option keeps, rising, each once; a share keeps at least one multiple.

    Raises:
        InputError: neither or both given, a share outside (0, 1], or a count outside least to size.
    """
    if (shares is None) == (counts is None):
        raise InputError("an elastic size has shares or counts, one of the two")
    if shares is not None:
        if not shares or not all(0 < share <= 1 for share in shares):
            raise InputError(f"shares lie in (0, 1], got {list(shares)}")
        steps = (max(1, ceil(share * size / multiple - 1e-9)) for share in shares)
        return tuple(sorted({min(size, step * multiple) for step in steps}))
    assert counts is not None
    if not counts or not all(least <= count <= size for count in counts):
        raise InputError(f"counts lie between {least} and {size}, got {list(counts)}")
    return tuple(sorted(set(counts)))


@dataclass(frozen=True)
class Depth:
    """How many blocks of a list run: the first ones, or the ones that come first in an order.

    Args:
        blocks: pattern of `nn.ModuleList`s or `nn.Sequential`s whose blocks keep their shape; None:
            the list of blocks of one class with the most parameters, as a transformer's layers.
        counts: options.
        order: the numbers of the blocks, those first that stay longest; None: as they stand.
        together: one choice for all lists that match.
    """

    blocks: str | None = None
    counts: Sequence[int] | None = None
    order: Sequence[int] | None = None
    together: bool = False

    def declare(self, plan: Plan) -> None:
        """A choice for each list, or one for all."""
        found = _stacks(plan, self.blocks)
        for name, container in found:
            size = len(list(container.children()))
            counts = counts_of(size, None, self.counts or range(1, size + 1), least=0)
            order = list(range(size)) if self.order is None else list(self.order)
            if sorted(order) != list(range(size)):
                raise InputError(
                    f"an order names each of the {size} blocks of {name!r} once, got {order}"
                )
            shared = self.blocks if self.together else name
            dial = plan.dial(f"{shared}.depth", counts, name if not self.together else None)
            kept_OU = torch.zeros(len(counts), size, dtype=torch.bool)
            for row, count in zip(kept_OU, counts, strict=True):
                row[order[:count]] = True
            plan.add(Blocks(container, dial, kept_OU, counted_blocks(plan.model, name, size)))
            plan.gate(name, dial, kept_OU)


@dataclass(frozen=True)
class Skip:
    """Whether a block of a list runs, decided for each block.

    Args:
        blocks: as in `Depth`.
        only: numbers of the blocks that may be skipped; None: all of them.
    """

    blocks: str | None = None
    only: Sequence[int] | None = None

    def declare(self, plan: Plan) -> None:
        """A choice for each block."""
        for name, container in _stacks(plan, self.blocks):
            size = len(list(container.children()))
            for at in range(size) if self.only is None else self.only:
                dial = plan.dial(f"{name}.{at}.kept", (False, True), f"{name}.{at}")
                kept_OU = torch.ones(2, size, dtype=torch.bool)
                kept_OU[0, at] = False
                plan.add(Blocks(container, dial, kept_OU, counted_blocks(plan.model, name, size)))
                plan.gate(name, dial, kept_OU)


def _stacks(plan: Plan, pattern: str | None) -> list[tuple[str, nn.Module]]:
    if pattern is None:
        return [longest_stack(plan.model)]
    found = matching(plan.model, pattern)
    stacks: list[tuple[str, nn.Module]] = [
        (name, m) for name, m in found if isinstance(m, nn.ModuleList | nn.Sequential)
    ]
    if not stacks:
        name, module = found[0]
        raise InputError(
            "depth is elastic in an nn.ModuleList or nn.Sequential, got "
            f"{type(module).__name__} at {name!r}"
        )
    return stacks


def counted_blocks(model: nn.Module, name: str, size: int) -> tuple[tuple[Any, str], ...]:
    """Where a transformers configuration above a list of blocks says how many there are."""
    found: dict[tuple[int, str], tuple[Any, str]] = {}
    parts = name.split(".")
    for end in range(len(parts)):
        config = getattr(model.get_submodule(".".join(parts[:end])), "config", None)
        if getattr(config, "num_hidden_layers", None) == size:
            found[id(config), "number"] = (config, "num_hidden_layers")
            kinds = getattr(config, "layer_types", None)
            if isinstance(kinds, list) and len(kinds) == size:
                found[id(config), "kinds"] = (config, "layer_types")
    return tuple(found.values())


@dataclass(frozen=True)
class Kernel:
    """The size of convolutions' kernels: the middle of the largest, padded less.

    Args:
        layers: pattern of convolutions with odd, square kernels.
        sizes: odd options.
        together: one choice for all layers that match.
    """

    layers: str
    sizes: Sequence[int]
    together: bool = False

    def declare(self, plan: Plan) -> None:
        """A choice for each layer, or one for all."""
        for name, layer in matching(plan.model, self.layers):
            kernel = getattr(layer, "kernel_size", ())
            odd = all(size % 2 for size in (*self.sizes, *kernel))
            if not kernel or not odd or max(self.sizes) > min(kernel):
                raise InputError(
                    f"kernels are elastic between odd sizes up to that of the convolution, got "
                    f"{list(self.sizes)} for {type(layer).__name__} at {name!r} with {kernel}"
                )
            sizes = tuple(sorted(set(self.sizes)))
            shared = self.layers if self.together else name
            dial = plan.dial(f"{shared}.kernel", sizes, None if self.together else name)
            for at, size in enumerate(kernel):
                plan.add(Cut(layer, "weight", 2 + at, dial, centred(sizes, size)))


@dataclass(frozen=True)
class Experts:
    """How many experts of a mixture there are: the first ones, and their rows of the router.

    The router is each linear layer beside the experts with one output for each of them. Attributes
    that hold the number of experts follow, and a `top_k` beyond it is lowered.

    Args:
        layers: pattern of modules that hold an `nn.ModuleList` of experts and a router.
        counts: options.
    """

    layers: str
    counts: Sequence[int]

    def declare(self, plan: Plan) -> None:
        """A choice for each module."""
        for name, layer in matching(plan.model, self.layers):
            stacks = [child for child in layer.children() if isinstance(child, nn.ModuleList)]
            if len(stacks) != 1:
                raise InputError(
                    f"experts stand in one nn.ModuleList, {name!r} has {len(stacks)} lists"
                )
            size = len(stacks[0])
            counts = counts_of(size, None, self.counts)
            dial = plan.dial(f"{name}.experts", counts, name)
            inside = set(stacks[0].modules())
            routers = [
                m
                for m in layer.modules()
                if isinstance(m, nn.Linear) and m.out_features == size and m not in inside
            ]
            if not routers:
                raise InputError(
                    f"a router has an output for each of {size} experts, {name!r} has no such "
                    "linear layer"
                )
            kept_OU = prefixes(counts, size)
            plan.add(Blocks(stacks[0], dial, kept_OU))
            for router in routers:
                plan.add(Cut(router, "weight", 0, dial, kept_OU))
                if router.bias is not None:
                    plan.add(Cut(router, "bias", 0, dial, kept_OU))
            _follow_experts(plan, layer, dial, size)


def _follow_experts(plan: Plan, layer: nn.Module, dial: Dial, size: int) -> None:
    counts = [int(count) for count in dial.choice.options]
    for attribute, value in list(vars(layer).items()):
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if "expert" in attribute and value == size:
            plan.add(Setting(layer, attribute, dial, tuple(counts)))
        elif attribute in ("top_k", "k"):
            lowered = tuple(min(value, count) for count in counts)
            plan.add(Setting(layer, attribute, dial, lowered))


@dataclass(frozen=True)
class Bits:
    """To how many bits the weights and inputs of layers are rounded; 32: not at all.

    Args:
        layers: pattern of layers with a `weight` that take one tensor.
        options: bits, 2 or more.
        activations: round the inputs as well.
        together: one choice for all layers that match.
    """

    layers: str
    options: Sequence[int]
    activations: bool = True
    together: bool = False

    def declare(self, plan: Plan) -> None:
        """A choice for each layer, or one for all."""
        if not self.options or min(self.options) < 2:
            raise InputError(f"bits are 2 or more, got {list(self.options)}")
        for name, layer in matching(plan.model, self.layers):
            if layer._parameters.get("weight") is None:
                raise InputError(
                    f"bits are elastic in a layer with a weight, got {type(layer).__name__} at "
                    f"{name!r}"
                )
            shared = self.layers if self.together else name
            options = tuple(sorted(set(self.options)))
            dial = plan.dial(f"{shared}.bits", options, None if self.together else name)
            plan.later(name, partial(Quantised, dial=dial, activations=self.activations))


@dataclass(frozen=True)
class Operation:
    """Which of several operations runs in a place; the one that is there is an option too.

    Args:
        places: pattern of modules that take and give one tensor.
        others: by option, functions of the module that is there which make another with the same
            shapes of inputs and outputs, as `lambda conv: nn.Identity()`.
        own: name of the option that is there; it comes last.
        together: one choice for all places that match.
    """

    places: str
    others: Mapping[str, Any]
    own: str = "own"
    together: bool = False

    def declare(self, plan: Plan) -> None:
        """A choice for each place, or one for all."""
        options: tuple[Option, ...] = (*self.others, self.own)
        for name, _ in matching(plan.model, self.places):
            shared = self.places if self.together else name
            dial = plan.dial(f"{shared}.operation", options, None if self.together else name)

            def choose(there: nn.Module, dial: Dial = dial) -> nn.Module:
                others = {option: make(there) for option, make in self.others.items()}
                return OneOf(dial.choice.name, others | {self.own: there}, dial)

            plan.later(name, choose)
