"""A tiny residual trunk whose blocks count how many rows they ran on."""

import pytest
import torch
from torch import nn


class Residual(nn.Module):
    """x (n, D) -> logits (n, C): begin is a linear layer, blocks add to the state."""

    def __init__(self, blocks=4, width=8, classes=3, inputs=5, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(inputs, width)
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(blocks)
        )
        self.last = nn.Linear(width, classes)
        self.names = tuple(f"inner.{at}" for at in range(blocks))
        self.rows = [[] for _ in range(blocks)]

    def forward(self, x):
        state = self.begin(x)
        for at in range(len(self.inner)):
            state = self.block(at, state)
        return self.finish(state)

    def begin(self, x):
        return self.first(x)

    def block(self, at, state):
        self.rows[at].append(len(state))
        return state + self.inner[at](state)

    def features(self, state):
        return state

    def finish(self, state):
        return self.last(state)


@pytest.fixture
def residual():
    """A function that makes one in evaluation mode, in float64."""
    return lambda **sizes: Residual(**sizes).double().eval()
