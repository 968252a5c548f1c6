"""Systems that turn a trained dense feed-forward into experts. Legend: T tokens, D width."""

import torch
from torch import Tensor, nn

from pointsman.moe.balance import BiasedTopK, switch
from pointsman.moe.convert import carve, split
from pointsman.moe.layer import MoE


def cmoe(
    mlp: nn.Module,
    calibration_TD: Tensor,
    *,
    num_experts: int = 16,
    shared: int = 2,
    k: int = 2,
    active: int = 10,
    rate: float = 0.001,
) -> MoE:
    """Carve a trained feed-forward into shared and routed experts by what its units answer to.

    Call `layer.after_step` in fine-tuning, so that the bias for choosing balances the experts.

    Where we depart: see `carve`.

    Args:
        mlp: see `read_dense`.
        calibration_TD: tokens at its input.
        num_experts: the shared ones among them.
        shared: of these, run on every token.
        k: routed experts of each token.
        active: units of a token that count as active.
        rate: what the bias moves in a step.

    Source: Pei et al. 2025, "CMoE", arXiv 2502.04416.
    """
    choose = BiasedTopK(num_experts - shared, k, rate=rate, weigh=None).to(calibration_TD.device)
    return carve(
        mlp,
        calibration_TD,
        num_experts=num_experts,
        shared=shared,
        k=k,
        active=active,
        select=choose,
    )


def dynamic_dino(
    mlp: nn.Module,
    *,
    copies: int = 8,
    slices: int = 2,
    weight: float = 0.01,
    generator: torch.Generator | None = None,
) -> MoE:
    """Many small experts out of a trained feed-forward, at its cost, and equal to it at the start.

    Where we depart: the bias on the way down is shared instead of divided; weights of a token sum
    to the number of slices, as the paper's scaling was not found, and equality asks for it. The
    detector around it is left to the caller.

    Args:
        mlp: see `read_dense`.
        copies: of the whole feed-forward.
        slices: of each copy, also the experts of each token.
        weight: of the load-balancing loss.
        generator: of the router's draws.

    Source: Lu et al. 2025, "Dynamic-DINO", arXiv 2507.17436.
    """
    return split(mlp, copies, slices, balance=((weight, switch),), generator=generator)
