"""Small worlds that claims share: digits with noise, little networks, one way to train them.

The data is scikit-learn's 1,797 digits of 8x8 pixels, split per seed into a part to train on, one
to calibrate on and one to test on. Without noise nearly everything is easy; with it the task has
the errors that routing is about. A noisy data set holds each training image once and each held-out
image several times under noise of its own, which measures the same quality with less chance in it.

Legend: N inputs, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

TRAIN, CALIBRATION = 1000, 397  # of 1,797 images; the other 400 are the test part
HELD_OUT_COPIES = 4

# module, inputs, labels -> scalar
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Part:
    """Inputs (N, 64) float32, pixels in [0, 1] before noise, and labels (N,) from 0 to 9."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, eq=False)
class Digits:
    """Three parts that share no image."""

    train: Part
    calibration: Part
    test: Part


def digits(seed: int, noise: float = 0.0) -> Digits:
    """Digits, under Gaussian noise if asked; the split depends on the seed alone.

    Args:
        seed: of the split and of the noise.
        noise: standard deviation, in units of the range of a pixel. 0: the images, once each.
    """
    bundle = load_digits()
    x = torch.as_tensor(bundle.data, dtype=torch.float32) / 16
    y = torch.as_tensor(bundle.target, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(x), generator=generator)
    train, calibration, test = rows.tensor_split([TRAIN, TRAIN + CALIBRATION])
    if noise > 0:
        calibration, test = calibration.repeat(HELD_OUT_COPIES), test.repeat(HELD_OUT_COPIES)

    def part(chosen: Tensor) -> Part:
        clean = x[chosen]
        return Part(clean + noise * torch.randn(clean.shape, generator=generator), y[chosen])

    return Digits(part(train), part(calibration), part(test))


def mlp(*sizes: int, seed: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between, with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cross_entropy(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the module's logits."""
    return functional.cross_entropy(module(x), y)


def fit(
    module: nn.Module,
    part: Part,
    *,
    seed: int,
    updates: int,
    loss: Loss = cross_entropy,
    rate: float = 2e-3,
    decay: float = 1e-2,
    batch: int = 128,
    noise: float = 0.0,
) -> None:
    """Train what is not frozen with AdamW and a falling rate; then evaluation mode.

    Args:
        module: changed in place.
        part: to train on.
        seed: of the batches and the noise.
        updates: of the optimiser.
        loss: of one batch.
        rate: at the start; it falls to 0 along a cosine.
        decay: of the weights.
        batch: inputs an update, drawn with replacement.
        noise: standard deviation of fresh noise on each batch.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    module.train()
    for _ in range(updates):
        rows = torch.randint(len(part.x), (batch,), generator=generator)
        x = part.x[rows]
        if noise > 0:
            x = x + noise * torch.randn(x.shape, generator=generator)
        optimiser.zero_grad()
        loss(module, x, part.y[rows]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    module.eval()


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows (N, classes) whose largest entry is at the label (N,)."""
    return float((logits.argmax(dim=1) == labels).float().mean())
