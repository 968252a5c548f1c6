"""Early exits: small heads inside a network, so that easy inputs leave before its end.

After Teerapittayanon, McDanel & Kung, "BranchyNet: Fast Inference via Early Exiting from Deep
Neural Networks" (2017, arXiv:1709.01686): exits are trained together with the trunk on the
weighted sum of their cross entropies,

    L = sum_s w_s * CE(logits_s, y)

and at run time an input leaves at the first exit that is sure enough. Where we depart: any measure
of confidence may decide (the paper uses entropy alone), heads are one linear layer by default, and
all weights are 1 unless given.

Legend: T inputs, S exits (the backbone's own end is the last), C classes.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.cost import Cost, count_flops
from pointsman.depth.heads import HeadMaker, language_heads, pooled_linear
from pointsman.depth.measuring import Savings, timed_savings
from pointsman.depth.placing import places
from pointsman.depth.trunks import SequentialTrunk, TracedTrunk, trunk_of
from pointsman.depth.trunks.rows import checked_batch, count_rows, take_rows
from pointsman.errors import InputError
from pointsman.frontier.points import Frontier
from pointsman.run import (
    Answer,
    Confidence,
    Stage,
    StageCosts,
    State,
    StoppingRule,
    Thresholds,
    evaluating,
    run_staged,
    staged_outcomes,
)
from pointsman.select import max_probability

# For confidences in [0, 1]; fixed before any data is seen, as the test behind a certified pick
# requires. At inf nobody leaves early and no early head runs; at 0 the first exit answers all.
KNOBS = (math.inf, 0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
ROWS_AT_ONCE = 512
# Networks whose last block gives the logits: what they do after their features is not told apart.
ENDING = (SequentialTrunk, TracedTrunk)


class EarlyExit(nn.Module):
    """A network cut after some of its blocks, with a head at each cut.

    Its modules are shared with the network, not copied: training one trains the other.

    Args:
        backbone: an nn.Sequential, an iterable of modules that are applied in order, a `Trunk`, or
            any other model that `trunk_of` can cut.
        at: the blocks after which to exit, by index (negative counts from the end) or by name, in
            the order in which they are applied; `by_cost` finds them from shares of the cost. The
            last block is not one of them: the end of the network is the final exit anyway.
        example: a batch of at least one input, from which the widths of default heads are read.
        heads: one module for each of `at`, from features to logits (n, C), or a maker of
            them. None: the mean over all dimensions but inputs and channels, then one linear layer;
            for a model that answers at each token a norm of its own and the model's unembedding.

    Attributes:
        trunk: the network as a row of blocks.
        exits: names of the S exits; the last is the network's last block.
        cuts: for each exit, how many blocks lie before it.
        heads: S - 1 modules.
        num_classes: C.

    Raises:
        InputError: a network that cannot be cut, or ends in anything but (n, ..., C) logits; exits
            that do not exist, are out of order, come twice or are the last block; heads of another
            number than the exits or of other classes than the network.
    """

    def __init__(
        self,
        backbone: nn.Module | Iterable[nn.Module],
        at: Sequence[int | str],
        *,
        example: Any,
        heads: Sequence[nn.Module] | HeadMaker | None = None,
    ) -> None:
        super().__init__()
        checked_batch(example)
        named = [] if isinstance(at, str | int) else at  # what is no list, `places` refuses
        self.trunk = trunk = _module(trunk_of(backbone, example, named))
        names = trunk.names
        cuts = places(at, names)
        self.exits = (*(names[cut] for cut in cuts), names[-1])
        self.cuts = (*(cut + 1 for cut in cuts), len(names))
        states = self._states(example)
        with evaluating(trunk), torch.no_grad():
            features = [trunk.features(state) for state in states[:-1]]
            logits = trunk.finish(states[-1])
        self.num_classes = _classes(logits, "the backbone")
        if heads is None and logits.ndim > 2 and not isinstance(trunk, ENDING):
            heads = language_heads(trunk, states[-1], len(cuts))
        if heads is None:
            heads = partial(pooled_linear, channels=getattr(trunk, "channels", 1))
        if not isinstance(heads, Sequence | nn.ModuleList):
            heads = [heads(x, self.num_classes) for x in features]
        if len(heads) != len(cuts):
            raise InputError(f"{len(cuts)} exits need {len(cuts)} heads, got {len(heads)}")
        self.heads = nn.ModuleList(heads)
        self._check_heads(features, logits)

    def _check_heads(self, features: list[Tensor], like: Tensor) -> None:
        for name, head, x in zip(self.exits, self.heads, features, strict=False):
            with evaluating(head), torch.no_grad():
                logits = head(x)
            classes = _classes(logits, f"the head at {name!r}")
            if logits.shape[:-1] != like.shape[:-1]:
                raise InputError(
                    f"every exit answers like the backbone, {tuple(like.shape)} on the example, "
                    f"the head at {name!r} gives {tuple(logits.shape)}"
                )
            if classes != self.num_classes:
                raise InputError(
                    f"every exit must answer for the {self.num_classes} classes of the backbone, "
                    f"the head at {name!r} gives {classes}"
                )

    @property
    def backbone(self) -> nn.Module:
        """The network without its early exits, of the same modules."""
        trunk = self.trunk
        if isinstance(trunk, SequentialTrunk):
            return trunk.part(0, len(trunk.names))
        return getattr(trunk, "model", trunk)  # type: ignore[no-any-return]

    @property
    def segments(self) -> nn.ModuleList:
        """Of a sequential backbone, its S parts, each up to one exit, of the same modules.

        Raises:
            InputError: another kind of network: walk its `trunk`.
        """
        if not isinstance(self.trunk, SequentialTrunk):
            raise InputError(
                f"only a sequential backbone has parts that are modules, got "
                f"{type(self.trunk).__name__}: walk net.trunk, or net.stages()"
            )
        bounds = pairwise((0, *self.cuts))
        return nn.ModuleList(self.trunk.part(start, stop) for start, stop in bounds)

    def forward(self, x: Any) -> list[Tensor]:
        """Logits (T, ..., C) of every exit, the earliest first; for training."""
        outputs, state = [], x
        for at in range(len(self.exits)):
            state = self._advance(at, state)
            outputs.append(self._answer(at, state))
        return outputs

    def stages(self) -> list[Stage]:
        """The network as S stages for `run_staged`: advance by a segment, answer by its head."""
        return [
            Stage(partial(self._answer, at), partial(self._advance, at))
            for at in range(len(self.exits))
        ]

    def _advance(self, at: int, state: State) -> State:
        """From the exit before to this one; the first segment begins with the input."""
        if at == 0:
            state = self.trunk.begin(state)
        for block in range(self.cuts[at - 1] if at else 0, self.cuts[at]):
            state = self.trunk.block(block, state)
        return state

    def _answer(self, at: int, state: State) -> Tensor:
        trunk = self.trunk
        early = at < len(self.heads)
        logits: Tensor = self.heads[at](trunk.features(state)) if early else trunk.finish(state)
        return logits

    def _states(self, example: Any) -> list[State]:
        """What each segment gives on the example, in evaluation mode."""
        state, states = example, []
        with evaluating(self.trunk), torch.no_grad():
            for at in range(len(self.exits)):
                state = self._advance(at, state)
                states.append(state)
        return states

    def run(
        self,
        x: Any,
        thresholds: Thresholds,
        confidence: Confidence | StoppingRule = max_probability,
    ) -> Answer:
        """Answer each input at the first exit that is sure enough; the others do not run for it.

        In evaluation mode and without gradients, whatever the mode of the module is.

        Args:
            x: a batch (T, ...); an empty one gives an empty answer.
            thresholds: one number, or one for each exit before the last. 0 lets the first exit
                answer everything; above 1 only the last answers; inf leaves an early head out.
            confidence: logits (n, C) -> (n,), higher is surer; or a stopping rule.

        Returns:
            Logits (T, C) and the route over the S exits. Its cost: `route.cost(self.stage_costs(
            example).per_stage(thresholds))`.

        Raises:
            InputError: another number of thresholds, or NaN among them.
            RouteError: an exit gave NaN.
        """
        with evaluating(self), torch.no_grad():
            return run_staged(self.stages(), x, thresholds, confidence)

    def stage_costs(self, example: Any) -> StageCosts:
        """MFLOPs per input, counted: of each segment (advance) and of each head (answer).

        What comes before the first block is paid with the first segment, what the network does
        after its last block (its norm and its head, if these are no blocks) is the last answer.

        Args:
            example: a batch of at least one input; its count is divided by its rows.

        Raises:
            InputError: an empty batch.
        """
        rows = checked_batch(example)
        states = self._states(example)
        with evaluating(self):
            advance = [
                float(count_flops(self._advance, at, state))
                for at, state in enumerate([example, *states[:-1]])
            ]
            answer = [
                float(count_flops(self._answer, at, state)) for at, state in enumerate(states)
            ]
        return StageCosts(
            Cost(np.array(advance) / rows, "MFLOPs"), Cost(np.array(answer) / rows, "MFLOPs")
        )

    def measure(
        self,
        x: Any,
        thresholds: Thresholds,
        confidence: Confidence | StoppingRule = max_probability,
        *,
        warmup: int = 3,
        repeats: int = 15,
    ) -> Savings:
        """FLOPs counted and time measured on one batch, beside those of the network without exits.

        Args:
            x: a batch of at least one input; its size matters for the time.
            thresholds: as for `run`.
            confidence: as for `run`.
            warmup: rounds that are not timed, first.
            repeats: rounds of both that are timed in turn.

        Raises:
            InputError: an empty batch, or as in `run`.
        """
        checked_batch(x)
        example = take_rows(x, slice(0, 1))
        answer = self.run(x, thresholds, confidence)
        paid = answer.route.cost(self.stage_costs(example).per_stage(thresholds))

        def whole() -> None:
            with evaluating(self.trunk), torch.no_grad():
                self.trunk(x)

        with evaluating(self.trunk):
            alone = count_flops(self.trunk, example)
        return timed_savings(
            lambda: self.run(x, thresholds, confidence),
            whole,
            flops=paid.mean(),
            whole_flops=alone,
            answered=answer.stage.bincount(minlength=len(self.exits)).cpu(),
            warmup=warmup,
            repeats=repeats,
        )

    def logits(self, x: Any) -> Tensor:
        """What every exit answers to every input if none leaves, (S, T, ..., C), a batch at a time.

        In evaluation mode and without gradients.

        Raises:
            InputError: no input.
        """
        checked_batch(x)
        starts = range(0, count_rows(x), ROWS_AT_ONCE)
        with evaluating(self), torch.no_grad():
            batches = [
                torch.stack(self(take_rows(x, slice(start, start + ROWS_AT_ONCE))))
                for start in starts
            ]
        return torch.cat(batches, dim=1)

    def frontier(
        self,
        x: Any,
        y: Tensor,
        knobs: Sequence[float] = KNOBS,
        *,
        confidence: Confidence | StoppingRule = max_probability,
        name: str = "exits",
    ) -> Frontier:
        """Quality (share of right classes) against MFLOPs, one threshold for all exits as the knob.

        Every exit runs once on all of x. The reference is the backbone without early heads.

        Args:
            x: (T, ...), for a certified pick not trained on.
            y: (T,) classes from 0 to C - 1.
            knobs: thresholds, from the safest to the cheapest. The default suits confidences in
                [0, 1]: give other knobs with another range.
            confidence: logits (n, C) -> (n,), higher is surer; or a stopping rule.
            name: of the frontier.

        Raises:
            InputError: no input, labels that do not fit, or knobs from cheap to safe.
        """
        if any(a < b for a, b in pairwise(knobs)):
            raise InputError(f"knobs go from the highest threshold to the lowest, got {knobs}")
        logits_SNC = self.logits(x)
        outcomes = staged_outcomes(
            logits_SNC,
            torch.as_tensor(y, device=logits_SNC.device),
            self.stage_costs(take_rows(x, slice(0, 1))),
            {knob: knob for knob in knobs},
            confidence=confidence,
        )
        return Frontier.from_outcomes(name, outcomes)


def joint_loss(
    outputs: Sequence[Tensor], target: Tensor, weights: Sequence[float] | None = None
) -> Tensor:
    """Weighted sum of the cross entropies of all exits; a scalar.

    Args:
        outputs: logits (T, C) of each of the S exits, as `EarlyExit.forward` gives them.
        target: (T,) classes.
        weights: S numbers of at least 0; None: all 1.

    Raises:
        InputError: no output, another number of weights, or weights that are negative or all 0.
    """
    shares = [1.0] * len(outputs) if weights is None else list(weights)
    if not outputs or len(shares) != len(outputs):
        raise InputError(
            f"every exit needs one weight, got {len(outputs)} exits and {len(shares)} weights"
        )
    if not all(math.isfinite(w) and w >= 0 for w in shares) or not any(shares):
        raise InputError(f"weights are at least 0 and not all 0, got {shares}")
    losses = [
        w * functional.cross_entropy(logits, target)
        for w, logits in zip(shares, outputs, strict=True)
    ]
    return torch.stack(losses).sum()


def _module(trunk: Any) -> Any:
    """A trunk, which is an nn.Module too."""
    if not isinstance(trunk, nn.Module):
        raise InputError(f"a trunk is an nn.Module, got {type(trunk).__name__}")
    return trunk


def _classes(logits: object, what: str) -> int:
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{what} must give logits (inputs, classes) on the example, got {got}")
    return int(logits.shape[-1])
