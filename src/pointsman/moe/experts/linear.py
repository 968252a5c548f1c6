"""Linear experts: E matrices with stacked weights, and the grouped product that banks share.

Legend: N routed rows sorted by expert, E experts, D width, O width of the answers.
"""

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError


def grouped_linear(
    rows_ND: Tensor, sizes_E: Sequence[int], weight_EOD: Tensor, bias_EO: Tensor | None = None
) -> Tensor:
    """Each row times its expert's matrix, plus its bias; experts without rows cost no product.

    Args:
        rows_ND: sorted by expert.
        sizes_E: rows of each expert, N in all.
        weight_EOD: one matrix for each expert, (out, in).
        bias_EO: added, or None.

    Returns:
        (N, O).
    """
    if len(rows_ND) == 0:  # one empty product, so that the graph is that of any other call
        return functional.linear(rows_ND, weight_EOD[0], None if bias_EO is None else bias_EO[0])
    # unbind once: indexing the stack for each expert would make its backward build a zero tensor
    # of the whole stack every time.
    biases = repeat(None, len(weight_EOD)) if bias_EO is None else bias_EO.unbind(0)
    pieces = zip(torch.split(rows_ND, list(sizes_E)), weight_EOD.unbind(0), biases, strict=True)
    return torch.cat(
        [functional.linear(rows, weight, bias) for rows, weight, bias in pieces if len(rows)]
    )


def check_rows(bank: str, rows: Tensor, width: int, like: Tensor, dims: int = 2) -> None:
    """Rows must fit the weights of a bank.

    Args:
        bank: its name, for the error.
        rows: (N, width) or (N, width, ...).
        width: of the first dimension after N.
        like: one of the weights.
        dims: of the rows, N included.

    Raises:
        InputError: rows of another shape, on another device, or of another type outside autocast.
    """
    if rows.ndim != dims or rows.shape[1] != width:
        shape = ", ".join(["N", str(width), "H", "W"][:dims])
        raise InputError(f"{bank} takes rows of shape ({shape}), got {tuple(rows.shape)}")
    if rows.device != like.device:
        raise InputError(
            f"{bank} and its rows must lie on one device, got weights on {like.device} and rows on "
            f"{rows.device}: use .to()"
        )
    if rows.dtype != like.dtype and not torch.is_autocast_enabled(rows.device.type):
        raise InputError(
            f"{bank} and its rows must have one type, got {like.dtype} weights and {rows.dtype} "
            "rows: cast one of them with .to()"
        )


def check_sizes(bank: str, **sizes: int) -> None:
    """Sizes of a bank must be whole numbers of at least 1.

    Raises:
        InputError: one is not.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(f"{bank} needs {name} of at least 1, got {size!r}")


class LinearExperts(nn.Module):
    """E linear maps x → W_e x + b_e with stacked weights, each drawn like an `nn.Linear`.

    Args:
        num_experts: E, at least one.
        width: D, of the inputs.
        out: O, of the answers; None means D.
        bias: whether each map has a bias.

    Attributes:
        weight_EOD: (E, out, width) parameter.
        bias_EO: (E, out) parameter, None without bias.

    Raises:
        InputError: a size below one; in `forward`, rows that do not fit.
    """

    def __init__(
        self, num_experts: int, width: int, out: int | None = None, *, bias: bool = True
    ) -> None:
        super().__init__()
        out = width if out is None else out
        check_sizes("LinearExperts", num_experts=num_experts, width=width, out=out)
        self.num_experts = num_experts
        bound = width**-0.5
        self.weight_EOD = nn.Parameter(torch.empty(num_experts, out, width).uniform_(-bound, bound))
        drawn = torch.empty(num_experts, out).uniform_(-bound, bound) if bias else None
        self.bias_EO = None if drawn is None else nn.Parameter(drawn)

    def forward(self, rows_ND: Tensor, offsets: Tensor) -> Tensor:
        """Rows sorted by expert → (N, O); expert e owns rows offsets[e] to offsets[e + 1]."""
        check_rows("LinearExperts", rows_ND, self.weight_EOD.shape[2], self.weight_EOD)
        return grouped_linear(rows_ND, torch.diff(offsets).tolist(), self.weight_EOD, self.bias_EO)

    def merged(self, weights_E: Tensor) -> tuple[Tensor, Tensor | None]:
        """The one linear map that this mixture of the experts is, for routing without inputs.

        Args:
            weights_E: one weight for each expert, or (G, E) for G mixtures at once.

        Returns:
            Matrix (O, D) or (G, O, D), and bias (O,) or (G, O), or None; gradients flow.
        """
        matrix = torch.tensordot(weights_E, self.weight_EOD, dims=1)
        return matrix, None if self.bias_EO is None else weights_E @ self.bias_EO
