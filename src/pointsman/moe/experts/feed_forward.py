"""Banks of experts: many small feed-forward networks with stacked weights, run as one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError

# Shape letters: N routed rows in branch order, E experts, D width, H hidden width of one expert.


class FeedForwardExperts(nn.Module):
    """E feed-forward experts x → down(activation(up(x))), with stacked weights.

    Args:
        num_experts: E, at least one.
        width: D, of inputs and outputs.
        hidden: H, of each expert.
        activation: elementwise, between the two products.

    Raises:
        InputError: a size below one.
    """

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor] = functional.gelu,
    ) -> None:
        super().__init__()
        if min(num_experts, width, hidden) < 1:
            raise InputError(
                "a bank of experts needs num_experts, width and hidden of at least 1, "
                f"got {num_experts}, {width} and {hidden}"
            )
        self.num_experts, self.activation = num_experts, activation
        self.up_EDH = nn.Parameter(torch.randn(num_experts, width, hidden) * (2 / width) ** 0.5)
        self.up_bias_EH = nn.Parameter(torch.zeros(num_experts, hidden))
        self.down_EHD = nn.Parameter(torch.randn(num_experts, hidden, width) * hidden**-0.5)

    def forward(self, rows_ND: Tensor, offsets: Tensor) -> Tensor:
        """Rows sorted by expert → rows (N, D); expert e owns rows offsets[e] to offsets[e + 1]."""
        # unbind once: indexing the stack for each expert would make its backward build a zero
        # tensor of the whole stack every time.
        weights = zip(
            self.up_EDH.unbind(0), self.up_bias_EH.unbind(0), self.down_EHD.unbind(0), strict=True
        )
        pieces = torch.split(rows_ND, torch.diff(offsets).tolist())
        return torch.cat(
            [
                self.activation(torch.addmm(bias, rows, up)) @ down
                for rows, (up, bias, down) in zip(pieces, weights, strict=True)
            ]
        )
