"""Binary layers, and the tree along which their outputs are computed."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.binary import (
    Binary,
    Reused,
    TreeDistance,
    make_binary,
    reuse,
    sign,
    spanning_tree,
)


def random_signs(outputs: int, positions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return sign(torch.randn(outputs, positions, generator=generator))


def test_the_tree_gives_the_products_exactly() -> None:
    signs = random_signs(17, 30)
    x = torch.randint(-3, 4, (5, 30)).float()
    assert torch.equal(Reused(signs)(x), x @ signs.T)


def test_equal_outputs_cost_nothing_and_one_output_is_a_tree() -> None:
    signs = random_signs(1, 12).repeat(4, 1)
    tree = spanning_tree(signs)
    assert tree.operations == 12
    x = torch.randn(2, 12)
    assert_close(Reused(signs)(x), x @ signs.T)
    alone = spanning_tree(signs[:1])
    assert (alone.depth, alone.operations, alone.parent.tolist()) == (0, 12, [-1])


def test_the_length_of_the_tree_is_minimal_among_all_of_four_outputs() -> None:
    signs = random_signs(4, 9)
    distance = (9 - signs @ signs.T) / 2
    pairs = [(a, b) for a in range(4) for b in range(a)]
    lengths = []
    for edges in torch.combinations(torch.arange(6), 3).tolist():
        chosen = [pairs[edge] for edge in edges]
        reached = {0}
        for _ in range(3):
            reached |= {b for pair in chosen for b in pair if set(pair) & reached}
        if len(reached) == 4:
            lengths.append(sum(float(distance[a, b]) for a, b in chosen))
    assert len(lengths) == 16  # the trees of four nodes
    assert spanning_tree(signs).operations == 9 + min(lengths)


def test_the_root_is_the_centre() -> None:
    chain = torch.ones(7, 6) - 2 * torch.ones(7, 6).triu(0)  # each differs from the next in one
    tree = spanning_tree(chain)
    assert tree.depth == 3
    assert int(tree.order[0]) == 3
    assert tree.level[tree.order].diff().ge(0).all()  # parents first


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(9, 6, bias=False), (2, 3, 9)),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), (2, 3, 9, 7)),
        (nn.Conv2d(2, 4, (3, 1), dilation=(2, 1), bias=False), (2, 2, 8, 5)),
    ],
)
@pytest.mark.parametrize("inputs", [True, False])
def test_a_layer_along_its_tree_gives_the_same_outputs(
    layer: nn.Module, shape: tuple[int, ...], inputs: bool
) -> None:
    binary = Binary(layer, inputs=inputs)  # type: ignore[arg-type]
    x = torch.randn(shape)
    assert_close(reuse(binary)(x), binary(x), rtol=1e-5, atol=1e-5)


def test_the_gradient_passes_the_sign_where_the_number_is_small() -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    out = sign(x)
    out.sum().backward()
    assert out.tolist() == [-1, -1, 1, 1, 1]
    assert x.grad is not None
    assert x.grad[[1, 2, 3]].tolist() == [1, 1, 1]
    assert x.grad[[0, 4]].tolist() == [0, 0]


def test_training_on_the_tree_distance_makes_outputs_alike() -> None:
    torch.manual_seed(0)
    layer = Binary(nn.Linear(20, 10, bias=False))
    term = TreeDistance([layer], every=2)
    before = spanning_tree(layer.signs).operations
    optimiser = torch.optim.Adam(layer.parameters(), 0.02)
    start = float(term().detach())
    assert_close(start, (before - 20) / (9 * 20))
    for _ in range(30):
        optimiser.zero_grad()
        term().backward()
        optimiser.step()
    assert spanning_tree(layer.signs).operations < 0.7 * before


def test_named_layers_stay_as_they_are() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)).eval()
    changed = make_binary(net, keep=["0"])
    assert [type(layer) for layer in changed] == [nn.Linear, Binary, nn.BatchNorm1d]
    assert isinstance(net[1], nn.Linear)
    assert not changed[1].training


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="without bias"):
        Binary(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"of \+1 and -1"):
        spanning_tree(torch.zeros(2, 3))
    with pytest.raises(InputError, match="0 layers"):
        TreeDistance([])
    with pytest.raises(InputError, match="'head', which is none"):
        make_binary(nn.Sequential(nn.Linear(2, 2, bias=False)), keep=["head"])
    with pytest.raises(InputError, match="left to make binary"):
        make_binary(nn.Sequential(nn.ReLU()))
