"""Systems that route images and feature maps: by origin through experts, and softly over places.

Legend: n images, C channels, H and W their height and width, E experts, P width of a state.
"""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.experts import (
    FeedForwardExperts,
    MixedExperts,
)
from pointsman.moe.layer import MoE, Routing
from pointsman.moe.routers import Router, Scored
from pointsman.moe.soft import SoftMoE
from pointsman.select import relu


class PooledRouter(Router):
    """Scores of whole images from their channel means and what the bank before handed on.

    h' = gelu(W1 [mean(x), h]), scores W2 h'; h' is the state for the next bank.

    Args:
        channels: C.
        num_experts: E.
        hidden: P, of the state.
    """

    def __init__(self, channels: int, num_experts: int, hidden: int) -> None:
        super().__init__()
        self.enter = nn.Linear(channels + hidden, hidden)
        self.leave = nn.Linear(hidden, num_experts)
        # Under ReLU a bank whose scores all start below zero would be skipped, and stay so.
        nn.init.ones_(self.leave.bias)
        self.first = nn.Parameter(torch.zeros(hidden))

    def forward(self, x_nCHW: Tensor, context: Context) -> Scored:
        """Scores (n, E) and state (n, P)."""
        state = context.state
        if state is None:
            state = self.first.to(x_nCHW.dtype).expand(len(x_nCHW), -1)
        state = functional.gelu(self.enter(torch.cat([x_nCHW.mean(dim=(2, 3)), state], dim=1)))
        return Scored(self.leave(state), state=state)


class ChannelAttention(nn.Module):
    """Attention between the channels of an image, over its pixels.

    Args:
        channels: C.
        heads: must divide C.
    """

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise InputError(f"heads must divide the channels, got {heads} for {channels}")
        self.heads = heads
        self.mix = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x_nCHW: Tensor) -> Tensor:
        """(n, C, H, W) → the same shape."""
        count, channels, height, width = x_nCHW.shape
        shape = (count, 3, self.heads, channels // self.heads, height * width)
        query, key, value = self.mix(x_nCHW).reshape(shape).unbind(1)
        query, key = functional.normalize(query, dim=3), functional.normalize(key, dim=3)
        mixed = (query @ key.transpose(2, 3)).softmax(dim=3) @ value
        answer: Tensor = self.out(mixed.reshape(x_nCHW.shape))
        return answer


class RoutedImageBlock(nn.Module):
    """A bank of attention experts, then one of feed-forward experts, each normed and residual.

    Args:
        channels: C.
        attention: the first routed layer, of images.
        feed_forward: the second.
    """

    def __init__(self, channels: int, attention: MoE, feed_forward: MoE) -> None:
        super().__init__()
        self.layers = nn.ModuleList([attention, feed_forward])
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels) for _ in range(2))
        self.scales = nn.ParameterList(torch.ones(channels, 1, 1) for _ in range(2))

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, list[Routing]]:
        """(n, C, H, W) → the same shape, and both routings."""
        routings: list[Routing] = []
        for layer, norm, scale in zip(self.layers, self.norms, self.scales, strict=True):
            y, routing = layer(norm(x), context=Context(state=state))
            x, state = x + scale * y, routing.state
            routings.append(routing)
        return x, routings


class ImageToImage(nn.Module):
    """A stack of routed blocks that predicts what is to be added to an image.

    Args:
        blocks: handed each other's router state.
        enter: from the image to channels.
        leave: from channels to what is added to the image.
    """

    def __init__(
        self, blocks: Sequence[RoutedImageBlock], enter: nn.Module, leave: nn.Module
    ) -> None:
        super().__init__()
        self.enter, self.leave, self.blocks = enter, leave, nn.ModuleList(blocks)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Routing]]:
        """(n, c, H, W) → the same shape, and the routing of every bank, two a block."""
        x, routings = self.enter(image), list[Routing]()
        for block in self.blocks:
            x, found = block(x, routings[-1].state if routings else None)
            routings.extend(found)
        return image + self.leave(x), routings


def multi_centre(
    image_channels: int = 1,
    channels: int = 64,
    blocks: int = 5,
    *,
    num_experts: int = 3,
    ratios: Sequence[float] = (0.5, 1, 2),
    heads: int = 16,
    hidden: int = 16,
) -> ImageToImage:
    """One network for images of many origins, whose banks are weighed by ReLU for each image.

    Each router reads the image and what the router before made of it, never the origin. Experts
    of weight zero are skipped. Weights are not normalised.

    Where we depart: the norm is one over all channels and pixels of an image, as two-dimensional
    layers have it; the routers start with every expert in use; pixels are mixed by the first and
    last convolution alone.

    Args:
        image_channels: c, of the image.
        channels: C, inside.
        blocks: of two banks each.
        num_experts: attention experts of a bank.
        ratios: hidden widths of the feed-forward experts of a bank, in channels.
        heads: of an attention expert.
        hidden: of the routers.

    Source: Yang et al. 2023, "DRMC: a generalist model with dynamic routing for multi-center PET
    image synthesis", arXiv 2307.05249.
    """

    def bank(experts: Sequence[nn.Module]) -> MoE:
        router = PooledRouter(channels, len(experts), hidden)
        return MoE(router, relu, MixedExperts(experts), input_dims=3)

    def feed_forward(ratio: float) -> nn.Module:
        inner = max(1, round(ratio * channels))
        up, down = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        return nn.Sequential(up, nn.GELU(), down)

    made = [
        RoutedImageBlock(
            channels,
            bank([ChannelAttention(channels, heads) for _ in range(num_experts)]),
            bank([feed_forward(ratio) for ratio in ratios]),
        )
        for _ in range(blocks)
    ]
    enter = nn.Conv2d(image_channels, channels, 3, padding=1)
    return ImageToImage(made, enter, nn.Conv2d(channels, image_channels, 3, padding=1))


class SoftValueNetwork(nn.Module):
    """A value network whose dense layer is a soft mixture over the places of a feature map.

    Args:
        encoder: observations to feature maps (n, C, H, W).
        soft: over tokens of width C.
        places: H * W.
        actions: values that it answers with.
    """

    def __init__(self, encoder: nn.Module, soft: SoftMoE, places: int, actions: int) -> None:
        super().__init__()
        self.encoder, self.soft = encoder, soft
        self.head = nn.Linear(places * len(soft.phi_DP), actions)

    def forward(self, observation: Tensor) -> Tensor:
        """Values (n, actions)."""
        tokens_nSC = self.encoder(observation).flatten(2).transpose(1, 2)
        values: Tensor = self.head(self.soft(tokens_nSC)[0].flatten(1))
        return values


def soft_value_network(
    encoder: nn.Module,
    channels: int,
    places: int,
    actions: int,
    num_experts: int = 8,
    *,
    hidden: int = 512,
    capacity: float = 1.0,
) -> SoftValueNetwork:
    """The dense layer after a convolutional encoder becomes a soft mixture of experts.

    A token is one place of the last feature map; the answers of all places are laid side by side
    for the linear layer that gives the values. Losses and training stay those of the agent.

    Args:
        encoder: observations to feature maps (n, channels, ...) with `places` places.
        channels: of the feature map.
        places: of the feature map.
        actions: values to answer with.
        num_experts: E; the paper's are 1 to 8.
        hidden: of an expert.
        capacity: slots of all experts together, in places.

    Source: Obando-Ceron et al. 2024, "Mixtures of experts unlock parameter scaling for deep RL",
    arXiv 2402.08609.
    """
    experts = FeedForwardExperts(num_experts, channels, hidden, activation="relu")
    soft = SoftMoE(channels, experts, ceil(places * capacity / num_experts))
    return SoftValueNetwork(encoder, soft, places, actions)
