"""What can be read off the states: the network's own end, gradients, and linear maps.

Legend: n inputs, S tokens, D width, B blocks, C classes, N tokens of all inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pointsman.depth.diagnostics.walking import TINY, modules, run
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.run import State


@dataclass(frozen=True, eq=False)
class Lens:
    """What the network's own end reads off each state.

    Attributes:
        divergence: (B + 1,) nats, KL of the final distribution from that of each state; 0 at the
            last.
        overlap: (B + 1,) share of the final k likeliest classes among the k of each state.
    """

    divergence: Tensor
    overlap: Tensor


@torch.no_grad()
def logit_lens(trunk: Trunk, x: State, *, k: int = 5, start: int = 0) -> Lens:
    """Finish from every state as if it were the last (nostalgebraist 2020).

    Args:
        trunk: run in evaluation mode; its `finish` takes any of its states.
        x: a batch.
        k: classes compared.
        start: tokens left out at the beginning.
    """
    read: list[Tensor] = []

    def step(at: int, state: State) -> State:
        read.append(trunk.finish(state))
        return trunk.block(at, state)

    _, last = run(trunk, x, step)
    read.append(last)
    if last.ndim > 2:
        read = [logits[:, start:] for logits in read]
    final = read[-1].log_softmax(dim=-1)
    best = final.topk(min(k, final.shape[-1]), dim=-1).indices
    divergence, overlap = [], []
    for logits in read:
        log = logits.log_softmax(dim=-1)
        divergence.append((final.exp() * (final - log)).sum(dim=-1).mean())
        mine = logits.topk(best.shape[-1], dim=-1).indices
        same = (mine[..., :, None] == best[..., None, :]).any(dim=-1)
        overlap.append(same.to(final.dtype).mean())
    return Lens(torch.stack(divergence), torch.stack(overlap))


def integrated_gradients(
    trunk: Trunk, x: State, score: Callable[[Tensor], Tensor], *, steps: int = 16
) -> Tensor:
    """How much each block's contribution moves a score, (B, n).

    Every block's addition is scaled by the same factor from 0 to 1 and the gradient by block is
    summed on the way (Sundararajan et al. 2017, arXiv:1703.01365), so that over the blocks the
    parts add up to the score of the network less that of the network without blocks.

    Args:
        trunk: whose states are single tensors, run in evaluation mode.
        x: n inputs.
        score: logits -> (n,).
        steps: points of the midpoint rule.

    Raises:
        InputError: a state of several tensors.
    """
    with evaluating(*modules(trunk)):
        with torch.no_grad():
            first = trunk.begin(x)
        if not isinstance(first, Tensor):
            raise InputError("integrated gradients need states that are one tensor each")
        total = first.new_zeros(len(trunk.names), len(first))
        for step in range(steps):
            share = torch.full_like(total, (step + 0.5) / steps, requires_grad=True)
            state: Tensor = first
            for at in range(len(trunk.names)):
                scale = share[at].reshape(-1, *[1] * (state.ndim - 1))
                state = state + scale * (trunk.block(at, state) - state)
            (slope,) = torch.autograd.grad(score(trunk.finish(state)).sum(), share)
            total += slope / steps
    return total


def linear_maps(
    from_states: Sequence[Tensor], to_states: Sequence[Tensor], *, ridge: float = 1e-3
) -> Tensor:
    """How well each state of one network gives each state of another by one linear map.

    The map (with a constant) is fitted on every other token and judged on the rest.

    Args:
        from_states: of one network on some inputs, each (..., D).
        to_states: of another on the same inputs, each (..., D').
        ridge: added to the diagonal, as a share of its mean.

    Returns:
        (states, states) relative error |y - Wx| / |y - mean y| of tokens not fitted on, whose rows
        are the first network's.

    Raises:
        InputError: other numbers of tokens, or too few.
    """
    sources, targets = (
        [s.flatten(0, -2).double() for s in some] for some in (from_states, to_states)
    )
    tokens = {len(state) for state in [*sources, *targets]}
    if len(tokens) != 1 or min(tokens) < 4:
        raise InputError(f"both networks need the same tokens, at least 4, got {sorted(tokens)}")
    wanted = torch.cat(targets, dim=1)  # all targets at once: one factorisation a source
    centre = wanted[0::2].mean(dim=0)
    rows = []
    for source in sources:
        mean = source[0::2].mean(dim=0)
        x, y = source[0::2] - mean, wanted[0::2] - centre
        gram = x.T @ x
        gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        off = wanted[1::2] - centre - (source[1::2] - mean) @ torch.linalg.solve(gram, x.T @ y)
        size = wanted[1::2] - centre
        widths = [target.shape[1] for target in targets]
        rows.append(
            torch.stack(
                [
                    a.norm() / b.norm().clamp(min=TINY)
                    for a, b in zip(
                        torch.split(off, widths, 1), torch.split(size, widths, 1), strict=True
                    )
                ]
            )
        )
    return torch.stack(rows)
