"""Walking a network block by block, with something changed on the way.

Legend: n inputs, S tokens, D width, B blocks, C classes, N tokens of all inputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pointsman.depth.trunks.trunk import Trunk
from pointsman.modules import evaluating
from pointsman.run import State

TINY = 1e-12
# (block, state before it) -> state after it
Step = Callable[[int, State], State]


@torch.no_grad()
def hidden_states(trunk: Trunk, x: State, *, start: int = 0) -> list[Tensor]:
    """Features of the B + 1 states, each (n, S - start, D) or (n, D).

    Args:
        trunk: run in evaluation mode.
        x: a batch.
        start: tokens left out at the beginning.
    """
    found: list[Tensor] = []
    walk(trunk, x, trunk.block, found)
    return [part[:, start:] if part.ndim > 2 else part for part in found]


def run(trunk: Trunk, x: State, step: Step | None = None) -> tuple[list[Tensor], Tensor]:
    """Features of the B + 1 states, and the logits."""
    features: list[Tensor] = []
    end = walk(trunk, x, step or trunk.block, features)
    with evaluating(*modules(trunk)), torch.no_grad():
        return features, trunk.finish(end)


def walk(trunk: Trunk, x: State, step: Step, features: list[Tensor]) -> State:
    """The state after the last step; the features of all states are appended to the list."""
    with evaluating(*modules(trunk)), torch.no_grad():
        state = trunk.begin(x)
        features.append(trunk.features(state))
        for at in range(len(trunk.names)):
            state = step(at, state)
            features.append(trunk.features(state))
    return state


def end(trunk: Trunk, x: State) -> State:
    """The state after the last block."""
    return walk(trunk, x, trunk.block, [])


def minus(trunk: Trunk, state: State, change: Tensor) -> State:
    """The state less a change of its features: of the one tensor that they are."""
    features = trunk.features(state)
    return tree_map(
        lambda leaf: (
            leaf - change
            if isinstance(leaf, Tensor) and leaf.shape == features.shape and leaf.equal(features)
            else leaf
        ),
        state,
    )


def modules(trunk: Trunk) -> list[nn.Module]:
    """The trunk, where it is a module."""
    return [trunk] if isinstance(trunk, nn.Module) else []
