"""The option of a choice that is in force, and what a module must offer to have choices.

Modules that hold the same dial change together: the outputs of one layer and the inputs of the
next, or every block of a stage.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from pointsman.supernet.space import Choice, Option


class Dial:
    """One choice and the option of it that is in force; the last option at first.

    Attributes:
        choice: name and options.
        index: of the option in force.
        mixture: (options,) weights of all options instead of one, as relaxations train them, or
            None. Only modules that say so can mix.
    """

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.index = len(choice.options) - 1
        self.mixture: Tensor | None = None

    @property
    def value(self) -> Option:
        """The option in force."""
        return self.choice.options[self.index]


@runtime_checkable
class Elastic(Protocol):
    """A module that can be used in several ways, as its dials say."""

    def dials(self) -> tuple[Dial, ...]:
        """What it depends on; dials of modules inside it are found by themselves."""
        ...

    def plain(self) -> nn.Module:
        """An ordinary module with a copy of what is in force, which gives the same outputs.

        Elastic modules inside it may stay: they are replaced after it.
        """
        ...


# Asked once a class: a protocol is compared name by name, and this is at every change of subnet.
_KINDS: dict[type, bool] = {}


def dials_of(body: nn.Module) -> tuple[Dial, ...]:
    """Every dial in a network, once, in order of definition."""
    found: dict[str, Dial] = {}
    for module in elastic_modules(body):
        for dial in module.dials():
            known = found.setdefault(dial.choice.name, dial)
            assert known is dial, f"two dials are named {dial.choice.name!r}"
    return tuple(found.values())


def elastic_modules(body: nn.Module) -> Iterator[Any]:
    """The elastic modules of a network, outer ones first."""
    for module in body.modules():
        kind = type(module)
        if kind not in _KINDS:
            _KINDS[kind] = isinstance(module, Elastic)
        if _KINDS[kind]:
            yield module
