"""Costs of subnets: sums over modules equal whole counts of what is extracted."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pointsman.cost import count_flops
from pointsman.supernet.costs import Count, count_mflops, count_parameters, measure_subnets
from pointsman.supernet.elastic import Depth, Kernel, OneOf, Skip, Width
from pointsman.supernet.making import make_elastic
from pointsman.supernet.space import Choice, Space
from pointsman.supernet.supernet import Supernet

X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Every place looks at every place: products that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.out = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 3)).transpose(1, 2) for layer in self.into)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.out(mixed.transpose(1, 2).flatten(2))
        return out


def convolutions() -> tuple[Supernet, Tensor]:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))),
        OneOf("it", {"less": nn.Conv2d(8, 4, 1), "more": nn.Conv2d(8, 4, 3, padding=1)}),
        nn.Flatten(),
        nn.Linear(144, 3),
    )
    declared = [Depth("2", counts=(1, 2)), Kernel("2.*", (1, 3)), Width("0", counts=(2, 5, 8))]
    return make_elastic(body, X, declared), X


def attention() -> tuple[Supernet, Tensor]:
    from pointsman.supernet.elastic import Heads

    torch.manual_seed(0)
    x = torch.randn(2, 5, 6)
    body = nn.Sequential(*(Attention() for _ in range(3)))
    return make_elastic(body, x, [Skip(""), Heads(shares=(0.5, 1))]), x


@pytest.mark.parametrize("make", [convolutions, attention])
def test_sums_equal_whole_counts_for_every_subnet(make: "type[convolutions]") -> None:  # type: ignore[valid-type]
    net, x = make()
    flops, parameters = count_mflops(net, x), count_parameters(net)
    assert flops.exact_sums
    assert parameters.exact_sums
    for genotype in net.space.enumerate():
        plain = net.extract(genotype).eval()
        assert flops(genotype) == pytest.approx(float(count_flops(plain, x)), rel=1e-12, abs=0)
        assert parameters(genotype) == sum(p.numel() for p in plain.parameters())
    assert net.in_force == tuple(len(c.options) - 1 for c in net.space.choices)


def test_few_subnets_are_counted_whole() -> None:
    body = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6)))
    net = make_elastic(body, None, [Kernel("*", (1, 3))])
    x = torch.randn(1, 4, 3, 3)
    count = count_mflops(net, x)
    assert len({count(genotype) for genotype in net.space.enumerate()}) == 7
    assert net.space.count() == 64
    assert count.counted < 45


def test_a_cost_that_is_no_sum_of_tables_is_counted_whole() -> None:
    space = Space([Choice(f"c{at}", (0, 1)) for at in range(7)])

    def whole(genotype: tuple[int, ...]) -> dict[str, int]:  # all choices matter to one module
        return {"it": int(np.random.default_rng(list(genotype)).integers(1_000))}

    count = Count(space, whole, "MFLOPs")
    for genotype in space.enumerate():
        assert count(genotype) == whole(genotype)["it"]


def test_what_matters_only_together_is_found() -> None:
    space = Space([Choice(name, (0, 1, 2)) for name in "abcd"])

    def whole(genotype: tuple[int, ...]) -> dict[str, int]:
        a, b, c, d = genotype
        return {"one": 5 + a * (b == 1), "two": 7 if (c, d) == (0, 1) else 3}

    count = Count(space, whole, "parts")
    for genotype in space.enumerate():
        assert count(genotype) == sum(whole(genotype).values())
    assert str(count.cost((0, 0, 0, 0))) == "8 parts"


def test_every_subnet_is_timed() -> None:
    net, x = convolutions()
    genotypes = [(0,) * 5, (1, 1, 1, 2, 1)]
    found = measure_subnets(net, x, genotypes, repeats=3)
    assert [latency.repeats for latency in found] == [3, 3]
    assert all(latency.median.unit == "ms" for latency in found)
