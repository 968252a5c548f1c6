"""Selections in which no branch takes more inputs than its capacity.

Legend: T inputs, E branches, K branches of one input, C capacity.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from pointsman.route import Route
from pointsman.select.checks import check_count, check_k, check_scores, check_word
from pointsman.select.guarantee import Guarantee, guarantees
from pointsman.select.weighing import Weigh, softmax, weigh_all, weigh_chosen

Overflow = Literal["drop", "reroute"]
Order = Literal["position", "score", "rank"]


@guarantees(batch_independent=False, causal=False)
def expert_choice(scores: Tensor, capacity: int, *, weigh: Weigh | None = None) -> Route:
    """Each branch takes the `capacity` inputs that prefer it most.

    Guarantee: every branch takes exactly `capacity` inputs, or all eligible ones where fewer are.
    An input may get any number of branches, also none, in ascending order. Neither batch
    independent nor causal: a later input can take an earlier one's place, so a decoder must not use
    it. (Zhou et al. 2022, "Mixture-of-experts with expert choice routing", arXiv 2202.09368.)

    As in the paper, branches compare inputs by the weights `weigh(scores)`, in which every input
    has its say of one, and the weight of a pair is that number.

    Args:
        scores: (T, E) floating point; -inf is never chosen.
        capacity: inputs that a branch takes, at least 1.
        weigh: scores (T, E) to weights (T, E). None means softmax over branches.

    Returns:
        A route whose weights have the type of `weigh(scores)`.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), or a capacity below 1.
    """
    check_scores(scores)
    check_count(capacity, "capacity", 1)
    weights_TE = weigh_all(scores, weigh)
    keen_TE = weights_TE.detach().masked_fill(scores == -torch.inf, -torch.inf)
    best_CE, inputs_CE = keen_TE.topk(min(capacity, len(scores)), dim=0)
    chosen_TE = torch.zeros_like(keen_TE, dtype=torch.bool)
    chosen_TE.scatter_(0, inputs_CE, best_CE > -torch.inf)
    return Route.from_dense(weights_TE, chosen_TE)


@guarantees(
    batch_independent=False,
    causal=True,
    unless={
        ("order", "score"): Guarantee(batch_independent=False, causal=False),
        ("order", "rank"): Guarantee(batch_independent=False, causal=False),
    },
)
def with_capacity(
    scores: Tensor,
    k: int,
    capacity: int,
    *,
    overflow: Overflow = "drop",
    order: Order = "position",
    renormalize: bool = True,
    weigh: Weigh | None = None,
) -> Route:
    """Each input takes its k best branches, as far as these have room.

    Guarantee: at most k branches an input and at most `capacity` inputs a branch. Inputs are served
    one after the other. With "drop" an input loses a choice whose branch is full; with "reroute" it
    takes the k best branches that still have room. By position, an input's route depends on earlier
    inputs only (causal); by score or by rank, on all of them. Never batch independent.

    By rank is the order of Lepikhin et al. 2020 ("GShard", arXiv 2006.16668): all first choices
    before any second one, each by position. By position, an input's second choice comes before the
    next input's first, which makes it causal. By score is the batch-prioritised order of Riquelme
    et al. 2021 ("Scaling vision with sparse mixture of experts", arXiv 2106.05974): inputs of
    higher largest probability go first, equals by position.

    With "reroute", on a GPU, the host waits once for each branch that fills up (by rank: in each of
    the k rounds).

    Args:
        scores: (T, E) floating point; -inf is never chosen.
        k: branches wanted for each input, 1 to E.
        capacity: inputs that a branch can take, at least 1.
        overflow: "drop" or "reroute".
        order: who is served first, "position", "score" or "rank".
        renormalize: divide the weights that an input keeps by their sum (so what is lost to a full
            branch goes to the others; GShard normalises before it drops). False for k = 1, see
            `top_k`.
        weigh: scores (T, E) to weights (T, E). None means softmax over branches.

    Returns:
        A route whose weights have the type of `weigh(scores)`, best branch of an input first.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), k out of range, a
            capacity below 1, or an unknown word.
    """
    check_scores(scores)
    check_k(k, scores.shape[1])
    check_count(capacity, "capacity", 1)
    check_word("overflow", overflow, get_args(Overflow))
    check_word("order", order, get_args(Order))
    keen_TE = scores.detach()
    turn_T = None
    if order == "score":
        turn_T = softmax(keen_TE).amax(dim=1).sort(descending=True, stable=True).indices
        keen_TE = keen_TE[turn_T]
    serve = serve_or_drop if overflow == "drop" else _serve_or_reroute
    branches_TK = serve(keen_TE, k, capacity, by_rank=order == "rank")
    if turn_T is not None:
        branches_TK = torch.empty_like(branches_TK).index_copy_(0, turn_T, branches_TK)
    taken_TK = branches_TK >= 0
    weights_TK = weigh_chosen(
        scores, branches_TK.clamp(min=0), taken_TK, weigh=weigh, renormalize=renormalize
    )
    return Route.from_indices(branches_TK, weights_TK, num_branches=scores.shape[1])


def serve_or_drop(scores_TE: Tensor, k: int, capacity: int, *, by_rank: bool = False) -> Tensor:
    """(T, K) branches, -1 where the branch was full when the input's turn came."""
    best_TK, branches_TK = scores_TE.topk(k, dim=1)
    branches_TK = branches_TK.masked_fill(best_TK == -torch.inf, -1)
    capacity_E = torch.full((scores_TE.shape[1],), capacity, device=scores_TE.device)
    if by_rank:
        return within(branches_TK.T.contiguous(), capacity_E).T
    return within(branches_TK, capacity_E)


def within(branches_RS: Tensor, room_E: Tensor) -> Tensor:
    """The same branches, -1 from where each branch's room is used up, reading row by row.

    Args:
        branches_RS: (R, S) int64, -1 for none; rows and what stands in them may be anything.
        room_E: (E,) int64, places of each branch.
    """
    wanted = Route.from_indices(branches_RS, num_branches=len(room_E))
    order, _, _, offsets = wanted.by_branch()
    # The n-th pair of a branch, in order of turns, has n - 1 pairs before it.
    sorted_branches = wanted.branches[order]
    before = torch.arange(len(wanted), device=order.device) - offsets[sorted_branches]
    fits = before < room_E[sorted_branches]
    kept = torch.empty_like(fits).scatter_(0, order, fits)
    return branches_RS.masked_scatter(branches_RS >= 0, wanted.branches.masked_fill(~kept, -1))


def _serve_or_reroute(scores_TE: Tensor, k: int, capacity: int, *, by_rank: bool = False) -> Tensor:
    """(T, K) branches, the best that had room when the input's turn came, -1 where none had."""
    room_E = torch.full((scores_TE.shape[1],), capacity, device=scores_TE.device)
    if not by_rank:
        return _best_with_room(scores_TE, k, room_E)
    ranks = []
    for _ in range(k):
        branches_T1 = _best_with_room(scores_TE, 1, room_E)
        ranks.append(branches_T1)
        taken_TE = Route.from_indices(branches_T1, num_branches=len(room_E)).mask()
        room_E = room_E - taken_TE.sum(dim=0)
        scores_TE = scores_TE.masked_fill(taken_TE, -torch.inf)
    return torch.cat(ranks, dim=1)


def _best_with_room(scores_TE: Tensor, k: int, room_E: Tensor) -> Tensor:
    """(T, K) branches: input after input, its k best among those that have room left.

    Until the next branch fills up, everybody gets the best of the same open branches. So all that
    are left choose at once, the first input at which a branch is full is found, those up to it keep
    their choice and the branch is closed: one round for each branch at most.
    """
    num_inputs, num_branches = scores_TE.shape
    branches_TK = torch.full((num_inputs, k), -1, device=scores_TE.device)
    start = 0
    while start < num_inputs:
        open_TE = scores_TE[start:].masked_fill(room_E == 0, -torch.inf)
        best_TK, wish_TK = open_TE.topk(k, dim=1)
        wish_TK = wish_TK.masked_fill(best_TK == -torch.inf, -1)
        takers_TE = Route.from_indices(wish_TK, num_branches=num_branches).mask().cumsum(dim=0)
        full_T = ((takers_TE >= room_E) & (room_E > 0)).any(dim=1)
        left = num_inputs - start
        served = int(torch.cat([full_T, full_T.new_ones(1)]).byte().argmax()) + 1
        served = min(served, left)
        branches_TK[start : start + served] = wish_TK[:served]
        room_E = room_E - takers_TE[served - 1]
        start += served
    return branches_TK
