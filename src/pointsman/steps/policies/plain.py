"""Policies that are fixed beforehand: the full sampler, plans over the steps, plain skipping.

What adaptive policies are measured against, and the full sampler that they wrap.

Legend: n samples, K steps, E evaluations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.route import Route
from pointsman.steps.sampling import Computed, Moment, Settled, StepPolicy


@dataclass(frozen=True)
class Always:
    """Every sample sees one evaluation at every step: the ordinary sampler."""

    evaluation: int = 0

    def choose(self, now: Moment, memory: Any) -> Route:
        """Everybody, that evaluation."""
        return now.everyone(self.evaluation)

    def settle(self, now: Moment, computed: Computed, memory: Any) -> Settled:
        """What was computed."""
        return Settled(computed.prediction(), None)


@dataclass(frozen=True)
class Plan:
    """One evaluation a step, the same for all samples; -1 reuses the prediction of the step before.

    Widths of a slimmable network over the steps, for instance.

    Attributes:
        evaluations: K of them, in the order of sampling (from noise to clean).
    """

    evaluations: Sequence[int]

    def choose(self, now: Moment, memory: Any) -> Route:
        """What the plan says.

        Raises:
            InputError: a plan of another length than the run, or that names no evaluation.
        """
        if len(self.evaluations) != now.steps:
            raise InputError(
                f"a plan has one entry per step, got {len(self.evaluations)} for {now.steps} steps"
            )
        chosen = int(self.evaluations[now.step])
        if not -1 <= chosen < now.evaluations:
            raise InputError(
                f"a plan names evaluations 0 to {now.evaluations - 1}, or -1 for none, "
                f"got {chosen} at step {now.step}"
            )
        return now.everyone(chosen)

    def settle(self, now: Moment, computed: Computed, memory: Any) -> Settled:
        """What was computed, or the prediction of the step before."""
        prediction = replace(computed, earlier=memory).prediction()
        return Settled(prediction, prediction)


@dataclass(frozen=True)
class Skipping:
    """Another policy, of which some steps are left out: the last prediction is used again.

    Attributes:
        inner: what happens at the steps that are not left out.
        skipped: bool, (K,) for all samples or (n, K). The first step cannot be one.
    """

    inner: StepPolicy
    skipped: Tensor

    def choose(self, now: Moment, memory: Any) -> Route:
        """The inner policy's route without the samples that skip this step.

        Raises:
            InputError: a mask of another shape.
        """
        route = self.inner.choose(now, None if memory is None else memory[0])
        return without(route, at_step(self.skipped, now))

    def settle(self, now: Moment, computed: Computed, memory: Any) -> Settled:
        """What the inner policy computed, else what it had computed last."""
        inner, earlier = memory or (None, None)
        return reusing(self.inner, now, computed, inner, earlier)


def at_step(mask: Tensor, now: Moment) -> Tensor:
    """(n,) bool: what a mask of steps, (K,) for all samples or (n, K), says of this one.

    Raises:
        InputError: another shape or type.
    """
    shapes = (now.steps,), (len(now.x), now.steps)
    if tuple(mask.shape) not in shapes or mask.dtype != torch.bool:
        raise InputError(
            f"a mask of steps is bool of shape {shapes[0]} or {shapes[1]}, got {mask.dtype} of "
            f"shape {tuple(mask.shape)}"
        )
    return mask[..., now.step].expand(len(now.x))


def without(route: Route, skipped_n: Tensor) -> Route:
    """The route without the pairs of some inputs, (n,) bool."""
    kept = ~skipped_n.index_select(0, route.inputs)
    return Route(
        route.inputs[kept],
        route.branches[kept],
        route.weights[kept],
        route.num_inputs,
        route.num_branches,
    )


def reusing(
    inner: StepPolicy, now: Moment, computed: Computed, memory: Any, earlier: Tensor | None
) -> Settled:
    """The inner policy's settlement, with earlier predictions for samples that were left out.

    Args:
        inner: the policy whose route was thinned out.
        now: the moment.
        computed: by the thinned route.
        memory: of the inner policy.
        earlier: (n, ...), or None where there is none yet.

    Returns:
        As memory the inner policy's own and the prediction.
    """
    settled = inner.settle(now, replace(computed, earlier=earlier), memory)
    return Settled(settled.prediction, (settled.memory, settled.prediction), settled.x)
