"""Systems whose idea is how experts are kept used, coupled, sparse or near.

Each is a function that puts parts together; what a paper does beside the layer (its model, its
schedule) is left to the caller.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from pointsman.moe.balance import (
    AdaptiveL1,
    BiasedTopK,
    ByMode,
    DirichletPrior,
    ExpertRouterCoupling,
    NormedWeights,
    chunk_sparsity,
    importance,
    load,
    locality,
    switch,
)
from pointsman.moe.experts import FeedForwardExperts
from pointsman.moe.layer import MoE
from pointsman.moe.routers import NoisyRouter
from pointsman.select import balanced, relu, top_k


def sparsely_gated(
    width: int, hidden: int, num_experts: int, k: int = 4, *, weight: float = 0.1
) -> MoE:
    """Noisy top-k gates, and losses that even out gate values and smooth loads.

    Where we depart: the flat form; for the two-level form, see two-level routing.

    Args:
        width: D.
        hidden: of an expert; the paper's are 1024 wide, with ReLU.
        num_experts: E.
        k: experts a token, 2 to E.
        weight: of the importance loss and of the load loss.

    Source: Shazeer et al. 2017, "Outrageously large neural networks: the sparsely-gated
    mixture-of-experts layer", arXiv 1701.06538.
    """
    return MoE(
        NoisyRouter(width, num_experts),
        partial(top_k, k=k),
        FeedForwardExperts(num_experts, width, hidden, activation="relu"),
        balance=((weight, importance), (weight, load)),
    )


def loss_free(width: int, hidden: int, num_experts: int, k: int = 2, *, rate: float = 0.001) -> MoE:
    """Balance by a bias that takes part in the choice alone and is moved after each step.

    Where we depart: shared experts of the paper's backbone are left out; give the layer `shared`.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E.
        k: experts a token.
        rate: what a bias moves in a step.

    Source: Wang et al. 2024, "Auxiliary-loss-free load balancing strategy for mixture-of-experts",
    arXiv 2408.15664.
    """
    return MoE(
        nn.Linear(width, num_experts, bias=False),
        BiasedTopK(num_experts, k, rate=rate),
        FeedForwardExperts(num_experts, width, hidden, activation="silu", gated=True),
    )


def base_layer(width: int, hidden: int, num_experts: int) -> MoE:
    """An assignment fills the experts equally in training; each token takes its best when served.

    The paper's y = alpha f(h) + (1 - alpha) h, with alpha = sigmoid(h w) and experts that are
    residual, f(h) = h + g(h), is h + alpha g(h): a routed layer with weights alpha whose shared
    path is the identity.

    Where we depart: one feed-forward g an expert instead of a stack of them, without a norm of its
    own; the assignment is exact instead of by auction; and it is over the tokens of the call,
    without a shuffle between workers. The layer is residual: do not add its input again.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E.

    Source: Lewis et al. 2021, "BASE layers: simplifying training of large, sparse models", arXiv
    2103.16716.
    """
    router = nn.Linear(width, num_experts, bias=False)
    nn.init.orthogonal_(router.weight, gain=0.1)
    greedy = partial(top_k, k=1, renormalize=False, weigh=torch.sigmoid)
    return MoE(
        router,
        ByMode(partial(balanced, weigh=torch.sigmoid), greedy),
        FeedForwardExperts(num_experts, width, hidden, activation="relu"),
        shared=nn.Identity(),
    )


def remoe(
    width: int,
    hidden: int,
    num_experts: int,
    k: float = 1,
    *,
    start: float = 1e-8,
    growth: float = 1.2,
) -> MoE:
    """Every expert of positive score is taken, and an adaptive penalty sees to k of them a token.

    Where we depart: each layer adapts the strength of its own penalty, see `AdaptiveL1`.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E.
        k: experts a token in the mean.
        start: strength of the penalty before the first step.
        growth: factor that it moves by.

    Source: Wang et al. 2024, "ReMoE: fully differentiable mixture-of-experts with ReLU routing",
    arXiv 2412.14711.
    """
    return MoE(
        nn.Linear(width, num_experts, bias=False),
        relu,
        FeedForwardExperts(num_experts, width, hidden, activation="silu", gated=True),
        balance=((1.0, AdaptiveL1(k, start=start, growth=growth)),),
    )


def blockffn(
    width: int,
    hidden: int,
    num_experts: int,
    *,
    length: int,
    chunk: int = 8,
    near: float = 0.3,
    sparse: float = 1.0,
    sharpness: float = 100.0,
) -> MoE:
    """ReLU routing with weights of one size, trained so that neighbours use the same few experts.

    Where we depart: the weights of the two losses are constants that we chose; the paper adapts
    that of the second in a way we have not read. The kernels are not here.

    Args:
        width: D.
        hidden: of an expert; many small ones, without a gate.
        num_experts: E.
        length: places of a sequence.
        chunk: places of a chunk that is to need few experts.
        near: weight of the locality loss.
        sparse: weight of the chunk loss.
        sharpness: of the locality loss, see `locality`.

    Source: Song et al. 2025, "BlockFFN: towards end-side acceleration-friendly mixture-of-experts
    with chunk-level activation sparsity", arXiv 2507.08771.
    """
    return MoE(
        nn.Linear(width, num_experts, bias=False),
        relu,
        FeedForwardExperts(num_experts, width, hidden, activation="silu"),
        estimator=NormedWeights(num_experts),
        balance=(
            (near, partial(locality, length=length, sharpness=sharpness)),
            (sparse, partial(chunk_sparsity, chunk=chunk)),
        ),
    )


def coupled(
    width: int,
    hidden: int,
    num_experts: int,
    k: int = 8,
    *,
    alpha: float = 1.0,
    weight: float = 1.0,
    balance: float = 0.01,
) -> MoE:
    """Top-k routing whose router rows and experts are made to answer most to each other.

    Where we depart: the perturbation's reach carries no gradient (the paper does not say), and the
    loss is per layer.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E.
        k: experts a token.
        alpha: see `ExpertRouterCoupling`.
        weight: of the coupling loss.
        balance: weight of the load-balancing loss.

    Source: Lv et al. 2025, "Coupling experts and routers in mixture-of-experts via an auxiliary
    loss", arXiv 2512.23447.
    """
    return MoE(
        nn.Linear(width, num_experts, bias=False),
        partial(top_k, k=k),
        FeedForwardExperts(num_experts, width, hidden, activation="silu", gated=True),
        balance=((balance, switch), (weight, ExpertRouterCoupling(alpha))),
    )


def dirichlet_shaped(
    width: int,
    hidden: int,
    num_experts: int = 4,
    k: int = 2,
    *,
    alpha: float | Sequence[float] = 0.75,
    weight: float = 1.0,
) -> MoE:
    """Top-k routing whose probabilities are shaped like draws from a Dirichlet distribution.

    Where we depart: the weight and the exact distance are ours, see `DirichletPrior`; experts start
    apart, and not as copies of one feed-forward.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E.
        k: experts a token.
        alpha: of the distribution, one number or one for each expert.
        weight: of the shaping loss.

    Source: Mirvakhabova et al. 2025, "Dirichlet-prior shaping: guiding expert specialization in
    upcycled MoEs", arXiv 2510.01185.
    """
    return MoE(
        nn.Linear(width, num_experts, bias=False),
        partial(top_k, k=k),
        FeedForwardExperts(num_experts, width, hidden, activation="silu", gated=True),
        balance=((weight, DirichletPrior(alpha)),),
    )
