"""Guidance whose unconditional prediction is a linear combination of what was computed before.

LinearAG (Castillo et al. 2023, arXiv 2312.12487): eps_0(x_t) is close to

    sum_{i <= t} a_i eps_c(x_i)  +  sum_{i < t} b_i eps_0(x_i)

with scalars a, b for each step, fitted once by least squares on stored runs. At an estimated step
only the conditional evaluation is made.

Where we depart from the paper: which steps are estimated is an argument (theirs are every other
step of the first half, and guidance ends after it, which are the defaults here); a step that was
estimated enters later combinations with its estimate, at fitting time with its true value.

Legend: n samples, K steps, R = 2 k + 1 regressors of step k.
"""

from collections.abc import Collection, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.route import Route
from pointsman.steps.policies.guidance import guidance
from pointsman.steps.sampling import (
    Computed,
    Evaluation,
    Moment,
    Sampler,
    Settled,
    sample,
)


class LinearGuidance:
    """A policy that estimates the unconditional prediction at some steps.

    Args:
        scale: s of guidance.
        estimated: steps at which it is estimated; None: the odd ones of the first half.
        last: guidance ends before this step; None: after the first half.
        conditional: which evaluation has the condition.
        unconditional: which has not.

    Attributes:
        coefficients_: of each step, (R,): first those of the conditional predictions of steps 0 to
            k, then those of the unconditional ones of steps 0 to k - 1.
        residual_: of each step, the share of the variance that the fit leaves.
    """

    coefficients_: tuple[Tensor, ...]
    residual_: tuple[float, ...]

    def __init__(
        self,
        scale: float,
        estimated: Collection[int] | None = None,
        last: int | None = None,
        *,
        conditional: int = 0,
        unconditional: int = 1,
    ) -> None:
        self.scale, self.estimated, self.last = scale, estimated, last
        self.conditional, self.unconditional = conditional, unconditional

    def fit(
        self,
        evaluations: Sequence[Evaluation],
        sampler: Sampler,
        x: Tensor,
        times: Sequence[float],
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Least squares on the predictions of fully guided runs; arguments as for `sample`."""
        steps = len(times) - 1
        watch = LinearGuidance(
            self.scale, (), steps, conditional=self.conditional, unconditional=self.unconditional
        )
        watch.coefficients_ = ()
        run = sample(
            evaluations, watch, sampler, x, times, condition=condition, generator=generator
        )
        having, without = run.memory
        coefficients, residual = [], []
        for step in range(steps):
            rows = torch.stack([*having[: step + 1], *without[:step]]).flatten(1).double()
            wanted = without[step].flatten().double()
            found = torch.linalg.lstsq(rows.T, wanted[:, None], driver="gelsd").solution[:, 0]
            coefficients.append(found.to(x.dtype))
            left = (wanted - found @ rows).square().mean() / wanted.square().mean()
            residual.append(float(left))
        self.coefficients_, self.residual_ = tuple(coefficients), tuple(residual)
        return self

    def choose(self, now: Moment, memory: Any) -> Route:
        """Both evaluations, or the conditional one alone where the other is estimated or not used.

        Raises:
            InputError: the policy is not fitted, or was for another number of steps.
        """
        if not hasattr(self, "coefficients_"):
            raise InputError("linear guidance estimates what it was fitted for: call fit first")
        if self.coefficients_ and len(self.coefficients_) != now.steps:
            raise InputError(
                f"linear guidance was fitted for {len(self.coefficients_)} steps, got a run of "
                f"{now.steps}: fit it on the times of the run"
            )
        both = now.step < self._last(now) and not self._estimates(now)
        guided = torch.full((len(now.x),), both, device=now.x.device)
        return guidance(guided, self.scale, self.conditional, self.unconditional, now.evaluations)

    def settle(self, now: Moment, computed: Computed, memory: Any) -> Settled:
        """The guided prediction, with the estimate where it has to; remembers all predictions."""
        having, without = memory or ((), ())
        prediction = computed.prediction()
        having = (*having, computed.of(self.conditional)[1])
        if now.step >= self._last(now):
            return Settled(prediction, ((), ()))
        if self._estimates(now):
            regressors = torch.stack([*having, *without])
            weights = self.coefficients_[now.step].to(regressors)
            estimate = torch.tensordot(weights, regressors, dims=1)
            prediction = self.scale * having[-1] + (1 - self.scale) * estimate
        else:
            estimate = computed.of(self.unconditional)[1]
        return Settled(prediction, (having, (*without, estimate)))

    def _last(self, now: Moment) -> int:
        return now.steps // 2 if self.last is None else self.last

    def _estimates(self, now: Moment) -> bool:
        if now.step >= self._last(now):
            return False
        return now.step % 2 == 1 if self.estimated is None else now.step in self.estimated
