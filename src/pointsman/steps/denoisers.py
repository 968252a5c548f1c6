"""A small network that predicts noise, and how it is trained.

The body sees the scaled sample, the time and the label, and is any module from features to D
outputs: an ordinary stack of layers, or one that takes further arguments, such as the width of a
slimmable network.

Legend: n samples, D dimensions, F features (D + TIME + classes + 1).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.steps.sampling import Evaluation
from pointsman.steps.schedules import Schedule

TIME = 16  # features that tell the time
SHORTEST = 1e-3  # time nearest to clean at which a network is trained

# prediction(x, t, labels) on one batch -> the prediction that is to match the noise
Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Denoiser(nn.Module):
    """Noise in a sample, from the sample, the time and the label.

    With s the spread of the data and v = alpha^2 s^2 + sigma^2,

        eps = sigma x / v - alpha s / sqrt(v) body(x / sqrt(v), time, label),

    which is exact for Gaussian data when the body gives 0 (the scaling of Karras et al. 2022,
    arXiv 2206.00364, written for the noise).

    Args:
        body: (n, F) → (n, D).
        schedule: signal and noise.
        dimensions: D.
        classes: labels 0 to classes - 1; `classes` itself stands for no label.
        spread: standard deviation of the data.

    Raises:
        InputError: a spread that is not positive.
    """

    def __init__(
        self,
        body: nn.Module,
        schedule: Schedule,
        *,
        dimensions: int,
        classes: int = 0,
        spread: float = 1.0,
    ) -> None:
        super().__init__()
        if not spread > 0:
            raise InputError(f"the spread of the data must be positive, got {spread}")
        self.body, self.schedule = body, schedule
        self.dimensions, self.classes, self.spread = dimensions, classes, spread

    @staticmethod
    def features(dimensions: int, classes: int = 0) -> int:
        """F, the inputs of a body."""
        return dimensions + TIME + classes + 1

    def forward(
        self, x: Tensor, t: float | Tensor, labels: Tensor | None = None, **options: Any
    ) -> Tensor:
        """(n, D) → (n, D).

        Args:
            x: samples at time t.
            t: one time, or (n,).
            labels: (n,) int64; None: no label for any.
            **options: handed to the body.

        Raises:
            InputError: samples of another size, or a label that there is not.
        """
        if x.ndim != 2 or x.shape[1] != self.dimensions:
            raise InputError(
                f"samples are (n, {self.dimensions}), got {tuple(x.shape)}: flatten images"
            )
        times = t if isinstance(t, Tensor) else x.new_full((len(x),), t, dtype=torch.float64)
        alpha, sigma = self.schedule.signal_and_noise(times, x)
        sigma = sigma.clamp(min=1e-6)
        root = ((alpha * self.spread) ** 2 + sigma**2).sqrt()
        found = self.body(self._features(x / root, alpha / sigma, labels), **options)
        noise: Tensor = sigma / root**2 * x - alpha * self.spread / root * found
        return noise

    def _features(self, x: Tensor, ratio: Tensor, labels: Tensor | None) -> Tensor:
        """The scaled sample; sines and cosines of log(alpha / sigma); the label, one-hot."""
        if labels is None:
            labels = torch.full((len(x),), self.classes, device=x.device)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= self.classes:
            raise InputError(
                f"labels are 0 to {self.classes - 1}, or {self.classes} for none, got "
                f"{int(labels.min())} to {int(labels.max())}"
            )
        speeds = 2.0 ** torch.arange(TIME // 2, device=x.device) * math.pi / 32
        angles = ratio.log() * speeds
        known = nn.functional.one_hot(labels, self.classes + 1).to(x.dtype)
        return torch.cat([x, angles.sin(), angles.cos(), known], dim=1)

    def evaluation(self, name: str, **options: Any) -> Evaluation:
        """This network as an evaluation, its cost counted on one sample.

        Args:
            name: of the evaluation.
            **options: handed to the body, such as a width.
        """

        def run(x: Tensor, t: float, labels: Tensor | None) -> Tensor:
            found: Tensor = self(x, t, labels, **options)
            return found

        weight = next(self.parameters())
        example = torch.zeros(1, self.dimensions, dtype=weight.dtype, device=weight.device)
        return Evaluation.counted(name, run, example)

    def guided(self, **options: Any) -> list[Evaluation]:
        """Two evaluations, with the samples' labels and with none, for the policies of guidance."""
        having = self.evaluation("conditional", **options)
        return [having, having.under("unconditional", self.classes)]


def noise_loss(
    predict: Predict,
    schedule: Schedule,
    x: Tensor,
    labels: Tensor | None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020), at times spread over the batch.

    Args:
        predict: x (n, D), times (n,) and labels (n,) → (n, D).
        schedule: signal and noise.
        x: clean samples (n, D).
        labels: (n,) or None.
        generator: of times and noise, on the CPU.
    """
    strata = torch.arange(len(x)) + torch.rand(len(x), generator=generator)
    t = SHORTEST + (schedule.start - SHORTEST) * strata / len(x)
    epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    alpha, sigma = schedule.signal_and_noise(t, x)
    return (predict(alpha * x + sigma * epsilon, t, labels) - epsilon).square().mean()


def fit_denoiser(
    denoiser: Denoiser,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    seed: int,
    updates: int,
    batch: int = 128,
    rate: float = 2e-3,
    unlabelled: float = 0.1,
    averaging: float = 0.999,
    options: Callable[[torch.Generator], Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Train with AdamW and a rate that falls along a cosine; the averaged weights stay.

    Args:
        denoiser: changed in place; in evaluation mode afterwards.
        x: clean samples (N, D).
        labels: (N,) int64, or None.
        seed: of batches, times and noise.
        updates: of the optimiser.
        batch: samples an update, drawn with replacement.
        rate: at the start.
        unlabelled: share of samples whose label is left out, for guidance.
        averaging: weight of the past in the running average of the weights; 0: none.
        options: generator → options of the body, such as widths, whose losses are added up for one
            update (see `learn.sandwich`); None: no options, one loss.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(denoiser.parameters(), rate, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    averaged = deepcopy(denoiser)
    denoiser.train()
    for update in range(updates):
        rows = torch.randint(len(x), (batch,), generator=generator)
        kept = None
        if labels is not None:
            hidden = torch.rand(batch, generator=generator) < unlabelled
            kept = torch.where(hidden, denoiser.classes, labels[rows])
        optimiser.zero_grad()
        for chosen in [{}] if options is None else options(generator):
            predict = _with_options(denoiser, chosen)
            loss = noise_loss(predict, denoiser.schedule, x[rows], kept, generator)
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        _average(averaged, denoiser, min(averaging, update / (update + 10)))
    denoiser.load_state_dict(averaged.state_dict())
    denoiser.eval()


def _with_options(denoiser: Denoiser, options: Mapping[str, Any]) -> Predict:
    def predict(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        found: Tensor = denoiser(x, t, labels, **options)
        return found

    return predict


@torch.no_grad()
def _average(averaged: nn.Module, current: nn.Module, past: float) -> None:
    for mean, weight in zip(averaged.parameters(), current.parameters(), strict=True):
        mean.lerp_(weight, 1 - past)
    for kept, buffer in zip(averaged.buffers(), current.buffers(), strict=True):
        kept.copy_(buffer)
