import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.cost import count_flops
from pointsman.depth import EarlyExit
from pointsman.depth.networks import CoarseHead, Layer, StageShape, coarse_heads, two_scale
from pointsman.errors import InputError

STAGES = (
    StageShape(fine=(Layer(4), Layer(8)), down=(8,)),
    StageShape(fine=(Layer(8),), down=(12,)),
    StageShape(fine=(Layer(8),), down=(12,)),
)


def small(stages=STAGES, seed=0):
    torch.manual_seed(seed)
    return two_scale(1, 5, stages)


def images(count=3):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_children_are_stages_and_an_end():
    assert [name for name, _ in small().named_children()] == ["stage1", "stage2", "stage3", "end"]
    assert small()(images()).shape == (3, 5)


def test_the_default_is_for_images_of_32_by_32_pixels():
    assert two_scale()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_stage_adds_to_the_coarse_features_of_the_one_before():
    net = small().eval()
    state = net[0](images())
    fine, coarse = net[1](state)
    assert_close(fine, net[1].fine(state[0]))
    assert_close(coarse, torch.relu(net[1].down(fine) + net[1].widen(state[1])))
    assert state[1].shape == (3, 8, 4, 4)
    assert fine.shape == (3, 8, 8, 8)
    assert coarse.shape == (3, 12, 4, 4)


def test_features_of_equal_width_are_added_as_they_are():
    net = small().eval()
    assert list(net[1].widen.parameters())
    assert not list(net[2].widen.parameters())


def test_pixels_are_halved_where_a_layer_says_so():
    stages = (
        StageShape(fine=(Layer(4, pool=True),), down=(8, 8)),
        StageShape(fine=(Layer(8, pool=True),), down=(8,)),
    )
    fine, coarse = small(stages).eval()[0](torch.zeros(1, 1, 16, 16))
    assert (fine.shape, coarse.shape) == ((1, 4, 8, 8), (1, 8, 2, 2))
    fine, coarse = small(stages).eval()[1]((fine, coarse))
    assert (fine.shape, coarse.shape) == ((1, 8, 4, 4), (1, 8, 2, 2))


def test_an_exit_answers_from_the_coarse_features_alone():
    head, (fine, coarse) = CoarseHead(8, 5), small().eval()[0](images())
    assert_close(head((fine, coarse)), head((torch.zeros_like(fine), coarse)))
    expected = head.linear((coarse.mean((2, 3)) + coarse.amax((2, 3))) / 2)
    assert_close(head((fine, coarse)), expected)


def test_exits_cost_next_to_nothing_and_the_first_is_a_part_of_the_network():
    net = small()
    exits = EarlyExit(net, ["stage1", "stage2"], example=images(), heads=coarse_heads(net))
    costs = exits.stage_costs(images())
    whole = count_flops(net, images()) / 3
    assert_close(costs.alone(-1).amount, whole.amount)
    assert costs.answer.amount.max() < 0.05 * whole.amount
    first = small(STAGES[:1]).eval()
    first[0].load_state_dict(net[0].state_dict())
    first[1].load_state_dict(exits.heads[0].state_dict())
    assert_close(first(images()), exits.eval()(images())[0])


def test_inputs_that_leave_early_get_the_answer_of_their_exit():
    net = small()
    exits = EarlyExit(net, ["stage1", "stage2"], example=images(), heads=coarse_heads(net)).eval()
    x = images(16)
    with torch.no_grad():
        every = torch.stack(exits(x))
    sure = every[0].softmax(1).amax(1)
    answer = exits.run(x, [float(sure.median()), 2.0])
    assert set(answer.stage.tolist()) == {0, 2}
    assert_close(answer.output, every[answer.stage, torch.arange(16)])


@pytest.mark.parametrize(
    "stages",
    [(), (StageShape(fine=(), down=(8,)),), (*STAGES, StageShape(fine=(Layer(8),), down=()))],
)
def test_a_network_has_stages_that_reach_the_coarse_features(stages):
    with pytest.raises(InputError, match="at least one stage"):
        two_scale(stages=stages)


def test_heads_are_made_for_this_network_only():
    with pytest.raises(InputError, match="must end in a CoarseHead, got Linear"):
        coarse_heads(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
