"""Samplers: how a prediction of the noise takes samples from one time to the next.

All read one prediction a step, the noise epsilon in x_t = alpha x_0 + sigma epsilon, however it was
come by. `dpm_solver` remembers the step before; a policy that makes predictions up instead of
computing them changes what is remembered, not how.

Legend: n samples; alpha and sigma at the time t of x, alpha' and sigma' their slopes.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pointsman.steps.sampling import Moment
from pointsman.steps.schedules import Schedule


def clean(x: Tensor, noise: Tensor, t: float, schedule: Schedule) -> Tensor:
    """The x_0 that belongs to a prediction of the noise: (x - sigma epsilon) / alpha."""
    x_0: Tensor = (x - schedule.noise(t) * noise) / schedule.signal(t)
    return x_0


def velocity(x: Tensor, noise: Tensor, t: float, schedule: Schedule) -> Tensor:
    """dx/dt of the probability-flow equation: alpha' x_0 + sigma' epsilon (Song et al. 2021)."""
    x_0 = clean(x, noise, t, schedule)
    slope: Tensor = schedule.signal_slope(t) * x_0 + schedule.noise_slope(t) * noise
    return slope


@dataclass(frozen=True)
class DDIM:
    """x_s = alpha_s x_0 + sigma_s epsilon (Song et al. 2021, arXiv 2010.02502): no fresh noise.

    The first-order exponential integrator of the probability-flow equation; on a straight schedule
    the same as `Euler`.
    """

    schedule: Schedule

    def step(
        self, now: Moment, prediction: Tensor, memory: Any, generator: torch.Generator | None
    ) -> tuple[Tensor, None]:
        """One step; see `Sampler`."""
        x_0 = clean(now.x, prediction, now.t, self.schedule)
        return self.schedule.signal(now.s) * x_0 + self.schedule.noise(now.s) * prediction, None


@dataclass(frozen=True)
class DDPM:
    """A draw from the Gaussian q(x_s | x_t, x_0): the ancestral sampler.

    From Ho et al. 2020 (arXiv 2006.11239). The variance is that of the posterior, their smaller
    choice. The last step, to time 0, is without noise.
    """

    schedule: Schedule

    def step(
        self, now: Moment, prediction: Tensor, memory: Any, generator: torch.Generator | None
    ) -> tuple[Tensor, None]:
        """One step; see `Sampler`."""
        signal, noise = self.schedule.signal, self.schedule.noise
        x_0 = clean(now.x, prediction, now.t, self.schedule)
        fresh = torch.randn(
            now.x.shape, generator=generator, dtype=now.x.dtype, device=now.x.device
        )
        kept = noise(now.s) ** 2  # of which part is the noise of x_t, part is drawn afresh
        ratio = signal(now.t) / signal(now.s)
        drawn = kept * (1 - ratio**2 * kept / noise(now.t) ** 2)
        along = math.sqrt(max(0.0, kept - drawn))
        return signal(now.s) * x_0 + along * prediction + math.sqrt(max(0.0, drawn)) * fresh, None


@dataclass(frozen=True)
class Euler:
    """x + (s - t) dx/dt: the plain Euler step of the probability-flow equation in time."""

    schedule: Schedule

    def step(
        self, now: Moment, prediction: Tensor, memory: Any, generator: torch.Generator | None
    ) -> tuple[Tensor, None]:
        """One step; see `Sampler`."""
        return now.x + (now.s - now.t) * velocity(now.x, prediction, now.t, self.schedule), None


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++(2M): second order, from this step's x_0 and the one before (2211.01095).

    In lambda = log(alpha / sigma) with h its step and h' the step before:

        D = x_0 + h / (2 h') (x_0 - x_0'),   x_s = sigma_s / sigma x + alpha_s (1 - e^-h) D

    The first step, and the last (where lambda has no end), are DDIM's.
    """

    schedule: Schedule

    def step(
        self, now: Moment, prediction: Tensor, memory: Any, generator: torch.Generator | None
    ) -> tuple[Tensor, Any]:
        """One step; remembers x_0 and the size of the step in lambda."""
        signal, noise = self.schedule.signal(now.s), self.schedule.noise(now.s)
        x_0 = clean(now.x, prediction, now.t, self.schedule)
        h = (self.schedule.log_snr(now.s) - self.schedule.log_snr(now.t)) / 2
        if memory is None or math.isinf(h):
            return signal * x_0 + noise * prediction, (x_0, h)
        before, h_before = memory
        slope = x_0 + h / (2 * h_before) * (x_0 - before)
        x = noise / self.schedule.noise(now.t) * now.x - signal * math.expm1(-h) * slope
        return x, (x_0, h)
