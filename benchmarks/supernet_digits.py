"""A space of 13,824 convolutional networks on digits with shared weights, all of them evaluated.

Three stages, each with a depth (1, 2 or 3 blocks), a width (4 options) and a kernel (3 or 5). One
network holds them all: narrower subnets use the first channels, smaller kernels the middle of the
larger ones. It is trained with the sandwich rule (the largest, the smallest and two drawn subnets
an update; those after the first learn from the largest one's outputs as well: Yu and Huang 2019,
arXiv 1903.05134). Normalisation is over channels and pixels of one image, so no statistics have to
be fitted again for a subnet.

The accuracy of every subnet on images that it was not trained on is kept in a table, under a
folder of the caller's. Takes three to five minutes of one core for each seed.

Legend: N images, C channels, H rows, W columns.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.claims.testbeds import accuracy, digits
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.space import Choice, Genotype
from pointsman.supernet.supernet import Supernet

STEM = 8
DEPTHS, KERNELS = (1, 2, 3), (3, 5)
WIDTHS = ((4, 6, 8, 10), (8, 12, 16, 20), (12, 16, 24, 32))
UPDATES, BATCH, RATE, DRAWN = 1500, 64, 3e-3, 2

Table = dict[Genotype, tuple[float, float]]  # accuracy, MACs


class ElasticConv(nn.Module):
    """Convolution, normalisation and rectifier with the first channels and the middle kernel."""

    def __init__(self, before: Dial | None, width: Dial, kernel: Dial, stride: int) -> None:
        super().__init__()
        self.before, self.width, self.kernel, self.stride = before, width, kernel, stride
        inputs = STEM if before is None else int(before.choice.options[-1])
        outputs, size = int(width.choice.options[-1]), int(kernel.choice.options[-1])
        self.conv = nn.Conv2d(inputs, outputs, size, bias=False)
        self.norm = nn.GroupNorm(1, outputs)

    def dials(self) -> tuple[Dial, ...]:
        """Channels in, channels out, size."""
        known = (self.before, self.width, self.kernel)
        return tuple(dial for dial in known if dial is not None)

    def _cut(self) -> tuple[Tensor, Tensor, Tensor]:
        inputs = STEM if self.before is None else int(self.before.value)
        outputs, size = int(self.width.value), int(self.kernel.value)
        edge = (self.conv.weight.shape[-1] - size) // 2
        middle = slice(edge, edge + size)
        weight = self.conv.weight[:outputs, :inputs, middle, middle]
        return weight, self.norm.weight[:outputs], self.norm.bias[:outputs]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        weight, scale, shift = self._cut()
        x = functional.conv2d(x, weight, stride=self.stride, padding=weight.shape[-1] // 2)
        return functional.relu(functional.group_norm(x, 1, scale, shift))

    def plain(self) -> nn.Module:
        """The same as ordinary modules."""
        weight, scale, shift = (part.detach().clone() for part in self._cut())
        size = weight.shape[-1]
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], size, self.stride, size // 2, bias=False)
        norm = nn.GroupNorm(1, len(scale))
        conv.weight, norm.weight, norm.bias = map(nn.Parameter, (weight, scale, shift))
        return nn.Sequential(conv, norm, nn.ReLU())


class Residual(nn.Module):
    """A block that adds to its input."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as the input."""
        out: Tensor = x + self.inside(x)
        return out


class Stage(nn.Module):
    """The first of its blocks, as many as its depth says."""

    def __init__(self, depth: Dial, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.depth, self.blocks = depth, nn.ModuleList(blocks)

    def dials(self) -> tuple[Dial, ...]:
        """How many blocks."""
        return (self.depth,)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        for block in self.blocks[: int(self.depth.value)]:
            x = block(x)
        return x

    def plain(self) -> nn.Module:
        """The blocks in force."""
        return nn.Sequential(*self.blocks[: int(self.depth.value)])


class Head(nn.Module):
    """Mean over pixels, then a linear classifier on the channels in use."""

    def __init__(self, width: Dial) -> None:
        super().__init__()
        self.width, self.linear = width, nn.Linear(int(width.choice.options[-1]), 10)

    def dials(self) -> tuple[Dial, ...]:
        """Channels in."""
        return (self.width,)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 10)."""
        weight = self.linear.weight[:, : int(self.width.value)]
        return functional.linear(x.mean((2, 3)), weight, self.linear.bias)

    def plain(self) -> nn.Module:
        """The same as ordinary modules."""
        linear = nn.Linear(int(self.width.value), 10)
        linear.weight = nn.Parameter(self.linear.weight[:, : int(self.width.value)].clone())
        linear.bias = nn.Parameter(self.linear.bias.clone())
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def supernet(seed: int) -> Supernet:
    """Untrained."""
    torch.manual_seed(seed)
    stem = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, STEM, 3, padding=1), nn.ReLU()]
    body: list[nn.Module] = [*stem]
    before: Dial | None = None
    for at, widths in enumerate(WIDTHS):
        depth, width, kernel = (
            Dial(Choice(f"stage {at + 1}: {what}", options))
            for what, options in (("depth", DEPTHS), ("width", widths), ("kernel", KERNELS))
        )
        first = ElasticConv(before, width, kernel, stride=1 if at == 0 else 2)
        rest = [Residual(ElasticConv(width, width, kernel, 1)) for _ in DEPTHS[1:]]
        body.append(Stage(depth, [first, *rest]))
        before = width
    assert before is not None
    return Supernet(nn.Sequential(*body, Head(before)))


def macs(net: Supernet, genotype: Genotype) -> int:
    """Multiply-accumulates of one image, of convolutions and classifier."""
    taken = net.space.decode(genotype)
    total, before = 64 * 9 * STEM, STEM
    for at in range(len(WIDTHS)):
        depth, width, kernel = (
            int(taken[f"stage {at + 1}: {what}"]) for what in ("depth", "width", "kernel")
        )
        pixels = (8 >> at) ** 2
        total += pixels * kernel**2 * width * (before + (depth - 1) * width)
        before = width
    return total + 10 * before


def trained(seed: int) -> Supernet:
    """By the sandwich rule."""
    net, part = supernet(seed), digits(seed).train
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, UPDATES)
    largest = tuple(len(choice.options) - 1 for choice in net.space.choices)
    smallest = (0,) * len(largest)
    for _ in range(UPDATES):
        rows = torch.randint(len(part.x), (BATCH,), generator=generator)
        x, y = part.x[rows], part.y[rows]
        optimiser.zero_grad()
        taught: Tensor | None = None
        for genotype in (largest, smallest, *(net.space.sample(rng) for _ in range(DRAWN))):
            net.use(genotype)
            logits = net(x)
            loss = functional.cross_entropy(logits, y, label_smoothing=0.05)
            if taught is None:
                taught = logits.detach().softmax(1)
            else:
                loss = (loss + functional.cross_entropy(logits, taught)) / 2
            loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def evaluated(net: Supernet, seed: int) -> Table:
    """Of every genotype: accuracy on the 797 images that were not trained on, and MACs."""
    data = digits(seed)
    x, y = (torch.cat([getattr(p, k) for p in (data.calibration, data.test)]) for k in "xy")
    return dict(_below(net, (), nn.Sequential(*net.body[:3])(x), y))


def _below(
    net: Supernet, taken: Genotype, x: Tensor, y: Tensor
) -> Iterator[tuple[Genotype, tuple[float, float]]]:
    """Of every genotype that begins with these stages, whose output is computed once for all."""
    at = len(taken) // 3
    if at == len(WIDTHS):
        yield taken, (accuracy(net.body[-1](x), y), macs(net, taken))
        return
    ahead = (0,) * (len(net.space.choices) - len(taken) - 3)
    for stage in product(*(range(len(c.options)) for c in net.space.choices[:3])):
        net.use((*taken, *stage, *ahead))
        out = net.body[3 + at](x)
        yield from _below(net, (*taken, *stage), out, y)


def table(seed: int, folder: Path) -> Table:
    """Of the space trained with this seed; read from the folder where it is there."""
    path = folder / f"digits-{seed}.npz"
    if not path.exists():
        found = evaluated(trained(seed), seed)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, genotypes=list(found), values=list(found.values()))
    kept = np.load(path)
    return {
        tuple(genotype): (float(right), float(cost))
        for genotype, (right, cost) in zip(
            kept["genotypes"].tolist(), kept["values"].tolist(), strict=True
        )
    }
