"""Selection with capacity that wastes no place: overflow stays at home, empty slots are filled.

Legend: T inputs, E branches, K = k.
"""

import torch
from torch import Tensor

from pointsman.errors import RouteError
from pointsman.route import Route
from pointsman.select.capacity import serve_or_drop, within
from pointsman.select.checks import check_count, check_k, check_scores
from pointsman.select.guarantee import guarantees
from pointsman.select.weighing import softmax


@guarantees(batch_independent=False, causal=False)
def rectified(
    scores: Tensor,
    k: int,
    capacity: int,
    *,
    fill: bool = True,
    devices: int | None = 1,
) -> Route:
    """Each input takes its k best branches as far as these have room; what is lost is put right.

    Guarantee: of the k best branches, by position, every branch takes at most `capacity` inputs.
    Then slots that are still empty are filled by the inputs for which the branch comes next, at
    place k + 1, those with the highest scores first ("fill-in"). And an input that lost choices
    also takes the best branch on its own device, beyond the capacity, since nothing travels for it
    ("in-device"), with as much weight as choices were lost. With `devices`, no input with an
    eligible branch at home is dropped. Neither batch independent nor causal.

    Weights are a softmax over what was taken, in which a branch counts once for each way it was
    taken. (Zeng et al. 2024, "Turn waste into worth: rectifying top-k router of MoE", arXiv
    2402.12399.) Its gradient rule is `learn.rectified_straight_through`.

    Args:
        scores: (T, E) floating point; -inf is never chosen.
        k: branches wanted for each input, 1 to E.
        capacity: inputs that a branch takes, those it is given in-device aside, at least 1.
        fill: whether empty slots are filled.
        devices: into how many equal contiguous parts the batch and the branches are cut, a divisor
            of E; input t lies at part t * devices // T. None: no in-device rectification.

    Returns:
        A route whose weights have the type of the scores; branches of an input best first, save
        that one taken only in-device comes last.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), k out of range, a
            capacity below 1, or devices that do not divide the branches.
    """
    check_scores(scores)
    num_branches = scores.shape[1]
    check_k(k, num_branches)
    check_count(capacity, "capacity", 1)
    keen_TE = scores.detach()
    kept_TK = serve_or_drop(keen_TE, k, capacity)
    slots = [kept_TK]
    if fill and k < num_branches:
        slots.append(_filled(keen_TE, kept_TK, capacity))
    shares = [(slot >= 0).long() for slot in slots]
    if devices is not None:
        home_T1, lost_T1 = _at_home(keen_TE, kept_TK, devices), (kept_TK < 0).sum(1, keepdim=True)
        slots.append(torch.where(lost_T1 > 0, home_T1, -1))
        shares.append(lost_T1 * (slots[-1] >= 0))
    branches_TS, shares_TS = _merged(torch.cat(slots, dim=1), torch.cat(shares, dim=1))
    logits_TS = scores.gather(1, branches_TS.clamp(min=0)) + shares_TS.to(scores.dtype).log()
    weights_TS = softmax(logits_TS.masked_fill(branches_TS < 0, -torch.inf))
    return Route.from_indices(branches_TS, weights_TS, num_branches=num_branches)


def _filled(keen_TE: Tensor, kept_TK: Tensor, capacity: int) -> Tensor:
    """(T, 1) the branch at place k + 1 where it has an empty slot for the input, else -1."""
    next_TK, branches_TK = keen_TE.topk(kept_TK.shape[1] + 1, dim=1)
    score_T, branch_T1 = next_TK[:, -1], branches_TK[:, -1:]
    branch_T1 = branch_T1.masked_fill(score_T.unsqueeze(1) == -torch.inf, -1)
    load_E = Route.from_indices(kept_TK, num_branches=keen_TE.shape[1]).load()
    turn_T = score_T.sort(descending=True, stable=True).indices
    served_T1 = within(branch_T1[turn_T], capacity - load_E)
    return torch.empty_like(served_T1).index_copy_(0, turn_T, served_T1)


def _at_home(keen_TE: Tensor, kept_TK: Tensor, devices: int) -> Tensor:
    """(T, 1) the best branch on each input's own device, -1 where none is eligible."""
    num_inputs, num_branches = keen_TE.shape
    check_count(devices, "devices", 1)
    if num_branches % devices:
        raise RouteError(
            f"devices must divide the number of branches, {num_branches}, got {devices}"
        )
    position_T = torch.arange(num_inputs, device=keen_TE.device)
    home_T1 = (position_T * devices).div(max(num_inputs, 1), rounding_mode="floor").unsqueeze(1)
    lies_E = torch.arange(num_branches, device=keen_TE.device) // (num_branches // devices)
    best_T1, branch_T1 = keen_TE.masked_fill(lies_E != home_T1, -torch.inf).max(dim=1, keepdim=True)
    return branch_T1.masked_fill(best_T1 == -torch.inf, -1)


def _merged(branches_TS: Tensor, shares_TS: Tensor) -> tuple[Tensor, Tensor]:
    """Branches that stand in several slots of an input in the first of them only, shares added."""
    same_TSS = branches_TS.unsqueeze(2) == branches_TS.unsqueeze(1)
    summed_TS = (same_TSS * shares_TS.unsqueeze(1)).sum(dim=2)
    again_TS = same_TSS.tril(diagonal=-1).any(dim=2)
    branches_TS = branches_TS.masked_fill(again_TS, -1)
    return branches_TS, summed_TS.masked_fill(branches_TS < 0, 1)
