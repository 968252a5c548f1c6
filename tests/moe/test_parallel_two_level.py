"""Bi-level and switch-and-mix layers: their routes, their losses, and errors."""

import pytest
import torch
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe.balance import switch
from pointsman.moe.systems.two_level import alignment, node_balance, place_balance, sam, smile


@pytest.mark.parametrize("make", [lambda: smile(6, 5, 3, 4), lambda: sam(6, 5, 12, 3, 2)])
def test_layers_run_learn_and_take_no_tokens(make) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    layer = make().double()
    y, routing = layer(torch.randn(2, 7, 6, dtype=torch.float64))
    assert y.shape == (2, 7, 6)
    (y.square().sum() + routing.loss).backward()
    for weight in layer.router.parameters():
        assert weight.grad.any()
    assert len(routing.losses) == 2
    empty, routing = layer(torch.zeros(0, 6, dtype=torch.float64))
    assert empty.shape == (0, 6)
    assert float(routing.loss.detach()) == 0


def test_balance_of_levels_is_the_switch_loss_of_each_router() -> None:
    torch.manual_seed(0)
    layer = smile(6, 5, 3, 4).double()
    x = torch.randn(50, 6, dtype=torch.float64)
    _, routing = layer(x)
    for loss, scores, taken in (
        (node_balance(routing, nodes=3), layer.router.groups(x), routing.route.branches // 4),
        (place_balance(routing, nodes=3), layer.router.experts(x), routing.route.branches % 4),
    ):
        share = torch.bincount(taken, minlength=scores.shape[1]) / 50
        chance = scores.softmax(dim=1).mean(dim=0)
        assert_close(loss, scores.shape[1] * (share * chance).sum())


def test_alignment_counts_what_lies_outside_above_the_last_chosen() -> None:
    layer = sam(2, 2, 4, 2, 1)
    chance = torch.tensor([[0.4, 0.2, 0.35, 0.05], [0.31, 0.29, 0.4, 0.0]])
    with torch.no_grad():
        layer.router.weight.copy_(chance.clamp_min(1e-9).log().T)
    _, routing = layer(torch.eye(2))
    assert routing.route.branches.tolist() == [0, 0]
    # The first token's group holds the best expert; the second's does not: 0.4 - 0.31 lies above.
    assert_close(alignment(routing, groups=2), torch.tensor(0.045))
    assert_close(switch(routing), 4 * chance.mean(dim=0)[0])


def test_alignment_has_right_gradients() -> None:
    torch.manual_seed(0)
    layer = sam(3, 2, 6, 3, 2).double()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return alignment(layer(x)[1], groups=3)

    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, x)
    with pytest.raises(InputError, match="4 groups do not divide 6 experts"):
        alignment(layer(x)[1], groups=4)
