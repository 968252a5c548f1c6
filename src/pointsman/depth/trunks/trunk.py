"""A network as a row of blocks: what every part of this level walks, whatever the network is.

    x ─ begin ─► state ─ block 0 ─► state ─ block 1 ─► … ─ block B-1 ─► state ─ finish ─► logits
                                     └ features ─► an exit head, a router

A state is what lies between two blocks: a tensor, or tuples, lists and dicts of tensors with one
row per input everywhere (None allowed), so that inputs which leave can be taken out of it (see
`pointsman.run`). What all inputs share, such as a causal mask of one row, is not in the state: the
trunk keeps it aside, or makes it again.

Legend: n inputs, B blocks, C classes, D width.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from pointsman.run import State


@runtime_checkable
class Trunk(Protocol):
    """A network that can be run block by block. Implementations are `nn.Module`s.

    Running all blocks in order between `begin` and `finish` gives exactly what the network gives.

    Attributes:
        names: of the B blocks, in the order in which they run; the places after which an input can
            leave, and the layers that can be skipped or repeated where `keeps_shape`.
    """

    names: tuple[str, ...]

    def begin(self, x: Any) -> State:
        """From a batch of inputs to the state before the first block."""
        ...

    def block(self, at: int, state: State) -> State:
        """The state after one block."""
        ...

    def features(self, state: State) -> Tensor:
        """What a head reads off the state between two blocks: (n, ..., D) or (n, D, ...)."""
        ...

    def finish(self, state: State) -> Tensor:
        """From the state after the last block to the network's own logits, (n, ..., C)."""
        ...
