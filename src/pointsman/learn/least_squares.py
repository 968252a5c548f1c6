"""A gate that is fitted instead of trained: clusters of contexts, then least squares.

Legend: M contexts, P width of a context, E branches, T inputs, D width of inputs.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pointsman.errors import InputError

ROUNDS, TOLERANCE = 20, 1e-4


class Clusters(NamedTuple):
    """Clusters of rows.

    Fields: `members` (M,) int64; `centres` (E, P); `sound`: whether the centres came to rest with
    no cluster empty.
    """

    members: Tensor
    centres: Tensor
    sound: bool


def k_means(rows: Tensor, centres: Tensor, *, rounds: int = ROUNDS) -> Clusters:
    """Clusters by mean absolute distance, with means as centres, from the centres given.

    Args:
        rows: (M, P) floating point.
        centres: (E, P) to start from.
        rounds: at most.

    Returns:
        `Clusters`; a centre that loses all its rows stays where it is.
    """
    moved = torch.inf
    for _ in range(rounds):
        members = torch.cdist(rows, centres, p=1.0).argmin(dim=1)
        count_E = torch.bincount(members, minlength=len(centres))
        total_EP = torch.zeros_like(centres).index_add(0, members, rows)
        fresh_EP = total_EP / count_E.clamp(min=1).unsqueeze(1)
        fresh_EP = torch.where(count_E.unsqueeze(1) > 0, fresh_EP, centres)
        moved = float((fresh_EP - centres).abs().max()) if centres.numel() else 0.0
        centres = fresh_EP
        if moved <= TOLERANCE:
            break
    members = torch.cdist(rows, centres, p=1.0).argmin(dim=1)
    full = bool((torch.bincount(members, minlength=len(centres)) > 0).all())
    return Clusters(members, centres, full and moved <= TOLERANCE)


class LeastSquaresGate(nn.Module):
    """Scores [c, 1] W of the first `width` features c, where W is fitted and never differentiated.

    `fit` is given contexts and what each branch loses on each of them. It clusters the contexts,
    matches clusters and branches one to one, cluster by cluster, by the median loss, and solves for
    the W that tells the clusters apart. So all inputs of one context go one way, and no branch is
    left without a cluster. (Nzoyem et al. 2025, "MixER", arXiv 2502.05335.)

    Fits without sound clusters (one empty, or still moving) leave W as it is and draw new centres
    for the next time, near zero as in the released code.

    Args:
        width: P, of a context: the first features of each input.
        num_branches: E.

    Attributes:
        weight: (P + 1, E) buffer, random and small at first.
        centres: (E, P) buffer, where the next clustering starts.

    Raises:
        InputError: a size below one.
    """

    weight: Tensor
    centres: Tensor

    def __init__(self, width: int, num_branches: int) -> None:
        super().__init__()
        if min(width, num_branches) < 1:
            raise InputError(
                "LeastSquaresGate needs width and num_branches of at least 1, "
                f"got {width} and {num_branches}"
            )
        self.width = width
        self.register_buffer("weight", 1e-3 * torch.randn(width + 1, num_branches))
        self.register_buffer("centres", 1e-3 * (2 * torch.rand(num_branches, width) - 1))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Scores (T, E).

        Raises:
            InputError: fewer features than the width of a context.
        """
        if x_TD.ndim != 2 or x_TD.shape[1] < self.width:
            raise InputError(
                f"the first {self.width} features are the context, got {tuple(x_TD.shape)}"
            )
        return x_TD[:, : self.width] @ self.weight[:-1] + self.weight[-1]

    @torch.no_grad()
    def fit(self, contexts_MP: Tensor, losses_ME: Tensor) -> bool:
        """Fit the gate to what each branch loses on each context; says whether it did.

        Args:
            contexts_MP: one row for each context.
            losses_ME: of every branch on every context, lower is better.

        Raises:
            InputError: shapes that do not fit, or a number that is not finite.
        """
        contexts, losses = contexts_MP.to(self.weight), losses_ME.to(self.weight)
        shape = (len(contexts), len(self.centres))
        if contexts.shape[1:] != (self.width,) or losses.shape != shape:
            raise InputError(
                f"fit needs contexts (M, {self.width}) and losses (M, {shape[1]}), "
                f"got {tuple(contexts_MP.shape)} and {tuple(losses_ME.shape)}"
            )
        if not (contexts.isfinite().all() and losses.isfinite().all()):
            raise InputError("contexts and losses must be finite, got one that is not")
        members, centres, sound = k_means(contexts, self.centres)
        if not sound:
            self.centres.uniform_(-1e-3, 1e-3)
            return False
        self.centres.copy_(centres)
        branch_E = _matched(members, losses)
        wanted_ME = torch.zeros_like(losses)
        wanted_ME[torch.arange(len(members), device=members.device), branch_E[members]] = 1.0
        # A little noise keeps equal contexts from making the system singular.
        rows = contexts + 1e-4 * torch.randn_like(contexts)
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        self.weight.copy_(torch.linalg.pinv(rows) @ wanted_ME)
        return True


def _matched(members_M: Tensor, losses_ME: Tensor) -> Tensor:
    """(E,) branch of each cluster: in turn, the best of those that no cluster before has taken."""
    branches: list[Tensor] = []
    taken_E = torch.zeros(losses_ME.shape[1], dtype=torch.bool, device=losses_ME.device)
    for cluster in range(losses_ME.shape[1]):
        median_E = losses_ME[members_M == cluster].median(dim=0).values
        branch = median_E.masked_fill(taken_E, torch.inf).argmin()
        taken_E[branch] = True
        branches.append(branch)
    return torch.stack(branches)
