"""Heads: what answers at an exit.

A head maker is called once for each exit, with the features there, and gives a module from
features to logits: `EarlyExit(..., heads=hidden_head(64))`.

Legend: n inputs, D width of the features, C classes.
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from pointsman.errors import InputError

HeadMaker = Callable[[Tensor, int], nn.Module]


class ChannelMean(nn.Module):
    """The mean over all dimensions but the inputs and the channels: (n, D, ...) → (n, D).

    Args:
        channels: which dimension holds the channels.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """The means; features (n, D) pass as they are."""
        if x.ndim <= 2:
            return x
        return x.movedim(self.channels, 1).flatten(2).mean(dim=2)


def pooled_linear(features: Tensor, classes: int, *, channels: int = 1) -> nn.Sequential:
    """Channel means and one linear layer, in the features' dtype and on their device.

    Args:
        features: (n, D, ...), or with the channels in another dimension.
        classes: C.
        channels: the dimension that holds the channels.

    Raises:
        InputError: features of one number per input.
    """
    if features.ndim < 2:
        raise InputError(
            f"a default head needs features (inputs, channels, ...), got {tuple(features.shape)}"
        )
    width = features.shape[channels]
    linear = nn.Linear(width, classes, device=features.device, dtype=features.dtype)
    return nn.Sequential(OrderedDict(mean=ChannelMean(channels), linear=linear))
