"""Soft mixture of experts: experts work on slots, and slots are weighted means of tokens.

Legend: n sequences, S tokens of one, D width, E experts, P slots of all experts, N rows of slots.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as to_unit

from pointsman.errors import InputError
from pointsman.select import Guarantee


@dataclass(frozen=True, eq=False)
class Slots:
    """What one call of a `SoftMoE` mixed.

    Attributes:
        dispatch: (n, S, P), sums to one over the tokens of each slot; zero for padding.
        combine: (n, S, P), sums to one over the slots for each token; zero for padding.
    """

    dispatch: Tensor
    combine: Tensor


class SoftMoE(nn.Module):
    """Every slot is a softmax mean over tokens, every answer a softmax mean over slots.

    Nothing is selected, so everything has a gradient and every expert is equally full: it runs on
    exactly `slots` rows of each sequence. Not causal: a slot holds all tokens of a sequence. Other
    sequences and padding have no part in it.

    Source: Puigcerver et al. 2023, "From sparse to soft mixtures of experts", arXiv 2308.00951; in
    value networks Obando-Ceron et al. 2024, arXiv 2402.08609.

    Args:
        width: D.
        experts: any bank; its `num_experts` says E.
        slots: of each expert and sequence, at least one.
        normalized: unit length of tokens and slot vectors, times a learned scale, as the first
            paper has it for wide models; the second has it off.

    Attributes:
        phi_DP: (width, E * slots) parameter; the slots of one expert are neighbours.
        guarantee: that of a layer in which every token of a sequence sees every other.

    Raises:
        InputError: a bank without `num_experts`, or slots below one.
    """

    guarantee = Guarantee(batch_independent=False, causal=False)

    def __init__(
        self, width: int, experts: nn.Module, slots: int = 1, *, normalized: bool = False
    ) -> None:
        super().__init__()
        num_experts = getattr(experts, "num_experts", None)
        if not isinstance(num_experts, int):
            raise InputError(
                "SoftMoE needs a bank with num_experts, such as FeedForwardExperts, "
                f"got {type(experts).__name__}: put modules in MixedExperts([...])"
            )
        if slots < 1 or width < 1:
            raise InputError(f"SoftMoE needs width and slots of at least 1, got {width}, {slots}")
        self.experts, self.num_experts, self.slots = experts, num_experts, slots
        self.phi_DP = nn.Parameter(torch.randn(width, num_experts * slots) * width**-0.5)
        self.scale = nn.Parameter(torch.ones(())) if normalized else None

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Slots]:
        """Output (..., S, D') and what was mixed; leading dimensions are flattened to n there.

        Args:
            x: tokens (..., S, D); each S of them are one sequence.
            mask: (..., S) bool, True where there is a token and False where there is padding.

        Raises:
            InputError: a mask or width that does not fit.
        """
        if x.ndim < 2 or x.shape[-1] != len(self.phi_DP):
            raise InputError(
                f"SoftMoE takes tokens of shape (..., S, {len(self.phi_DP)}), got {tuple(x.shape)}"
            )
        x_nSD = x.flatten(0, -3) if x.ndim > 2 else x.unsqueeze(0)
        padding_nS = None if mask is None else _padding(mask, x)
        slots = self._mix(x_nSD, padding_nS)
        rows_nPD = slots.dispatch.transpose(1, 2) @ x_nSD
        y_nSD = slots.combine @ self._run(rows_nPD)
        return y_nSD.reshape(*x.shape[:-1], y_nSD.shape[-1]), slots

    def _mix(self, x_nSD: Tensor, padding_nS: Tensor | None) -> Slots:
        if self.scale is None:
            logits_nSP = x_nSD @ self.phi_DP
        else:
            logits_nSP = to_unit(x_nSD, dim=2) @ (self.scale * to_unit(self.phi_DP, dim=0))
        if padding_nS is None:
            return Slots(logits_nSP.softmax(dim=1), logits_nSP.softmax(dim=2))
        hidden_nS1 = padding_nS.unsqueeze(2)
        # A sequence of nothing but padding would give 0 / 0: it is mixed as any, then emptied.
        for_slots = hidden_nS1 & ~padding_nS.all(dim=1)[:, None, None]
        dispatch_nSP = logits_nSP.masked_fill(for_slots, -torch.inf).softmax(dim=1)
        combine_nSP = logits_nSP.softmax(dim=2)
        return Slots(
            dispatch_nSP.masked_fill(hidden_nS1, 0.0), combine_nSP.masked_fill(hidden_nS1, 0.0)
        )

    def _run(self, rows_nPD: Tensor) -> Tensor:
        """The bank on its slots of every sequence: sorted by expert, each with as many rows."""
        count, _, width = rows_nPD.shape
        rows = rows_nPD.reshape(count, self.num_experts, self.slots, width).transpose(0, 1)
        each = count * self.slots
        offsets = torch.arange(self.num_experts + 1, device=rows.device) * each
        answers = self.experts(rows.reshape(-1, width), offsets)
        answers = answers.reshape(self.num_experts, count, self.slots, answers.shape[-1])
        mixed: Tensor = answers.transpose(0, 1).flatten(1, 2)
        return mixed


def _padding(mask: Tensor, x: Tensor) -> Tensor:
    if mask.dtype != torch.bool or mask.shape != x.shape[:-1]:
        raise InputError(
            f"the mask must be bool with the shape of the tokens, {tuple(x.shape[:-1])}, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return ~mask.reshape(-1, x.shape[-2])
