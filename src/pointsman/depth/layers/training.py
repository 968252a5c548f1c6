"""Training routers on paths found offline, and networks so that blocks can be left out.

`fit_routers` follows Heakl et al., "Dr.LLM" (2025, arXiv:2510.12773): the network is frozen, each
block runs as the label says (teacher forcing), and only the routers learn, from a focal loss with
class-balanced weights because most labels are "run once". Since neither the network nor the labels
change, what the routers look at is computed once. Where we depart: the paper gives neither gamma
nor beta, here 2 and 0.999 as in the papers of the two losses; and with `rounds` above 1 the routers
are trained again on the states that their own decisions lead to, with the same labels (Ross et al.
2011, arXiv:1011.0686), because a router that errs meets states that no label led to.

`skipping_logits` is stochastic depth (Huang et al. 2016, arXiv:1603.09382): training with blocks
left out at random, so that the network does without them later. A block that runs is not scaled,
as the network that is trained here is also the one that is run with blocks left out.

Legend: N inputs, B blocks, A actions, W windows, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pointsman.depth.layers.execute import run_block, run_paths
from pointsman.depth.layers.network import SkipNetwork, batches
from pointsman.depth.layers.paths import check_runs, random_runs
from pointsman.depth.layers.routers import choose_runs
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError
from pointsman.learn.focal import class_balanced, focal
from pointsman.modules import evaluating
from pointsman.run import State


def fit_routers(
    network: SkipNetwork,
    x: State,
    runs_NB: Tensor,
    *,
    gamma: float = 2.0,
    beta: float = 0.999,
    updates: int = 500,
    batch: int = 128,
    rate: float = 1e-3,
    decay: float = 1e-2,
    rounds: int = 1,
    seed: int = 0,
) -> SkipNetwork:
    """Train the routers of a network on paths that are known to be good; the trunk stays as it is.

    Args:
        network: whose routers are changed in place; it ends in evaluation mode.
        x: N inputs, those with a good path.
        runs_NB: int64, such as `Tried.best` gives; blocks that cannot be edited are not read.
        gamma: of the focal loss.
        beta: of the class-balanced weights, by how often each count occurs among the labels.
        updates: of AdamW in each round, under a rate that falls to 0 along a cosine.
        batch: inputs an update, drawn with replacement.
        rate: at the start.
        decay: of the weights.
        rounds: above 1, later ones meet the states of the routers' own decisions as well.
        seed: of the batches.

    Returns:
        The network.

    Raises:
        InputError: no input, or labels that do not fit.
    """
    routers = network.routers
    places = list(routers.editable)
    blocks = len(network.trunk.names)
    check_runs(runs_NB, len(runs_NB), blocks)
    if not len(runs_NB) or not places or int(runs_NB[:, places].max()) >= routers.actions:
        raise InputError(
            f"routers of {routers.actions} actions learn from at least one path of counts up to "
            f"{routers.actions - 1}, got runs {tuple(runs_NB.shape)}"
        )
    weights = class_balanced(runs_NB[:, places], routers.actions, beta=beta)
    seen, generator = [pooled_states(network, x, runs_NB)], torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        pooled = [torch.cat(parts) for parts in zip(*seen, strict=True)]
        labels = runs_NB.repeat(len(seen), 1)
        _fit(network, pooled, labels, weights, gamma, updates, batch, rate, decay, generator)
        if len(seen) < rounds:
            seen.append(pooled_states(network, x, None))
    network.eval()
    return network


def _fit(
    network: SkipNetwork,
    pooled: list[Tensor],
    labels: Tensor,
    weights: Tensor,
    gamma: float,
    updates: int,
    batch: int,
    rate: float,
    decay: float,
    generator: torch.Generator,
) -> None:
    learned = list(network.routers.parameters())  # type: ignore[attr-defined]
    optimiser = torch.optim.AdamW(learned, rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        rows = torch.randint(len(labels), (batch,), generator=generator)
        scores = _scores(network, [part[rows] for part in pooled])
        wanted = labels[rows][:, list(network.routers.editable)].to(scores.device)
        loss = focal(scores.flatten(0, 1), wanted.flatten(), gamma=gamma, weights_A=weights)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def _scores(network: SkipNetwork, pooled: Sequence[Tensor]) -> Tensor:
    """(N, editable blocks, A) from what the routers look at before each of these blocks."""
    routers = network.routers
    ahead = routers.ahead(pooled[0])
    if ahead is not None:
        return ahead[:, list(routers.editable)]
    scores = [routers.scores(at, part) for at, part in zip(routers.editable, pooled, strict=True)]
    return torch.stack(scores, dim=1)


@torch.no_grad()
def pooled_states(network: SkipNetwork, x: State, runs_NB: Tensor | None) -> list[Tensor]:
    """What the routers look at before each editable block, one (N, W, D) for each.

    Args:
        network: run in evaluation mode.
        x: N inputs.
        runs_NB: how often each block runs meanwhile. None: as the routers say.
    """
    parts, start = [], 0
    with evaluating(network):
        for part in batches(x):
            stop = start + len(network.trunk.features(network.trunk.begin(part)))
            parts.append(_pooled(network, part, None if runs_NB is None else runs_NB[start:stop]))
            start = stop
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _pooled(network: SkipNetwork, x: State, runs_NB: Tensor | None) -> list[Tensor]:
    trunk, routers, found = network.trunk, network.routers, []
    state = trunk.begin(x)
    first = routers.pool(trunk.features(state))
    ahead = routers.ahead(first)
    for at in range(len(trunk.names)):
        times = torch.ones(len(first), dtype=torch.int64, device=first.device)
        if at in routers.editable:
            looked_at = first if ahead is not None else routers.pool(trunk.features(state))
            found.append(looked_at)
            if runs_NB is None:
                scores = routers.scores(at, looked_at) if ahead is None else ahead[:, at]
                times = choose_runs(scores, 0.0)
        if runs_NB is not None:
            times = runs_NB[:, at].to(first.device)
        state = run_block(trunk, at, state, times)
    return found


def skipping_logits(
    trunk: Trunk,
    x: State,
    drop: Sequence[float],
    generator: torch.Generator,
    *,
    repeat: Sequence[float] | None = None,
) -> Tensor:
    """Logits of a batch in which every input leaves blocks out at random; gradients flow.

    Args:
        trunk: in the mode it is in.
        x: N inputs.
        drop: for each of the B blocks, the probability of being left out; see `rising`.
        generator: of the draws.
        repeat: for each block, the probability of running twice. None: never.

    Raises:
        InputError: probabilities out of range, or not one a block.
    """
    count = len(trunk.names)
    if len(drop) != count or (repeat is not None and len(repeat) != count):
        raise InputError(f"{count} blocks need one probability each, got {len(drop)}")
    inputs = len(trunk.features(trunk.begin(x))) if not isinstance(x, Tensor) else len(x)
    return run_paths(trunk, x, random_runs(inputs, drop, generator, repeat=repeat)).output


def rising(blocks: int, last: float) -> list[float]:
    """Probabilities of being left out that rise in a straight line up to that of the last block.

    Early blocks are left out least, as in stochastic depth: what they compute is built upon most.

    Args:
        blocks: B.
        last: probability of the last block.
    """
    return [last * (at + 1) / blocks for at in range(blocks)]
