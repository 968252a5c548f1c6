"""FractalNet for images, and the layers that fractal networks are made of. Legend: K classes."""

from collections.abc import Sequence

from torch import nn

from pointsman.depth.paths.fractal import FractalNetwork
from pointsman.errors import InputError


def convolution_unit(before: int, after: int) -> nn.Sequential:
    """3×3 convolution, batch normalisation, ReLU; weights after Glorot & Bengio, as in the paper.

    Batch statistics of a unit are those of every kind of path that came by in training.
    """
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    nn.init.xavier_uniform_(convolution.weight)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def dense_unit(before: int, after: int) -> nn.Sequential:
    """Linear layer and ReLU, without normalisation."""
    linear = nn.Linear(before, after)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.ReLU())


def fractalnet(
    classes: int,
    columns: int = 4,
    *,
    channels: Sequence[int] = (64, 128, 256, 512, 512),
    inputs: int = 3,
    dropout: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4),
) -> FractalNetwork:
    """FractalNet for images: convolution units, 2×2 pooling and dropout after each block.

    An image's sides halve once a block, so 5 blocks need at least 32×32 pixels. After the last one
    the mean over what is left of the image goes to one linear layer.

    Args:
        classes: K.
        columns: C; 4 gives the 40 layers of the paper, 3 its 20.
        channels: after each block.
        inputs: channels of an image.
        dropout: of whole features after each block.

    Raises:
        InputError: as many dropout rates as blocks are needed.

    Source: Larsson et al. 2016, arXiv:1605.07648.
    """
    if len(dropout) != len(channels):
        raise InputError(f"{len(channels)} blocks need a dropout rate each, got {len(dropout)}")
    between = [nn.Sequential(nn.Dropout(rate), nn.MaxPool2d(2)) for rate in dropout]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))
    return FractalNetwork((inputs, *channels), columns, convolution_unit, head, between)
