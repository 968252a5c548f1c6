"""Stability-guided skipping: the network is left out where the path goes as extrapolated.

SADA (Jiang et al. 2025, arXiv 2507.17135). With f = dx/dt of the probability-flow equation at the
last three steps, x at the next is extrapolated as

    x_hat = x_t - (t - s) (w_0 f_0 + w_1 f_1 + w_2 f_2)

(f_0 the latest). The sampler's own x is held against it:

    M = mean over dimensions of (x - x_hat) [(f_0 - f_1) - (f_1 - f_2)].

M <= 0 is taken for stable, and the network is left out: the last prediction of the noise is used
again at x_hat in place of x. In the late phase the network runs every few steps only; between them
x_0 is the Lagrange polynomial through the last ones that were computed.

What was settled, and where we depart:

- Each sample of a batch decides by itself (the published code decides for the batch).
- The weights of the published code, 5/8, 3/4, -3/8, sum to 1 and have a first moment of 0, so that
  they extrapolate to first order only. `ADAMS_BASHFORTH`, of third order on even steps, is offered
  beside `PUBLISHED`.
- (t - s) is the sampler's own step. The published code can be read as one of training's.
- Pruning of tokens inside a network is left out: it is a matter of the network, not of the steps.

Legend: n samples, P points of the polynomial.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.route import Route
from pointsman.steps.policies.plain import Always, reusing, without
from pointsman.steps.samplers import clean, velocity
from pointsman.steps.sampling import Computed, Moment, Settled, StepPolicy, per_sample
from pointsman.steps.schedules import Schedule

PUBLISHED = (5 / 8, 3 / 4, -3 / 8)
ADAMS_BASHFORTH = (23 / 12, -16 / 12, 5 / 12)
ALWAYS = Always()


class Past(NamedTuple):
    """What is remembered of a run.

    Fields: `inner` of the wrapped policy; `prediction` (n, ...) of the last step; `slopes`, up to
    three (n, ...), the latest first; `expected` (n, ...) x_hat at the coming step; `skips` (n,)
    in a row; `clean` (P, n, ...) and `times` (P, n), the last computed x_0 and when, latest first;
    NaN where there was none yet.
    """

    inner: Any
    prediction: Tensor
    slopes: tuple[Tensor, ...]
    expected: Tensor
    skips: Tensor
    clean: Tensor
    times: Tensor


@dataclass(frozen=True)
class StabilityGuided:
    """A policy that leaves out another's evaluations where the path is stable.

    Attributes:
        schedule: of the sampler.
        inner: what is evaluated at steps that are not left out.
        first: no step before this one is left out; at least 3 are computed in any case.
        last: nor from this one on; None: only the last step is always computed.
        late: from this step on the late phase; None: there is none.
        interval: the late phase computes every so many steps.
        points: P, of the polynomial.
        most: skips in a row, before the late phase.
        weights: of the extrapolation, latest first.
        limit: M at most so large, relative to the squared size of the curvature term's factors, is
            stable. 0 is the paper's; -inf never skips early on.

    Raises:
        InputError: counts below 1.
    """

    schedule: Schedule
    inner: StepPolicy = ALWAYS
    first: int = 10
    last: int | None = None
    late: int | None = None
    interval: int = 4
    points: int = 4
    most: int = 4
    weights: tuple[float, float, float] = PUBLISHED
    limit: float = 0.0

    def __post_init__(self) -> None:
        if min(self.interval, self.points, self.most) < 1:
            raise InputError(
                "interval, points and most are at least 1, got "
                f"{self.interval}, {self.points} and {self.most}"
            )

    def choose(self, now: Moment, memory: Past | None) -> Route:
        """The inner policy's route, without the samples that go as expected."""
        route = self.inner.choose(now, None if memory is None else memory.inner)
        return route if memory is None else without(route, self._left_out(now, memory))

    def settle(self, now: Moment, computed: Computed, memory: Past | None) -> Settled:
        """What was computed; else the last noise at x_hat, or that of the polynomial's x_0."""
        out = computed.route.dropped()
        earlier, x = None, now.x
        if memory is not None and bool(out.any()):
            earlier = memory.prediction
            if self._is_late(now):
                x_0 = lagrange(memory.clean, memory.times, now.t)
                alpha, sigma = self.schedule.signal(now.t), self.schedule.noise(now.t)
                earlier = (x - alpha * x_0) / sigma
            else:
                x = torch.where(per_sample(out, x), memory.expected, x)
        inner = None if memory is None else memory.inner
        settled = reusing(self.inner, now, computed, inner, earlier)
        if settled.x is not None:
            raise InputError("stability-guided skipping wraps policies that leave x as it is")
        past = self._past(now, x, out, settled, memory)
        return Settled(settled.prediction, past, x)

    def _left_out(self, now: Moment, memory: Past) -> Tensor:
        """(n,) bool: whose evaluations are left out at this step."""
        nobody = torch.zeros(len(now.x), dtype=torch.bool, device=now.x.device)
        last = now.steps - 1 if self.last is None else self.last
        if now.step < max(self.first, 3) or now.step >= last:
            return nobody
        if self._is_late(now):
            assert self.late is not None
            due = (now.step - self.late) % self.interval == 0
            return nobody if due else ~memory.times.isnan().any(dim=0)
        return (self._instability(now, memory) <= self.limit) & (memory.skips < self.most)

    def _instability(self, now: Moment, memory: Past) -> Tensor:
        """(n,) M, divided by the norms of its two factors: a cosine, whose sign is M's."""
        a, b, c = memory.slopes
        gap, bend = (now.x - memory.expected).flatten(1), ((a - b) - (b - c)).flatten(1)
        return torch.nn.functional.cosine_similarity(gap, bend, dim=1)

    def _is_late(self, now: Moment) -> bool:
        return self.late is not None and now.step >= self.late

    def _past(
        self, now: Moment, x: Tensor, out: Tensor, settled: Settled, memory: Past | None
    ) -> Past:
        inner, prediction = settled.memory
        slope = velocity(x, prediction, now.t, self.schedule)
        slopes = (slope,) if memory is None else (slope, *memory.slopes[:2])
        weights = self.weights if len(slopes) == 3 else (1.0,)
        along = sum(w * f for w, f in zip(weights, slopes, strict=False))
        x_0 = clean(x, prediction, now.t, self.schedule)
        if memory is None:
            times = torch.full((self.points, len(x)), torch.nan, dtype=torch.float64)
            cleans, skips = x_0.expand(self.points, *x_0.shape), torch.zeros(len(x))
        else:
            times, cleans, skips = memory.times, memory.clean, memory.skips
        times = times.to(x.device)
        newer = torch.cat([times.new_full((1, len(x)), now.t), times[:-1]])
        return Past(
            inner,
            prediction,
            slopes,
            x - (now.t - now.s) * along,
            torch.where(out, skips.to(x.device) + 1, 0),
            torch.where(per_sample(out, x), cleans, torch.cat([x_0[None], cleans[:-1]])),
            torch.where(out, times, newer),
        )


def lagrange(values: Tensor, times: Tensor, t: float) -> Tensor:
    """The polynomial through P points, at another time; exact up to degree P - 1.

    Args:
        values: (P, n, ...).
        times: (P, n) of them, distinct for each sample.
        t: where to.

    Returns:
        (n, ...).
    """
    points = len(times)
    total = torch.zeros_like(values[0])
    for at in range(points):
        others = [other for other in range(points) if other != at]
        weight = torch.ones_like(times[at])
        for other in others:
            weight = weight * (t - times[other]) / (times[at] - times[other])
        total = total + per_sample(weight.to(values.dtype), values[at]) * values[at]
    return total
