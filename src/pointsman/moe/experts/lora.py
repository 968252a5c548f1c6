"""Low-rank experts: grouped products with A_e and then B_e, beside a frozen base layer.

The update of a weight, W + B_e A_e, is never built: a row passes through A_e and B_e only. The base
layer is the layer's `shared` part, `MoE(..., LoRAExperts(...), shared=freeze(base))`.

Legend: N routed rows sorted by expert, T tokens, E experts, R rank, D width, O width of answers.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from pointsman.moe.experts.linear import check_rows, check_sizes, grouped_linear
from pointsman.route import Route

Module = TypeVar("Module", bound=nn.Module)

# How many multiplications of one large matrix product take the time of one that is done row by row
# or expert by expert, times the rank; measured on a CPU, and not critical.
DENSE_GAIN = 32


def freeze(module: Module) -> Module:
    """The same module with every weight fixed."""
    return module.requires_grad_(False)


class LoRAExperts(nn.Module):
    """E low-rank maps x → scale * B_e A_e x, zero at first.

    Source: Hu et al. 2021, "LoRA: low-rank adaptation of large language models", arXiv 2106.09685.

    With rank 1, an expert is one pair of vectors; rows are then gathered with their vectors in one
    pass, however many experts there are. `on_route` starts from tokens instead of rows and takes
    one dense product over all experts where that is cheaper.

    Args:
        num_experts: E, at least one.
        width: D, of the inputs.
        out: O, of the answers; None means D.
        rank: R, at least one.
        alpha: scale is alpha / rank; None means a scale of 1.
        dropout: of the inputs of A_e, in training.
        bias: whether each expert adds a bias, zero at first.

    Attributes:
        a_ERD: (E, rank, width) parameter, drawn like the weight of an `nn.Linear`.
        b_EOR: (E, out, rank) parameter, zeros.
        bias_EO: (E, out) parameter, zeros; None without bias.

    Raises:
        InputError: a size below one; in `forward`, rows that do not fit.
    """

    def __init__(
        self,
        num_experts: int,
        width: int,
        out: int | None = None,
        rank: int = 8,
        *,
        alpha: float | None = None,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        out = width if out is None else out
        check_sizes("LoRAExperts", num_experts=num_experts, width=width, out=out, rank=rank)
        self.num_experts, self.rank = num_experts, rank
        self.scale = 1.0 if alpha is None else alpha / rank
        self.dropout = nn.Dropout(dropout)
        bound = width**-0.5
        self.a_ERD = nn.Parameter(torch.empty(num_experts, rank, width).uniform_(-bound, bound))
        self.b_EOR = nn.Parameter(torch.zeros(num_experts, out, rank))
        self.bias_EO = nn.Parameter(torch.zeros(num_experts, out)) if bias else None

    def forward(self, rows_ND: Tensor, offsets: Tensor) -> Tensor:
        """Rows sorted by expert → (N, O); expert e owns rows offsets[e] to offsets[e + 1]."""
        check_rows("LoRAExperts", rows_ND, self.a_ERD.shape[2], self.a_ERD)
        rows_ND, sizes = self.dropout(rows_ND), torch.diff(offsets)
        if self.rank == 1:
            expert_N = torch.repeat_interleave(sizes, output_size=len(rows_ND))
            rows_NO = _one_rank(rows_ND, self.a_ERD.squeeze(1), self.b_EOR.squeeze(2), expert_N)
            rows_NO = self._scaled(rows_NO)
            if self.bias_EO is None:
                return rows_NO
            return rows_NO + self.bias_EO.index_select(0, expert_N).to(rows_NO.dtype)
        sizes_E: list[int] = sizes.tolist()
        rows_NR = self._scaled(grouped_linear(rows_ND, sizes_E, self.a_ERD))
        return grouped_linear(rows_NR, sizes_E, self.b_EOR, self.bias_EO)

    def on_route(self, x_TD: Tensor, route: Route) -> Tensor:
        """What the layer computes, dispatch and combine included: (T, O) from tokens.

        Where tokens have many of the experts, the products of every token with all A_e, and of the
        weighted results with all B_e, take less time than the same for each row by itself.
        """
        dense = len(route) * max(DENSE_GAIN // self.rank, 2) >= route.num_inputs * self.num_experts
        if not dense:
            return route.combine(self(route.dispatch(x_TD), route.by_branch().offsets))
        check_rows("LoRAExperts", x_TD, self.a_ERD.shape[2], self.a_ERD)
        return self.dense(x_TD, route.to_dense())

    def dense(self, x_TD: Tensor, weights_TE: Tensor) -> Tensor:
        """Every expert on every token, weighted: (T, O)."""
        keys_TER = functional.linear(self.dropout(x_TD), self.a_ERD.flatten(0, 1))
        keys_TER = keys_TER.reshape(len(x_TD), self.num_experts, self.rank)
        values = self.b_EOR.transpose(1, 2).flatten(0, 1)
        y_TO = self._scaled((keys_TER * weights_TE.unsqueeze(2)).flatten(1)) @ values
        return y_TO if self.bias_EO is None else y_TO + weights_TE @ self.bias_EO

    def merged(self, weights_E: Tensor) -> Tensor:
        """The dense update that this mixture of the experts is, for routing without inputs.

        Args:
            weights_E: one weight for each expert, or (G, E) for G mixtures at once.

        Returns:
            (O, D) or (G, O, D), scale included, bias not; gradients flow.
        """
        values = self._scaled(self.b_EOR) * weights_E[..., None, None]
        return torch.einsum("...eor,erd->...od", values, self.a_ERD)

    def to_linear(self, weights_E: Tensor, base: nn.Linear | None = None) -> nn.Linear:
        """One linear layer that answers like this mixture, plus the base layer if given.

        Args:
            weights_E: one weight for each expert.
            base: a layer of the same widths; it is left as it is.
        """
        matrix = self.merged(weights_E).detach()
        bias = None if self.bias_EO is None else (weights_E @ self.bias_EO).detach()
        if base is not None:
            matrix = matrix + base.weight.detach()
            if base.bias is not None:
                bias = base.bias.detach() + (0 if bias is None else bias)
        out, width = matrix.shape
        made = nn.Linear(width, out, bias is not None, device="meta", dtype=matrix.dtype)
        made.weight = nn.Parameter(matrix)
        if bias is not None:
            made.bias = nn.Parameter(bias.clone())
        return made

    def _scaled(self, values: Tensor) -> Tensor:
        return values if self.scale == 1.0 else values * self.scale


# A pair of vectors for each row, as one operator of torch, so that FLOP counters see its products:
# as plain elementwise operations they would count as nothing.
_library = torch.library.Library("pointsman", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "one_rank(Tensor rows, Tensor a, Tensor b, Tensor expert) -> Tensor"
)


def _products(rows_ND: Tensor, a_ED: Tensor, b_EO: Tensor, expert_N: Tensor) -> Tensor:
    """(N, O): (row . a_e) b_e of each row's expert e."""
    key_N1 = (rows_ND * a_ED.index_select(0, expert_N)).sum(1, keepdim=True)
    return key_N1 * b_EO.index_select(0, expert_N)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
    rows_ND, a_ED, b_EO, expert_N = ctx.saved_tensors
    a_ND, grad_a, grad_b, grad_rows = a_ED.index_select(0, expert_N), None, None, None
    if ctx.needs_input_grad[2]:
        key_N1 = (rows_ND * a_ND).sum(1, keepdim=True)
        grad_b = torch.zeros_like(b_EO).index_add(0, expert_N, key_N1 * grad_NO)
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        grad_key_N1 = (grad_NO * b_EO.index_select(0, expert_N)).sum(1, keepdim=True)
        grad_rows = grad_key_N1 * a_ND
        grad_a = torch.zeros_like(a_ED).index_add(0, expert_N, grad_key_N1 * rows_ND)
    return grad_rows, grad_a, grad_b, None


_library.impl(  # type: ignore[no-untyped-call]
    "one_rank", _products, "CompositeExplicitAutograd"
)
torch.library.register_fake(
    "pointsman::one_rank",
    lambda rows, a, b, expert: rows.new_empty(len(rows), b.shape[1]),
    lib=_library,
)
torch.library.register_autograd(
    "pointsman::one_rank", _gradients, setup_context=_keep, lib=_library
)


@register_flop_formula(torch.ops.pointsman.one_rank)
def _one_rank_flops(rows: Any, a: Any, b: Any, *rest: Any, **options: Any) -> int:
    return int(2 * rows[0] * (a[1] + b[1]))


def _one_rank(rows_ND: Tensor, a_ED: Tensor, b_EO: Tensor, expert_N: Tensor) -> Tensor:
    device = rows_ND.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows_ND, a_ED, b_EO = rows_ND.to(dtype), a_ED.to(dtype), b_EO.to(dtype)
    answer: Tensor = torch.ops.pointsman.one_rank(rows_ND, a_ED, b_EO, expert_N)
    return answer
