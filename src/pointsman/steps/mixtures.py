"""Mixtures of Gaussians, whose noise can be predicted exactly: a sampler without a network.

Under x_t = alpha x_0 + sigma epsilon a component N(mu, s^2) becomes N(alpha mu, v) with
v = alpha^2 s^2 + sigma^2, so that the mean of epsilon given x_t is

    eps(x_t) = sigma sum_m r_m (x_t - alpha mu_m) / v_m,   r_m the posterior of component m.

Legend: n samples, M components, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.steps.sampling import Run
from pointsman.steps.schedules import Schedule

EVERY = -1  # the condition of a sample that may come from any component


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Round Gaussians, some of which share a label.

    Attributes:
        means: (M, D).
        spreads: (M,) standard deviations, positive.
        weights: (M,) positive.
        labels: (M,) int64, from 0: what a condition picks.

    Raises:
        InputError: shapes that do not fit, or numbers that are not positive.
    """

    means: Tensor
    spreads: Tensor
    weights: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        rows = self.spreads, self.weights, self.labels
        if self.means.ndim != 2 or any(row.shape != self.means.shape[:1] for row in rows):
            raise InputError(
                "a mixture has means (M, D) and a spread, weight and label per component, got "
                f"{tuple(self.means.shape)} and {[tuple(row.shape) for row in rows]}"
            )
        if not (bool((self.spreads > 0).all()) and bool((self.weights > 0).all())):
            raise InputError("spreads and weights of a mixture must be positive")

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Clean samples (n, D) and their labels (n,)."""
        rows = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        fresh = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[rows] + self.spreads[rows, None] * fresh, self.labels[rows]

    def log_density(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(n,) nats: of clean samples (n, D), given their labels or `EVERY`."""
        parts, _ = self._components(x, 1.0, 0.0, condition)
        return parts.logsumexp(dim=1)

    def noise(self, schedule: Schedule) -> Run:
        """The exact prediction of the noise, as an evaluation runs it; no label means `EVERY`."""

        def run(x: Tensor, t: float, condition: Tensor | None) -> Tensor:
            alpha, sigma = schedule.signal(t), schedule.noise(t)
            parts, variance = self._components(x, alpha, sigma, condition)
            share = parts.softmax(dim=1) / variance
            noise: Tensor = sigma * (
                share.sum(dim=1, keepdim=True) * x - alpha * share @ self.means
            )
            return noise

        return run

    def _components(
        self, x: Tensor, alpha: float, sigma: float, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log of weight times density of x under each component (n, M), and variances (M,)."""
        variance = (alpha * self.spreads) ** 2 + sigma**2
        centres = alpha * self.means
        squared = x.square().sum(1, keepdim=True) - 2 * x @ centres.T + centres.square().sum(1)
        dims = x.shape[1]
        allowed = torch.ones(len(x), len(self.weights), dtype=torch.bool)
        if condition is not None:
            allowed = (condition[:, None] == self.labels) | (condition[:, None] == EVERY)
        weight = torch.where(allowed, self.weights, 0.0)
        parts = (weight / weight.sum(dim=1, keepdim=True)).log()
        parts = parts - squared / (2 * variance) - dims / 2 * (2 * torch.pi * variance).log()
        return parts, variance
