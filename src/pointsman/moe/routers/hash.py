"""Experts by hash of an id. Legend: T tokens, E experts."""

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router
from pointsman.moe.routers.common import check_ids, check_sizes
from pointsman.select import hashed


class HashRouter(Router):
    """Score 0 for the k experts that a hash of a token's id names, -inf for all others.

    Nothing is learned and features are not read; equal ids always go to the same experts. Under
    `top_k` with the same k, every chosen expert has the weight 1 / k.

    Args:
        num_experts: E.
        k: experts of an id, 1 to E.
        seed: another seed is another hash.

    Raises:
        InputError: E below one, or k out of range.

    Source: Roller et al. 2021, "Hash layers for large sparse models", arXiv 2106.04426: the plain
    hash. For a table evened out by frequency use `MaskedRouter` with `frequency_mask` of
    visible = 1.
    """

    def __init__(self, num_experts: int, *, k: int = 1, seed: int = 0) -> None:
        super().__init__()
        check_sizes("HashRouter", num_experts=num_experts, k=k)
        if k > num_experts:
            raise InputError(f"HashRouter needs k of at most {num_experts}, got {k}")
        self.num_experts, self.k, self.seed = num_experts, k, seed

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        """Scores (T, E) in the type of the features.

        Raises:
            InputError: `context.ids` is missing, or not one integer a token.
        """
        (ids_T,) = context.require("ids", reader="HashRouter")
        check_ids(ids_T, 2**63, "ids", "HashRouter")
        chosen_TE = hashed(ids_T, self.num_experts, k=self.k, seed=self.seed).mask()
        zeros_TE = x_TD.new_zeros(len(x_TD), self.num_experts)
        return zeros_TE.masked_fill(~chosen_TE, -torch.inf)
