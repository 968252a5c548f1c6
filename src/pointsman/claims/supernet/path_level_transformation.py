"""Path-level transformation: a trained network gets branches, and keeps what it learned.

Cai et al., "Path-Level Network Transformation for Efficient Architecture Search" (2018, arXiv
1806.02639).

A trained layer becomes copies whose outputs are averaged, or parts whose outputs are concatenated;
branches get further nodes behind an identity, which an operation may replace. All but the last
keeps the function, so the changed network needs little training. A tree-structured LSTM chooses the
edits and follows REINFORCE with the tangent of the accuracy as reward. The parts are
`supernet.transforming`: `replicated`, `split`, `with_node`, `cell_space`, `path_level_search`.

What was settled:
- The trained network is a cell of three 3 x 3 convolutions on noisy digits (the one of the space of
  cells); each of the three becomes the same tree. Trees have a depth of 2, 442 of them; noise on
  copies is 6e-3 of the weights' spread.
- One epoch is 25 updates of 40 inputs. "From scratch" is the same network with every weight drawn
  anew, trained for one epoch alike.
- Transformed and new networks are compared on three trees, the same for all of five trained
  networks a seed: a split without, and two replications with, identities that operations replaced.
  They were cut from five to keep to two minutes, after seed 100 and before the full run.
- The tree policy is held against uniform draws of as many trees, on the reward itself.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, must

if TYPE_CHECKING:
    from torch import nn

    from pointsman.claims.testbeds import Digits
    from pointsman.supernet.space import Genotype

NETWORKS = 5
NOISE_OF_COPIES = 6e-3
EPOCH, BATCH, RATE = 25, 40, 1e-2
ROLLOUTS, UPDATES, LAST = 5, 16, 6
TREES = (  # options that are not the first
    {"cell.merge": "concat 2"},
    {"cell.merge": "add 2", "cell.0.node": "conv1x1"},
    {"cell.merge": "add 3", "cell.0.node": "separable3x3", "cell.2.node": "avgpool3x3"},
)


def quick() -> None:
    """Replication, split and inserted nodes keep the outputs; a replaced identity does not."""
    import torch
    from torch import nn

    from pointsman.supernet.transforming import (
        cell_space,
        replace_identity,
        replicated,
        split,
        with_node,
    )

    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 6)
    kinds = {
        "convolution": nn.Conv2d(8, 8, 3, padding=1),
        "depthwise convolution": nn.Conv2d(8, 8, 3, padding=1, groups=8),
        "identity": nn.Identity(),
        "pooling": nn.AvgPool2d(3, 1, 1),
        "sequence": nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)),
    }
    for name, layer in kinds.items():
        layer.eval()
        node = with_node(layer)
        edits = [replicated(layer, 2), replicated(layer, 3), split(layer, 2, 8), node]
        edits.append(replicated(split(layer, 2, 8), 2))
        for edit in edits:
            worst = float((edit(x) - layer(x)).detach().abs().max())
            must(worst < 1e-5, f"an edit of a {name} keeps its outputs, off by {worst:.2g}")
        replace_identity(node, "1", nn.Conv2d(8, 8, 1))
        must(not torch.allclose(node(x), layer(x), atol=1e-3), "a replaced identity does not")
    must(cell_space().count() == 442, "1 + 7² + 7³ + 7² trees of depth 2")


def full(seed: int) -> Figures:
    """Accuracy after one epoch of transformed and of new networks; the policy against chance."""
    from statistics import fmean

    found: dict[str, float] = {}
    gains, kept, fresh = [], [], []
    for each in range(NETWORKS):
        base, data = _trained(seed * NETWORKS + each, seed)
        for tree in TREES:
            network = _changed(base, _options(tree), each)
            new = _reset(network, each)
            pair = [_after_epoch(net, data, each)[1] for net in (network, new)]
            kept.append(pair[0])
            fresh.append(pair[1])
            gains.append(pair[0] - pair[1])
        found[f"network {each}: accuracy before"] = _after_epoch(base, data, each, updates=0)[1]
        own = slice(-len(TREES), None)
        found[f"network {each}: gain"] = fmean(kept[own]) - fmean(fresh[own])
    found["transformed: accuracy"] = fmean(kept)
    found["from scratch: accuracy"] = fmean(fresh)
    found["least of all trees: gain"] = min(gains)
    return found | _policy(seed)


def _policy(seed: int) -> dict[str, float]:
    """Mean rewards of the last draws of the tree policy, and of as many trees drawn by chance."""
    from statistics import fmean

    import numpy as np

    from pointsman.supernet.search import Evaluation, Problem, search
    from pointsman.supernet.transforming import cell_space, path_level_search, tangent_reward

    base, data = _trained(seed * NETWORKS, seed)
    space, known = cell_space(), {}

    def quality(genotype: "Genotype") -> float:
        if genotype not in known:
            network = _changed(base, space.decode(genotype), seed)
            known[genotype] = _after_epoch(network, data, seed)[0]
        return known[genotype]

    drawn: list[float] = []
    engine = partial(
        path_level_search,
        rollouts=ROLLOUTS,
        updates=UPDATES,
        rate=2e-2,
        drawn=lambda genotypes, rewards: drawn.extend(rewards),
    )
    ran: list[Evaluation] = search(
        Problem(space, quality, lambda genotype: 1.0), engine, space.count(), seed=seed
    )
    rng = np.random.default_rng(seed)
    chance = [tangent_reward(quality(space.sample(rng))) for _ in range(ROLLOUTS * LAST)]
    return {
        "policy: mean reward of the last draws": fmean(drawn[-ROLLOUTS * LAST :]),
        "chance: mean reward": fmean(chance),
        "policy: trees trained": float(len(ran)),
    }


def _options(tree: dict[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in tree.items():
        if name.endswith(".node"):
            options |= {f"{name.removesuffix('.node')}.insert": True, f"{name}.operation": value}
        else:
            options[name] = value
    return options


def _trained(weights: int, seed: int) -> "tuple[nn.Module, Digits]":
    """A trained cell of convolutions, and the data of the seed."""
    from pointsman.claims.architectures import (
        CELL_RATE,
        CELL_UPDATES,
        CELLS,
        EDGES,
        NOISE,
        noisy_digits,
        single_cell,
    )
    from pointsman.claims.testbeds import fit

    network = single_cell(CELLS.encode(dict.fromkeys(EDGES, "conv3x3")), weights)
    data = noisy_digits(seed)
    fit(network, data.train, seed=weights, updates=CELL_UPDATES, rate=CELL_RATE, noise=NOISE)
    return network, data


def _changed(base: "nn.Module", options: Any, seed: int) -> "nn.Module":
    """A copy whose three edges are trees."""
    from pointsman.claims.architectures import CELL_CHANNELS, EDGES
    from pointsman.supernet.transforming import edited, transformed

    edges = [name for name, _ in base.named_modules() if name.endswith(tuple(EDGES))]

    def grow(layer: "nn.Module") -> "nn.Module":
        return transformed(layer, options, CELL_CHANNELS, noise=NOISE_OF_COPIES, seed=seed)

    return edited(base, edges, grow)


def _reset(network: "nn.Module", seed: int) -> "nn.Module":
    """A copy with every weight drawn anew."""
    import copy

    import torch

    new = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in new.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return new


def _after_epoch(
    network: "nn.Module", data: "Digits", seed: int, updates: int = EPOCH
) -> tuple[float, float]:
    """Accuracy on the calibration and on the test part."""
    from pointsman.claims.architectures import NOISE, judged
    from pointsman.claims.testbeds import fit

    fit(network, data.train, seed=seed, updates=updates, rate=RATE, batch=BATCH, noise=NOISE)
    return judged(network, data)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return all(
        figures[f"network {each}: gain"] > 0 for figures in measurements for each in range(NETWORKS)
    )


CLAIM = Claim(
    slug="path-level-transformation",
    paper="Path-Level Network Transformation for Efficient Architecture Search",
    year=2018,
    arxiv="1806.02639",
    level="supernet",
    claim="Edits of a trained network's branches that keep its function let a search start from "
    "what was learned, so that candidates need little training.",
    baseline="The same changed network from new weights, trained alike; trees drawn by chance.",
    criterion="After one epoch on top of the edits, test accuracy in the mean over three trees is "
    "above that of the same networks trained for one epoch from new weights, for each of five "
    "trained networks with each of the seeds. The policy's rewards are reported beside it.",
    quick=quick,
    full=full,
    decide=decide,
    composition="replication and split · inserted nodes · tree-structured LSTM · REINFORCE",
    entry="pointsman.supernet.transforming.path_level_search",
    key={
        "transformed": "transformed: accuracy",
        "from scratch": "from scratch: accuracy",
        "policy's reward": "policy: mean reward of the last draws",
        "chance's reward": "chance: mean reward",
    },
)
