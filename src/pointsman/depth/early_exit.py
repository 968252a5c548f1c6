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
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.cost import Cost, count_flops
from pointsman.errors import InputError
from pointsman.frontier.points import Frontier
from pointsman.run import (
    Answer,
    Confidence,
    Stage,
    StageCosts,
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


class EarlyExit(nn.Module):
    """A backbone cut at some of its children, with a head at each cut.

    The children are shared with the backbone, not copied: training one trains the other.

    Args:
        backbone: an nn.Sequential, or an iterable of modules that are applied in order.
        at: the children after which to exit, by index (negative counts from the end) or by name,
            in the order in which they are applied. The last child is not one of them: the end of
            the backbone is the final exit anyway.
        example: a batch of at least one input, from which the widths of default heads are read.
        heads: one module for each of `at`, from features to logits (n, C). None: the mean over all
            dimensions after (input, channel), then one linear layer.

    Attributes:
        exits: names of the S exits; the last is the backbone's last child.
        segments: S parts of the backbone, each up to one exit.
        heads: S - 1 modules.
        num_classes: C.

    Raises:
        InputError: a backbone that is not sequential, or ends in anything but (n, C) logits; exits
            that do not exist, are out of order, come twice or are the last child; heads of another
            number than the exits or of other classes than the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module | Iterable[nn.Module],
        at: Sequence[int | str],
        *,
        example: Tensor,
        heads: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        children = _children(backbone)
        names = list(children)
        cuts = _cuts(at, names)
        self.exits = (*(names[cut] for cut in cuts), names[-1])
        bounds = [0, *(cut + 1 for cut in cuts), len(names)]
        self.segments = nn.ModuleList(
            nn.Sequential(OrderedDict((name, children[name]) for name in names[start:stop]))
            for start, stop in pairwise(bounds)
        )
        features = _features(self.segments, example)
        self.num_classes = _classes(features[-1], "the backbone")
        if heads is None:
            heads = [default_head(x, self.num_classes) for x in features[:-1]]
        if len(heads) != len(cuts):
            raise InputError(f"{len(cuts)} exits need {len(cuts)} heads, got {len(heads)}")
        self.heads = nn.ModuleList(heads)
        self._check_heads(features)

    def _check_heads(self, features: list[Tensor]) -> None:
        for name, head, x in zip(self.exits, self.heads, features, strict=False):
            with evaluating(head), torch.no_grad():
                classes = _classes(head(x), f"the head at {name!r}")
            if classes != self.num_classes:
                raise InputError(
                    f"every exit must answer for the {self.num_classes} classes of the backbone, "
                    f"the head at {name!r} gives {classes}"
                )

    @property
    def backbone(self) -> nn.Sequential:
        """The network without its early exits, of the same modules."""
        named = (item for part in self.segments for item in _named(part).items())
        return nn.Sequential(OrderedDict(named))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits (T, C) of every exit, the earliest first; for training."""
        outputs = []
        for at, segment in enumerate(self.segments):
            x = segment(x)
            outputs.append(self._answer(at, x))
        return outputs

    def stages(self) -> list[Stage]:
        """The network as S stages for `run_staged`: advance by a segment, answer by its head."""
        return [
            Stage(partial(self._answer, at), segment) for at, segment in enumerate(self.segments)
        ]

    def _answer(self, at: int, features: Tensor) -> Tensor:
        logits: Tensor = self.heads[at](features) if at < len(self.heads) else features
        return logits

    def run(
        self, x: Tensor, thresholds: Thresholds, confidence: Confidence = max_probability
    ) -> Answer:
        """Answer each input at the first exit that is sure enough; the others do not run for it.

        In evaluation mode and without gradients, whatever the mode of the module is.

        Args:
            x: a batch (T, ...); an empty one gives an empty answer.
            thresholds: one number, or one for each exit before the last. 0 lets the first exit
                answer everything; above 1 only the last answers; inf leaves an early head out.
            confidence: logits (n, C) -> (n,), higher is surer.

        Returns:
            Logits (T, C) and the route over the S exits. Its cost: `route.cost(self.stage_costs(
            example).per_stage(thresholds))`.

        Raises:
            InputError: another number of thresholds, or NaN among them.
            RouteError: an exit gave NaN.
        """
        with evaluating(self), torch.no_grad():
            return run_staged(self.stages(), x, thresholds, confidence)

    def stage_costs(self, example: Tensor) -> StageCosts:
        """MFLOPs per input, counted: of each segment (advance) and of each head (answer).

        Args:
            example: a batch of at least one input; its count is divided by its rows.

        Raises:
            InputError: an empty batch.
        """
        advance, answer = [], []
        features = [_batch(example), *_features(self.segments, example)]
        with evaluating(self):
            for segment, x in zip(self.segments, features, strict=False):
                advance.append(float(count_flops(segment, x)))
            for head, x in zip(self.heads, features[1:], strict=False):
                answer.append(float(count_flops(head, x)))
        rows = len(example)
        return StageCosts(
            Cost(np.array(advance) / rows, "MFLOPs"),
            Cost(np.array([*answer, 0.0]) / rows, "MFLOPs"),
        )

    def frontier(
        self,
        x: Tensor,
        y: Tensor,
        knobs: Sequence[float] = KNOBS,
        *,
        confidence: Confidence = max_probability,
        name: str = "exits",
    ) -> Frontier:
        """Quality (share of right classes) against MFLOPs, one threshold for all exits as the knob.

        Every exit runs once on all of x. The reference is the backbone without early heads.

        Args:
            x: (T, ...), for a certified pick not trained on.
            y: (T,) classes from 0 to C - 1.
            knobs: thresholds, from the safest to the cheapest. The default suits confidences in
                [0, 1]: give other knobs with another range.
            confidence: logits (n, C) -> (n,), higher is surer.
            name: of the frontier.

        Raises:
            InputError: no input, labels that do not fit, or knobs from cheap to safe.
        """
        if any(a < b for a, b in pairwise(knobs)):
            raise InputError(f"knobs go from the highest threshold to the lowest, got {knobs}")
        example = _batch(x)[:1]
        with evaluating(self), torch.no_grad():
            starts = range(0, len(x), ROWS_AT_ONCE)
            batches = [torch.stack(self(x[start : start + ROWS_AT_ONCE])) for start in starts]
        outcomes = staged_outcomes(
            torch.cat(batches, dim=1),
            torch.as_tensor(y, device=x.device),
            self.stage_costs(example),
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


class ChannelMean(nn.Module):
    """(n, channels, ...) -> (n, channels): the mean over all other dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        """The means; features (n, channels) pass as they are."""
        return x.flatten(2).mean(dim=2) if x.ndim > 2 else x


def default_head(features: Tensor, classes: int) -> nn.Sequential:
    """Channel means and one linear layer, in the features' dtype and on their device."""
    if features.ndim < 2:
        raise InputError(
            f"a default head needs features (inputs, channels, ...), got {tuple(features.shape)}"
        )
    linear = nn.Linear(features.shape[1], classes, device=features.device, dtype=features.dtype)
    return nn.Sequential(OrderedDict(mean=ChannelMean(), linear=linear))


def _named(sequential: nn.Module) -> dict[str, nn.Module]:
    # named_children would leave out a module that comes twice, such as one shared ReLU
    return {name: child for name, child in sequential._modules.items() if child is not None}


def _children(backbone: nn.Module | Iterable[nn.Module]) -> dict[str, nn.Module]:
    """The modules of a sequential backbone by name, in order."""
    if isinstance(backbone, nn.Sequential):
        children = _named(backbone)
    elif isinstance(backbone, nn.Module) and not isinstance(backbone, nn.ModuleList):
        raise InputError(
            f"early exits need a backbone whose children run one after the other, got "
            f"{type(backbone).__name__}: give an nn.Sequential or a list of its parts in order"
        )
    else:
        children = {str(at): child for at, child in enumerate(backbone)}
    for name, child in children.items():
        if not isinstance(child, nn.Module):
            raise InputError(
                f"the parts of a backbone are modules, got {type(child).__name__} at {name}"
            )
    if len(children) < 2:
        raise InputError(
            f"a backbone with early exits has at least two children, got {len(children)}"
        )
    return children


def _cuts(at: Sequence[int | str], names: list[str]) -> list[int]:
    """Indices of the children after which to exit."""
    if isinstance(at, str | int) or not at:
        raise InputError(f"at is a list of at least one exit, got {at!r}")
    cuts = [_cut(place, names) for place in at]
    if len(names) - 1 in cuts:
        raise InputError(
            f"the last child {names[-1]!r} is the final exit already: leave it out of {list(at)}"
        )
    for (first, a), (second, b) in pairwise(zip(at, cuts, strict=True)):
        if a >= b:
            raise InputError(
                f"exits come once each, in the order of the backbone, got {second!r} "
                f"after {first!r}: the order is {', '.join(names)}"
            )
    return cuts


def _cut(place: int | str, names: list[str]) -> int:
    if isinstance(place, str) and place in names:
        return names.index(place)
    if type(place) is int and -len(names) <= place < len(names):
        return place % len(names)
    raise InputError(
        f"there is no child {place!r} to exit after: the backbone has "
        f"{', '.join(names)} (0 to {len(names) - 1})"
    )


def _batch(example: Tensor) -> Tensor:
    if not isinstance(example, Tensor) or example.ndim == 0 or len(example) == 0:
        got = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"an example is a batch of at least one input, got {got}")
    return example


def _features(segments: nn.ModuleList, example: Tensor) -> list[Tensor]:
    """What each segment gives on the example."""
    x, features = _batch(example), []
    with evaluating(segments), torch.no_grad():
        for segment in segments:
            x = segment(x)
            features.append(x)
    return features


def _classes(logits: object, what: str) -> int:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{what} must give logits (inputs, classes) on the example, got {got}")
    return int(logits.shape[1])
