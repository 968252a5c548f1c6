"""A router that goes on from what the router of the layer before thought of the same token.

Legend: T tokens, D width, P width of the state, E experts.
"""

from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router, Scored
from pointsman.moe.routers.common import check_sizes


class RecurrentRouter(Router):
    """Scores V s, where s = cell(U x, s of the layer before): recurrent over depth, not time.

    Each token carries its own state through the layers, so all tokens of a layer run at once. The
    state comes in as `context.state` and goes out as `Routing.state`; without one, it starts at
    zero. Gradients flow back through it past the experts.

    Args:
        width: D.
        num_experts: E.
        cell: `nn.GRUCell(P, P)` or `nn.RNNCell(P, P)`, one for all routers of a network.

    Attributes:
        enter: D → P, of this layer.
        leave: P → E, of this layer.

    Raises:
        InputError: a cell whose input and state differ in width.

    Source: Qiu et al. 2024, "Layerwise recurrent router for mixture-of-experts",
    arXiv 2408.06793, with P = 256.
    """

    def __init__(self, width: int, num_experts: int, cell: nn.GRUCell | nn.RNNCell) -> None:
        super().__init__()
        check_sizes("RecurrentRouter", width=width, num_experts=num_experts)
        if cell.input_size != cell.hidden_size:
            raise InputError(
                "RecurrentRouter needs a cell as wide as its state, "
                f"got {cell.input_size} and {cell.hidden_size}"
            )
        self.cell = cell
        self.enter = nn.Linear(width, cell.hidden_size, bias=False)
        self.leave = nn.Linear(cell.hidden_size, num_experts, bias=False)

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Scored:
        """Scores (T, E), and the state (T, P) that they were read from.

        Raises:
            InputError: a state of another width.
        """
        size = self.cell.hidden_size
        state_TP = None if context is None else context.state
        if state_TP is None:
            state_TP = x_TD.new_zeros(len(x_TD), size)
        if state_TP.shape != (len(x_TD), size):
            raise InputError(
                f"RecurrentRouter needs context.state of width {size} for every token, "
                f"got {tuple(state_TP.shape)} for {len(x_TD)} flattened tokens"
            )
        state_TP = self.cell(self.enter(x_TD), state_TP)
        return Scored(self.leave(state_TP), state=state_TP)
