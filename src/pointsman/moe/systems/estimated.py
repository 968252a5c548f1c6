"""Published systems that differ in how the router gets its training signal, or where tokens go."""

import warnings
from functools import partial

import torch
from torch import nn

from pointsman import learn, select
from pointsman.errors import DegenerateWarning
from pointsman.moe.balance import ByMode, router_z, switch
from pointsman.moe.competition import CompetingRouter, diversity, foresight
from pointsman.moe.experts import FeedForwardExperts
from pointsman.moe.experts.lora import LoRAExperts, freeze
from pointsman.moe.layer import MoE
from pointsman.moe.merging import SoftMerging
from pointsman.moe.routers.linear import LinearRouter


def grin(
    width: int,
    hidden: int,
    num_experts: int = 16,
    k: int = 2,
    *,
    eps: float = 0.01,
    balance: float = 0.01,
    generator: torch.Generator | None = None,
) -> MoE:
    """Experts are sampled among near ties, and weights carry the gradient of that sampling.

    Args:
        width: of the tokens.
        hidden: of each expert.
        num_experts: 16 in the paper.
        k: experts a token.
        eps: how near a tie must be; 0.01 in the released routine.
        balance: weight of the load-balancing loss, which was not verified in the paper.
        generator: of the draws.

    Source: Liu et al. 2024, "GRIN: gradient-informed MoE", arXiv 2409.12136. We depart: balancing
    is over the tokens of one call, not over a global batch.
    """
    return MoE(
        LinearRouter(width, num_experts),
        ByMode(
            partial(learn.sparsemixer, k=k, eps=eps, generator=generator),
            partial(learn.sparsemixer, k=k, eps=eps, sample=False),
        ),
        FeedForwardExperts(num_experts, width, hidden, activation="silu", gated=True),
        balance=((balance, switch),),
    )


def remix(
    base: nn.Linear,
    num_experts: int = 8,
    k: int = 2,
    *,
    rank: int = 8,
    weight: float | None = None,
    generator: torch.Generator | None = None,
) -> MoE:
    """Low-rank experts on a frozen layer, drawn in training and equally weighed always.

    The weights are constants, so the router learns from the losses of several calls on one batch:
    `learn.leave_one_out` of their losses and `learn.log_prob_without_replacement` of their scores
    and routes, beside the mean loss that teaches the experts.

    Args:
        base: the layer that is adapted; its weights are fixed from here on.
        num_experts: 8 in the paper's study of k.
        k: experts a token, up to 4 in the paper.
        rank: of each expert.
        weight: of each chosen expert; None means 2 / (k * rank), one of the paper's two.
        generator: of the draws.

    Source: Qiu et al. 2026, "ReMix", arXiv 2603.10160. Settled here: one decision is a token's.
    """
    constant = 2 / (k * rank) if weight is None else weight
    with warnings.catch_warnings():
        # No gradient reaches the router through the layer: that is the point of the system.
        warnings.simplefilter("ignore", DegenerateWarning)
        return MoE(
            LinearRouter(base.in_features, num_experts),
            ByMode(
                partial(select.categorical, k=k, generator=generator),
                partial(select.top_k, k=k),
            ),
            LoRAExperts(num_experts, base.in_features, base.out_features, rank),
            shared=freeze(base),
            estimator=partial(learn.equal_weights, weight=constant),
        )


def smear(width: int, hidden: int, num_experts: int = 8, *, dropout: float = 0.1) -> SoftMerging:
    """Every sequence runs through one expert, mixed from the weights of all.

    Args:
        width: of the tokens.
        hidden: of each expert; width / 32 for the paper's adapters.
        num_experts: 8 in the paper.
        dropout: chance that an expert is left out of a sequence's mean, 0.1 in the paper.

    Source: Muqeeth et al. 2023, arXiv 2306.03745. We depart: rows of the router are not normalised,
    and the residual around the block is the caller's.
    """
    return SoftMerging(
        LinearRouter(width, num_experts, normalize=True, std=0.01),
        FeedForwardExperts(num_experts, width, hidden, activation="silu"),
        dropout=dropout,
    )


def competesmoe(
    width: int,
    hidden: int,
    num_experts: int = 64,
    k: int = 2,
    *,
    imitate: float = 0.01,
    theta: float = 0.1,
    diverse: float = 0.01,
    balance: float = 0.01,
    z: float = 0.001,
) -> MoE:
    """Now and then all experts answer and the strongest win; the router learns to foresee them.

    Which steps are competitions is decided by a `CompetitionSchedule` over the layers' routers.

    Args:
        width: of the tokens.
        hidden: of each expert, 128 in the paper's language models.
        num_experts: 64 there.
        k: experts a token.
        imitate: weight of the imitation of the competition.
        theta: what the winners count more in it.
        diverse: weight of the winners' mean cosine.
        balance: weight of the load-balancing loss, of affinities where they decide.
        z: weight of the loss on the size of the scores.

    Source: Nguyen et al. 2025, "CompeteSMoE", arXiv 2505.13380. We depart: the loss on the size of
    the scores applies on competition steps too.
    """
    experts = FeedForwardExperts(num_experts, width, hidden)
    return MoE(
        CompetingRouter(LinearRouter(width, num_experts), experts),
        partial(select.top_k, k=k),
        experts,
        balance=(
            (imitate, partial(foresight, theta=theta)),
            (diverse, diversity),
            (balance, switch),
            (z, router_z),
        ),
    )


def expert_prototyping(
    width: int,
    hidden: int,
    num_experts: int = 8,
    groups: int = 2,
    *,
    capacity: int | None = None,
    balance: float = 0.0,
) -> MoE:
    """Experts are split into groups, and a token takes the best of each group.

    Args:
        width: of the tokens.
        hidden: of each expert.
        num_experts: a multiple of the groups.
        groups: experts a token, one of each group.
        capacity: tokens that an expert takes; None means any number.
        balance: weight of the load-balancing loss; the paper found that it mattered little.

    Source: Yang et al. 2021, "M6-T", arXiv 2105.15082.
    """
    return MoE(
        LinearRouter(width, num_experts),
        partial(select.prototypes, groups=groups, capacity=capacity),
        FeedForwardExperts(num_experts, width, hidden),
        balance=((balance, switch),) if balance else (),
    )


def rectify_router(
    width: int,
    hidden: int,
    num_experts: int,
    capacity: int,
    k: int = 1,
    *,
    fill: bool = True,
    devices: int | None = 1,
) -> MoE:
    """Tokens that found no room stay with an expert at home, and empty slots are filled.

    Args:
        width: of the tokens.
        hidden: of each expert.
        num_experts: a multiple of the devices.
        capacity: tokens that an expert takes from anywhere; it is counted over one call.
        k: experts a token.
        fill: whether empty slots are filled.
        devices: see `select.rectified`; None leaves overflow dropped.

    Source: Zeng et al. 2024, "Turn waste into worth", arXiv 2402.12399.
    """
    return MoE(
        LinearRouter(width, num_experts),
        partial(select.rectified, k=k, capacity=capacity, fill=fill, devices=devices),
        FeedForwardExperts(num_experts, width, hidden),
        estimator=learn.rectified_straight_through,
    )


def sparse_transport(
    width: int, hidden: int, num_experts: int, capacity: int, *, gamma: float = 0.1
) -> MoE:
    """A transport plan with few entries decides who goes where, and at which weight.

    Args:
        width: of the tokens.
        hidden: of each expert.
        num_experts: as many experts, times the capacity, as there are tokens at least.
        capacity: tokens that an expert takes, counted over one call.
        gamma: strength of the regularisation, see `select.sparse_transport`.

    Source: Liu et al. 2022, "Sparsity-constrained optimal transport", arXiv 2209.15466. Settled
    here: costs are minus the router's scores, and gradients take the prices for constant.
    """
    return MoE(
        LinearRouter(width, num_experts),
        partial(select.sparse_transport, capacity=capacity, gamma=gamma),
        FeedForwardExperts(num_experts, width, hidden),
    )


def polystep(
    module: nn.Module,
    *,
    rank: int | None = 4,
    epsilon: float = 0.5,
    step_size: float = 12.0,
    probe: float = 1.0,
    absorb_every: int = 20,
    generator: torch.Generator | None = None,
) -> learn.PolyStep:
    """An optimiser of a whole module, hard routing included, by forward passes alone.

    Nothing needs a gradient: a router may take its best expert at weight one. Defaults are those of
    the paper's hard mixture of experts, of which `step_size` falls to 4 along a cosine; set the
    attribute to follow it.

    Args:
        module: whose parameters that require gradients are moved.
        rank: coordinates of each weight matrix; None means all of its entries.
        epsilon: see `learn.polytope_step`.
        step_size: likewise.
        probe: likewise.
        absorb_every: steps under one random map.
        generator: of the rotations and maps.

    Source: Le 2026, "Training non-differentiable networks via optimal transport", arXiv 2605.01928.
    """
    return learn.PolyStep(
        (weight for weight in module.parameters() if weight.requires_grad),
        particle=8 if rank is not None else 2,
        rank=rank,
        epsilon=epsilon,
        step_size=step_size,
        probe=probe,
        absorb_every=absorb_every,
        generator=generator,
    )


def mixer(
    context: int, width: int, hidden: int, num_experts: int, *, out: int | None = None
) -> MoE:
    """Contexts are clustered, clusters are matched to experts, and the gate is a least-squares fit.

    Call `layer.router.fit(contexts, losses)` every few steps, with what each expert loses on each
    context (`moe.competition.every_answer` gives what it answers).

    Args:
        context: how many of the first features of a token are the learned context of where it
            comes from.
        width: of the tokens, context included: experts read both.
        hidden: of each expert, which is a whole learner of one family.
        num_experts: as many as families are expected.
        out: width of the answers; None means that of the tokens.

    Source: Nzoyem et al. 2025, "MixER", arXiv 2502.05335. We depart: experts are feed-forwards and
    read the whole context; the paper's are vector fields of differential equations.
    """
    return MoE(
        learn.LeastSquaresGate(context, num_experts),
        partial(select.top_k, k=1),
        FeedForwardExperts(num_experts, width, hidden, out=out),
    )
