"""PC-DARTS: only a part of the channels goes through the mixed operations.

Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search" (2019,
arXiv 1907.05737). The rest passes by, and channels are shuffled so that all get their turn; edges
are weighed by shares of their own (`Relaxation(nodes=..., edge_gate=softmax_gate)`), because the
choice between operations becomes less stable.

Legend: N inputs, C channels.
"""

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.elastic.one_of import OneOf


class PartialChannels(nn.Module):
    """An edge on which the first C / parts channels run through operations and the rest passes by.

    Args:
        mixed: operations for C / parts channels.
        parts: K of the paper; 1: all channels run, as in DARTS.
        bypass: of the other channels, where the operations change the size of an image: a pooling
            with their stride.

    Raises:
        InputError: fewer than one part; in forward, channels that cannot be cut so.
    """

    def __init__(self, mixed: OneOf, parts: int = 4, bypass: nn.Module | None = None) -> None:
        super().__init__()
        if parts < 1:
            raise InputError(f"channels are cut into at least one part, got {parts}")
        self.mixed, self.parts = mixed, parts
        self.bypass = bypass or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) → (N, C, ...), channels shuffled.

        Under a mixture the channels that pass by weigh what all options weigh together, which is 1
        unless the edge itself is weighed.
        """
        channels = x.shape[1]
        if channels % self.parts:
            raise InputError(
                f"the channels of a partial edge are a multiple of {self.parts}, got {channels}"
            )
        if self.parts == 1:
            whole: Tensor = self.mixed(x)
            return whole
        part = channels // self.parts
        rest = self.bypass(x[:, part:])
        if self.mixed.dial.mixture is not None:
            rest = rest * self.mixed.dial.mixture.sum()
        joined = torch.cat([self.mixed(x[:, :part]), rest], dim=1)
        # Channel c goes to place (c mod C/K) * K + c // (C/K): all parts get some of what ran.
        batch, _, *size = joined.shape
        parts = joined.view(batch, self.parts, part, *size)
        return parts.transpose(1, 2).reshape(batch, channels, *size)
