"""Fractal networks: the recursion they unfold, joins that keep the scale, columns as networks."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.cost import count_flops
from pointsman.depth.paths import (
    FractalBlock,
    FractalNetwork,
    convolution_unit,
    dense_unit,
    fractalnet,
    mean_join,
    survivors,
)
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError


def network(columns=3, blocks=2, width=6, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    widths = [4] + [width] * blocks
    return FractalNetwork(widths, columns, dense_unit, nn.Linear(width, 3)).to(dtype)


def rows(count=10, seed=1):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).double()


def reference(chains, x):
    """The paper's f_C, unfolded; `chains[k]` are the units that span 2^k steps each."""

    def arriving(value, k, first):
        """What reaches the end of 2^k steps, from columns whose next units are `first`."""
        own = chains[k][first[k]](value)
        if k == 0:
            return [own]
        half = mean_join(arriving(value, k - 1, first))
        later = [at + 2 ** (k - 1 - j) for j, at in enumerate(first[:k])]
        return [*arriving(half, k - 1, later), own]

    return mean_join(arriving(x, len(chains) - 1, [0] * len(chains)))


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_a_block_is_the_recursion_of_the_paper(columns):
    torch.manual_seed(0)
    block = FractalBlock(5, 5, columns, dense_unit).double()
    x = torch.randn(7, 5).double()
    chains = [block.chain(c) for c in reversed(range(columns))]
    assert_close(block(x), reference(chains, x))


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_a_block_of_c_columns_has_two_to_the_c_less_one_units_and_half_that_depth(columns):
    block = FractalBlock(3, 3, columns, dense_unit)
    assert sum(len(block.chain(c)) for c in range(columns)) == 2**columns - 1
    assert block.depth == 2 ** (columns - 1)


def test_a_join_of_equal_inputs_is_the_identity_whoever_is_dropped():
    x = torch.randn(6, 3)
    assert_close(mean_join([x, x, x]), x)
    assert_close(mean_join([x, x, x], survivors(6, 3, 0.7)), x)


def test_a_join_divides_by_the_survivors_and_hides_the_dropped():
    a, b = torch.ones(2, 3), torch.full((2, 3), torch.nan)
    alive = torch.tensor([[True, False], [True, False]])
    assert_close(mean_join([a, b], alive), a)
    b = torch.full((2, 3), 3.0, requires_grad=True)
    alive = torch.tensor([[True, True], [True, False]])
    joined = mean_join([a, b], alive)
    assert_close(joined, torch.tensor([[2.0] * 3, [1.0] * 3]))
    joined.sum().backward()
    assert_close(b.grad, torch.tensor([[0.5] * 3, [0.0] * 3]))


def test_joins_refuse_what_does_not_fit():
    a = torch.ones(2, 3)
    with pytest.raises(InputError, match="one shape"):
        mean_join([a, torch.ones(2, 4)])
    with pytest.raises(InputError, match="at least one path"):
        mean_join([a, a], torch.tensor([[True, False], [False, False]]))
    with pytest.raises(InputError, match="bool table"):
        mean_join([a, a], torch.ones(2, 2))
    with pytest.raises(InputError, match="rate"):
        survivors(2, 2, 1.5)


def test_drops_have_their_rate_and_the_last_path_stays_whichever_it_is():
    generator = torch.Generator().manual_seed(0)
    alive = survivors(20_000, 2, 0.5, generator=generator)
    assert bool(alive.any(dim=1).all())
    # P(path alive) = P(kept) + P(all dropped) / 2
    assert_close(alive.float().mean(dim=0), torch.full((2,), 0.625), atol=0.02, rtol=0)
    single = survivors(20_000, 3, 1.0, generator=generator)
    assert (single.sum(dim=1) == 1).all()
    assert_close(single.float().mean(dim=0), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    assert bool(survivors(50, 3, 0.0).all())


@pytest.mark.parametrize("column", [0, 1, 2])
def test_one_column_is_a_plain_network_of_shared_modules(column):
    net, x = network(), rows()
    alone = net.alone(column)
    assert_close(alone(x), net(x, column=column))
    assert sum(isinstance(m, nn.Linear) for m in alone.modules()) == 2 * 2**column + 1
    alone.head.weight.data.zero_()
    assert not net.head.weight.any()


def test_one_column_with_full_drop_is_any_path_of_the_network():
    net, x = network(blocks=1), rows(200)
    drawn = net(x, drop=1.0, generator=torch.Generator().manual_seed(3))
    alone = torch.stack([net(x, column=c) for c in range(3)])
    same = torch.isclose(drawn, alone).all(dim=2).any(dim=0)
    assert same.any()
    assert not same.all()  # paths change columns at joins


def test_drop_path_runs_a_column_or_drops_locally():
    net, x = network(), rows()
    generator = torch.Generator().manual_seed(0)
    columns = torch.stack([net(x, column=c) for c in range(3)])
    for _ in range(20):
        y = net.drop_path(x, share=1.0, generator=generator)
        assert torch.isclose(y, columns).all(dim=(1, 2)).any()
    assert_close(net.drop_path(x, local=0.0, share=0.0), net(x))
    assert not torch.equal(net.drop_path(x, local=0.5, share=0.0), net(x))


def test_a_global_column_teaches_itself_alone():
    net, x = network(), rows()
    net(x, column=1).sum().backward()
    for block in net.blocks:
        for c in range(3):
            grads = [weight.grad is not None for u in block.chain(c) for weight in u.parameters()]
            assert all(grads) == (c == 1)
            assert any(grads) == (c == 1)


def test_the_network_is_a_trunk():
    net, x = network(), rows()
    assert isinstance(net, Trunk)
    state = net.begin(x)
    for at in range(len(net.names)):
        state = net.block(at, state)
    assert_close(net.finish(state), net(x))


def test_columns_are_paid_for_as_they_run():
    net, x = network(dtype=torch.float32), rows().float()
    costs = net.stage_costs(x)
    wide = 4 * 6 + 6 * 3  # first layer and head of column 0
    assert costs.alone(0).to("FLOPs").amount == pytest.approx(2 * (wide + 36))
    assert costs.alone(3).amount == pytest.approx(float(count_flops(net, x)) / len(x))
    answer = net.run(x, [math.inf, 2.0, 2.0])
    assert answer.stage.tolist() == [3] * len(x)
    spent = answer.route.cost(costs.per_stage([math.inf, 2.0, 2.0]))
    one = sum(float(costs.answer.amount[at]) for at in (1, 2, 3))
    assert spent.amount.tolist() == pytest.approx([one] * len(x))
    assert_close(answer.output, net(x))
    assert_close(net.run(x, 0.0).output, net(x, column=0))
    assert net.run(x[:0], 0.5).output.shape == (0, 3)


def test_the_frontier_goes_from_the_whole_network_to_the_first_column():
    net, x = network(dtype=torch.float32), rows(40).float()
    y = net(x).argmax(dim=1)
    frontier = net.frontier(x, y)
    assert frontier.points[0].quality == 1.0
    assert frontier.points[0].cost == pytest.approx(net.stage_costs(x).alone(3).amount)
    assert frontier.points[-1].cost == pytest.approx(net.stage_costs(x).alone(0).amount)
    with pytest.raises(InputError, match="at least one input"):
        net.frontier(x[:0], y[:0])


def test_images_shrink_block_by_block_and_the_depth_is_that_of_the_paper():
    net = fractalnet(10, 2, channels=(4, 6), inputs=1, dropout=(0.0, 0.5)).eval()
    assert net.depth == 4
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert fractalnet(10, 3, channels=(2,) * 5).depth == 20
    assert isinstance(convolution_unit(2, 3)[1], nn.BatchNorm2d)


def test_gradients_are_right_in_double_precision():
    net, x = network(columns=2, blocks=1, width=3), rows(3)
    assert torch.autograd.gradcheck(net, x.requires_grad_())


def test_state_is_saved_and_loaded():
    net, x = network(), rows()
    other = network(seed=5)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    assert_close(other(x), net(x))


def test_bad_networks_are_refused():
    net = network()
    for column in (-1, 3):
        with pytest.raises(InputError, match="columns are 0 to 2"):
            net(rows(), column=column)
        with pytest.raises(InputError, match="columns are 0 to 2"):
            net.alone(column)
    with pytest.raises(InputError, match="at least one column"):
        network(columns=0)
    with pytest.raises(InputError, match="each block"):
        FractalNetwork([4], 2, dense_unit, nn.Identity())
    with pytest.raises(InputError, match="a module each"):
        FractalNetwork([4, 4], 2, dense_unit, nn.Identity(), [])
    with pytest.raises(InputError, match="dropout rate"):
        fractalnet(10, channels=(4, 4), dropout=(0.1,))
