"""The k best branches of each input. Legend: T inputs, E branches, K = k."""

import torch
from torch import Tensor

from pointsman.errors import RouteError
from pointsman.route import Route
from pointsman.select.checks import check_bias, check_k, check_scores
from pointsman.select.guarantee import guarantees
from pointsman.select.noise import normal_like
from pointsman.select.weighing import Weigh, weigh_chosen


@guarantees(batch_independent=True, causal=True)
def top_k(
    scores: Tensor,
    k: int,
    *,
    renormalize: bool = True,
    weigh: Weigh | None = None,
    bias: Tensor | None = None,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Route:
    """Each input takes its k best branches, best first.

    Guarantee: exactly k branches, or all eligible ones where fewer are (a score of -inf marks a
    branch as not eligible). No chosen branch has a lower score, after bias and noise, than one left
    out; which of equals is taken is not promised. Batch independent and causal; with noise, that
    reads: with the same seed and the same row position.

    The bias (Wang et al. 2024, "Auxiliary-loss-free load balancing", arXiv 2408.15664) and the
    noise (Shazeer et al. 2017, "Outrageously large neural networks", arXiv 1701.06538) take part in
    the choice only. The paper on noise also weighs by the noisy scores; here the weights come from
    the clean ones, so that a draw moves who is chosen and nothing else.

    Args:
        scores: (T, E) floating point, higher is preferred.
        k: branches of each input, 1 to E.
        renormalize: divide the chosen weights by their sum. With k = 1 and the default `weigh`,
            every weight is then the constant 1 and no gradient reaches the scores: use False.
        weigh: scores (T, E) to weights (T, E), such as `torch.sigmoid`; not negative where
            `renormalize` is used. None means softmax over branches.
        bias: (E,) added to the scores for choosing; -inf closes a branch.
        noise: standard deviation of Gaussian noise added to the scores for choosing, at least 0.
        generator: of the noise; None means torch's global one.

    Returns:
        A route whose weights have the type of `weigh(scores)`.

    Raises:
        RouteError: NaN or +inf among the scores or in the bias (looked for on a CPU only), k out of
            range, a bias of another shape, or a negative noise.
    """
    check_scores(scores)
    check_k(k, scores.shape[1])
    keen_TE = _for_choosing(scores.detach(), bias, noise, generator)
    best_TK, branches_TK = keen_TE.topk(k, dim=1)
    taken_TK = best_TK > -torch.inf
    if weigh is None and renormalize and scores.device.type == "cpu" and bool(taken_TK.all()):
        # The usual case, in a fifth of the steps: with one token, steps are what takes the time.
        weights_TK = scores.gather(1, branches_TK).softmax(dim=1)
        return Route.from_indices(branches_TK, weights_TK, num_branches=scores.shape[1])
    weights_TK = weigh_chosen(scores, branches_TK, taken_TK, weigh=weigh, renormalize=renormalize)
    return Route.from_indices(
        branches_TK.masked_fill(~taken_TK, -1), weights_TK, num_branches=scores.shape[1]
    )


def _for_choosing(
    scores_TE: Tensor, bias: Tensor | None, noise: float, generator: torch.Generator | None
) -> Tensor:
    if bias is not None:
        check_bias(bias, scores_TE.shape[1])
        scores_TE = scores_TE + bias.detach()
    if not 0 <= noise < float("inf"):
        raise RouteError(f"noise is a standard deviation, finite and at least 0, got {noise!r}")
    if noise > 0:
        scores_TE = scores_TE + noise * normal_like(scores_TE, generator)
    return scores_TE
