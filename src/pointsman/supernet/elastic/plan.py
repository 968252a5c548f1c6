"""What declarations gather about a network before it becomes elastic."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.channels import ChannelGroup, channel_groups
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.elastic.names import replace
from pointsman.supernet.elastic.parts import Part
from pointsman.supernet.elastic.sliced import Sliced
from pointsman.supernet.space import Choice, Option

Change = Callable[[nn.Module], nn.Module]


class Plan:
    """The parts that dials will take away, the replacements, and which choice depends on which.

    Args:
        model: becomes elastic; is changed by `finish` only.
        example: inputs of one call: a tensor, a tuple of positional or a dictionary of named ones.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = model
        self.example = example
        self.parts: list[Part] = []
        self.groups_taken: set[str] = set()
        self._dials: dict[str, Dial] = {}
        self._changes: list[tuple[str, Change]] = []
        self._gates: dict[str, tuple[str, tuple[Option, ...]]] = {}

    def dial(self, name: str, options: Sequence[Option], place: str | None) -> Dial:
        """The dial of this name, made where there is none.

        Args:
            name: of the choice.
            options: rising, the whole last.
            place: name of the module inside of which it decides; None: in several places.

        Raises:
            InputError: the name is taken by a choice with other options.
        """
        if name not in self._dials:
            self._dials[name] = Dial(Choice(name, tuple(options), self._gate_of(place)))
        found = self._dials[name]
        if found.choice.options != tuple(options):
            raise InputError(
                f"places that share the choice {name!r} have the same options, got "
                f"{list(found.choice.options)} and {list(options)}: give shares, or let each decide"
            )
        return found

    def add(self, part: Part) -> None:
        """What a dial takes away."""
        self.parts.append(part)

    def replace(self, name: str, module: nn.Module) -> None:
        """Put a module in the place of another; the network itself has the name ""."""
        if name:
            replace(self.model, name, module)
        else:
            self.model = module

    def later(self, name: str, change: Change) -> None:
        """Replace a module once all parts are known."""
        self._changes.append((name, change))

    def gate(self, container: str, dial: Dial, kept_OU: Tensor) -> None:
        """From now on choices inside a block depend on whether the block runs."""
        for block, kept_O in enumerate(kept_OU.T.tolist()):
            if not all(kept_O):
                taken = tuple(o for o, on in zip(dial.choice.options, kept_O, strict=True) if on)
                self._gates[f"{container}.{block}"] = (dial.choice.name, taken)

    def _gate_of(self, place: str | None) -> tuple[str, tuple[Option, ...]] | None:
        """The gate of the innermost block around a place."""
        parts = place.split(".") if place else []
        for end in range(len(parts), 0, -1):
            if found := self._gates.get(".".join(parts[:end])):
                return found
        return None

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """Which channels of the network live and die together.

        Raises:
            InputError: no example was given, or the network cannot be followed.
        """
        if self.example is None:
            raise InputError(
                "an example of the inputs is needed to find out which channels depend on each "
                "other, got None: give one, or say so with NamedWidth"
            )
        return channel_groups(self.model, self.example)

    def finish(self) -> nn.Module:
        """The elastic network.

        Raises:
            InputError: nothing in it is elastic.
        """
        if not self._dials:
            raise InputError("an elastic network has a choice at least, nothing was declared")
        for name, change in self._changes:
            self.replace(name, change(self.model.get_submodule(name)))
        return Sliced(self.model, self.parts) if self.parts else self.model
