"""Carve a trained feed-forward into experts by what its hidden units answer, without training.

Legend: T tokens, E routed experts, D width, H hidden units, F = H, or 2 H if gated, U units that
are left for the routed experts, N routed pairs.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from pointsman.errors import InputError
from pointsman.moe.convert.dense import shared_bias, stack
from pointsman.moe.convert.reading import Activation, Dense, read_dense
from pointsman.moe.layer import MoE, Select
from pointsman.route import Route
from pointsman.select import top_k
from pointsman.select.weighing import softmax


class Carving(NamedTuple):
    """Which hidden unit goes where.

    Fields: `shared` (S,) units that run on every token; `experts` (E, H / E) units of each routed
    expert; `representatives` (E,) the unit that stands for each; `rates` (H,) how often each unit
    was among a token's strongest.
    """

    shared: Tensor
    experts: Tensor
    representatives: Tensor
    rates: Tensor


class RepresentativeRouter(nn.Module):
    """Scores of experts: how strongly the one hidden unit answers that stands for each.

    Its weights are frozen: they come from the dense layer. Set `requires_grad_()` to train them.

    Args:
        units: the E representative units; their rows are brought to length one here.
    """

    def __init__(self, units: Dense) -> None:
        super().__init__()
        lengths_F = units.up.detach().norm(dim=1).clamp_min(torch.finfo(units.up.dtype).tiny)
        self.rows_FD = nn.Parameter(units.up.detach() / lengths_F[:, None], False)
        bias_F = units.up_bias
        self.bias_F = None if bias_F is None else nn.Parameter(bias_F.detach() / lengths_F, False)
        self.activation: Activation = units.activation
        self.gated = units.gated

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) to scores (T, E), none below zero."""
        answers_TF = linear(x_TD, self.rows_FD, self.bias_F)
        if not self.gated:
            return self.activation(answers_TF).abs()
        gate_TE, up_TE = answers_TF.chunk(2, dim=1)
        return (self.activation(gate_TE) * up_TE).abs()


class LearnedScale(nn.Module):
    """Weights 1 + softmax(scores) * scale: a carved layer's way to learn, as an estimator.

    The scale of each expert starts at zero, so that experts run with weight one at first.

    Args:
        num_experts: E.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.scale_E = nn.Parameter(torch.zeros(num_experts))

    def forward(self, scores_TE: Tensor, route: Route) -> Route:
        """The same pairs, weighted anew."""
        share_N = softmax(scores_TE)[route.inputs, route.branches]
        scale_N = self.scale_E.to(scores_TE.dtype).index_select(0, route.branches)
        return route.weighted(1 + share_N * scale_N)


def carve(
    mlp: nn.Module | Dense,
    calibration_TD: Tensor,
    *,
    num_experts: int = 16,
    shared: int = 2,
    k: int = 2,
    active: int = 10,
    select: Select | None = None,
) -> MoE:
    """A routed layer from a trained feed-forward and a few of the tokens that it sees.

    The units that are among the strongest most often become the shared part; the rest are grouped
    by the tokens they answer to, in equal numbers. A router needs no training: an expert's score
    is the answer of its most typical unit. With all experts active the layer computes exactly what
    the dense one does.

    Args:
        mlp: see `read_dense`; its bias on the way down is kept in the shared part.
        calibration_TD: tokens at the input of `mlp`.
        num_experts: of equal size, the shared ones among them; a divisor of H.
        shared: of these, run on every token.
        k: routed experts of each token.
        active: units of a token that count as active.
        select: None: `top_k`. `balance.BiasedTopK` adds the paper's balancing bias.

    Raises:
        InputError: `mlp` cannot be read, or sizes that do not fit.

    Source: Pei et al. 2025, "CMoE", arXiv 2502.04416, and its public code. *Departure:* layers
    without a gate can be carved too, with the answer of one activation for that of two.
    """
    carving = assign(mlp, calibration_TD, num_experts=num_experts, shared=shared, active=active)
    return carve_as(mlp, carving, k=k, select=select)


def carve_as(
    mlp: nn.Module | Dense, carving: Carving, *, k: int = 2, select: Select | None = None
) -> MoE:
    """A routed layer from a trained feed-forward, its hidden units grouped as given.

    Args:
        mlp: see `read_dense`.
        carving: every hidden unit once, in the shared part or in an expert.
        k: routed experts of each token.
        select: None: `top_k`.

    Raises:
        InputError: `mlp` cannot be read, or a unit is missing or there twice.
    """
    dense = read_dense(mlp)
    everywhere = torch.cat([carving.shared, carving.experts.reshape(-1)]).sort().values
    if everywhere.tolist() != list(range(dense.hidden)):
        raise InputError(
            f"a carving holds each of {dense.hidden} hidden units once, "
            f"got {len(everywhere)} places for {len(set(everywhere.tolist()))} units"
        )
    experts = stack([dense.units(units) for units in carving.experts])
    always: nn.Module | None = shared_bias(dense)
    if len(carving.shared) > 0:
        always = replace(dense.units(carving.shared), down_bias=dense.down_bias).module()
    return MoE(
        RepresentativeRouter(dense.units(carving.representatives)),
        select or partial(top_k, k=k),
        experts,
        shared=always,
        estimator=LearnedScale(experts.num_experts).to(dense.up),
    )


@torch.no_grad()
def assign(
    mlp: nn.Module | Dense,
    calibration_TD: Tensor,
    *,
    num_experts: int = 16,
    shared: int = 2,
    active: int = 10,
) -> Carving:
    """Which hidden unit goes to which expert; see `carve`.

    Distances between units count the tokens on which one is active and the other is not. Each
    routed expert is seeded with one of the most active units left, and all units are assigned at
    once, at the least total distance, so that every expert gets the same number.
    """
    dense = read_dense(mlp)
    size, routed = _sizes(dense, calibration_TD, num_experts, shared, active)
    markers_HT = activity(dense, calibration_TD, active=active).T.contiguous()
    rates_H = markers_HT.mean(dim=1)
    ranked = rates_H.argsort(descending=True, stable=True)
    always, left_U = ranked[: shared * size], ranked[shared * size :].sort().values
    left_UT = markers_HT[left_U]
    seeds = rates_H[left_U].argsort(descending=True, stable=True)[:routed]
    owner_U = _equal_groups(torch.cdist(left_UT, left_UT[seeds], p=1), size)
    groups_EM = left_U[owner_U.argsort(stable=True)].reshape(routed, size)
    return Carving(always, groups_EM, typical(markers_HT, groups_EM), rates_H)


@torch.no_grad()
def activity(mlp: nn.Module | Dense, x_TD: Tensor, *, active: int = 10) -> Tensor:
    """(T, H): one for the strongest units of each token, zero for others.

    Rows and tokens are brought to length one first, so that large ones do not win by size alone.

    Args:
        mlp: see `read_dense`.
        x_TD: tokens at its input.
        active: units of a token that count as active.
    """
    dense = read_dense(mlp)
    lengths_F = dense.up.norm(dim=1, keepdim=True).clamp_min(1e-12)
    bias_F = None
    if dense.up_bias is not None:
        # The bias shrinks with the row, and with the usual length of a token.
        bias_F = dense.up_bias / lengths_F.squeeze(1) / x_TD.norm(dim=1).mean().clamp_min(1e-12)
    unit = replace(dense, up=dense.up / lengths_F, up_bias=bias_F)
    answers_TH = unit.hidden_of(normalize(x_TD, dim=1)).abs().float()
    strongest = answers_TH.topk(active, dim=1).indices
    return torch.zeros_like(answers_TH).scatter_(1, strongest, 1.0)


def typical(markers_HT: Tensor, groups_EM: Tensor) -> Tensor:
    """(E,): of each group, the unit whose activity is nearest to the mean of the group.

    Args:
        markers_HT: see `activity`, transposed.
        groups_EM: units of each group.
    """
    members_EMT = markers_HT[groups_EM]
    gap_EM = (members_EMT - members_EMT.mean(dim=1, keepdim=True)).abs().sum(dim=2)
    return groups_EM.gather(1, gap_EM.argmin(dim=1, keepdim=True)).squeeze(1)


def _equal_groups(distance_UE: Tensor, size: int) -> Tensor:
    """(U,) the group of each unit: `size` units a group, least total distance."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    seats = np.repeat(distance_UE.cpu().double().numpy(), size, axis=1)
    units, seat = linear_sum_assignment(seats)
    owner = torch.empty(len(units), dtype=torch.int64)
    owner[torch.from_numpy(units)] = torch.from_numpy(seat // size)
    return owner.to(distance_UE.device)


def _sizes(
    dense: Dense,
    x_TD: Tensor,
    num_experts: int,
    shared: int,
    active: int,
) -> tuple[int, int]:
    """Units of an expert, and the number of routed experts.

    Raises:
        InputError: something does not fit.
    """
    if not 0 <= shared < num_experts or dense.hidden % num_experts:
        raise InputError(
            f"{dense.hidden} hidden units are carved into equal experts, some of them shared and "
            f"at least one routed, got {num_experts} experts of which {shared} shared"
        )
    if not 1 <= active <= dense.hidden:
        raise InputError(
            f"of {dense.hidden} hidden units at least one and at most all are active, got {active}"
        )
    if x_TD.ndim != 2 or x_TD.shape[1] != dense.width or len(x_TD) == 0:
        raise InputError(
            f"calibration needs tokens of shape (tokens, {dense.width}), got {tuple(x_TD.shape)}"
        )
    return dense.hidden // num_experts, num_experts - shared
