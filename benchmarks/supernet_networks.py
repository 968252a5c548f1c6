"""The elastic network of benchmarks/supernet.py, its data, and the one recipe of every training.

A residual network of three stages of two blocks. Elastic in each stage: its channels (a half, three
quarters, all), the channels inside its blocks (a quarter to all) and how many blocks run (1 or 2):
13,824 subnets. Every update trains the whole network on the labels, and on its answers the smallest
subnet and a random one (the sandwich rule and in-place distillation: Yu & Huang 2019, arXiv
1903.05134).

Legend: N inputs, C channels, M channels inside a block.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from depth_networks import Part, Task, augmenter, logits
from torch import Tensor, nn
from torch.nn import functional

from pointsman.depth.fitting import Batches, Recipe, fit_weights
from pointsman.learn.muon import Muon
from pointsman.supernet.elastic.choices import Depth
from pointsman.supernet.elastic.widths import Width
from pointsman.supernet.making import make_elastic
from pointsman.supernet.recalibration import recalibrate
from pointsman.supernet.space import Genotype
from pointsman.supernet.supernet import Supernet

SMOOTHING = 0.1
BATCH = 125
RATE = 0.1  # of a training from the start
TUNING_RATES = (0.05, 0.01)  # of one that goes on: after a cut, and where little was lost
CHANNELS = (0.5, 0.75, 1.0)
INNER = (0.25, 0.5, 0.75, 1.0)
BLOCKS = (1, 2)
STATISTICS = 1000  # training images from which statistics of batch normalisation are gathered


class Residual(nn.Module):
    """relu(x + two convolutions of x), (N, C, H, W) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(convolution(channels, channels), nn.BatchNorm2d(channels))
        self.inner.append(nn.ReLU())
        self.outer = nn.Sequential(convolution(channels, channels), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.outer(self.inner(x)))


class ConvNet(nn.Module):
    """Images (N, channels, H, W) to logits (N, 10).

    Args:
        channels: of the images.
        widths: C of each stage; each has half the height and width of the one before.
        pool: whether the first stage works on half the height and width of the images.
    """

    def __init__(self, channels: int, widths: Sequence[int], pool: bool) -> None:
        super().__init__()
        self.entries, self.stages = nn.ModuleList(), nn.ModuleList()
        for at, width in enumerate(widths):
            entry = nn.Sequential(convolution(channels, width, stride=2 if at else 1))
            if pool and at == 0:
                entry.append(nn.MaxPool2d(2))
            self.entries.append(entry.extend([nn.BatchNorm2d(width), nn.ReLU()]))
            self.stages.append(nn.Sequential(Residual(width), Residual(width)))
            channels = width
        self.classes = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        for entry, stage in zip(self.entries, self.stages, strict=True):
            x = stage(entry(x))
        answer: Tensor = self.classes(x.mean((2, 3)))
        return answer


def convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)


def network(task: Task, seed: int) -> ConvNet:
    """With new weights: 22 MMACs for CIFAR-10, 1.9 for digits."""
    torch.manual_seed(seed)
    if task.name == "digits":
        net = ConvNet(1, (16, 32, 64), pool=False)
    else:
        net = ConvNet(3, (32, 48, 96), pool=True)
    return net.to(memory_format=torch.channels_last)


def elastic(net: nn.Module, task: Task) -> Supernet:
    """A copy of the network that is elastic: choices of depth first, then channels, then inner."""
    stages = range(3)
    return make_elastic(
        net,
        task.train.x[:1],
        [Depth(f"stages.{at}", counts=BLOCKS) for at in stages]
        + [Width(f"entries.{at}.0", shares=CHANNELS) for at in stages]
        + [Width(f"stages.{at}.*.inner.0", shares=INNER, together=True) for at in stages],
    )


def drawn(rng: np.random.Generator) -> Genotype:
    """A subnet by chance, all alike likely."""
    sizes = (len(CHANNELS), len(INNER), len(BLOCKS))
    channels, inner, blocks = zip(
        *([int(rng.integers(size)) for size in sizes] for _ in range(3)), strict=True
    )
    return (*blocks, *channels, *inner)


def smoothed(answers: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(answers, y, label_smoothing=SMOOTHING)


def train_elastic(supernet: Supernet, task: Task, epochs: int, seed: int) -> None:
    """All subnets at once."""
    rng = np.random.default_rng(seed)
    sizes = [len(choice.options) for choice in supernet.space.choices]
    whole, smallest = [size - 1 for size in sizes], [0] * len(sizes)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        supernet.use(whole)
        answers = supernet(x)
        teacher = answers.detach().softmax(dim=1)
        found = [smoothed(answers, y)]
        for genotype in (smallest, drawn(rng)):
            supernet.use(genotype)
            found.append(functional.cross_entropy(supernet(x), teacher))
        return torch.stack(found)

    fit(supernet, loss, task, epochs, RATE, seed)
    supernet.use(whole)


def train_plain(net: nn.Module, task: Task, epochs: int, rate: float, seed: int) -> None:
    """One network on the labels, from the start or on."""
    fit(net, lambda x, y: smoothed(net(x), y).reshape(1), task, epochs, rate, seed)


def fit(
    net: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    task: Task,
    epochs: int,
    rate: float,
    seed: int,
) -> None:
    data = Batches(task.train.x, task.train.y, BATCH, seed=seed, augment=augmenter(task, seed))
    optimiser = partial(Muon, rate=rate, rest=rate)
    recipe = Recipe(epochs=epochs, clip=float("inf"), optimiser=optimiser)
    start, used = time.perf_counter(), time.process_time()
    net.train()
    fit_weights([list(net.parameters())], loss, data, recipe)
    net.eval()
    wall, cpu = time.perf_counter() - start, time.process_time() - used
    print(f"  trained: {wall:.0f} s ({cpu:.0f} s CPU)", flush=True)


def kept(folder: Path | None, name: str, net: nn.Module, train: Callable[[], None]) -> None:
    """Read a network's weights where they are kept, else train it and keep them."""
    file = folder and folder / f"{name}.pt"
    if file and file.exists():
        net.load_state_dict(torch.load(file, weights_only=True))
        return
    print(f"training: {name}", flush=True)
    train()
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), file)


def calibrated(net: nn.Module, task: Task) -> nn.Module:
    """With statistics of batch normalisation from some training images, in evaluation mode."""
    recalibrate(net, task.train.x[:STATISTICS].split(250))
    return net.eval()


def right(net: nn.Module, part: Part) -> Tensor:
    """(N,) 1 where the network is right, else 0."""
    return (logits(net, part)[0].argmax(dim=1) == part.y).float()
