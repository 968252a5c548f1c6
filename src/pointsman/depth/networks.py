"""A small image network that is good at stopping: fine features go on, coarse ones can answer.

Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image Classification" (MSDNet,
2018, arXiv:1703.09844): an exit needs coarse, global features, while the layers after it need fine
ones, so a network that keeps both scales can answer anywhere. Here every stage computes

    fine'   = layers(fine)
    coarse' = relu(down(fine') + widen(coarse))            coarse = 0 before the first stage

and an exit is a linear layer on the pooled coarse features. What an exit computes is not lost when
the input goes on: the next stage builds on it, so an exit costs next to nothing. Where we depart:
two scales instead of three, of which the fine one gets coarser on the way; sums instead of
concatenations (fewer, wider convolutions, which run faster per FLOP); max pooling between
convolutions at full resolution instead of strides, which learns much more from little data.

    net = two_scale()                                    # nn.Sequential: stage1, ..., end
    exits = EarlyExit(net, at=["stage1", "stage2"], example=x, heads=coarse_heads(net))

Legend: T inputs, F channels of fine features, K of coarse ones, H x W pixels, C classes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError

Scales = tuple[Tensor, Tensor]  # fine (T, F, H, W) and coarse (T, K, h, w)


class Layer(NamedTuple):
    """A 3 x 3 convolution to so many channels, after which pixels may be halved by max pooling."""

    channels: int
    pool: bool = False


class StageShape(NamedTuple):
    """Layers on the fine features, and channels of the convolutions down to the coarse ones.

    Each convolution on the way down follows a max pooling; every stage ends at the same number of
    coarse pixels.
    """

    fine: Sequence[Layer]
    down: Sequence[int]


# From 32 x 32 pixels; coarse features of 4 x 4. Widths of multiples of 8 run faster.
STAGES = (
    StageShape(fine=(Layer(24, pool=True), Layer(32)), down=(64, 96)),
    StageShape(fine=(Layer(56, pool=True),), down=(128,)),
    StageShape(fine=(Layer(96),), down=(128,)),
    StageShape(fine=(Layer(96),), down=(128,)),
)


class TwoScaleStage(nn.Module):
    """Layers on fine features, and what the result adds to the coarse ones.

    Args:
        fine: (T, F, H, W) -> (T, F', H', W'); in the first stage from pixels.
        down: (T, F', H', W') -> (T, K', h, w).
        widen: coarse (T, K, h, w) -> (T, K', h, w).
    """

    def __init__(self, fine: nn.Module, down: nn.Module, widen: nn.Module) -> None:
        super().__init__()
        self.fine, self.down, self.widen = fine, down, widen

    def forward(self, state: Tensor | Scales) -> Scales:
        """Pixels (T, channels, H, W), or the features of the stage before -> features."""
        if isinstance(state, Tensor):
            fine = self.fine(state)
            return fine, functional.relu(self.down(fine))
        fine = self.fine(state[0])
        return fine, functional.relu(self.down(fine) + self.widen(state[1]))


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
    channels: int = 3, classes: int = 10, stages: Sequence[StageShape] = STAGES
) -> nn.Sequential:
    """The network without early exits: children stage1, stage2, ... and end.

    Args:
        channels: of the pixels.
        classes: C.
        stages: their shapes; coarse features may only get wider.

    Raises:
        InputError: no stage, or one without a convolution.
    """
    if not stages or not stages[0].fine or not all(stage.down for stage in stages):
        raise InputError(
            "a two-scale network has at least one stage, its first with fine layers, and every "
            f"stage a convolution down to the coarse features, got {list(stages)}"
        )
    parts = OrderedDict[str, nn.Module]()
    coarse = 0
    for number, stage in enumerate(stages, 1):
        fine: list[nn.Module] = []
        for layer in stage.fine:
            fine.append(_convolution(channels, layer.channels, pool=layer.pool, relu=True))
            channels = layer.channels
        parts[f"stage{number}"] = TwoScaleStage(
            nn.Sequential(*fine), _down(channels, stage.down), _widen(coarse, stage.down[-1])
        )
        coarse = stage.down[-1]
    return nn.Sequential(OrderedDict([*parts.items(), ("end", CoarseHead(coarse, classes))]))


def coarse_heads(net: nn.Sequential) -> list[nn.Module]:
    """One head like the network's own end for each stage before the last.

    Raises:
        InputError: not what `two_scale` makes.
    """
    *stages, end = net.children()
    if not isinstance(end, CoarseHead):
        raise InputError(f"the network must end in a CoarseHead, got {type(end).__name__}")
    widths = [_channels(stage) for stage in stages[:-1]]
    return [CoarseHead(width, end.linear.out_features) for width in widths]


def _convolution(inputs: int, outputs: int, *, pool: bool, relu: bool, side: int = 3) -> nn.Module:
    """Convolution, max pooling, batch normalisation, ReLU; pooled first, the rest costs less."""
    parts: list[nn.Module] = [nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)]
    parts += [nn.MaxPool2d(2)] * pool
    parts += [nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, *([nn.ReLU()] * relu))


def _down(channels: int, widths: Sequence[int]) -> nn.Sequential:
    """Max pooling and a convolution for each width; no ReLU after the last."""
    parts: list[nn.Module] = []
    for at, width in enumerate(widths, 1):
        parts += [
            nn.MaxPool2d(2),
            _convolution(channels, width, pool=False, relu=at < len(widths)),
        ]
        channels = width
    return nn.Sequential(*parts)


def _widen(before: int, after: int) -> nn.Module:
    if before in (0, after):
        return nn.Identity()
    return _convolution(before, after, pool=False, relu=False, side=1)


def _channels(stage: nn.Module) -> int:
    """Of a stage's coarse features."""
    return [m.out_channels for m in stage.down.modules() if isinstance(m, nn.Conv2d)][-1]  # type: ignore[union-attr]
