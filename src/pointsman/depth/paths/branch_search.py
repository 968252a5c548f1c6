"""Training of weights and branches together, up to the tree that is found. Legend: G tasks."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointsman.depth.paths.branching import BranchingNetwork, Tree
from pointsman.errors import InputError

# outputs of the tasks asked, targets of the batch -> one loss a task (G,)
TaskLosses = Callable[[list[Tensor], Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


def search_branches(
    network: BranchingNetwork,
    batches: Iterable[Batch],
    losses: TaskLosses,
    *,
    updates: int,
    rate: float = 3e-3,
    branch_rate: float = 3e-2,
    warm_up: float = 0.0,
    temperatures: tuple[float, float] = (2.0, 0.5),
    trees: int = 1,
    charge: float = 0.0,
    seed: int = 0,
) -> Tree:
    """Train weights and logits together, and give the likely tree.

    Args:
        network: changed in place; then in evaluation mode.
        batches: of inputs and targets, at least as many as updates.
        losses: of the outputs of all tasks (a list of G) and the targets, one loss a task (G,).
        updates: of Adam, at least 1.
        rate: of the weights, falling to 0 along a cosine.
        branch_rate: of the logits, constant.
        warm_up: share of the updates before the logits move, in which every parent is as likely.
        temperatures: of the soft draw, from the first update to the last, geometrically.
        trees: drawn for every batch.
        charge: for each expected node, in units of one task's usual loss.
        seed: of the draws.

    Raises:
        InputError: fewer batches than updates, or losses that are not one number a task.
    """
    weights = [w for name, w in network.named_parameters() if not name.startswith("logits.")]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": list(network.logits)}]
    optimiser = torch.optim.Adam(groups, rate)
    generator = torch.Generator(network.logits[0].device).manual_seed(seed)
    usual_G: Tensor | None = None
    done = 0
    network.train()
    for done, (x, target) in zip(range(1, updates + 1), batches, strict=False):
        progress = (done - 1) / updates
        optimiser.param_groups[0]["lr"] = rate * 0.5 * (1 + np.cos(np.pi * progress))
        optimiser.param_groups[1]["lr"] = branch_rate if progress >= warm_up else 0.0
        temperature = temperatures[0] * (temperatures[1] / temperatures[0]) ** progress
        drawn = [
            _checked(
                losses(network.sampled(x, temperature=temperature, generator=generator), target),
                len(network.heads),
            )
            for _ in range(trees)
        ]
        loss_G = torch.stack(drawn).mean(dim=0)
        now_G = loss_G.detach().clamp_min(1e-12)
        usual_G = now_G if usual_G is None else 0.95 * usual_G + 0.05 * now_G
        optimiser.zero_grad()
        loss = (loss_G / usual_G).sum()
        if charge:
            loss = loss + charge * network.expected_nodes()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    if done < updates:
        raise InputError(f"{updates} updates need as many batches, got {done}")
    network.eval()
    return network.tree()


def _checked(loss_G: Tensor, tasks: int) -> Tensor:
    if loss_G.shape != (tasks,):
        raise InputError(
            f"losses give one number for each of {tasks} tasks, got shape {tuple(loss_G.shape)}"
        )
    return loss_G
