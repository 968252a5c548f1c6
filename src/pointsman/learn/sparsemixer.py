"""A sampled choice whose weights carry an estimate of the sampling gradient.

Legend: T inputs, E branches, K = k.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pointsman.route import Route
from pointsman.select.checks import check_k, check_positive, check_scores
from pointsman.select.guarantee import guarantees
from pointsman.select.noise import uniform_like
from pointsman.select.weighing import softmax

WHOLE, SHORT = 0.25, 1 / 3  # how often the weight is whole, and what it is times otherwise


@guarantees(batch_independent=True, causal=True)
def sparsemixer(
    scores: Tensor,
    k: int = 2,
    *,
    eps: float = 0.01,
    sample: bool = True,
    spare_best: bool = True,
    generator: torch.Generator | None = None,
) -> Route:
    """Each input draws k branches one after the other, weighed so that sampling is differentiated.

    Guarantee: exactly k branches, or all eligible ones where fewer are, in the order they were
    drawn. Batch independent and causal in the sense of `categorical`.

    In each turn only branches near the best one left may be drawn: those whose distance to it is at
    most 2 `eps` of their size. The draw is from the softmax p over these. The weight is p, or a
    third of it in three of four cases, while its gradient is that of p: averaged over the two, the
    derivatives at the whole and at a third of the weight integrate the loss from no answer to the
    whole one, exactly for a cubic. So the expected gradient is that of sampling, to third order
    (Liu et al. 2023, "Sparse backpropagation for MoE training", arXiv 2310.00811; Liu et al. 2024,
    "GRIN: gradient-informed MoE", arXiv 2409.12136: "SparseMixer-v2").

    The rule on distance, the default of `eps` and the best branch's exemption are those of the
    routine that was released with the models.

    Args:
        scores: (T, E) floating point logits; -inf is never chosen.
        k: branches of each input, 1 to E; the papers use 1 and 2.
        eps: how near the best a branch must be, above 0; `math.inf` lets every branch be drawn.
        sample: False takes the best each time, with weight p: for evaluation.
        spare_best: whether a draw that is the best branch always has its whole weight.
        generator: source of the draws; None means torch's global one.

    Returns:
        A route whose weights have the type of the scores; they do not sum to one.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), k out of range, or an
            eps that is not above 0.
    """
    check_scores(scores)
    check_k(k, scores.shape[1])
    if eps != float("inf"):
        check_positive(eps, "eps")
    left_TE, branches, weights = scores, [], []
    for draws_TD in _draws(scores, k, generator) if sample else [None] * k:
        near_TE = _near_best(left_TE, eps)
        best_T1, first_T1 = near_TE.detach().max(dim=1, keepdim=True)
        chosen_T1, scale_T1 = first_T1, torch.ones_like(best_T1)
        if draws_TD is not None:
            noise_TE = -(-draws_TD[:, :-1].log()).log()
            chosen_T1 = (near_TE.detach() + noise_TE).argmax(dim=1, keepdim=True)
            whole_T1 = (draws_TD[:, -1:] < WHOLE) | (spare_best & (chosen_T1 == first_T1))
            scale_T1 = scale_T1.masked_fill(~whole_T1, SHORT)
        weight_T1 = softmax(near_TE).gather(1, chosen_T1)
        # The scale changes the value; the gradient stays that of the probability.
        weight_T1 = weight_T1 + (scale_T1 - 1.0) * weight_T1.detach()
        branches.append(chosen_T1.masked_fill(best_T1 == -torch.inf, -1))
        weights.append(weight_T1)
        left_TE = left_TE.scatter(1, chosen_T1, -torch.inf)
    return Route.from_indices(
        torch.cat(branches, dim=1), torch.cat(weights, dim=1), num_branches=scores.shape[1]
    )


def _draws(scores_TE: Tensor, k: int, generator: torch.Generator | None) -> Sequence[Tensor | None]:
    """K tables (T, E + 1) of uniform draws, all of one row next to each other."""
    num_inputs, num_branches = scores_TE.shape
    shape = scores_TE.new_empty(num_inputs, k * (num_branches + 1))
    return torch.split(uniform_like(shape, generator), num_branches + 1, dim=1)


def _near_best(scores_TE: Tensor, eps: float) -> Tensor:
    """Scores with -inf where a branch is too far from the best; the choice has no gradient."""
    plain_TE = scores_TE.detach()
    best_T1 = plain_TE.amax(dim=1, keepdim=True)
    size_TE = torch.maximum(plain_TE.abs(), best_T1)
    # Multiplied out: where all are 0 or -inf, a ratio would be 0 / 0.
    far_TE = (best_T1 - plain_TE > 2 * eps * size_TE) & (eps != float("inf"))
    return scores_TE.masked_fill(far_TE | (plain_TE == -torch.inf), -torch.inf)
