"""A dense feed-forward as experts: copies of it, or slices of copies; and experts as one again.

Legend: T tokens, E experts, D width, O outputs, H hidden units of one expert, F = H, or 2 H if
gated: gate rows first, K = k.
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.convert.reading import Dense, named, read_dense
from pointsman.moe.experts import FeedForwardExperts
from pointsman.moe.layer import Balance, Estimator, MoE, Select
from pointsman.route import Route
from pointsman.select import guarantees, top_k
from pointsman.select.checks import check_k, check_scores
from pointsman.select.weighing import softmax

ROUTER_SPREAD = 0.02  # standard deviation of a fresh router's weights, as in sparse upcycling


class OutputBias(nn.Module):
    """A constant added to every token: the bias that a dense layer has on the way down.

    Experts have none, so it is kept as the layer's shared part; weighted sums then stay exact.

    Args:
        bias_O: the constant.
    """

    def __init__(self, bias_O: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias_O.detach().clone())

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) to (T, O)."""
        return self.bias.expand(*x_TD.shape[:-1], -1)


def copy(
    mlp: nn.Module | Dense,
    num_experts: int,
    *,
    k: int = 2,
    router: nn.Module | None = None,
    select: Select | None = None,
    estimator: Estimator | None = None,
    balance: Iterable[tuple[float, Balance]] = (),
    redrawn: float = 0.0,
    generator: torch.Generator | None = None,
) -> MoE:
    """Experts that are copies of a dense feed-forward: sparse upcycling.

    As long as the weights of a token sum to one, the layer computes exactly what the dense one
    does, whatever the router says. Dtype, device and trainability of the weights are kept.

    Args:
        mlp: see `read_dense`.
        num_experts: E.
        k: experts of each token. With k = 1 weights that sum to one are constant, and the router
            learns through an `estimator` only.
        router: (T, D) → (T, E). None: linear, without bias, drawn with a small spread.
        select: None: `top_k` with weights that sum to one.
        estimator: see `MoE`.
        balance: see `MoE`.
        redrawn: share of each expert's hidden units to draw anew, see `redraw`; 0 keeps equality.
        generator: of the draws; None means torch's global one.

    Raises:
        InputError: `mlp` cannot be read, or drops outputs in training.

    Source: Komatsuzaki et al. 2022, "Sparse upcycling", arXiv 2212.05055.
    """
    dense = _without_dropout(mlp)
    experts = stack([dense] * num_experts) if num_experts > 0 else _no_experts(num_experts)
    if router is None:
        router = linear_router(dense, num_experts, generator=generator)
    moe = MoE(
        router,
        select or partial(top_k, k=k),
        experts,
        shared=shared_bias(dense),
        balance=balance,
        estimator=estimator,
    )
    redraw(moe, redrawn, generator=generator)
    return moe


def split(
    mlp: nn.Module | Dense,
    copies: int,
    slices: int,
    *,
    k: int | None = None,
    select: Select | None = None,
    estimator: Estimator | None = None,
    balance: Iterable[tuple[float, Balance]] = (),
    redrawn: float = 0.0,
    generator: torch.Generator | None = None,
) -> MoE:
    """Fine-grained experts: each of several copies of a feed-forward cut into hidden slices.

    Expert c * slices + j is slice j of copy c. All slices of a copy get the same row of the
    router, so that they are chosen together at the start and add up to the dense layer exactly.
    Training then sets them apart.

    Args:
        mlp: see `read_dense`.
        copies: of the whole layer.
        slices: of each copy, a divisor of its hidden width.
        k: experts of each token, a multiple of `slices` for equality; None means `slices`, the
            cost of the dense layer.
        select: None: `top_k_slices`.
        estimator: see `MoE`.
        balance: see `MoE`.
        redrawn: see `redraw`; 0 keeps equality.
        generator: of the draws; None means torch's global one.

    Raises:
        InputError: `mlp` cannot be read, drops outputs in training, or cannot be cut so.

    Source: Lu et al. 2025, "Dynamic-DINO", arXiv 2507.17436; Dai et al. 2024, "DeepSeekMoE",
    arXiv 2401.06066. *Departure:* the bias on the way down is one shared part, not divided among
    the slices, so that the sum stays exact in any precision.
    """
    dense = _without_dropout(mlp)
    if min(copies, slices) < 1 or dense.hidden % slices:
        raise InputError(
            "a feed-forward is cut into slices of equal size, at least one of at least one copy: "
            f"got {copies} copies, {slices} slices of {dense.hidden} hidden units"
        )
    size = dense.hidden // slices
    units = torch.arange(dense.hidden, device=dense.up.device).reshape(slices, size)
    experts = stack([dense.units(chosen) for chosen in units] * copies)
    router = linear_router(dense, copies, repeated=slices, generator=generator)
    moe = MoE(
        router,
        select or partial(top_k_slices, k=slices if k is None else k, slices=slices),
        experts,
        shared=shared_bias(dense),
        balance=balance,
        estimator=estimator,
    )
    redraw(moe, redrawn, generator=generator)
    return moe


@guarantees(batch_independent=True, causal=True)
def top_k_slices(scores: Tensor, k: int, slices: int) -> Route:
    """The k best experts, earlier ones first among equals, at weights that sum to `slices`.

    Slices of one copy of a layer that score alike are thus taken together, and at k = slices each
    runs with weight one.

    Guarantee: exactly k branches; which of equals is promised. Batch independent and causal.

    Args:
        scores: (T, E) floating point.
        k: branches of each input, 1 to E.
        slices: of one copy, at least one.

    Raises:
        RouteError: NaN or +inf among the scores, or k out of range.
    """
    check_scores(scores)
    check_k(k, scores.shape[1])
    keen_TE, order_TE = scores.detach().sort(dim=1, descending=True, stable=True)
    taken_TK, branches_TK = keen_TE[:, :k] > -torch.inf, order_TE[:, :k]
    chosen_TK = scores.gather(1, branches_TK).masked_fill(~taken_TK, -torch.inf)
    return Route.from_indices(
        branches_TK.masked_fill(~taken_TK, -1),
        softmax(chosen_TK) * slices,
        num_branches=scores.shape[1],
    )


@torch.no_grad()
def redraw(moe: MoE, share: float, *, generator: torch.Generator | None = None) -> None:
    """Draw a share of each expert's hidden units anew, in place, so that copies set out apart.

    Each expert loses other units. The new weights are normal with the mean and the deviation of
    those they replace, matrix by matrix; biases of redrawn units become zero.

    Args:
        moe: with `FeedForwardExperts`.
        share: 0 to 1; the paper's best is 0.5.
        generator: of the draws; None means torch's global one.

    Raises:
        InputError: a share out of range, or experts of another kind.

    Source: Nakamura et al. 2025, "Drop-Upcycling", arXiv 2502.19261.
    """
    if not 0 <= share <= 1:
        raise InputError(f"the share of hidden units to redraw is 0 to 1, got {share}")
    experts = feed_forward_experts(moe)
    hidden = experts.down_EDF.shape[2]
    count = round(share * hidden)
    if count == 0:
        return
    for expert in range(experts.num_experts):
        units = torch.randperm(hidden, generator=generator)[:count].to(experts.up_EFD.device)
        # A gate is a matrix of its own, with its own statistics.
        blocks = 2 if experts.gated else 1
        for block in experts.up_EFD[expert].chunk(blocks):
            block[units] = _alike(block[units], generator)
        if experts.up_bias_EF is not None:
            for bias in experts.up_bias_EF[expert].chunk(blocks):
                bias[units] = 0
        down = experts.down_EDF[expert]
        down[:, units] = _alike(down[:, units], generator)


def merge(moe: MoE) -> nn.Module:
    """The dense layer that computes what all experts give together, each with weight one.

    It is the way back from `split` with one copy and from `carve`: hidden units of all experts and
    of the shared part stand side by side.

    Args:
        moe: with `FeedForwardExperts`, and a shared part that is none, a bias, or can be read.

    Returns:
        A module of its own weights: `nn.Sequential`, or `GatedFeedForward` if gated.

    Raises:
        InputError: other experts, or a shared part of another kind.
    """
    parts, bias_O = _pieces(moe)
    return side_by_side(parts, bias_O).module()


def average(moe: MoE) -> nn.Module:
    """The dense layer whose weights are the mean over the experts: the way back from `copy`.

    Args:
        moe: with `FeedForwardExperts`, and a shared part that is none or a bias.

    Returns:
        A module of its own weights: `nn.Sequential`, or `GatedFeedForward` if gated.

    Raises:
        InputError: other experts, or a shared part of another kind.
    """
    experts, bias_O = feed_forward_experts(moe), None
    if isinstance(moe.shared, OutputBias):
        bias_O = moe.shared.bias
    elif moe.shared is not None:
        raise InputError(
            "experts are averaged if the layer's shared part is no more than a bias, "
            f"got {type(moe.shared).__name__}: `merge` sets it beside them"
        )
    bias_EF = experts.up_bias_EF
    return Dense(
        experts.up_EFD.mean(dim=0),
        None if bias_EF is None else bias_EF.mean(dim=0),
        experts.down_EDF.mean(dim=0),
        bias_O,
        experts.activation,
        experts.gated,
    ).module()


def stack(parts: list[Dense]) -> FeedForwardExperts:
    """A bank of these experts, with weights of its own and without the biases on the way down."""
    first = parts[0]
    biased = first.up_bias is not None
    with torch.device("meta"):  # the weights are not drawn: those of the parts follow
        experts = FeedForwardExperts(
            len(parts),
            first.width,
            first.hidden,
            activation=named(first.activation),
            gated=first.gated,
            bias=biased,
            out=first.down.shape[0],
        )

    def stacked(tensors: list[Tensor]) -> nn.Parameter:
        return nn.Parameter(torch.stack([t.detach() for t in tensors]), tensors[0].requires_grad)

    experts.up_EFD = stacked([part.up for part in parts])
    biases = [part.up_bias for part in parts if part.up_bias is not None]
    experts.up_bias_EF = stacked(biases) if biases else None
    experts.down_EDF = stacked([part.down for part in parts])
    return experts


def side_by_side(parts: list[Dense], bias_O: Tensor | None = None) -> Dense:
    """The hidden units of all parts in one layer; its output is the sum of theirs plus the bias."""
    first = parts[0]
    blocks = [part.up.chunk(2) if part.gated else (part.up,) for part in parts]
    biases = [
        part.up_bias.chunk(2) if part.gated else (part.up_bias,)
        for part in parts
        if part.up_bias is not None
    ]
    return Dense(
        torch.cat([block[at] for at in range(len(blocks[0])) for block in blocks]),
        torch.cat([bias[at] for at in range(len(blocks[0])) for bias in biases])
        if biases
        else None,
        torch.cat([part.down for part in parts], dim=1),
        bias_O,
        first.activation,
        first.gated,
    )


def linear_router(
    dense: Dense, rows: int, *, repeated: int = 1, generator: torch.Generator | None = None
) -> nn.Linear:
    """A linear router without bias, each of its rows repeated, in the type of a dense layer."""
    drawn = torch.randn(rows, dense.width, generator=generator) * ROUTER_SPREAD
    weight = drawn.repeat_interleave(repeated, dim=0).to(dense.up)
    with torch.device("meta"):
        router = nn.Linear(dense.width, len(weight), bias=False)
    router.weight = nn.Parameter(weight)
    return router


def shared_bias(dense: Dense) -> OutputBias | None:
    """The bias on the way down as a shared part, if there is one."""
    return None if dense.down_bias is None else OutputBias(dense.down_bias)


def feed_forward_experts(moe: MoE) -> FeedForwardExperts:
    """The experts of a layer.

    Raises:
        InputError: they are of another kind.
    """
    if not isinstance(moe.experts, FeedForwardExperts):
        raise InputError(
            "dense layers are made of and from FeedForwardExperts, "
            f"got {type(moe.experts).__name__}"
        )
    return moe.experts


def _pieces(moe: MoE) -> tuple[list[Dense], Tensor | None]:
    """Every expert and the shared part as dense layers, and the bias on the way down."""
    experts = feed_forward_experts(moe)
    count = experts.num_experts
    biases = [None] * count if experts.up_bias_EF is None else list(experts.up_bias_EF)
    weights = zip(experts.up_EFD, biases, experts.down_EDF, strict=True)
    parts = [
        Dense(up, bias, down, None, experts.activation, experts.gated) for up, bias, down in weights
    ]
    if moe.shared is None:
        return parts, None
    if isinstance(moe.shared, OutputBias):
        return parts, moe.shared.bias
    shared = read_dense(moe.shared)
    kind = (shared.gated, shared.up_bias is None, shared.activation)
    if kind != (experts.gated, experts.up_bias_EF is None, experts.activation):
        raise InputError(
            "a shared part is set beside experts if it has their activation, gate and bias, "
            f"got {type(moe.shared).__name__} with others"
        )
    return [shared, *parts], shared.down_bias


def _without_dropout(mlp: nn.Module | Dense) -> Dense:
    dense = read_dense(mlp)
    if dense.dropout > 0:
        raise InputError(
            f"{type(mlp).__name__} drops outputs with p = {dense.dropout} in training, which a "
            "routed layer does not: set p = 0 and put nn.Dropout after the layer"
        )
    return dense


def _alike(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    deviation, mean = torch.std_mean(weights.float(), correction=0)
    drawn = torch.randn(weights.shape, generator=generator).to(weights.device)
    return (mean + deviation * drawn).to(weights.dtype)


def _no_experts(num_experts: int) -> FeedForwardExperts:
    raise InputError(f"a routed layer has at least one expert, got {num_experts}")
