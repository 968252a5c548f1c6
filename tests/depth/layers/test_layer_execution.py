import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from pointsman.cost import Cost, count_flops
from pointsman.depth.decoder import Decoder
from pointsman.depth.layers.execute import (
    LayerCosts,
    layer_costs,
    run_paths,
    skippable,
    take_rows,
)
from pointsman.errors import InputError, UnitError


def one_by_one(trunk, x, runs):
    """The plain form: every input alone, every block as often as its count says."""
    found = []
    for at in range(len(x)):
        state = trunk.begin(x[at : at + 1])
        for block, count in enumerate(runs[at].tolist()):
            for _ in range(count):
                state = trunk.block(block, state)
        found.append(trunk.finish(state))
    return torch.cat(found)


@settings(
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(inputs=st.integers(1, 7), seed=st.integers(0, 2**32))
def test_every_input_gets_what_its_own_path_gives_alone(residual, inputs, seed):
    trunk = residual()
    generator = torch.Generator().manual_seed(seed)
    runs = torch.randint(4, (inputs, 4), generator=generator)
    x = torch.randn(inputs, 5, generator=generator).double()
    with torch.no_grad():
        answer = run_paths(trunk, x, runs)
        assert_close(answer.output, one_by_one(trunk, x, runs))
    assert torch.equal(answer.runs, runs)


def test_only_the_inputs_that_run_a_block_are_computed(residual):
    trunk = residual()
    runs = torch.tensor([[1, 0, 2, 1], [1, 0, 1, 0], [1, 0, 2, 0]])
    run_paths(trunk, torch.randn(3, 5).double(), runs)
    assert trunk.rows == [[3], [], [3, 2], [1]]


def test_the_whole_path_is_the_network_to_the_bit(residual):
    trunk, x = residual(), torch.randn(6, 5).double()
    assert_close(run_paths(trunk, x, torch.ones(4).long()).output, trunk(x), rtol=0, atol=0)


def test_a_batch_of_none_gives_an_answer_for_none(residual):
    answer = run_paths(residual(), torch.randn(0, 5).double(), torch.zeros(0, 4).long())
    assert answer.output.shape == (0, 3)
    assert len(answer.route.validate()) == 0


def test_the_route_has_a_branch_for_each_run_and_pays_for_all_of_them(residual):
    trunk, x = residual(), torch.randn(3, 5).double()
    runs = torch.tensor([[1, 0, 2, 1], [0, 0, 0, 0], [2, 2, 0, 1]])
    answer = run_paths(trunk, x, runs)
    route = answer.route.validate()
    assert route.num_branches == 8
    assert route.load().tolist() == [2, 1, 1, 2, 1, 1, 1, 0]
    costs = layer_costs(trunk, x)
    per_run = float(count_flops(trunk.inner[0], torch.randn(1, 8).double()))
    assert_close(torch.as_tensor(costs.blocks.amount), torch.full((4,), per_run).double())
    spent = route.cost(costs.per_branch(route)) + costs.fixed
    assert_close(torch.as_tensor(spent.amount), torch.as_tensor(costs.of(runs).amount))
    whole = float(count_flops(trunk, x)) / 3
    assert float(costs.whole) == pytest.approx(whole)
    assert costs.of(torch.ones(1, 4).long()).amount[0] == pytest.approx(whole)


def test_gradients_reach_the_blocks_that_ran_and_no_other(residual):
    trunk, x = residual(), torch.randn(3, 5).double()
    run_paths(trunk, x, torch.tensor([[1, 0, 2, 0]] * 2 + [[0, 0, 1, 0]])).output.sum().backward()
    assert [layer[0].weight.grad is not None for layer in trunk.inner] == [True, False, True, False]


class Shrinking(nn.Module):
    names = ("same", "half", "same again")

    def begin(self, x):
        return (x, {"seen": x.sum(dim=1)}, None)

    def block(self, at, state):
        x, rest, nothing = state
        return (x[:, ::2] if at == 1 else x + 1, {"seen": rest["seen"] + 1}, nothing)

    def features(self, state):
        return state[0]

    def finish(self, state):
        return torch.cat([state[0], state[1]["seen"][:, None]], dim=1)


def test_states_may_be_nested_and_blocks_that_change_the_shape_are_named():
    trunk, x = Shrinking(), torch.arange(12.0).reshape(3, 4)
    assert skippable(trunk, x) == (0, 2)
    runs = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 1, 1]])
    answer = run_paths(trunk, x, runs)
    assert_close(answer.output, one_by_one(trunk, x, runs))
    for count in (0, 2):
        runs[1, 1] = count
        with pytest.raises(InputError, match="'half' turns"):
            run_paths(trunk, x, runs)


def test_runs_that_do_not_fit_are_refused(residual):
    trunk, x = residual(), torch.randn(3, 5).double()
    with pytest.raises(InputError, match=r"shape \(3, 4\)"):
        run_paths(trunk, x, torch.ones(3, 5).long())
    with pytest.raises(InputError, match="0 times or more, got -1"):
        run_paths(trunk, x, -torch.ones(3, 4).long())
    with pytest.raises(InputError, match="float32"):
        run_paths(trunk, x, torch.ones(3, 4))
    with pytest.raises(InputError, match="empty"):
        layer_costs(trunk, x[:0])
    with pytest.raises(UnitError, match="one unit"):
        LayerCosts(Cost(1.0, "ms"), Cost(torch.ones(2).numpy(), "MFLOPs"), Cost(0.0, "ms"))


def test_sequences_of_a_decoder_take_paths_of_their_own():
    torch.manual_seed(0)
    decoder = Decoder(vocabulary=11, width=8, layers=3, heads=2, context=12).double().eval()
    ids = torch.randint(11, (4, 7))
    runs = torch.tensor([[1, 1, 1], [0, 2, 1], [1, 0, 0], [2, 1, 2]])
    with torch.no_grad():
        answer = run_paths(decoder, ids, runs)
        assert_close(answer.output, one_by_one(decoder, ids, runs))
    assert take_rows((ids, None), torch.tensor([2]))[0].shape == (1, 7)
