"""Banks of experts: many small feed-forward networks with stacked weights, run as one.

Legend: N routed rows sorted by expert, E experts, D width (of the answers on the way down),
F hidden width of one expert, which counts twice on the way up of gated experts, gate first.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.experts.grouped import ACTIVATIONS, grouped
from pointsman.moe.experts.kernel import by_grouped_mm, fits
from pointsman.moe.experts.reference import Activation, by_loop


class FeedForwardExperts(nn.Module):
    """E feed-forward experts x → down(activation(up(x))), with stacked weights.

    Gated ones (Shazeer 2020, "GLU variants improve transformer", arXiv 2002.05202) are
    x → down(activation(gate(x)) * up(x)). All weights are (out, in), like those of `nn.Linear`, and
    the gate comes first, as in the fused weights of Hugging Face's models.

    Args:
        num_experts: E, at least one.
        width: D, of the inputs.
        hidden: F, of each expert.
        activation: "gelu", "relu", "silu", or any elementwise function, which is slower.
        gated: multiply by an activated gate.
        bias: whether the way up has a bias; the way down has none.
        out: width of the answers; None means that of the inputs.

    Attributes:
        up_EFD: (E, hidden, width) parameter, twice the hidden width if gated, gate first.
        up_bias_EF: (E, hidden) parameter, likewise, zeros at first; None without bias.
        down_EDF: (E, out, hidden) parameter.

    Raises:
        InputError: a size below one, or an unknown activation.
    """

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden: int,
        *,
        activation: str | Activation = "gelu",
        gated: bool = False,
        bias: bool = True,
        out: int | None = None,
    ) -> None:
        super().__init__()
        out = width if out is None else out
        if min(num_experts, width, hidden, out) < 1:
            raise InputError(
                "a bank of experts needs num_experts, width and hidden of at least 1, "
                f"got {num_experts}, {width} and {hidden}" + f", out {out}" * (out < 1)
            )
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise InputError(
                f"activation must be one of {', '.join(ACTIVATIONS)} or a function, "
                f"got {activation!r}"
            )
        self.num_experts, self.gated = num_experts, gated
        self.activation_name = activation if isinstance(activation, str) else None
        self.activation = (
            ACTIVATIONS[activation].plain if isinstance(activation, str) else activation
        )
        wide = 2 * hidden if gated else hidden
        self.up_EFD = nn.Parameter(torch.randn(num_experts, wide, width) * (2 / width) ** 0.5)
        self.up_bias_EF = nn.Parameter(torch.zeros(num_experts, wide)) if bias else None
        self.down_EDF = nn.Parameter(torch.randn(num_experts, out, hidden) * hidden**-0.5)

    def forward(self, rows_ND: Tensor, offsets: Tensor) -> Tensor:
        """Rows sorted by expert → rows (N, out).

        On a GPU in bfloat16, with widths that are multiples of 8, one kernel runs all experts and
        the host does not wait; otherwise they run one after the other, and it waits once, for the
        offsets.

        Args:
            rows_ND: in the type and on the device of the weights, unless under autocast.
            offsets: (E + 1,) int64; expert e owns rows offsets[e]:offsets[e + 1].

        Raises:
            InputError: rows of another width, type or device than the weights.
        """
        rows_ND, up, bias, down = self._in_one_type(rows_ND)
        if rows_ND.device.type == "cuda" and fits(rows_ND, up, down):
            return by_grouped_mm(rows_ND, offsets, up, bias, down, self.activation, self.gated)
        places = offsets.tolist()  # on a GPU the host waits here
        if self.activation_name is None:
            sizes = [high - low for low, high in pairwise(places)]
            return by_loop(rows_ND, sizes, up, bias, down, self.activation, self.gated)
        return grouped(rows_ND, places, up, bias, down, self.activation_name, self.gated)

    def _in_one_type(self, rows_ND: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Rows and weights: as they are where they fit, in autocast's type where it is on."""
        up, bias, down = self.up_EFD, self.up_bias_EF, self.down_EDF
        device = up.device.type
        if torch.is_autocast_enabled(device) and rows_ND.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
            added = None if bias is None else bias.to(dtype)
            return rows_ND.to(dtype), up.to(dtype), added, down.to(dtype)
        if rows_ND.shape[1:] != up.shape[2:]:
            raise InputError(
                f"the experts take rows of width {up.shape[2]}, got shape {tuple(rows_ND.shape)}: "
                "build them with the width of the tokens"
            )
        if rows_ND.dtype != up.dtype or rows_ND.device != up.device:
            raise InputError(
                f"the experts are {up.dtype} on {up.device}, the tokens {rows_ND.dtype} on "
                f"{rows_ND.device}: use .to() on one of them"
            )
        return rows_ND, up, bias, down
