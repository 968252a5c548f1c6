"""The plainest residual network: a trunk for small experiments on vectors.

Legend: n inputs, F features, D width, C classes.
"""

import torch
from torch import Tensor, nn


class ResidualPerceptron(nn.Module):
    """x (n, F) -> logits (n, C); block b adds W2 gelu(W1 norm(h)) to the state. A `Trunk`.

    Args:
        features: F.
        width: D.
        blocks: how many; each is twice as wide inside.
        classes: C.
        seed: of the weights.
    """

    def __init__(
        self, features: int, width: int, blocks: int, classes: int, *, seed: int = 0
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(features, width)
            self.blocks = nn.ModuleList(
                nn.Sequential(
                    nn.LayerNorm(width),
                    nn.Linear(width, 2 * width),
                    nn.GELU(),
                    nn.Linear(2 * width, width),
                )
                for _ in range(blocks)
            )
            self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))
        self.names = tuple(f"blocks.{at}" for at in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(n, F) -> (n, C)."""
        state = self.begin(x)
        for at in range(len(self.blocks)):
            state = self.block(at, state)
        return self.finish(state)

    def begin(self, x: Tensor) -> Tensor:
        """(n, F) -> (n, D)."""
        state: Tensor = self.first(x)
        return state

    def block(self, at: int, state: Tensor) -> Tensor:
        """The state with what block `at` adds."""
        added: Tensor = self.blocks[at](state)
        return state + added

    def features(self, state: Tensor) -> Tensor:
        """The state itself, (n, D)."""
        return state

    def finish(self, state: Tensor) -> Tensor:
        """(n, D) -> logits (n, C)."""
        logits: Tensor = self.last(state)
        return logits
