"""Digits as a small world of diffusion: drawn by an exact mixture, or by a network that learns to.

Pixels are scaled from -1 (paper) to 1 (ink), 64 to an image.

Legend: N images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.claims import testbeds
from pointsman.cost import Cost
from pointsman.steps.denoisers import Denoiser, fit_denoiser
from pointsman.steps.mixtures import EVERY, GaussianMixture
from pointsman.steps.sampling import Evaluation
from pointsman.steps.schedules import Schedule, linear

CLASSES, PIXELS, SPREAD = 10, 64, 0.75


@dataclass(frozen=True, eq=False)
class Images:
    """Images (N, 64) in [-1, 1] with labels: to train on, and held out."""

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def images(seed: int) -> Images:
    """All digits; the parts of `testbeds.digits`, of which calibration and test are held out."""
    data = testbeds.digits(seed)
    return Images(
        2 * data.train.x - 1,
        data.train.y,
        torch.cat([2 * data.calibration.x - 1, 2 * data.test.x - 1]),
        torch.cat([data.calibration.y, data.test.y]),
    )


def denoiser(
    data: Images,
    *,
    seed: int,
    updates: int,
    hidden: int = 256,
    body: Callable[[nn.Module], nn.Module] | None = None,
    options: Callable[[torch.Generator], Sequence[Mapping[str, Any]]] | None = None,
    schedule: Schedule | None = None,
) -> Denoiser:
    """A trained denoiser with labels: two hidden layers.

    Args:
        data: to train on.
        seed: of weights, batches and noise.
        updates: of the optimiser.
        hidden: units of each layer.
        body: makes something else of the plain stack of layers, such as a slimmable one.
        options: see `fit_denoiser`.
        schedule: of noise; default: linear.
    """
    stack = testbeds.mlp(Denoiser.features(PIXELS, CLASSES), hidden, hidden, PIXELS, seed=seed)
    net = Denoiser(
        stack if body is None else body(stack),
        schedule or linear(),
        dimensions=PIXELS,
        classes=CLASSES,
        spread=SPREAD,
    )
    fit_denoiser(net, data.train, data.train_labels, seed=seed, updates=updates, options=options)
    return net


def mixture(data: Images, *, components: int = 300, spread: float = 0.2) -> GaussianMixture:
    """Training images, each with some Gaussian noise: digits whose noise is predicted exactly.

    Args:
        data: the first of its training images are the means.
        components: how many.
        spread: standard deviation of a pixel around its mean.
    """
    return GaussianMixture(
        data.train[:components].double(),
        torch.full((components,), spread, dtype=torch.float64),
        torch.ones(components, dtype=torch.float64),
        data.train_labels[:components],
    )


def guided(mixture: GaussianMixture, schedule: Schedule) -> list[Evaluation]:
    """The mixture's exact predictions with a label and without; each costs one evaluation."""
    having = Evaluation("conditional", mixture.noise(schedule), Cost(1.0, "evaluations"))
    return [having, having.under("unconditional", EVERY)]
