"""Networks for rows of numbers: plain, exiting, nested and routed multilayer perceptrons."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from pointsman.moe import FeedForwardExperts, MoE
from pointsman.moe.balance import switch
from pointsman.select import top_k

# Hidden sizes of the ladder of plain networks, from small to large.
LADDER = ((8,), (24,), (64, 64), (160, 160), (384, 384))
# The exiting network widens with depth, so that its first exits are cheap.
EXIT_SIZES = (16, 64, 192, 384)
NESTED_SIZES = (384, 384)
WIDTHS = (0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0)
EXPERTS_USED = (1, 2, 4)


def mlp(inputs: int, classes: int, hidden: Sequence[int]) -> nn.Sequential:
    """Plain network: (n, inputs) → logits (n, classes)."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise((inputs, *hidden)):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], classes))


class RoutedMLP(nn.Module):
    """Stem, one residual mixture of experts, head: (n, inputs) → logits (n, classes)."""

    def __init__(
        self, inputs: int, classes: int, *, width: int = 48, hidden: int = 48, experts: int = 16
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
        self.moe = MoE(
            nn.Linear(width, experts, bias=False),
            partial(top_k, k=2),
            FeedForwardExperts(experts, width, hidden, activation="relu"),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, k: int = 2) -> tuple[Tensor, Tensor]:
        """Logits, and the balancing loss of the routed layer."""
        hidden = self.stem(x)
        routed, routing = self.moe(hidden, select=partial(top_k, k=k))
        return self.head(hidden + routed), switch(routing)
