"""Networks that hold many: elastic in width and depth, searched for the subnets worth a look.

The network is trained with one drawn subnet a step. Then subnets are searched on the validation
part for the front of likelihood against FLOPs (`pointsman.supernet.search`). Those on it, and those
that are equally narrow everywhere, become ordinary networks, which are measured, certified and
saved like any other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.compare.data import Kind
from pointsman.compare.judging import judge
from pointsman.compare.networks import features, images
from pointsman.compare.networks.text import Transformer
from pointsman.cost import count_flops
from pointsman.supernet.costs import count_mflops
from pointsman.supernet.elastic import Depth, Width
from pointsman.supernet.making import make_elastic
from pointsman.supernet.recalibration import recalibrate
from pointsman.supernet.search.engines.front_search import front_search
from pointsman.supernet.search.problem import Problem, front
from pointsman.supernet.search.run import search
from pointsman.supernet.space import Genotype, Space
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training.inherited import InheritedQuality

# How often the whole network is the subnet that a training step draws, and how often it is one that
# is equally narrow everywhere; else every choice is drawn by itself.
WHOLE_SHARE, EVEN_SHARE = 0.4, 0.4
EVALUATIONS = 60
MOST_FOUND = 10
SEARCH_ROWS = 1000
STATISTICS_ROWS = 512  # training inputs from which batch normalisation is gathered for a subnet


class Subnets(nn.Module):
    """The chosen subnets of one network, as ordinary networks, from small to large.

    Args:
        spec: of the network, with the sizes of each subnet, see `sizes`.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.names = tuple(name_of(subnet) for subnet in spec["subnets"])
        self.networks = nn.ModuleList(_plain(spec, subnet) for subnet in spec["subnets"])

    def forward(self, x: Tensor) -> Tensor:
        """Of the largest."""
        logits: Tensor = self.networks[-1](x)
        return logits


def build(spec: Mapping[str, Any], example: Tensor) -> Supernet | Subnets:
    """The network of a description, with fresh weights; only its subnets once they are known."""
    if "subnets" in spec:
        return Subnets(spec)
    return make_elastic(_plain(spec), example, _elastic(spec))


def _plain(spec: Mapping[str, Any], taken: Sequence[int] = ()) -> nn.Module:
    """The whole network, or one of these sizes."""
    if spec["kind"] == "features":
        return features.mlp(spec["inputs"], spec["classes"], taken or spec["hidden"])
    if spec["kind"] == "images":
        halvings = images.stages(min(spec["side"]))
        return images.convnet(spec["channels"], spec["classes"], spec["width"], halvings, taken)
    layers, *inner = taken or [spec["layers"]]
    return Transformer(spec["width"], layers, spec["context"], "dense", inner=inner)


def _elastic(spec: Mapping[str, Any]) -> list[Width | Depth]:
    if spec["kind"] != "text":
        return [Width(shares=spec["widths"])]
    layers = spec["layers"]
    return [
        Depth("blocks", counts=range((layers + 1) // 2, layers + 1)),
        Width("blocks.*.feed_forward", shares=spec["widths"]),
    ]


def sizes(space: Space, genotype: Sequence[int]) -> list[int]:
    """Units of each layer in use; for text the number of layers first."""
    return [int(option) for option in space.decode(genotype).values()]


def name_of(taken: Sequence[int]) -> str:
    """Such as "subnet 24-96"."""
    return "subnet " + "-".join(map(str, taken))


def even(space: Space) -> list[Genotype]:
    """The subnets that are equally narrow everywhere, from the smallest to the whole network."""
    most = [len(choice.options) - 1 for choice in space.choices]
    levels = np.linspace(0, 1, max(most) + 1)
    found = [space.canonical([round(u * last) for last in most]) for u in levels]
    return list(dict.fromkeys(found))


def draw(space: Space, generator: torch.Generator) -> Genotype:
    """A subnet for one training step."""
    kind, level = torch.rand(2, generator=generator).tolist()
    *narrow, whole = even(space)
    if kind < WHOLE_SHARE or not narrow:
        return whole
    if kind < WHOLE_SHARE + EVEN_SHARE:
        return narrow[int(level * len(narrow))]
    drawn = torch.rand(len(space.choices), generator=generator).tolist()
    return space.canonical(
        [int(u * len(choice.options)) for u, choice in zip(drawn, space.choices, strict=True)]
    )


def flops(supernet: Supernet, genotype: Sequence[int], example: Tensor) -> float:
    """MFLOPs of a batch in one subnet, which is in force afterwards."""
    supernet.use(genotype)
    return float(count_flops(supernet, example))


def mean_flops(supernet: Supernet, example: Tensor, draws: int = 24) -> float:
    """MFLOPs of a batch in the subnets that training draws, on average."""
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(supernet.space, generator) for _ in range(draws)]
    spent = {genotype: flops(supernet, genotype, example) for genotype in set(drawn)}
    return sum(spent[genotype] for genotype in drawn) / draws


def choose(
    supernet: Supernet, x: Tensor, y: Tensor, seen: Tensor, *, kind: Kind, seed: int
) -> list[Genotype]:
    """The subnets worth a look, by rising cost, the whole network last.

    Args:
        supernet: trained.
        x: inputs (n, ...) that it was not trained on.
        y: their targets.
        seen: inputs that it was trained on, for the statistics of batch normalisation.
        kind: of the data.
        seed: of the search.
    """

    def likelihood(logits: Tensor, targets: Tensor) -> float:
        return -float(judge(logits, targets, kind)[1].double().mean())

    rows, targets = x[:SEARCH_ROWS], y[:SEARCH_ROWS]
    seen = seen[:STATISTICS_ROWS]
    problem = Problem(
        supernet.space,
        InheritedQuality(supernet, rows, targets, measure=likelihood, recalibrate=[seen]),
        cost=count_mflops(supernet, rows[:2]),
    )
    found = [each.genotype for each in front(search(problem, front_search, EVALUATIONS, seed=seed))]
    steps = range(min(len(found), MOST_FOUND))
    kept = {found[at * len(found) // len(steps)] for at in steps} | set(even(problem.space))
    return sorted(kept, key=lambda genotype: (problem.cost(genotype), genotype))


def chosen(
    supernet: Supernet, genotypes: Sequence[Genotype], spec: Mapping[str, Any], seen: Tensor
) -> tuple[Subnets, dict[str, Any]]:
    """Subnets with weights of their own and the statistics of these inputs; their description."""
    found = {**spec, "subnets": [sizes(supernet.space, genotype) for genotype in genotypes]}
    subnets = Subnets(found)
    for network, genotype in zip(subnets.networks, genotypes, strict=True):
        network.load_state_dict(supernet.extract(genotype).state_dict())
        recalibrate(network, [seen[:STATISTICS_ROWS]])
    return subnets.eval(), found
