"""Each expert answers most to its own router row, and each row most to its own expert.

Legend: E experts, D width, H hidden width of the gate, or of the first product, of an expert.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.moe.balance.common import nothing, wide

if TYPE_CHECKING:
    from pointsman.moe.layer import MoE, Routing


class ExpertRouterCoupling:
    """Expert-router coupling loss: router rows stand in for the tokens they attract.

    Each row, a little perturbed, is given to the first matrix of every expert; M[i, j] is the norm
    of what expert j makes of row i. Off-diagonal entries above `alpha` times the diagonal one of
    their row or of their column are penalised. Its cost is E^2 small products, whatever the
    batch. (Lv et al. 2025, "Coupling experts and routers in mixture-of-experts via an auxiliary
    loss", arXiv 2512.23447.)

    The perturbation keeps a row nearer to itself than to any other row. It is drawn anew at each
    call in training; in evaluation there is none. The loss shrinks with the weights, so read
    `dominance` to see whether experts are coupled.

    Needs a router with rows `weight` (E, D), such as nn.Linear, and experts with `up_EFD`.

    Args:
        alpha: in [0, 1]; smaller asks for more specialised experts.
        generator: of the perturbation; None means torch's global one.

    Raises:
        InputError: alpha out of range.
    """

    def __init__(self, alpha: float = 1.0, *, generator: torch.Generator | None = None) -> None:
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha of the coupling lies between 0 and 1, got {alpha!r}")
        self.alpha, self.generator = alpha, generator

    def __call__(self, routing: "Routing", layer: "MoE") -> Tensor:
        """Scalar in the type of the scores; 0 for an empty batch and for a single expert.

        Raises:
            InputError: a router or experts without such weights.
        """
        rows_ED, gates_EHD = coupled_weights(layer)
        experts = len(rows_ED)
        if len(routing.scores) == 0 or experts == 1:
            return nothing(routing.scores)
        if layer.training:
            rows_ED = rows_ED * self._perturbation(rows_ED.detach())
        norm_EE = _answers(rows_ED, gates_EHD)
        bar_E = self.alpha * norm_EE.diagonal()
        of_row_EE = (norm_EE - bar_E[:, None]).relu()
        of_column_EE = (norm_EE - bar_E[None, :]).relu()
        other_EE = ~torch.eye(experts, dtype=torch.bool, device=norm_EE.device)
        total = ((of_row_EE + of_column_EE) * other_EE).sum()
        return (total / experts**2).to(routing.scores.dtype)

    def _perturbation(self, rows_ED: Tensor) -> Tensor:
        """(E, D) factors around 1, within half of the distance to the nearest other row."""
        distance_EE = torch.cdist(rows_ED, rows_ED, compute_mode="donot_use_mm_for_euclid_dist")
        nearest_E = distance_EE.fill_diagonal_(torch.inf).amin(dim=1)
        size_E = rows_ED.norm(dim=1)
        reach_E = torch.where(size_E > 0, nearest_E / (2 * size_E).clamp(min=1e-30), 0.0)
        draws_ED = torch.rand(
            rows_ED.shape, generator=self.generator, dtype=rows_ED.dtype, device=rows_ED.device
        )
        return 1 + reach_E[:, None] * (2 * draws_ED - 1)


@torch.no_grad()
def dominance(layer: "MoE") -> float:
    """Share of pairs of experts in which a row or an expert answers most to its own, in [0, 1].

    The mean, over pairs i != j, of M[i, j] < M[i, i] and of M[j, i] < M[i, i], with rows as they
    are; it does not change when weights grow or shrink. 1 for a single expert.

    Raises:
        InputError: a router or experts without rows, see `ExpertRouterCoupling`.
    """
    norm_EE = _answers(*coupled_weights(layer))
    own_E = norm_EE.diagonal()
    other_EE = ~torch.eye(len(own_E), dtype=torch.bool, device=own_E.device)
    if not other_EE.any():
        return 1.0
    less_EE = (norm_EE < own_E[:, None]).double() + (norm_EE < own_E[None, :]).double()
    return float(less_EE[other_EE].mean() / 2)


def coupled_weights(layer: "MoE") -> tuple[Tensor, Tensor]:
    """Router rows (E, D) and what each expert multiplies a token with first (E, H, D).

    In float32 or better. Of a gated expert it is the gate.

    Raises:
        InputError: a router without rows `weight`, experts without `up_EFD`, or sizes that differ.
    """
    rows, up, down = (
        getattr(part, name, None)
        for part, name in (
            (layer.router, "weight"),
            (layer.experts, "up_EFD"),
            (layer.experts, "down_EDF"),
        )
    )
    if not (isinstance(rows, Tensor) and isinstance(up, Tensor) and isinstance(down, Tensor)):
        raise InputError(
            "the coupling loss reads router rows `weight` (experts, width) and experts with "
            f"`up_EFD`, got {type(layer.router).__name__} and {type(layer.experts).__name__}: "
            "use nn.Linear and FeedForwardExperts"
        )
    gates = up[:, : down.shape[2]]
    if rows.shape != (gates.shape[0], gates.shape[2]):
        raise InputError(
            f"router rows must be (experts, width) = {(gates.shape[0], gates.shape[2])}, "
            f"got {tuple(rows.shape)}"
        )
    dtype = torch.promote_types(rows.dtype, up.dtype)
    return wide(rows.to(dtype)), wide(gates.to(dtype))


def _answers(rows_ED: Tensor, gates_EHD: Tensor) -> Tensor:
    """(E, E) norm of what expert j makes of row i."""
    answer_EEH = torch.einsum("id,jhd->ijh", rows_ED, gates_EHD)
    norm_EE: Tensor = torch.linalg.vector_norm(answer_EEH, dim=2)
    return norm_EE
