"""What early-exit decoding does on texts that are given: every place at once, without a cache.

Layer by layer all places can run at once, because what a layer sees of earlier tokens depends on
the layers before it alone. That gives the bits of a text at any thresholds in one pass, and is what
decoding over a cache is tested against.

Legend: n texts, S tokens of each, E exits, L layers, V vocabulary, K settings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pointsman.cost import Cost, count_flops
from pointsman.depth.decoding.early import KEEPS, Keep
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.errors import InputError
from pointsman.frontier.points import Frontier, Outcomes
from pointsman.modules import evaluating
from pointsman.run import Confidence, State, StoppingRule, Thresholds, stage_thresholds
from pointsman.select import max_probability

Array = npt.NDArray[np.float64]

# For confidences in [0, 1], from the safest; fixed before any data is seen.
KNOBS = (math.inf, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


@dataclass(frozen=True, eq=False)
class Forced:
    """What each place of given texts would say, and from which exit.

    Attributes:
        logits: (n, S, V) for the token that follows.
        exits: (n, S) int64.
    """

    logits: Tensor
    exits: Tensor

    def bits(self, ids: Tensor) -> Tensor:
        """(n, S - 1) bits that each token but the first took.

        Args:
            ids: (n, S), the texts.
        """
        target = ids[:, 1:].long()
        nats = functional.cross_entropy(self.logits[:, :-1].mT.double(), target, reduction="none")
        return nats / math.log(2)


def forced(
    model: LanguageExits,
    ids: Tensor,
    thresholds: Thresholds = math.inf,
    *,
    confidence: Confidence | StoppingRule = max_probability,
    keep: Keep = "exact",
    deep: Tensor | None = None,
) -> Forced:
    """Run texts as `decode` would have if it had written them.

    All layers run for all tokens: this says what comes out, not how fast.

    Args:
        model: with exits.
        ids: (n, S).
        thresholds: as for `decode`, the same at every place.
        confidence: as for `decode`.
        keep: as for `decode`.
        deep: (n, S) bool, tokens that go to the end whatever the exits say, as those of a prompt
            do where hidden states are propagated. None: none must.

    Raises:
        InputError: another `keep`, thresholds that do not fit, or texts beyond the context.
    """
    if keep not in KEEPS:
        raise InputError(f"keep is one of {', '.join(KEEPS)}, got {keep!r}")
    limits = stage_thresholds(thresholds, len(model))
    exits = torch.full(ids.shape, -1, dtype=torch.int64, device=ids.device)
    stays = torch.zeros_like(exits, dtype=torch.bool) if deep is None else deep
    logits: Tensor | None = None
    memory: State | None = None
    with evaluating(model), torch.no_grad():
        state, exit_ = model.trunk.begin(ids), 0
        for at in range(len(model.trunk.names)):
            after = model.trunk.block(at, state)
            gone = (exits >= 0) if keep == "propagate" else torch.zeros_like(stays)
            state = torch.where(gone[:, :, None], state, after)
            if at + 1 != model.bounds[exit_ + 1]:
                continue
            if limits[exit_] < math.inf:
                found = model.answer(exit_, state)
                sure, memory = _sure(found, float(limits[exit_]), confidence, exit_, memory)
                leaves = (exits < 0) & sure & (~stays if exit_ + 1 < len(model) else True)
                logits = found if logits is None else logits
                logits = torch.where(leaves[:, :, None], found, logits)
                exits = exits.masked_fill(leaves, exit_)
            exit_ += 1
    assert logits is not None
    return Forced(logits, exits)


def _sure(
    logits: Tensor,
    limit: float,
    confidence: Confidence | StoppingRule,
    exit_: int,
    memory: State | None,
) -> tuple[Tensor, State | None]:
    """(n, S) bool, and what the rule remembers of all tokens, those that left included."""
    if limit == -math.inf:
        return torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device), memory
    flat = logits.flatten(0, 1)
    if isinstance(confidence, StoppingRule):
        sureness, memory = confidence.sureness(flat, exit_, memory)
    else:
        sureness = confidence(flat)
    return (sureness >= limit).unflatten(0, logits.shape[:2]), memory  # type: ignore[no-untyped-call]


def layer_runs(exits: Tensor, bounds: Sequence[int], keep: Keep) -> Tensor:
    """How often each layer runs for the tokens of each text, (n, L) int64.

    Args:
        exits: (n, S) of every token.
        bounds: of the model, E + 1 layers.
        keep: where "exact", a layer also runs for the tokens before one that needs it.
    """
    if keep == "exact":  # whoever comes later and goes deeper takes the waiting along
        exits = exits.flip(1).cummax(dim=1).values.flip(1)
    depth = torch.as_tensor(bounds[1:], device=exits.device)[exits]  # layers that ran
    return (depth[:, :, None] > torch.arange(bounds[-1], device=exits.device)).sum(dim=1)


@dataclass(frozen=True)
class TokenCosts:
    """MFLOPs per token on texts of one length.

    Attributes:
        layer: of each of the L layers.
        store: of each layer's keys and values alone.
        answer: of each of the E exits' logits.
    """

    layer: tuple[float, ...]
    store: tuple[float, ...]
    answer: tuple[float, ...]

    @classmethod
    def count(cls, model: LanguageExits, ids: Tensor) -> "TokenCosts":
        """Counted on one text, ids (1, S). Attention is counted over all S places."""
        trunk, tokens = model.trunk, ids.shape[1]
        positions = torch.arange(tokens, device=ids.device)[None]
        layer, store = [], []
        with evaluating(model), torch.no_grad():
            state = trunk.begin(ids)
            for at in range(len(trunk.names)):
                layer.append(float(count_flops(trunk.block, at, state)) / tokens)
                spent = count_flops(trunk.store, at, state, positions, trunk.cache(1))
                store.append(float(spent) / tokens)
            answer = [
                float(count_flops(model.answer, exit_, state)) / tokens
                for exit_ in range(len(model))
            ]
        return cls(tuple(layer), tuple(store), tuple(answer))

    def spent(
        self, exits: Tensor, limits: Sequence[float], bounds: Sequence[int], keep: Keep
    ) -> Cost:
        """What each text spent, amount (n,): MFLOPs per token.

        Args:
            exits: (n, S).
            limits: (E,), exits at inf work out no logits.
            bounds: of the model.
            keep: see `layer_runs`.
        """
        tokens = exits.shape[1]
        runs = layer_runs(exits, bounds, keep).double()
        total = runs @ torch.tensor(self.layer, dtype=torch.float64)
        if keep == "propagate":
            total += (tokens - runs) @ torch.tensor(self.store, dtype=torch.float64)
        for exit_, (limit, each) in enumerate(zip(limits, self.answer, strict=True)):
            if limit < math.inf:
                total += each * (exits >= exit_).sum(dim=1)
        return Cost(total.numpy() / tokens, "MFLOPs")


def text_frontier(
    model: LanguageExits,
    ids: Tensor,
    knobs: Sequence[float] = KNOBS,
    *,
    confidence: Confidence | StoppingRule = max_probability,
    keep: Keep = "propagate",
    name: str = "exits of a language model",
) -> Frontier:
    """Quality of texts against MFLOPs per token, one threshold for all exits as the knob.

    The quality of a text is the share of a blind guess's bits that the model saves,
    1 - bits per token / log2(V), and 0 at worst. A text is one input: tokens of one text are not
    drawn independently, which a certified pick counts on. The reference is the full model without
    early heads.

    Args:
        model: with exits.
        ids: (n, S), texts that were not trained on.
        knobs: thresholds, from the safest to the cheapest.
        confidence: as for `decode`.
        keep: as for `decode`.
        name: of the frontier.

    Raises:
        InputError: no text, or knobs from cheap to safe.
    """
    if any(a < b for a, b in pairwise(knobs)):
        raise InputError(f"knobs go from the highest threshold to the lowest, got {list(knobs)}")
    if ids.ndim != 2 or not len(ids) or ids.shape[1] < 2:
        raise InputError(f"texts are (texts, at least 2 tokens), got {tuple(ids.shape)}")
    costs = TokenCosts.count(model, ids[:1])
    quality, spent = zip(
        *(_measured(model, ids, knob, confidence, keep, costs) for knob in (math.inf, *knobs)),
        strict=True,
    )
    outcomes = Outcomes(
        knobs=tuple(knobs),
        quality=np.stack(quality[1:]),
        cost=np.stack(spent[1:]),
        reference_quality=quality[0],
        reference_cost=spent[0],
        unit="MFLOPs",
    )
    return Frontier.from_outcomes(name, outcomes)


def _measured(
    model: LanguageExits,
    ids: Tensor,
    knob: float,
    confidence: Confidence | StoppingRule,
    keep: Keep,
    costs: TokenCosts,
) -> tuple[Array, Array]:
    """Quality and MFLOPs per token of each text at one threshold."""
    found = forced(model, ids, knob, confidence=confidence, keep=keep)
    blind = math.log2(found.logits.shape[-1])
    quality = (1 - found.bits(ids).mean(dim=1) / blind).clamp(min=0)
    limits = stage_thresholds(knob, len(model)).tolist()
    spent = costs.spent(found.exits, limits, model.bounds, keep)
    return quality.cpu().numpy(), np.asarray(spent.amount)
