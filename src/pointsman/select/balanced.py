"""Selections that fill the branches equally. Legend: T inputs, E branches, K = k."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import RouteError
from pointsman.route import Route
from pointsman.select.checks import check_count, check_k, check_positive, check_scores
from pointsman.select.guarantee import guarantees
from pointsman.select.weighing import Weigh, weigh_all, weigh_chosen


@guarantees(batch_independent=False, causal=False)
def balanced(scores: Tensor, *, weigh: Weigh = torch.sigmoid) -> Route:
    """Each input takes one branch, all branches are equally full, and the scores are best overall.

    Guarantee: exactly one branch for every input that has an eligible one; loads differ by at most
    one; no other such route has a higher total score. Neither batch independent nor causal. (Lewis
    et al. 2021, "BASE layers", arXiv 2103.16716, who solve the same problem by auction; where E
    does not divide T, which branches take one more is part of the optimum here.)

    Solved exactly on the CPU, in time that grows with the cube of T: about a second at T = 2,000.

    Args:
        scores: (T, E) floating point; -inf is never chosen.
        weigh: scores (T, E) to weights (T, E), through which the gradient flows; the sigmoid is the
            paper's.

    Returns:
        A route whose weights have the type of `weigh(scores)`.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), or scores of -inf that
            leave no way to fill the branches equally.
    """
    check_scores(scores)
    eligible_T = (scores.detach() > -torch.inf).any(dim=1)
    values = scores.detach()[eligible_T].to(torch.float64).numpy(force=True)
    branches = torch.as_tensor(_assign(values), device=scores.device)
    chosen_TE = torch.zeros_like(scores, dtype=torch.bool)
    chosen_TE[eligible_T.nonzero().squeeze(1), branches] = True
    return Route.from_dense(weigh_all(scores, weigh), chosen_TE)


def _assign(scores_TE: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(T,) branches of maximal total score, floor(T / E) or one more inputs a branch.

    Every branch gets floor(T / E) places that must be filled and one that may be. Made-up inputs,
    which fit the optional places only, fill those that are left over.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    num_inputs, num_branches = scores_TE.shape
    if num_inputs == 0:
        return np.zeros(0, dtype=np.int64)
    least, over = divmod(num_inputs, num_branches)
    optional = np.arange(num_branches if over else 0)
    place_branches = np.concatenate([np.repeat(np.arange(num_branches), least), optional])
    made_up = np.zeros((len(place_branches) - num_inputs, len(place_branches)))
    made_up[:, : least * num_branches] = -np.inf
    try:
        _, places = linear_sum_assignment(
            np.concatenate([scores_TE[:, place_branches], made_up]), maximize=True
        )
    except ValueError as error:
        raise RouteError(
            f"{num_inputs} inputs cannot fill {num_branches} branches equally, because too many "
            "scores are -inf: use with_capacity, which drops or reroutes what does not fit"
        ) from error
    branches: np.ndarray[Any, Any] = place_branches[places[:num_inputs]]
    return branches


@guarantees(batch_independent=False, causal=False)
def sinkhorn(
    scores: Tensor,
    k: int = 1,
    *,
    iterations: int = 20,
    temperature: float = 1.0,
    renormalize: bool = False,
) -> Route:
    """Each input takes the k best branches of a plan in which all branches are equally wanted.

    Guarantee: exactly k branches, or all eligible ones where fewer are, best in the plan first. The
    plan is equally full, the route only nearly so. Neither batch independent nor causal. (Clark et
    al. 2022, "Unified scaling laws for routed language models", arXiv 2202.01169: "S-BASE".)

    The plan serves the choice only. Weights are the softmax of the raw scores, as in the paper.

    Args:
        scores: (T, E) floating point; -inf is never chosen.
        k: branches of each input, 1 to E.
        iterations: rounds of normalising columns and rows, at least 1.
        temperature: scores are divided by it for the plan; the smaller, the nearer the plan is to
            `balanced`, and the more rounds it needs.
        renormalize: divide the chosen weights by their sum; see `top_k` for k = 1.

    Returns:
        A route whose weights have the type of the scores.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), k out of range, no
            iteration, or a temperature that is not above 0.
    """
    check_scores(scores)
    check_k(k, scores.shape[1])
    plan_TE = sinkhorn_plan(scores, iterations=iterations, temperature=temperature)
    best_TK, branches_TK = plan_TE.topk(k, dim=1)
    taken_TK = best_TK > -torch.inf
    weights_TK = weigh_chosen(scores, branches_TK, taken_TK, weigh=None, renormalize=renormalize)
    return Route.from_indices(
        branches_TK.masked_fill(~taken_TK, -1), weights_TK, num_branches=scores.shape[1]
    )


@torch.no_grad()
def sinkhorn_plan(scores: Tensor, *, iterations: int = 20, temperature: float = 1.0) -> Tensor:
    """Logarithm of the plan (T, E): rows sum to one, columns nearly to T / E.

    Computed on logarithms, in float32 or better, so that no score is too large for it. Inputs and
    branches without any eligible pair stay at -inf and out of the balance.

    Raises:
        RouteError: no iteration, or a temperature that is not above 0.
    """
    check_count(iterations, "iterations", 1)
    check_positive(temperature, "temperature")
    plan_TE = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature
    for _ in range(iterations):
        # Columns to one each instead of T / E: the factor goes when rows are normalised.
        for dim in (0, 1):
            total = plan_TE.logsumexp(dim=dim, keepdim=True)
            plan_TE = plan_TE - total.masked_fill(total == -torch.inf, 0.0)
    return plan_TE
