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
from pointsman.supernet.elastic import Depth, Width
from pointsman.supernet.making import make_elastic
from pointsman.supernet.search.engines.front_search import front_search
from pointsman.supernet.search.problem import Problem, front
from pointsman.supernet.search.run import search
from pointsman.supernet.space import Genotype, Space
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training.inherited import InheritedQuality, gather_statistics

# How often the whole network is the subnet that a training step draws, and how often it is one that
# is equally narrow everywhere; else every choice is drawn by itself.
WHOLE_SHARE, EVEN_SHARE = 0.4, 0.4
EVALUATIONS = 60
MOST_FOUND = 10
SEARCH_ROWS = 1000
STATISTICS_ROWS = 512  # training inputs from which batch normalisation is gathered for a subnet


class Subnets(nn.Module):
    """The chosen subnets of one network, as ordinary networks, from small to large."""

    def __init__(self, supernet: Supernet, genotypes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.names = tuple(name_of(supernet.space, genotype) for genotype in genotypes)
        self.networks = nn.ModuleList(supernet.extract(genotype) for genotype in genotypes)

    def forward(self, x: Tensor) -> Tensor:
        """Of the largest."""
        logits: Tensor = self.networks[-1](x)
        return logits


def build(spec: Mapping[str, Any], example: Tensor) -> Supernet | Subnets:
    """The network of a description, with fresh weights; only its subnets once they are known."""
    with torch.no_grad():
        supernet = make_elastic(_plain(spec), example, _elastic(spec))
    return Subnets(supernet, spec["subnets"]) if "subnets" in spec else supernet


def _plain(spec: Mapping[str, Any]) -> nn.Module:
    if spec["kind"] == "features":
        return features.mlp(spec["inputs"], spec["classes"], spec["hidden"])
    if spec["kind"] == "images":
        halvings = images.stages(min(spec["side"]))
        return images.convnet(spec["channels"], spec["classes"], spec["width"], halvings)
    return Transformer(spec["width"], spec["layers"], spec["context"], "dense")


def _elastic(spec: Mapping[str, Any]) -> list[Width | Depth]:
    if spec["kind"] != "text":
        return [Width(shares=spec["widths"])]
    layers = spec["layers"]
    return [
        Depth("blocks", counts=range((layers + 1) // 2, layers + 1)),
        Width("blocks.*.feed_forward", shares=spec["widths"]),
    ]


def name_of(space: Space, genotype: Sequence[int]) -> str:
    """Such as "subnet 24-96": the options of the choices that matter."""
    return "subnet " + "-".join(str(option) for option in space.decode(genotype).values())


def even(space: Space) -> list[Genotype]:
    """The subnets that are equally narrow everywhere, from the smallest to the whole network."""
    sizes = [len(choice.options) for choice in space.choices]
    levels = np.linspace(0, 1, max(sizes))
    found = [space.canonical([round(u * (size - 1)) for size in sizes]) for u in levels]
    return list(dict.fromkeys(found))


def draw(space: Space, generator: torch.Generator) -> Genotype:
    """A subnet for one training step."""
    kind, level = torch.rand(2, generator=generator).tolist()
    *narrow, whole = even(space)
    if kind < WHOLE_SHARE or not narrow:
        return whole
    if kind < WHOLE_SHARE + EVEN_SHARE:
        return narrow[int(level * len(narrow))]
    sizes = [len(choice.options) for choice in space.choices]
    drawn = torch.rand(len(sizes), generator=generator).tolist()
    return space.canonical([int(u * size) for u, size in zip(drawn, sizes, strict=True)])


def flops(supernet: Supernet, genotype: Sequence[int], example: Tensor) -> float:
    """MFLOPs of a batch in one subnet, which is in force afterwards."""
    supernet.use(genotype)
    return float(count_flops(supernet, example))


def mean_flops(supernet: Supernet, example: Tensor, draws: int = 64) -> float:
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
        cost=lambda genotype: flops(supernet, genotype, rows[:2]),
    )
    found = [each.genotype for each in front(search(problem, front_search, EVALUATIONS, seed=seed))]
    steps = range(min(len(found), MOST_FOUND))
    kept = {found[at * len(found) // len(steps)] for at in steps} | set(even(problem.space))
    return sorted(kept, key=lambda genotype: (problem.cost(genotype), genotype))


def chosen(supernet: Supernet, genotypes: Sequence[Genotype], x: Tensor) -> Subnets:
    """Subnets with weights of their own, and the statistics of these training inputs."""
    subnets = Subnets(supernet, genotypes)
    for network in subnets.networks:
        gather_statistics(network, [x[:STATISTICS_ROWS]])
    return subnets.eval()
