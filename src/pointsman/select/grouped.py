"""Selections that see branches in groups, such as the experts of one device.

Groups are of equal size and contiguous: group g holds the branches g * E / G to (g + 1) * E / G.
Legend: T inputs, E branches, G groups, M = E / G branches of one group, K = k.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from pointsman.errors import RouteError
from pointsman.route import Route
from pointsman.select.capacity import within
from pointsman.select.checks import check_bias, check_count, check_k, check_scores, check_word
from pointsman.select.guarantee import Guarantee, guarantees
from pointsman.select.weighing import Weigh, softmax, weigh_all, weigh_chosen

GroupScore = Literal["best two", "best"]


@guarantees(batch_independent=True, causal=True)
def group_limited(
    scores: Tensor,
    k: int,
    groups: int,
    groups_kept: int,
    *,
    group_score: GroupScore = "best two",
    renormalize: bool = True,
    weigh: Weigh | None = None,
    bias: Tensor | None = None,
) -> Route:
    """Each input takes its k best branches among those of its best groups.

    Guarantee: at most `groups_kept` groups an input, and exactly k branches, or all eligible ones
    of these groups where fewer are, best first. Batch independent and causal.

    Groups and branches are compared by `weigh(scores)` plus the bias. A group counts as much as its
    two best eligible branches together (DeepSeek-AI 2024, "DeepSeek-V3", arXiv 2412.19437: sigmoid
    weights and a balancing bias), or as its best one (DeepSeek-AI 2024, "DeepSeek-V2", arXiv
    2405.04434: softmax weights).

    Args:
        scores: (T, E) floating point; -inf is never chosen.
        k: branches of each input, 1 to `groups_kept` * E / G.
        groups: G, a divisor of E.
        groups_kept: groups that an input may use, 1 to G.
        group_score: "best two" or "best".
        renormalize: divide the chosen weights by their sum. False for k = 1, see `top_k`.
        weigh: scores (T, E) to weights (T, E), such as `torch.sigmoid`. None means softmax.
        bias: (E,) added to the weights for choosing; -inf closes a branch.

    Returns:
        A route whose weights have the type of `weigh(scores)`.

    Raises:
        RouteError: NaN or +inf among the scores or in the bias (looked for on a CPU only), a bias
            of another shape, groups that do not divide the branches, or k or `groups_kept` out of
            range.
    """
    size = _group_size(scores, groups)
    check_count(groups_kept, "groups_kept", 1)
    if groups_kept > groups:
        raise RouteError(f"groups_kept must be at most the groups, {groups}, got {groups_kept}")
    _check_k_in_groups(k, scores.shape[1], groups_kept, size)
    check_word("group_score", group_score, get_args(GroupScore))
    weights_TE = weigh_all(scores, weigh)
    keen_TE = weights_TE.detach().masked_fill(scores == -torch.inf, -torch.inf)
    if bias is not None:
        check_bias(bias, scores.shape[1])
        keen_TE = keen_TE + bias.detach()
    best_TGK, _ = keen_TE.reshape(-1, groups, size).topk(
        min(size, 2 if group_score == "best two" else 1), dim=2
    )
    # A group with one eligible branch counts as much as that branch.
    value_TG = best_TGK.masked_fill(best_TGK == -torch.inf, 0.0).sum(dim=2)
    value_TG = value_TG.masked_fill(best_TGK[..., 0] == -torch.inf, -torch.inf)
    kept_TG = _chosen(value_TG, groups_kept)
    keen_TE = keen_TE.masked_fill(~kept_TG.repeat_interleave(size, dim=1), -torch.inf)
    return _best(scores, keen_TE, k, weigh=weigh, renormalize=renormalize)


@guarantees(
    batch_independent=True,
    causal=True,
    given={"capacity": Guarantee(batch_independent=False, causal=True)},
)
def prototypes(scores: Tensor, groups: int, *, capacity: int | None = None) -> Route:
    """Each input takes the best branch of every group, weighed by a softmax inside the group.

    Guarantee: exactly one branch of each group that has an eligible one, in the order of the
    groups. Batch independent and causal. With a capacity, a branch takes the first `capacity`
    inputs that want it and the others lose that choice: causal still, no longer batch independent.
    (Yang et al. 2021, "M6-T: exploring sparse expert models and beyond", arXiv 2105.15082.)

    Args:
        scores: (T, E) floating point; -inf is never chosen.
        groups: G, a divisor of E: the branches that an input takes.
        capacity: inputs that a branch can take, at least 1; None means any number. The paper
            compares G * T / E and T / E, each times a factor.

    Returns:
        A route whose weights have the type of the scores; those of an input sum to at most G.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), groups that do not
            divide the branches, or a capacity below 1.
    """
    size = _group_size(scores, groups)
    if capacity is not None:
        check_count(capacity, "capacity", 1)
    num_inputs, num_branches = scores.shape
    inside = scores.reshape(num_inputs * groups, size)
    best, member = inside.detach().max(dim=1)
    weights_TG = softmax(inside).gather(1, member.unsqueeze(1)).reshape(num_inputs, groups)
    first_G = torch.arange(groups, device=scores.device) * size
    branches_TG = member.reshape(num_inputs, groups) + first_G
    branches_TG = branches_TG.masked_fill((best == -torch.inf).reshape(num_inputs, groups), -1)
    if capacity is not None:
        room_E = torch.full((num_branches,), capacity, device=scores.device)
        branches_TG = within(branches_TG, room_E)
    return Route.from_indices(branches_TG, weights_TG, num_branches=num_branches)


@guarantees(batch_independent=True, causal=True)
def within_best_group(scores: Tensor, groups: int, k: int, *, renormalize: bool = False) -> Route:
    """Each input goes to one group and takes the k best branches there.

    Guarantee: all branches of an input are of the group with the largest sum of probabilities, the
    softmax being over all branches; exactly k, or all eligible ones there where fewer are, best
    first. Batch independent and causal. So an input travels to one device, whatever k is. (Jiang et
    al. 2021, "Towards more effective and economic sparsely-activated model", arXiv 2110.07431.)

    Args:
        scores: (T, E) floating point; -inf is never chosen.
        groups: G, a divisor of E.
        k: branches of each input, 1 to E / G.
        renormalize: divide the chosen probabilities by their sum; see `top_k` for k = 1.

    Returns:
        A route whose weights have the type of the scores: probabilities among all branches.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), groups that do not
            divide the branches, or k out of range.
    """
    size = _group_size(scores, groups)
    _check_k_in_groups(k, scores.shape[1], 1, size)
    keen_TE = scores.detach()
    wide = keen_TE.to(torch.promote_types(keen_TE.dtype, torch.float32))
    # On logarithms: the probabilities of all but one group may round to zero.
    kept_TG = _chosen(wide.reshape(-1, groups, size).logsumexp(dim=2), 1)
    keen_TE = keen_TE.masked_fill(~kept_TG.repeat_interleave(size, dim=1), -torch.inf)
    return _best(scores, keen_TE, k, weigh=None, renormalize=renormalize)


def _best(
    scores_TE: Tensor, keen_TE: Tensor, k: int, *, weigh: Weigh | None, renormalize: bool
) -> Route:
    """The k best by `keen`, those above -inf, weighed by the scores."""
    best_TK, branches_TK = keen_TE.topk(k, dim=1)
    taken_TK = best_TK > -torch.inf
    weights_TK = weigh_chosen(
        scores_TE, branches_TK, taken_TK, weigh=weigh, renormalize=renormalize
    )
    return Route.from_indices(
        branches_TK.masked_fill(~taken_TK, -1), weights_TK, num_branches=scores_TE.shape[1]
    )


def _chosen(values_TG: Tensor, count: int) -> Tensor:
    """(T, G) bool: the best `count` of each row."""
    chosen_TG = torch.zeros_like(values_TG, dtype=torch.bool)
    return chosen_TG.scatter_(1, values_TG.topk(count, dim=1).indices, True)


def _group_size(scores: Tensor, groups: int) -> int:
    check_scores(scores)
    check_count(groups, "groups", 1)
    num_branches = scores.shape[1]
    if num_branches % groups or num_branches == 0:
        raise RouteError(
            f"groups must divide the number of branches, {num_branches}, got {groups}: "
            "groups are of equal size"
        )
    return num_branches // groups


def _check_k_in_groups(k: int, num_branches: int, kept: int, size: int) -> None:
    check_k(k, num_branches)
    if k > kept * size:
        raise RouteError(
            f"k must be at most the branches of the kept groups, {kept} of {size} each, got {k}"
        )
