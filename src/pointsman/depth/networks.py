"""A small image network that is good at stopping: fine features go on, coarse ones can answer.

Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image Classification" (MSDNet,
2018, arXiv:1703.09844): an exit needs coarse, global features, while the layers after it need fine
ones, so a network that keeps both scales can answer anywhere. Here every stage computes

    fine'   = blocks(fine)
    coarse' = blocks(relu(down(fine') + coarse))            coarse = 0 before the first stage

and an exit is a linear layer on the pooled coarse features. What an exit computes is not lost when
the input goes on: the next stage builds on it, so an exit costs next to nothing. Where we depart:
two scales instead of three, sums instead of concatenations (fewer, wider convolutions, which run
faster per FLOP), residual blocks (He et al. 2016, arXiv:1512.03385), means and maxima pooled.

    net = two_scale()                                    # nn.Sequential: stage1, ..., end
    exits = EarlyExit(net, at=["stage1", "stage2"], example=x, heads=coarse_heads(net))

Legend: T inputs, F channels of fine features, K of coarse ones, H x W pixels, C classes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError

Scales = tuple[Tensor, Tensor]  # fine (T, F, H, W) and coarse (T, K, H / 2, W / 2)


class Layer(NamedTuple):
    """One convolution of the stem: its channels, the side of its kernel and its stride."""

    channels: int
    kernel: int = 3
    stride: int = 1


# From 32 x 32 pixels to fine features of 8 x 8; widths of multiples of 8 run faster.
STEM = (Layer(24, kernel=4, stride=2), Layer(24), Layer(64, stride=2))


def convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, relu: bool = True
) -> nn.Sequential:
    """Convolution without a bias, batch normalisation and, if asked, ReLU."""
    padding = (kernel - 1) // 2
    parts: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*parts, *([nn.ReLU()] if relu else []))


class Residual(nn.Module):
    """relu(x + two convolutions of x), shape kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels, channels), convolution(channels, channels, relu=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(T, channels, H, W) -> the same."""
        return functional.relu(x + self.body(x))


class TwoScaleStage(nn.Module):
    """Fine features, what they add to the coarse ones, and blocks on both.

    Args:
        fine: shape -> shape, or from pixels in the first stage.
        down: fine (T, F, H, W) -> (T, K, H / 2, W / 2).
        coarse: shape -> shape.
    """

    def __init__(self, fine: nn.Module, down: nn.Module, coarse: nn.Module) -> None:
        super().__init__()
        self.fine, self.down, self.coarse = fine, down, coarse

    def forward(self, state: Tensor | Scales) -> Scales:
        """Pixels (T, channels, H, W), or the features of the stage before -> features."""
        if isinstance(state, Tensor):
            fine = self.fine(state)
            return fine, self.coarse(functional.relu(self.down(fine)))
        before, coarse = state
        fine = self.fine(before)
        return fine, self.coarse(functional.relu(self.down(fine) + coarse))


class CoarseHead(nn.Module):
    """Mean and maximum of every coarse channel, averaged, then one linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, state: Scales) -> Tensor:
        """Features -> logits (T, C)."""
        logits: Tensor = self.linear(self.pooled(state))
        return logits

    def pooled(self, state: Scales) -> Tensor:
        """What the linear layer reads, (T, K)."""
        coarse = state[1]
        return (coarse.mean((2, 3)) + coarse.amax((2, 3))) / 2


def two_scale(
    channels: int = 3,
    classes: int = 10,
    *,
    stem: Sequence[Layer] = STEM,
    coarse: int = 128,
    blocks: Sequence[tuple[int, int]] = ((0, 1), (1, 1), (2, 1)),
) -> nn.Sequential:
    """The network without early exits: children stage1, stage2, ... and end.

    Args:
        channels: of the pixels.
        classes: C.
        stem: convolutions from pixels to fine features; the last one's channels are F.
        coarse: K.
        blocks: for each stage, how many residual blocks on fine and on coarse features.

    Raises:
        InputError: no stem or no stage.
    """
    if not stem or not blocks:
        raise InputError(
            f"a two-scale network has a stem and at least one stage, got {len(stem)} layers and "
            f"{len(blocks)} stages"
        )
    widths = [channels, *(layer.channels for layer in stem)]
    first = [
        convolution(before, after, layer.kernel, layer.stride)
        for (before, after), layer in zip(pairwise(widths), stem, strict=True)
    ]
    parts = OrderedDict[str, nn.Module]()
    for at, (on_fine, on_coarse) in enumerate(blocks):
        parts[f"stage{at + 1}"] = TwoScaleStage(
            nn.Sequential(*(first if at == 0 else []), *_residuals(widths[-1], on_fine)),
            convolution(widths[-1], coarse, stride=2, relu=False),
            nn.Sequential(*_residuals(coarse, on_coarse)),
        )
    return nn.Sequential(OrderedDict([*parts.items(), ("end", CoarseHead(coarse, classes))]))


def coarse_heads(net: nn.Sequential) -> list[nn.Module]:
    """One head like the network's own end for each stage before the last.

    Raises:
        InputError: not what `two_scale` makes.
    """
    *stages, end = net.children()
    if not isinstance(end, CoarseHead):
        raise InputError(f"the network must end in a CoarseHead, got {type(end).__name__}")
    linear = end.linear
    return [CoarseHead(linear.in_features, linear.out_features) for _ in stages[:-1]]


def _residuals(channels: int, count: int) -> list[nn.Module]:
    return [Residual(channels) for _ in range(count)]
