"""Small worlds that claims share: digits with noise, little networks, one way to train them.

The data is scikit-learn's 1,797 digits of 8x8 pixels, split per seed into a part to train on, one
to calibrate on and one to test on. With noise the task has the errors that routing is about; a data
set then holds each training image once, and each held-out image several times under noise of its
own, which measures the same quality with less chance in it.

Legend: N inputs, D features, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
    """Inputs (N, 64) float32 around [0, 1], and labels (N,) int64 from 0 to 9."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, eq=False)
class Digits:
    """Three parts that share no image."""

    train: Part
    calibration: Part
    test: Part


def digits(seed: int, noise: float = 0.0) -> Digits:
    """Digits under Gaussian noise.

    Args:
        seed: of the split and of the noise.
        noise: standard deviation, in units of the range of a pixel; 0 leaves the images, once each.
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
    with seeded(seed):
        layers: list[nn.Module] = []
        for before, after in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def seeded(seed: int) -> torch.random.fork_rng:
    raise SystemExit
