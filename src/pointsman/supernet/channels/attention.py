"""Attention with any number of heads, where `torch.nn.MultiheadAttention` needs all of its width.

Legend: N batch, L queries, S keys, D width of the network, H heads, F features of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def may_lose_heads(attention: nn.MultiheadAttention) -> bool:
    """Whether it is of the usual kind: queries, keys and values of one width, nothing added."""
    return (
        attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


class HeadAttention(nn.Module):
    """What is left of a `torch.nn.MultiheadAttention` that lost heads; called like it.

    Args:
        attention: whose projections were cut; they are taken over, not copied.
    """

    # Read by torch.nn.TransformerEncoderLayer: with this it calls forward instead of a kernel.
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.head_dim, self.batch_first = attention.head_dim, attention.batch_first
        self.dropout = attention.dropout
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = nn.Linear(1, 1, bias=False)
        self.out_proj.weight = attention.out_proj.weight
        self.out_proj.bias = attention.out_proj.bias
        self.out_proj.out_features, self.out_proj.in_features = self.out_proj.weight.shape
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Output, and the weights (N, L, S) or (N, H, L, S) if they are needed.

        Args:
            query: (N, L, D), or (L, N, D) if not `batch_first`, or (L, D).
            key: the same with S.
            value: as key.
            key_padding_mask: (N, S), true or -inf where a key is none.
            need_weights: whether to give the weights.
            attn_mask: (L, S), true or -inf where a query does not see a key.
            average_attn_weights: over the heads.
            is_causal: a hint that is not needed: `attn_mask` has to be given with it.
        """
        alone = query.dim() == 2
        if alone:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            functional.linear(x, w, b).reshape(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        scores_NHLS = q @ k.transpose(-2, -1) / self.head_dim**0.5
        for mask in (attn_mask, _of_keys(key_padding_mask, alone)):
            if mask is not None:
                truth = mask.dtype == torch.bool
                scores_NHLS = (
                    scores_NHLS.masked_fill(mask, -torch.inf) if truth else scores_NHLS + mask
                )
        shares = functional.dropout(scores_NHLS.softmax(dim=-1), self.dropout, self.training)
        out = self.out_proj((shares @ v).transpose(1, 2).flatten(2))
        given = (shares.mean(dim=1) if average_attn_weights else shares) if need_weights else None
        if alone:
            return out.squeeze(0), None if given is None else given.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), given


def _of_keys(mask: Tensor | None, alone: bool) -> Tensor | None:
    if mask is None:
        return None
    return (mask.unsqueeze(0) if alone else mask)[:, None, None, :]
