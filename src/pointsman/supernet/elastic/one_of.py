"""Several operations in one place, of which one is in force, or a mixture of all."""

from collections.abc import Mapping

from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.space import Choice


class OneOf(nn.Module):
    """A place in a network where one of several operations is run.

    With a mixture on its dial the output is the weighted sum over the operations whose weight is
    not exactly zero (continuous relaxation: Liu et al. 2018, arXiv 1806.09055).

    Args:
        name: of the choice, unique in the network.
        operations: by option, modules that take and give the same shapes.
        dial: to share the decision with other places whose operations have the same names.

    Raises:
        InputError: a dial with other options.
    """

    def __init__(
        self, name: str, operations: Mapping[str, nn.Module], dial: Dial | None = None
    ) -> None:
        super().__init__()
        self.dial = dial or Dial(Choice(name, tuple(operations)))
        if self.dial.choice.options != tuple(operations):
            raise InputError(
                f"{name!r} has the operations {list(operations)}, its dial has "
                f"{list(self.dial.choice.options)}"
            )
        self.operations = nn.ModuleList(operations.values())

    def forward(self, x: Tensor) -> Tensor:
        """Of the operation in force, or the mixture."""
        mixture = self.dial.mixture
        if mixture is None:
            out: Tensor = self.operations[self.dial.index](x)
            return out
        taken = mixture.detach().nonzero().flatten().tolist()
        mixed: Tensor = sum(mixture[at] * self.operations[at](x) for at in taken)
        return mixed

    def dials(self) -> tuple[Dial, ...]:
        """The one decision."""
        return (self.dial,)

    def plain(self) -> nn.Module:
        """The operation in force itself."""
        return self.operations[self.dial.index]
