"""Modules that run one after the other, as a row of blocks."""

from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.run import State


class SequentialTrunk(nn.Module):
    """An `nn.Sequential`, or a list of modules; each is a block, and the last one gives the logits.

    The modules are shared with the backbone, not copied.

    Args:
        backbone: an nn.Sequential, or an iterable of modules that are applied in order.
        channels: the dimension of features that holds the channels.

    Attributes:
        names: of the blocks: those of the Sequential, or their places in the list.
        blocks: by name.

    Raises:
        InputError: anything but modules, or fewer than two of them.
    """

    def __init__(self, backbone: nn.Module | Iterable[nn.Module], channels: int = 1) -> None:
        super().__init__()
        children = _children(backbone)
        self.names, self.channels = tuple(children), channels
        self.blocks = nn.Sequential(OrderedDict(children))

    def part(self, start: int, stop: int) -> nn.Sequential:
        """Blocks start to stop - 1 as an nn.Sequential of the same modules, under their names."""
        chosen = list(self.blocks._modules.items())[start:stop]
        return nn.Sequential(OrderedDict(chosen))

    def forward(self, x: Tensor) -> Tensor:
        """All blocks, one after the other."""
        result: Tensor = self.blocks(x)
        return result

    def begin(self, x: State) -> State:
        """The input as it is."""
        return x

    def block(self, at: int, state: State) -> State:
        """One module applied."""
        return self.blocks[at](state)

    def features(self, state: Tensor) -> Tensor:
        """What lies between two modules, as it is."""
        return state

    def finish(self, state: Tensor) -> Tensor:
        """The last module gave the logits already."""
        return state


def _children(backbone: nn.Module | Iterable[nn.Module]) -> dict[str, nn.Module]:
    """The modules of a sequential backbone by name, in order."""
    if isinstance(backbone, nn.Sequential):
        # named_children would leave out a module that comes twice, such as one shared ReLU
        children = {name: m for name, m in backbone._modules.items() if m is not None}
    elif isinstance(backbone, nn.Module) and not isinstance(backbone, nn.ModuleList):
        raise InputError(
            f"a row of modules is an nn.Sequential or a list of them, got {type(backbone).__name__}"
        )
    else:
        children = {str(at): child for at, child in enumerate(backbone)}
    for name, child in children.items():
        if not isinstance(child, nn.Module):
            raise InputError(
                f"the parts of a backbone are modules, got {type(child).__name__} at {name}"
            )
    if len(children) < 2:
        raise InputError(
            f"a backbone with early exits has at least two children, got {len(children)}"
        )
    return children
