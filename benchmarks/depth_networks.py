"""Networks and data of benchmarks/depth.py: everything is trained here, in minutes, on one core.

Every network is trained in two parts, in each of which the rate rises and falls. Two go on from the
first part of the full network: the reference alone, and the one with exits, which learns all of
them at once. Both have had the same updates, and differ only where exits make them.

Legend: N inputs, C classes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.depth import EarlyExit
from pointsman.depth.fitting import Batches, Recipe, fit_weights
from pointsman.depth.networks import STAGES, Layer, StageShape, coarse_heads, two_scale
from pointsman.depth.training import ExitLoss, train_jointly
from pointsman.learn.muon import Muon

SMOOTHING = 0.1
BATCH = 125
RATES = (0.1, 0.05)  # of the filters and of the rest, in the two parts of the training
EARLY_WEIGHT = 0.5  # of an early exit's loss, against 1 of the last one's
DISTIL = 0.5  # how much of what an early exit learns is the last one's answer
# From 8 x 8 pixels; coarse features of 4 x 4.
DIGITS = (
    StageShape(fine=(Layer(8), Layer(16)), down=(32,)),
    StageShape(fine=(Layer(32),), down=(48,)),
    StageShape(fine=(Layer(48),), down=(64,)),
)


class Part(NamedTuple):
    """Pixels (N, channels, H, W) float32, brought to mean 0 and deviation 1, and classes (N,)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Task:
    """Four parts without a common image, and networks whose size fits them.

    Attributes:
        train, validation, calibration, test: to fit weights, to choose settings, to certify, and to
            measure.
        shift: pixels by which training images are moved at most.
        flip: whether training images are mirrored.
        stages: shapes of the full network's stages.
        epochs: of every network, in the two parts of its training.
    """

    name: str
    train: Part
    validation: Part
    calibration: Part
    test: Part
    shift: int
    flip: bool
    stages: Sequence[StageShape]
    epochs: tuple[int, int]


def cifar10(path: Path, epochs: tuple[int, int]) -> Task:
    """CIFAR-10: of 20,000 training images 15,000 train, 1,500 validate and 3,500 calibrate."""
    data = np.load(path)
    order = np.random.default_rng(0).permutation(len(data["x_train"]))
    x, y = data["x_train"][order], data["y_train"][order]
    scale = x[:15000].mean((0, 1, 2)), x[:15000].std((0, 1, 2))
    rows = {
        "train": slice(15000),
        "validation": slice(15000, 16500),
        "calibration": slice(16500, None),
    }
    parts = {name: _part(x[at], y[at], *scale) for name, at in rows.items()}
    test = _part(data["x_test"], data["y_test"], *scale)
    return Task(
        "CIFAR-10",
        **parts,
        test=test,
        shift=3,
        flip=True,
        stages=STAGES,
        epochs=epochs,
    )


def digits(epochs: tuple[int, int]) -> Task:
    """scikit-learn's 1,797 digits of 8 x 8: 597 train, 200 validate, 700 calibrate, 300 test."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    order = np.random.default_rng(0).permutation(len(bundle.target))
    x, y = bundle.images[order, :, :, None], bundle.target[order]
    scale = x[:597].mean((0, 1, 2)), x[:597].std((0, 1, 2))
    cuts = {
        "train": slice(597),
        "validation": slice(597, 797),
        "calibration": slice(797, 1497),
        "test": slice(1497, None),
    }
    parts = {name: _part(x[at], y[at], *scale) for name, at in cuts.items()}
    return Task(
        "digits",
        **parts,
        shift=1,
        flip=False,
        stages=DIGITS,
        epochs=epochs,
    )


def _part(x: Any, y: Any, mean: Any, deviation: Any) -> Part:
    scaled = torch.as_tensor((x - mean) / deviation, dtype=torch.float32).permute(0, 3, 1, 2)
    return Part(
        scaled.contiguous(memory_format=torch.channels_last),
        torch.as_tensor(y.astype(np.int64)),
    )


def augmenter(task: Task, seed: int) -> Callable[[Tensor], Tensor]:
    """Mirrors and moves the images of a batch by chance; what moves in is a reflection."""
    generator = torch.Generator().manual_seed(seed)

    def augment(x: Tensor) -> Tensor:
        count, channels, side = len(x), x.shape[1], x.shape[2]
        if task.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        padded = functional.pad(x, (task.shift,) * 4, mode="reflect")
        moves = torch.randint(0, 2 * task.shift + 1, (2, count, 1), generator=generator)
        rows, columns = moves + torch.arange(side)
        moved = padded[
            torch.arange(count)[:, None, None, None],
            torch.arange(channels)[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
        return moved.contiguous(memory_format=torch.channels_last)

    return augment


def network(task: Task, stages: int | None = None, width: float = 1.0) -> nn.Sequential:
    """The full network, its first stages alone, or one of narrower layers."""

    def narrow(channels: int) -> int:
        return max(8, 8 * round(width * channels / 8))

    shapes = [
        StageShape(
            [layer._replace(channels=narrow(layer.channels)) for layer in stage.fine],
            [narrow(channels) for channels in stage.down],
        )
        for stage in task.stages[:stages]
    ]
    net = two_scale(task.train.x.shape[1], stages=shapes)
    return net.to(memory_format=torch.channels_last)


def with_exits(task: Task, net: nn.Sequential) -> EarlyExit:
    """The full network with an exit at every stage."""
    at = [f"stage{number}" for number in range(1, len(task.stages))]
    exits = EarlyExit(net, at, example=task.train.x[:1], heads=coarse_heads(net))
    return exits.to(memory_format=torch.channels_last)


def train(net: EarlyExit | nn.Sequential, task: Task, part: int, seed: int) -> None:
    """One part of the training, of all exits at once or of the one end that there is."""
    seed += 1000 * part
    data = Batches(task.train.x, task.train.y, BATCH, seed=seed, augment=augmenter(task, seed))
    optimiser = partial(Muon, rate=RATES[part], rest=RATES[part])
    recipe = Recipe(epochs=task.epochs[part], clip=float("inf"), optimiser=optimiser)
    if isinstance(net, EarlyExit):
        weights = (*[EARLY_WEIGHT] * len(net.heads), 1.0)
        train_jointly(net, data, recipe, ExitLoss(weights, distil=DISTIL, smoothing=SMOOTHING))
        return

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(net(x), y, label_smoothing=SMOOTHING).reshape(1)

    net.train()
    fit_weights([list(net.parameters())], loss, data, recipe)


# Plain networks: the full one, its first stages alone, and all of it in narrower layers.
PLAIN: dict[str, Callable[[Task], nn.Sequential]] = {
    "full": network,
    "first stage alone": partial(network, stages=1),
    "first two stages alone": partial(network, stages=2),
    "half as wide": partial(network, width=0.5),
}


def trained(task: Task, name: str, seed: int, folder: Path | None) -> EarlyExit | nn.Sequential:
    """A network of `PLAIN`, or the full one with "exits": trained, or read from the folder."""
    torch.manual_seed(seed)
    plain = "full" if name == "exits" else name
    net: EarlyExit | nn.Sequential = PLAIN[plain](task)
    kept = _Kept(folder, f"{task.name} {{}} {seed}.pt")
    kept.read_or_train(net, f"{plain}, first part", lambda: train(net, task, 0, seed))
    if name == "exits":
        net = with_exits(task, net)
    kept.read_or_train(net, name, lambda: train(net, task, 1, seed))
    return net.eval()


class _Kept(NamedTuple):
    """Where weights are kept, if anywhere."""

    folder: Path | None
    file_name: str

    def read_or_train(
        self, net: EarlyExit | nn.Sequential, name: str, train_it: Callable[[], None]
    ) -> None:
        """Read the weights where they are, else train and write them."""
        parts = [net.backbone, net.heads] if isinstance(net, EarlyExit) else [net]
        file = self.folder and self.folder / self.file_name.format(name).replace(" ", "-")
        if file and file.exists():
            for part, weights in zip(parts, torch.load(file, weights_only=True), strict=True):
                part.load_state_dict(weights)
            return
        start, used = time.perf_counter(), time.process_time()
        train_it()
        wall, cpu = time.perf_counter() - start, time.process_time() - used
        print(f"trained {name}: {wall:.0f} s ({cpu:.0f} s CPU)", flush=True)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save([part.state_dict() for part in parts], file)


@torch.no_grad()
def logits(net: nn.Module, part: Part, rows: int = 500) -> Tensor:
    """(exits, N, C); one exit where the network has none but its end."""
    found = []
    for x in part.x.split(rows):
        answers = net(x)
        found.append(torch.stack(answers) if isinstance(answers, list) else answers[None])
    return torch.cat(found, dim=1)
