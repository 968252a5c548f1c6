"""Residual networks whose blocks an input can leave out, and how they are trained.

The network is trained with blocks left out at random (stochastic depth), so that it does without
them later. Then, on rows that it was not trained on, all paths are tried, and routers learn for
each input the shortest one that is good enough (see `pointsman.depth.layers`). What a router sees
is the state before its block; text is read a window at a time, which takes one path as a whole.

Legend: n inputs, B blocks, L places of a window.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.compare.data import Kind
from pointsman.compare.judging import judge
from pointsman.compare.networks import images
from pointsman.compare.networks.text import Transformer
from pointsman.depth.layers.execute import LayerCosts
from pointsman.depth.layers.network import SkipNetwork
from pointsman.depth.layers.paths import enumerate_paths
from pointsman.depth.layers.routers import WindowRouters
from pointsman.depth.layers.search import every_path
from pointsman.depth.layers.training import fit_routers, rising, skipping_logits
from pointsman.run import Stage

FEATURE_SIZE, FEATURE_BLOCKS = (128, 128), 3  # width, and units inside a block
IMAGE_BLOCKS = 6
IMAGE_SIZE = 8  # width of the first stage; blocks are four times as wide
# What a block must be worth, in logits of its router; the network as it was trained comes last.
PRICES = (2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -8.0)
LAST_DROP = 0.3  # how often the last block is left out in training, where any is
WHOLE_SHARE = 0.5  # of the steps train the whole network
ROUTER_ROWS, ROUTER_SHARE = 2000, 0.15  # held back from the training of the network
TOLERANCE = 0.01  # quality that a good path may lose against the whole network; matters for text


class ResidualNetwork(nn.Module):
    """Stem, residual blocks of one shape, head: a `pointsman.depth` trunk of the blocks."""

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.names = tuple(f"blocks.{at}" for at in range(len(blocks)))

    def begin(self, x: Tensor) -> Tensor:
        """The stem."""
        state: Tensor = self.stem(x)
        return state

    def block(self, at: int, state: Tensor) -> Tensor:
        """One block, which keeps the shape."""
        after: Tensor = self.blocks[at](state)
        return after

    def features(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def finish(self, state: Tensor) -> Tensor:
        """The head's logits."""
        logits: Tensor = self.head(state)
        return logits


def feature_network(inputs: int, classes: int, width: int, inner: int, blocks: int) -> nn.Module:
    """(n, inputs) → logits (n, classes)."""
    return ResidualNetwork(
        nn.Sequential(nn.Linear(inputs, width), nn.ReLU()),
        [
            images.Residual(
                nn.Sequential(
                    nn.LayerNorm(width), nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width)
                )
            )
            for _ in range(blocks)
        ],
        nn.Linear(width, classes),
    )


def image_network(channels: int, classes: int, width: int, halved: int, blocks: int) -> nn.Module:
    """NCHW images → logits (n, classes); the blocks see images halved so often."""
    stem: list[nn.Module] = [images.conv(channels, width)]
    for at in range(halved):
        narrow, wide = images.channels_out(width, at), images.channels_out(width, at + 1)
        stem += [images.conv(narrow, wide), nn.MaxPool2d(2)]
    wide = images.channels_out(width, halved)
    return ResidualNetwork(
        nn.Sequential(*stem),
        [images.Residual(images.conv(wide, wide)) for _ in range(blocks)],
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes)),
    )


def halvings(side: int) -> int:
    """How often an image of this side is halved before the blocks: once less than in all."""
    most = images.stages(side)
    return most if most < 2 else most - 1


def with_routers(trunk: Any, width: int) -> SkipNetwork:
    """A trunk of one width with a router at every block, which may leave it out."""
    blocks = len(trunk.names)
    return SkipNetwork(trunk, WindowRouters(blocks, width, actions=2, hidden=16, windows=4))


def width_of(spec: Mapping[str, Any]) -> int:
    """Channels of the state between blocks."""
    if spec["kind"] == "images":
        return images.channels_out(spec["width"], halvings(min(spec["side"])))
    return int(spec["width"])


def build(spec: Mapping[str, Any]) -> SkipNetwork:
    """The network of a description, with fresh weights."""
    trunk: nn.Module
    if spec["kind"] == "features":
        trunk = feature_network(
            spec["inputs"], spec["classes"], spec["width"], spec["inner"], spec["blocks"]
        )
    elif spec["kind"] == "images":
        halved = halvings(min(spec["side"]))
        trunk = image_network(
            spec["channels"], spec["classes"], spec["width"], halved, spec["blocks"]
        )
    else:
        trunk = Transformer(spec["width"], spec["blocks"], spec["context"], "dense")
    return with_routers(trunk, width_of(spec))


def training_logits(network: SkipNetwork, x: Tensor, generator: torch.Generator) -> Tensor:
    """Logits of a training step: the whole network, or every input without some of its blocks."""
    blocks = len(network.trunk.names)
    whole = float(torch.rand(1, generator=generator)) < WHOLE_SHARE
    drop = [0.0] * blocks if whole else rising(blocks, LAST_DROP)
    return skipping_logits(network.trunk, x, drop, generator)


def held_back(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which training rows the network learns from, and which are kept for the routers."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    kept = min(ROUTER_ROWS, max(1, int(ROUTER_SHARE * rows)))
    return order[kept:], order[:kept]


def learn_routers(network: SkipNetwork, x: Tensor, y: Tensor, *, kind: Kind, seed: int) -> None:
    """Try all paths on rows that the network was not trained on, and train the routers on the best.

    Args:
        network: trained; its routers are changed in place.
        x: inputs (n, ...).
        y: targets (n, ...).
        kind: of the data.
        seed: of the batches.
    """
    paths = enumerate_paths(len(network.trunk.names), actions=2)

    def quality(logits: Tensor, targets: Tensor) -> Tensor:
        return judge(logits, targets, kind)[0]

    tried = every_path(network.trunk, x, y, paths, quality=quality)
    runs, _ = tried.best(tolerance=TOLERANCE if kind == "text" else 0.0)
    fit_routers(network, x, runs, seed=seed)


@dataclass(frozen=True, eq=False)
class AtPrice:
    """A skip network at one price, as the answer of a stage."""

    network: SkipNetwork
    price: float
    costs: LayerCosts

    def __call__(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.network.run(x, self.price).output

    def spend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and MFLOPs per input (n,); per token of it for text."""
        found = self.network.run(x, self.price)
        free = math.isinf(self.price)  # nobody is asked
        spent = self.costs.of(found.runs) - self.costs.deciding * float(free)
        places = x.shape[1] if x.dtype == torch.uint8 else 1
        return found.output, torch.as_tensor(np.asarray(spent.amount)) / places


def stages(network: SkipNetwork, example: Tensor) -> list[tuple[str, Stage]]:
    """The network at every price, from the cheapest path to the network as it was trained."""
    costs = network.layer_costs(example)
    prices = {f"price {price:g}": price for price in PRICES} | {"all blocks": -math.inf}
    return [(name, Stage(AtPrice(network, price, costs))) for name, price in prices.items()]
