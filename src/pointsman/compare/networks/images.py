"""Networks for images: plain, exiting, nested and routed ConvNets of one shape."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from pointsman.moe import FeedForwardExperts, MoE
from pointsman.moe.balance import switch
from pointsman.select import top_k

# Width of the first stage of the ladder's ConvNets, from small to large. CPU convolutions work in
# blocks of eight channels: other widths cost the time of the next multiple.
LADDER = (2, 4, 8, 16)
EXIT_SIZE = NESTED_SIZE = LADDER[-1]
ROUTED_SIZE = 8
WIDTHS = (0.125, 0.25, 0.5, 0.75, 1.0)
EXPERTS_USED = (1, 2, 4)


class Residual(nn.Module):
    """x + f(x), for a branch f that keeps the shape."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """The sum, of the shape of x."""
        changed: Tensor = self.branch(x)
        return x + changed


def conv(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, batch normalisation and ReLU, at the same resolution."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def stages(side: int) -> int:
    """How often an image of this side is halved: until about 4 pixels are left, at most 4 times."""
    halvings = 0
    while side > 6 and halvings < 4:
        side, halvings = side // 2, halvings + 1
    return halvings


def channels_out(width: int, halvings: int) -> int:
    """Channels after so many halvings: twice as many each time, after the second no more."""
    return min(width << halvings, 4 * width)


def convnet(
    channels: int, classes: int, width: int, halvings: int, sizes: Sequence[int] = ()
) -> nn.Sequential:
    """Plain network: NCHW images → logits (n, classes), one child a stage.

    Args:
        channels: of the images.
        classes: of the logits.
        width: channels of the first stage; the next ones have as many as `channels_out` says.
        halvings: further stages.
        sizes: channels of every stage instead.
    """
    wide, *rest = sizes or [channels_out(width, stage) for stage in range(halvings + 1)]
    blocks: list[nn.Module] = [conv(channels, wide)]
    for stage, size in enumerate(rest):
        narrow, wide = wide, size
        block = [conv(narrow, wide), nn.MaxPool2d(2)]
        if stage > 0:
            block.append(Residual(conv(wide, wide)))
        blocks.append(nn.Sequential(*block))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes))
    return nn.Sequential(*blocks, head)


class RoutedConvNet(nn.Module):
    """A ConvNet whose last stage adds experts over pixels: NCHW images → logits (n, classes)."""

    def __init__(
        self, channels: int, classes: int, width: int, halvings: int, *, experts: int = 16
    ) -> None:
        super().__init__()
        *trunk, self.head = convnet(channels, classes, width, halvings)
        self.trunk = nn.Sequential(*trunk)
        wide = channels_out(width, halvings)
        self.norm = nn.LayerNorm(wide)
        self.moe = MoE(
            nn.Linear(wide, experts, bias=False),
            partial(top_k, k=2),
            FeedForwardExperts(experts, wide, wide),
        )

    def forward(self, x: Tensor, k: int = 2) -> tuple[Tensor, Tensor]:
        """Logits, and the balancing loss of the routed layer."""
        features = self.trunk(x)
        pixels = features.permute(0, 2, 3, 1)
        routed, routing = self.moe(self.norm(pixels), select=partial(top_k, k=k))
        logits = self.head(features + routed.permute(0, 3, 1, 2))
        return logits, switch(routing)
