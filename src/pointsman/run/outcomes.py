"""What many settings of a staged policy would do, worked out from every stage run once.

Legend: S stages, N inputs of a data set, C classes, K settings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pointsman.cost import Cost
from pointsman.errors import InputError, UnitError
from pointsman.frontier.points import Knob, Outcomes
from pointsman.run.staged import (
    Confidence,
    State,
    StoppingRule,
    Thresholds,
    stage_thresholds,
)
from pointsman.select import max_probability

AnyKnob = TypeVar("AnyKnob", bound=Knob)  # the keys of a mapping are of one kind


@dataclass(frozen=True, eq=False)
class StageCosts:
    """What one input spends at each stage: to get there, and to be answered there.

    Attributes:
        advance: amount (S,).
        answer: amount (S,), in the same unit.

    Raises:
        InputError: an amount is not (S,) finite numbers of at least 0, or the two lengths differ.
        UnitError: two units.
    """

    advance: Cost
    answer: Cost

    def __post_init__(self) -> None:
        if self.advance.unit != self.answer.unit:
            raise UnitError(
                f"advancing and answering must be paid in one unit, got {self.advance.unit!r} "
                f"and {self.answer.unit!r}: convert one with .to(...)"
            )
        for name in ("advance", "answer"):
            cost = getattr(self, name)
            amount = np.asarray(cost.amount, dtype=float)
            if amount.ndim != 1 or not np.all(np.isfinite(amount)) or np.any(amount < 0):
                raise InputError(
                    f"a cost per stage is a row of finite numbers of at least 0, "
                    f"got {amount.tolist()} to {name}"
                )
            object.__setattr__(self, name, Cost(amount, cost.unit))
        if self.advance.amount.shape != self.answer.amount.shape:  # type: ignore[union-attr]
            raise InputError(
                f"advancing and answering need one cost per stage each, "
                f"got {len(self)} and {np.size(self.answer.amount)}"
            )

    def __len__(self) -> int:
        return int(np.size(self.advance.amount))

    @classmethod
    def of(cls, answer: Cost) -> "StageCosts":
        """Costs of stages that only answer, such as the members of a cascade: amount (S,)."""
        return cls(Cost(np.zeros(np.shape(answer.amount)), answer.unit), answer)

    def per_stage(self, thresholds: Thresholds) -> Cost:
        """Amount (S,) for `route.cost`: what each stage spends when skipped ones do not answer."""
        limits = stage_thresholds(thresholds, len(self))
        return self.advance + self.answer * (limits < math.inf).astype(float)

    def alone(self, stage: int) -> Cost:
        """What one input spends when this stage answers everything and no earlier one is asked."""
        if not -len(self) <= stage < len(self):
            raise InputError(f"there are {len(self)} stages, counted from 0, got stage {stage}")
        at = stage % len(self)
        advance, answer = np.asarray(self.advance.amount), np.asarray(self.answer.amount)
        return Cost(float(advance[: at + 1].sum() + answer[at]), self.advance.unit)


def staged_outcomes(
    logits_SNC: Tensor,
    labels_N: Tensor,
    costs: Cost | StageCosts,
    settings: Mapping[AnyKnob, Thresholds],
    *,
    confidence: Confidence | StoppingRule = max_probability,
    reference: int = -1,
) -> Outcomes:
    """What many settings of a staged classifier would do, from the logits of every stage at once.

    Quality is 1 where the class with the largest logit is the label, else 0.

    Args:
        logits_SNC: of every stage on every input; logarithms of probabilities are logits too.
        labels_N: the right classes, int64, from 0 to C - 1.
        costs: per stage and input, amount (S,); a plain Cost is that of answering.
        settings: knob -> thresholds as for `run_staged`, from the safest to the cheapest.
        confidence: logits (N, C) -> (N,), or a stopping rule.
        reference: the stage that answers everything in the reference.

    Raises:
        InputError: shapes, labels, thresholds or costs that do not fit.
    """
    if logits_SNC.ndim != 3 or labels_N.shape != logits_SNC.shape[1:2]:
        raise InputError(
            "logits are (stages, inputs, classes) and labels (inputs,), got "
            f"{tuple(logits_SNC.shape)} and {tuple(labels_N.shape)}"
        )
    classes = logits_SNC.shape[2]
    if len(labels_N) and not (labels_N.min() >= 0 and labels_N.max() < classes):
        raise InputError(
            f"labels are whole numbers from 0 to {classes - 1}, got "
            f"{int(labels_N.min())} to {int(labels_N.max())}"
        )
    right_SN = logits_SNC.argmax(dim=2) == labels_N
    groups: dict[tuple[bool, ...], dict[AnyKnob, Thresholds]] = {}
    for knob, thresholds in settings.items():  # a rule's memory depends on which stages are asked
        asked = tuple((stage_thresholds(thresholds, len(logits_SNC)) < math.inf).tolist())
        key = asked if isinstance(confidence, StoppingRule) else ()
        groups.setdefault(key, {})[knob] = thresholds
    found = [
        outcomes_of_stages(
            stage_sureness(logits_SNC, confidence, asked),
            right_SN,
            costs,
            some,
            reference=reference,
        )
        for asked, some in (groups or {(): {}}).items()
    ]
    return found[0] if len(found) == 1 else Outcomes.join(found).choose(list(settings))


def stage_sureness(
    logits_SNC: Tensor, confidence: Confidence | StoppingRule, asked: Sequence[bool] = ()
) -> Tensor:
    """How sure every stage would be of every input if none left before, (S, N).

    Args:
        logits_SNC: of every stage on every input.
        confidence: logits (N, C) -> (N,), or a stopping rule.
        asked: for a rule, which stages answer; empty: all. The rows of the others are 0.
    """
    if not isinstance(confidence, StoppingRule):
        return torch.stack([confidence(logits_NC) for logits_NC in logits_SNC])
    rows: list[Tensor | None] = []
    memory: State | None = None
    for stage, logits_NC in enumerate(logits_SNC):
        row = None
        if not asked or asked[stage]:
            row, memory = confidence.sureness(logits_NC, stage, memory)
        rows.append(row)
    like = next(row for row in rows if row is not None)
    return torch.stack([torch.zeros_like(like) if row is None else row for row in rows])


def outcomes_of_stages(
    confidence_SN: Tensor,
    quality_SN: Tensor,
    costs: Cost | StageCosts,
    settings: Mapping[AnyKnob, Thresholds],
    *,
    reference: int = -1,
) -> Outcomes:
    """As `staged_outcomes`, for any quality in [0, 1] that each stage would reach on each input.

    Raises:
        InputError: shapes, thresholds or costs that do not fit, or a confidence is NaN.
    """
    stages, inputs = confidence_SN.shape
    spent = costs if isinstance(costs, StageCosts) else StageCosts.of(costs)
    if quality_SN.shape != confidence_SN.shape or len(spent) != stages:
        raise InputError(
            f"confidence {tuple(confidence_SN.shape)} and quality {tuple(quality_SN.shape)} are "
            f"(stages, inputs), with one cost per stage, got {len(spent)} costs"
        )
    if not settings:
        raise InputError("at least one setting is needed, got none")
    if bool(confidence_SN.isnan().any()):
        stage, row = confidence_SN.isnan().nonzero()[0].tolist()
        raise InputError(f"a confidence must be a number, got NaN at stage {stage}, input {row}")
    reference_cost = float(spent.alone(reference))
    limits_KS = np.array([stage_thresholds(t, stages) for t in settings.values()])
    answered_KN = _answered_by(confidence_SN, limits_KS)
    paid_KS = np.cumsum([np.asarray(spent.per_stage(row).amount) for row in limits_KS], axis=1)
    quality = quality_SN.detach().cpu().double().numpy()
    return Outcomes(
        knobs=tuple(settings),
        quality=np.take_along_axis(quality, answered_KN, axis=0),
        cost=np.take_along_axis(paid_KS, answered_KN, axis=1),
        reference_quality=quality[reference],
        reference_cost=np.full(inputs, reference_cost),
        unit=spent.advance.unit,
    )


def _answered_by(confidence_SN: Tensor, limits_KS: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(K, N): the stage that answers each input at each setting; the first that is sure."""
    stages, inputs = confidence_SN.shape
    # Compared in the confidences' own dtype, as `run_staged` compares, so that both agree on ties.
    limits = torch.as_tensor(limits_KS).to(confidence_SN)
    answered = torch.full((len(limits), inputs), stages - 1, device=confidence_SN.device)
    for stage in reversed(range(stages - 1)):
        limit_K1 = limits[:, stage, None]
        sure = (confidence_SN[stage] >= limit_K1) & (limit_K1 < math.inf)
        answered = torch.where(sure, stage, answered)
    return answered.cpu().numpy()
