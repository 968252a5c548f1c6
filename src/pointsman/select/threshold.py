"""As many branches as clear a bar. Legend: T inputs, E branches."""

import math

import torch
from torch import Tensor

from pointsman.errors import RouteError
from pointsman.route import Route
from pointsman.select.checks import check_scores
from pointsman.select.guarantee import guarantees
from pointsman.select.weighing import softmax, weigh_chosen


@guarantees(batch_independent=True, causal=True)
def threshold(scores: Tensor, minimum: float) -> Route:
    """Each input takes every branch whose score is at least `minimum`; the weight is the score.

    Guarantee: exactly those branches, in ascending order, perhaps none. Batch independent and
    causal.

    Args:
        scores: (T, E) floating point, such as probabilities; -inf is never chosen.
        minimum: the bar, included; -inf takes every eligible branch.

    Returns:
        A route whose weights are the scores, with their type and gradient.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), or a NaN minimum.
    """
    check_scores(scores)
    if math.isnan(minimum):
        raise RouteError("the minimum score must be a number, got nan")
    chosen_TE = (scores >= minimum) & (scores > -torch.inf)
    return Route.from_dense(scores, chosen_TE)


@guarantees(batch_independent=True, causal=True)
def top_p(scores: Tensor, p: float, *, renormalize: bool = True) -> Route:
    """Each input takes its likeliest branches until they hold a share p of its probability.

    Guarantee: the fewest branches whose softmax mass is at least p, likeliest first, and at least
    one where any is eligible. The mass is summed in float32 or better, from the likeliest down; an
    input whose sum stays below p by rounding takes every eligible branch. Batch independent and
    causal. (Huang et al. 2024, "Harder tasks need more experts", arXiv 2403.07652.)

    Args:
        scores: (T, E) floating point logits; -inf is never chosen.
        p: mass to reach, above 0 and at most 1.
        renormalize: divide the chosen probabilities by their sum.

    Returns:
        A route whose weights have the type of the scores.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), or p out of range.
    """
    check_scores(scores)
    if not 0 < p <= 1:
        raise RouteError(f"p is a share of probability, above 0 and at most 1, got {p!r}")
    wide = torch.promote_types(scores.dtype, torch.float32)
    sorted_TE, branches_TE = scores.detach().to(wide).sort(dim=1, descending=True, stable=True)
    mass_TE = softmax(sorted_TE)
    # A branch is needed as long as those before it do not suffice.
    before_TE = mass_TE.cumsum(dim=1).roll(1, dims=1)
    before_TE[:, :1] = 0.0
    taken_TE = (before_TE < p) & (sorted_TE > -torch.inf)
    weights_TE = weigh_chosen(scores, branches_TE, taken_TE, weigh=None, renormalize=renormalize)
    return Route.from_indices(
        branches_TE.masked_fill(~taken_TE, -1), weights_TE, num_branches=scores.shape[1]
    )


@guarantees(batch_independent=True, causal=True)
def relu(scores: Tensor) -> Route:
    """Each input takes every branch of positive score; the weight is the score.

    Guarantee: the route's table of weights equals `scores.relu()`, its gradient too; branches in
    ascending order, perhaps none. Batch independent and causal. (Wang et al. 2024, "ReMoE: fully
    differentiable mixture-of-experts with ReLU routing", arXiv 2412.14711.)

    Args:
        scores: (T, E) floating point.

    Returns:
        A route whose weights are the scores, with their type and gradient.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only).
    """
    check_scores(scores)
    return Route.from_dense(scores, scores > 0)
