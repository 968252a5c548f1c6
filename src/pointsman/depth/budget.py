"""From a network with exits and a budget of accuracy to thresholds that keep it, certified.

Thresholds, one for each exit, are searched on validation inputs (see `depth.thresholds`), ordered
there from the safest to the cheapest, and tested one after the other on calibration inputs; the
cheapest that is accepted is picked. The promise is that of `frontier.certify`: with the asked
confidence over the calibration inputs, the mean quality lost on future inputs of the same kind is
at most `max_drop`, whatever was searched on the validation inputs.

    policy = certified_exits(net, x, y, max_drop=0.01)

Legend: S exits, N inputs, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.cost import count_flops
from pointsman.depth.early_exit import EarlyExit
from pointsman.depth.exit_policy import ExitPolicy
from pointsman.depth.thresholds import PRICES, Setting, exit_settings
from pointsman.depth.trunks.rows import count_rows, take_rows
from pointsman.errors import InputError
from pointsman.frontier import Frontier, Outcomes, certify, safest_first
from pointsman.run import (
    Confidence,
    StageCosts,
    StoppingRule,
    evaluating,
    outcomes_of_stages,
    stage_sureness,
)
from pointsman.select import max_probability

Quality = Callable[[Tensor, Tensor], Tensor]  # logits (S, N, ..., C), labels (N, ...) -> (S, N)
ROWS_AT_ONCE = 512


def right_class(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the likeliest class is the label; the mean over an input's places; (S, N) float64.

    Args:
        logits: (S, N, ..., C).
        labels: (N, ...).
    """
    right = (logits.argmax(dim=-1) == labels).double()
    return right.flatten(2).mean(dim=2) if right.ndim > 2 else right


def certified_exits(
    net: EarlyExit,
    x: Any,
    y: Tensor,
    *,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    rule: Confidence | StoppingRule = max_probability,
    validation: tuple[Any, Tensor] | float = 0.4,
    reference: nn.Module | None = None,
    quality: Quality = right_class,
    costs: StageCosts | None = None,
    seed: int = 0,
) -> ExitPolicy:
    """Search thresholds, test them, and give the network with the cheapest that passed.

    Where none passes, the policy has the safest setting and its certificate says what can be
    promised of it.

    Args:
        net: trained.
        x: (N, ...) held-out inputs: nothing was trained, chosen or fitted on them.
        y: (N,) classes.
        max_drop: largest mean quality that may be lost against the reference, in [0, 1).
        confidence: of the promise, in (0, 1).
        rule: how sure an exit is; a rule that is fitted must be so already, not on x.
        validation: inputs and labels on which thresholds are searched; or the share of x that is
            set aside for it, at random.
        reference: a network whose quality is to be kept, (n, ...) -> logits, such as one of the
            same shape trained without exits; None: the last exit alone, without early heads.
        quality: of every exit's answers, in [0, 1].
        costs: of every exit; None: counted FLOPs.
        seed: of the split.

    Raises:
        InputError: too few inputs to split, or numbers out of their range.
    """
    y = torch.as_tensor(y)
    if isinstance(validation, float | int):
        (x, y), validation = _split(x, y, validation, seed)
    costs = net.stage_costs(take_rows(x, slice(0, 1))) if costs is None else costs
    found = Measured.of(net, *validation, rule, quality, costs, reference)
    settings = exit_settings(found.logits, found.quality, costs, rule)
    order = safest_first(found.outcomes(settings))
    chosen = [setting for setting in settings if _knob(setting) in order]
    held_out = Measured.of(net, x, y, rule, quality, costs, reference)
    pick = certify(held_out.outcomes(chosen), max_drop, confidence, order=order)
    thresholds = next(setting for setting in chosen if _knob(setting) == pick.knob)
    return ExitPolicy(net, rule, thresholds, costs, pick)


def searched_frontier(
    net: EarlyExit,
    x: Any,
    y: Tensor,
    *,
    validation: tuple[Any, Tensor],
    rule: Confidence | StoppingRule = max_probability,
    reference: nn.Module | None = None,
    quality: Quality = right_class,
    costs: StageCosts | None = None,
    prices: Sequence[float] = PRICES,
    name: str = "exits",
) -> Frontier:
    """Quality against cost on x of the thresholds that were searched on the validation inputs.

    The knobs are in the order of `safest_first` on validation, so that `pick` tests them so.

    Args:
        prices: of the whole network's cost, in quality; see `exit_settings`.
        name: of the frontier.
        net, x, y, validation, rule, reference, quality, costs: as in `certified_exits`.

    Raises:
        InputError: as in `certified_exits`.
    """
    costs = net.stage_costs(take_rows(x, slice(0, 1))) if costs is None else costs
    found = Measured.of(net, *validation, rule, quality, costs, reference)
    settings = exit_settings(found.logits, found.quality, costs, rule, prices=prices)
    order = safest_first(found.outcomes(settings))
    by_knob = {_knob(setting): setting for setting in settings}
    measured = Measured.of(net, x, y, rule, quality, costs, reference)
    return Frontier.from_outcomes(name, measured.outcomes([by_knob[str(knob)] for knob in order]))


@dataclass(frozen=True, eq=False)
class Measured:
    """What every exit, and the reference, gives on one set of inputs.

    Attributes:
        logits: (S, N, ..., C).
        quality: (S, N) in [0, 1].
        rule: how sure an exit is.
        costs: of every exit.
        reference: its quality (N,) and its cost per input; None: the last exit.
    """

    logits: Tensor
    quality: Tensor
    rule: Confidence | StoppingRule
    costs: StageCosts
    reference: tuple[Tensor, float] | None = None

    @classmethod
    def of(
        cls,
        net: EarlyExit,
        x: Any,
        y: Tensor,
        rule: Confidence | StoppingRule,
        quality: Quality,
        costs: StageCosts,
        reference: nn.Module | None = None,
    ) -> "Measured":
        """Run every exit, and the reference, on all inputs.

        Raises:
            InputError: no input, or labels of another number.
        """
        if len(y) != count_rows(x):
            raise InputError(f"every input needs a label, got {count_rows(x)} and {len(y)}")
        logits = net.logits(x)
        y = torch.as_tensor(y).to(logits.device)
        kept = None
        if reference is not None:
            spent = count_flops(reference, take_rows(x, slice(0, 1))).to(costs.advance.unit)
            kept = quality(_logits(reference, x)[None], y)[0], float(spent)
        return cls(logits, quality(logits, y), rule, costs, kept)

    def outcomes(self, settings: Sequence[Setting]) -> Outcomes:
        """Of each setting, its thresholds as text for a knob."""
        groups: dict[tuple[bool, ...], dict[str, Setting]] = {}
        for setting in settings:
            asked = tuple(bool(threshold < np.inf) for threshold in setting)
            groups.setdefault(asked, {})[_knob(setting)] = setting
        parts = []
        for asked, some in groups.items():  # a rule's memory depends on which exits are asked
            sure = stage_sureness(self.logits, self.rule, asked)
            parts.append(outcomes_of_stages(sure, self.quality, self.costs, some))
        joined = Outcomes.join(parts).choose(_knob(setting) for setting in settings)
        if self.reference is None:
            return joined
        kept, spent = self.reference
        return replace(
            joined,
            reference_quality=kept.detach().cpu().double().numpy(),
            reference_cost=np.full(len(joined), spent),
        )


def _knob(setting: Setting) -> str:
    """Thresholds of the early exits as text; `exit_settings` gives none twice."""
    return ", ".join(f"{threshold:.6g}" for threshold in setting[:-1])


def _split(
    x: Any, y: Tensor, share: float, seed: int
) -> tuple[tuple[Any, Tensor], tuple[Any, Tensor]]:
    """Calibration and validation inputs with their labels."""
    inputs = count_rows(x)
    first = round(share * inputs)
    if len(y) != inputs or not 0 < first < inputs:
        raise InputError(
            f"a share of the inputs in (0, 1) is set aside for validation, and every input has a "
            f"label, got a share of {share} of {inputs} inputs and {len(y)} labels"
        )
    order = torch.randperm(inputs, generator=torch.Generator().manual_seed(seed))
    rest, aside = order[first:].sort().values, order[:first].sort().values
    return (take_rows(x, rest), y[rest]), (take_rows(x, aside), y[aside])


def _logits(network: nn.Module, x: Any) -> Tensor:
    starts = range(0, count_rows(x), ROWS_AT_ONCE)
    with evaluating(network), torch.no_grad():
        parts = [network(take_rows(x, slice(start, start + ROWS_AT_ONCE))) for start in starts]
    return torch.cat([getattr(part, "logits", part) for part in parts])
