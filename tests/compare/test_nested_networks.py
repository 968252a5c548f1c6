"""The elastic networks of a comparison: what is drawn, what is chosen, what becomes of it."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pointsman.compare.networks import nested
from pointsman.supernet.search.problem import Evaluation
from pointsman.supernet.space import Choice, Space
from pointsman.supernet.supernet import Supernet

SPECS: dict[str, dict[str, Any]] = {
    "features": {"inputs": 6, "classes": 3, "hidden": [8, 8], "widths": [0.25, 0.5, 1.0]},
    "images": {"channels": 1, "side": [8, 8], "classes": 3, "width": 4, "widths": [0.5, 1.0]},
    "text": {"width": 16, "layers": 2, "context": 8, "widths": [0.25, 1.0]},
}
EXAMPLES = {
    "features": torch.rand(5, 6, generator=torch.Generator().manual_seed(0)),
    "images": torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
    "text": torch.arange(40, dtype=torch.uint8).reshape(5, 8),
}


def network(kind: str) -> Supernet:
    found = nested.build({"kind": kind, **SPECS[kind]}, EXAMPLES[kind])
    assert isinstance(found, Supernet)
    return found


@pytest.mark.parametrize("kind", SPECS)
def test_chosen_subnets_answer_as_the_network_did_and_are_built_again_from_their_sizes(
    kind: str,
) -> None:
    x, whole = EXAMPLES[kind], {"kind": kind, **SPECS[kind]}
    supernet = network(kind).eval()
    genotypes = nested.even(supernet.space)
    subnets, spec = nested.chosen(supernet, genotypes, whole, x)
    if kind != "images":  # there the statistics are gathered anew
        for genotype, alone in zip(genotypes, subnets.networks, strict=True):
            supernet.use(genotype)
            assert_close(alone(x), supernet(x))
    again = nested.build(spec, x)
    assert isinstance(again, nested.Subnets)
    again.load_state_dict(subnets.state_dict())
    assert_close(again.eval()(x), subnets(x), rtol=0, atol=0)


def test_subnets_are_named_after_what_they_use() -> None:
    x = EXAMPLES["text"]
    supernet = network("text")
    whole = {"kind": "text", **SPECS["text"]}
    subnets, spec = nested.chosen(supernet, nested.even(supernet.space), whole, x)
    assert spec["subnets"] == [[1, 16], [2, 64, 64]]
    assert subnets.names == ("subnet 1-16", "subnet 2-64-64")


def test_the_whole_is_drawn_most_often_and_every_subnet_sometimes() -> None:
    space = Space([Choice("a", (1, 2, 3)), Choice("b", (1, 2, 3))])
    generator = torch.Generator().manual_seed(0)
    drawn = [nested.draw(space, generator) for _ in range(4_000)]
    shares = {genotype: drawn.count(genotype) / 4_000 for genotype in space.enumerate()}
    assert shares[2, 2] == pytest.approx(0.4 + 0.2 / 9, abs=0.03)
    assert shares[0, 0] == pytest.approx(0.2 + 0.2 / 9, abs=0.03)
    assert shares[0, 2] == pytest.approx(0.2 / 9, abs=0.01)
    alone = Space([Choice("a", (1,))])
    assert nested.draw(alone, generator) == (0,)


def test_choices_are_the_front_and_the_even_ones_by_rising_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supernet = network("features").eval()
    found = [Evaluation((1, 0), -1.0, 2.0), Evaluation((0, 1), -2.0, 1.0)]
    monkeypatch.setattr(nested, "search", lambda *_, **__: found)
    x, y = EXAMPLES["features"], torch.zeros(5, dtype=torch.long)
    chosen = nested.choose(supernet, x, y, x, kind="features", seed=0)
    assert set(chosen) == {(1, 0), (0, 1), (0, 0), (1, 1), (2, 2)}
    costs = [nested.flops(supernet, genotype, x) for genotype in chosen]
    assert costs == sorted(costs)
