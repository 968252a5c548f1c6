"""Sorting with a gradient, and the losses that train a cascade of rankers as one.

A soft permutation has a row for each place, from the best down, and in it the shares of the
candidates: rows sum to one. `neural_sort` after Grover et al. 2019, "Stochastic optimization of
sorting networks via continuous relaxations" (arXiv:1903.08850); `soft_sort` after Prillo &
Eisenschlos 2020, "SoftSort: a continuous relaxation for the argsort operator" (arXiv:2006.16038).
The cascade losses follow Wang et al. 2025, "Learning cascade ranking as one network"
(arXiv:2503.09492): a candidate survives the cascade with at least the product of its chances to be
among the kept of each stage, were that stage shown all candidates.

Legend: n queries, N candidates of one, S stages, q kept.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pointsman.errors import InputError

SoftSort = Callable[..., Tensor]  # scores (n, N), temperature= -> (n, N, N)
TINY = 1e-12


def neural_sort(scores_nN: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Soft permutation: row i is softmax(((N + 1 - 2i) s_v - sum_u |s_v - s_u|) / temperature).

    It differs from the sorted permutation by as little as wanted when the temperature falls, where
    no two scores are equal; gradients vanish with it.

    Args:
        scores_nN: (n, N) floating point, higher is better.
        temperature: above 0.

    Returns:
        (n, N, N), rows (places) summing to one.

    Raises:
        InputError: another shape, no candidate, or a temperature that is not above 0.
    """
    _check(scores_nN, temperature)
    count = scores_nN.shape[1]
    apart_nN = (scores_nN[:, :, None] - scores_nN[:, None]).abs().sum(dim=2)
    place_N = torch.arange(1, count + 1, device=scores_nN.device, dtype=scores_nN.dtype)
    slope_N1 = (count + 1 - 2 * place_N)[:, None]
    logits_nNN = slope_N1 * scores_nN[:, None] - apart_nN[:, None]
    return (logits_nNN / temperature).softmax(dim=2)


def soft_sort(scores_nN: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Soft permutation: row i is softmax(-|s_(i) - s_v| / temperature), s_(i) the i-th best score.

    Args, returns and errors are those of `neural_sort`.
    """
    _check(scores_nN, temperature)
    best_nN = scores_nN.sort(dim=1, descending=True).values
    apart_nNN = (best_nN[:, :, None] - scores_nN[:, None]).abs()
    return (-apart_nNN / temperature).softmax(dim=2)


def top_q_probability(permutation_nNN: Tensor, q: int) -> Tensor:
    """The share of each candidate that lies on the first q places, at most 1.

    Columns of a soft permutation need not sum to one; each is divided by its own sum, through which
    no gradient flows.

    Args:
        permutation_nNN: as `neural_sort` gives it.
        q: places, 1 to N.

    Returns:
        (n, N)

    Raises:
        InputError: q out of range.
    """
    count = permutation_nNN.shape[-1]
    if not 1 <= q <= count:
        raise InputError(f"a stage keeps 1 to all {count} candidates, got {q}")
    total_nN = permutation_nNN.detach().sum(dim=1).clamp_min(TINY)
    return permutation_nNN[:, :q].sum(dim=1) / total_nN


class CascadeLosses(nn.Module):
    """The end-to-end loss of a ranking cascade beside one loss for each of its stages.

    With P_i the top-q probability of stage i on all candidates and y the relevant ones,

        end to end    mean binary cross entropy of prod_i P_i with y
        stage i       mean of -log P_i over the relevant

    added up as L_k / (2 s_k^2) + log s_k with learned s_k (Kendall et al. 2018, arXiv:1705.07115).
    The stages' losses make the product a closer bound, and teach a stage whatever the others say.

    Where we depart: the cross entropy counts candidates that are not relevant too, as without them
    the logarithm of the product is just the sum of the stages' losses.

    Args:
        keep: q of each of the S stages, not rising.
        temperature: of the soft sort, above 0; one number, or one a stage.
        sort: `neural_sort` or `soft_sort`.
        alone: include the stages' own losses.

    Raises:
        InputError: no stage, a number kept below 1, or one that rises.
    """

    def __init__(
        self,
        keep: Sequence[int],
        *,
        temperature: float | Sequence[float] = 1.0,
        sort: SoftSort = neural_sort,
        alone: bool = True,
    ) -> None:
        super().__init__()
        self.keep = check_keep(keep)
        single = isinstance(temperature, int | float)
        given = [temperature] * len(keep) if single else list(temperature)  # type: ignore[arg-type]
        if len(given) != len(keep):
            raise InputError(f"{len(keep)} stages need a temperature each, got {len(given)}")
        self.temperatures, self.sort, self.alone = given, sort, alone
        self.log_scale = nn.Parameter(torch.zeros(1 + len(keep) * alone))

    def parts(self, scores_SnN: Sequence[Tensor], relevant_nN: Tensor) -> Tensor:
        """The losses before they are weighed: end to end, then stage by stage where asked for.

        Args:
            scores_SnN: scores (n, N) of all candidates by each stage.
            relevant_nN: bool; a query without any relevant candidate counts in the first part only.

        Raises:
            InputError: another number of stages, or shapes that differ.
        """
        if len(scores_SnN) != len(self.keep):
            raise InputError(f"{len(self.keep)} stages score, got {len(scores_SnN)} tables")
        shapes = {tuple(scores.shape) for scores in scores_SnN}
        if shapes != {tuple(relevant_nN.shape)} or relevant_nN.dtype != torch.bool:
            raise InputError(
                "scores of every stage and a bool table of the relevant have one shape, got "
                f"{sorted(shapes)} and {relevant_nN.dtype} {tuple(relevant_nN.shape)}"
            )
        logs = torch.stack(
            [
                top_q_probability(self.sort(scores, temperature=t), q).clamp(TINY, 1.0).log()
                for scores, q, t in zip(scores_SnN, self.keep, self.temperatures, strict=True)
            ]
        )
        survival = logs.sum(dim=0)
        # log(1 - p) from log p, kept finite where p rounds to one
        gone = torch.log(-torch.expm1(survival.clamp_max(-1e-6)))
        whole = -torch.where(relevant_nN, survival, gone).mean()
        if not self.alone:
            return whole[None]
        weight = relevant_nN.to(logs.dtype) / relevant_nN.sum().clamp_min(1)
        return torch.cat([whole[None], -(logs * weight).sum(dim=(1, 2))])

    def forward(self, scores_SnN: Sequence[Tensor], relevant_nN: Tensor) -> Tensor:
        """Scalar: the parts, weighed by how sure they are."""
        parts = self.parts(scores_SnN, relevant_nN)
        return (parts * 0.5 * (-2 * self.log_scale).exp() + self.log_scale).sum()


def check_keep(keep: Sequence[int]) -> tuple[int, ...]:
    """Numbers of candidates that the stages of a cascade keep.

    Raises:
        InputError: no stage, a number below 1, or one that is larger than that before.
    """
    kept = tuple(keep)
    if not kept or kept[-1] < 1 or any(b > a for a, b in pairwise(kept)):
        raise InputError(f"stages keep fewer and fewer candidates, at least 1, got {list(kept)}")
    return kept


def check_scores_of_candidates(scores_nN: Tensor) -> None:
    """Scores (n, N) of at least one candidate.

    Raises:
        InputError: they are not.
    """
    if scores_nN.ndim != 2 or scores_nN.shape[1] < 1 or not scores_nN.is_floating_point():
        raise InputError(
            "scores are floating point (queries, candidates) with at least one candidate, "
            f"got {scores_nN.dtype} {tuple(scores_nN.shape)}"
        )


def _check(scores_nN: Tensor, temperature: float) -> None:
    check_scores_of_candidates(scores_nN)
    if not temperature > 0:
        raise InputError(f"a temperature is above 0, got {temperature!r}")
