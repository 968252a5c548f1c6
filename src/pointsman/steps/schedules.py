"""How much signal and how much noise a sample holds at each time.

At time t, from 0 (clean) to 1 (noise), a sample is x_t = signal(t) x_0 + noise(t) epsilon with
standard normal epsilon. A schedule is these two functions with their slopes, which the solvers of
the probability-flow equation need; everything else at this level reads them and nothing more. They
take one time or an array of times.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pointsman.errors import InputError

OfTime = Callable[[Any], Any]


@dataclass(frozen=True)
class Schedule:
    """Signal and noise as functions of time.

    Attributes:
        signal: alpha(t), falling, 1 at 0.
        noise: sigma(t), rising, 0 at 0.
        signal_slope: d alpha / dt.
        noise_slope: d sigma / dt; it may be infinite at 0, where no step begins.
        start: the time at which sampling begins: 1, or a little less where alpha(1) is 0.
    """

    signal: OfTime
    noise: OfTime
    signal_slope: OfTime
    noise_slope: OfTime
    start: float = 1.0

    def log_snr(self, t: float) -> float:
        """Logarithm of (signal / noise) squared; +inf at time 0."""
        noise = float(self.noise(t))
        return math.inf if noise == 0 else 2 * math.log(float(self.signal(t)) / noise)

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 1, ...) each, at times (n,), of the type and on the device of samples (n, ...)."""
        times = t.double().numpy(force=True)
        shape = (-1, *[1] * (like.ndim - 1))
        found = (like.new_tensor(part(times)).view(shape) for part in (self.signal, self.noise))
        signal, noise = found
        return signal, noise

    def times(self, steps: int) -> tuple[float, ...]:
        """The steps + 1 times of a run, evenly spaced from `start` down to 0.

        Raises:
            InputError: fewer than one step.
        """
        if steps < 1:
            raise InputError(f"a run has at least one step, got {steps}")
        return tuple(self.start * (1 - k / steps) for k in range(steps + 1))


def linear(low: float = 0.1, high: float = 20.0) -> Schedule:
    """Variance preserving, noise added at a rate that rises linearly with time.

    The continuous form (Song et al. 2021, arXiv 2011.13456) of the 1000 steps with rates from 1e-4
    to 0.02 of Ho et al. 2020 (arXiv 2006.11239).

    Args:
        low: rate at time 0.
        high: rate at time 1.

    Raises:
        InputError: rates that are not 0 < low <= high.
    """
    if not 0 < low <= high:
        raise InputError(f"the rates of noise must be 0 < low <= high, got {low} and {high}")

    def signal(t: Any) -> Any:
        return np.exp(-0.5 * (low * t + 0.5 * (high - low) * t * t))

    return _variance_preserving(
        signal, lambda t: -0.5 * (low + (high - low) * t) * signal(t), start=1.0
    )


def cosine(offset: float = 0.008) -> Schedule:
    """Variance preserving, the signal a quarter of a cosine (Nichol & Dhariwal 2021, 2102.09672).

    Sampling starts at 0.992, where a signal of about 0.012 is left: at 1 there is none, and the
    published schedule stops short of it as well.

    Args:
        offset: keeps the noise from vanishing too slowly near time 0; at least 0.

    Raises:
        InputError: a negative offset.
    """
    if not offset >= 0:
        raise InputError(f"the offset of a cosine schedule is at least 0, got {offset}")
    speed = math.pi / 2 / (1 + offset)
    whole = math.cos(offset * speed)

    def signal(t: Any) -> Any:
        return np.cos((t + offset) * speed) / whole

    return _variance_preserving(
        signal, lambda t: -speed * np.sin((t + offset) * speed) / whole, start=0.992
    )


def straight() -> Schedule:
    """Signal 1 - t, noise t: the straight paths of flow matching (Lipman et al. 2023, 2210.02747).

    Sampling starts at 0.999, because with no signal left the noise alone says nothing of x_0.
    """
    return Schedule(lambda t: 1 - t, lambda t: t, lambda t: -1.0, lambda t: 1.0, start=0.999)


def _variance_preserving(signal: OfTime, slope: OfTime, start: float) -> Schedule:
    """sigma^2 = 1 - alpha^2."""

    def noise(t: Any) -> Any:
        return np.sqrt(np.maximum(0.0, 1 - signal(t) ** 2))

    def noise_slope(t: Any) -> Any:
        return -signal(t) * slope(t) / noise(t)

    return Schedule(signal, noise, slope, noise_slope, start)
