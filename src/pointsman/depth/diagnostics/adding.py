"""What each block, or each part of a block, adds to its residual.

Legend: n inputs, S tokens, D width, B blocks, C classes, N tokens of all inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pointsman.depth.diagnostics.walking import TINY, hidden_states
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError
from pointsman.run import State


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each block adds to its residual, mean over tokens.

    Attributes:
        relative: (B,) |d_l| / |h_l|.
        cosine: (B,) of d_l and h_l; negative: the block erases.
        norm: (B + 1,) |h_l|.
    """

    relative: Tensor
    cosine: Tensor
    norm: Tensor

    @property
    def half_ratio(self) -> float:
        """Mean of `relative` over the second half of the blocks by that over the first."""
        half = len(self.relative) // 2
        return float(
            self.relative[len(self.relative) - half :].mean() / self.relative[:half].mean()
        )


def contributions(trunk: Trunk, x: State, *, start: int = 0) -> Contributions:
    """How much each block adds, relative to what is there; arguments as for `hidden_states`."""
    states = hidden_states(trunk, x, start=start)
    relative, cosine = [], []
    for before, after in pairwise(states):
        r, c = _against(after - before, before)
        relative.append(r)
        cosine.append(c)
    norms = torch.stack([state.norm(dim=-1).mean() for state in states])
    return Contributions(torch.stack(relative), torch.stack(cosine), norms)


@torch.no_grad()
def sublayer_contributions(
    trunk: Trunk, x: State, sublayers: Sequence[Sequence[nn.Module]], *, start: int = 0
) -> list[Contributions]:
    """The same for parts of the blocks, such as attention and feed-forward.

    The parts of a block are taken to be added to the residual one after the other, in this order:
    |a_l| is held against |h_l|, |m_l| against |h_l + a_l|.

    Args:
        trunk: run in evaluation mode.
        x: a batch.
        sublayers: for each of the B blocks, its parts in order, equally many in each.
        start: tokens left out at the beginning.

    Returns:
        One `Contributions` for each part, in order; their norms are of what the part is added to.

    Raises:
        InputError: another number of blocks, or of parts.
    """
    counts = {len(parts) for parts in sublayers}
    if len(sublayers) != len(trunk.names) or len(counts) != 1:
        raise InputError(
            f"{len(trunk.names)} blocks need equally many parts each, got {len(sublayers)} blocks "
            f"with {sorted(counts)} parts"
        )
    said: dict[nn.Module, Tensor] = {}

    def hear(module: nn.Module, _: object, output: object) -> None:
        said[module] = output[0] if isinstance(output, tuple) else output  # type: ignore[assignment]

    hooks = [part.register_forward_hook(hear) for parts in sublayers for part in parts]
    try:
        states = hidden_states(trunk, x)
    finally:
        for hook in hooks:
            hook.remove()
    rows: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(counts.pop())]
    for state, parts in zip(states, sublayers, strict=False):
        for at, part in enumerate(parts):
            r, c = _against(said[part][:, start:], state[:, start:])
            rows[at].append((r, c, state[:, start:].norm(dim=-1).mean()))
            state = state + said[part]
    return [Contributions(*(torch.stack(c) for c in zip(*row, strict=True))) for row in rows]


def _against(added: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    size = residual.norm(dim=-1).clamp(min=TINY)
    relative = (added.norm(dim=-1) / size).mean()
    return relative, nn.functional.cosine_similarity(added, residual, dim=-1).mean()
