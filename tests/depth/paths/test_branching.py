"""Learning to branch: draws are fair, a tree runs only what its tasks need, groups are found."""

import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from torch.testing import assert_close

from pointsman.cost import count_flops
from pointsman.depth.paths import BranchingNetwork, Tree, gumbel_choice, search_branches
from pointsman.errors import InputError

# three levels of 1, 2 and 3 nodes, four tasks; node 1 of the last level is read by nobody
TREE = Tree(((0, 0), (1, 1, 0), (0, 2, 0, 2)))


def space(seed=0, dtype=torch.float64, nodes=(1, 2, 3), tasks=4):
    torch.manual_seed(seed)
    levels = [[nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(k)] for k in nodes]
    return BranchingNetwork(levels, [nn.Linear(5, 2) for _ in range(tasks)]).to(dtype)


def rows(count=6, seed=1):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)).double()


def by_hand(net, x):
    first = net.levels[0][0](x)
    left, right = net.levels[1][0](first), net.levels[1][1](first)
    zero, two = net.levels[2][0](right), net.levels[2][2](left)
    return [head(v) for head, v in zip(net.heads, (zero, two, zero, two), strict=True)]


def prefer(net, tree, strength=100.0):
    with torch.no_grad():
        for logits, parents in zip(net.logits, tree.parents, strict=True):
            for child, parent in enumerate(parents):
                logits[child, parent] = strength


def test_uniform_logits_pick_every_parent_as_often_at_any_temperature():
    generator = torch.Generator().manual_seed(0)
    for temperature in (1e-3, 1.0):
        picked = gumbel_choice(
            torch.zeros(3000, 4), temperature=temperature, generator=generator
        ).argmax(dim=1)
        assert chisquare(torch.bincount(picked, minlength=4).numpy()).pvalue > 1e-3


def test_draws_follow_the_softmax_of_the_logits():
    logits = torch.tensor([0.0, 1.0, -1.0, -torch.inf]).expand(20_000, 4)
    picked = gumbel_choice(logits, generator=torch.Generator().manual_seed(0))
    assert_close(picked.mean(dim=0), logits[0].softmax(dim=0), atol=0.02, rtol=0)


def test_a_draw_is_one_hot_with_the_gradient_of_its_soft_form():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double()
    logits.requires_grad_()
    values = torch.arange(3.0).double()
    choice = gumbel_choice(logits, temperature=0.7, generator=torch.Generator().manual_seed(3))
    assert_close(choice.detach().sum(dim=1), torch.ones(5).double())
    assert set(choice.detach().unique().tolist()) == {0.0, 1.0}
    (found,) = torch.autograd.grad((choice @ values).sum(), logits)
    from pointsman.select import gumbel

    soft = gumbel(
        logits, 3, temperature=0.7, hard=False, generator=torch.Generator().manual_seed(3)
    ).to_dense()
    (wanted,) = torch.autograd.grad((soft @ values).sum(), logits)
    assert_close(found, wanted)
    assert (found != 0).all()  # alternatives that were not drawn get gradient too


def test_a_tree_knows_its_paths_nodes_and_groups():
    assert TREE.paths() == ((0, 1, 0), (0, 0, 2), (0, 1, 0), (0, 0, 2))
    assert TREE.used() == ((0,), (0, 1), (0, 2))
    assert TREE.groups(0) == ((0, 1, 2, 3),)
    assert TREE.groups(2) == ((0, 2), (1, 3))


def test_the_likely_tree_is_what_sampling_gives_when_it_is_certain():
    net, x = space(), rows()
    prefer(net, TREE)
    # the child of the unused node is free: only the used ones are compared
    assert net.tree().paths() == TREE.paths()
    wanted = by_hand(net, x)
    for outputs in (net(x), net.sampled(x)):
        for found, right in zip(outputs, wanted, strict=True):
            assert_close(found, right)
    assert_close(net(x, tasks=[2])[0], wanted[2])


@pytest.mark.parametrize("fresh", [False, True])
def test_extracting_keeps_the_used_nodes_in_modules_of_their_own(fresh):
    net, x = space(), rows()
    wanted = by_hand(net, x)
    plain = net.extract(TREE, fresh=fresh)
    assert [len(level) for level in plain.levels] == [1, 2, 2]
    assert plain.tree.paths() == ((0, 1, 0), (0, 0, 1), (0, 1, 0), (0, 0, 1))
    same = [torch.equal(a, b) for a, b in zip(plain(x), wanted, strict=True)]
    assert same == [not fresh] * 4
    plain.levels[0][0][0].weight.data.zero_()
    assert net.levels[0][0][0].weight.any()


def test_only_the_branches_of_the_tasks_asked_run_and_each_once():
    net, x = space(), rows()
    ran = []
    for at, level in enumerate(net.levels):
        for node, module in enumerate(level):
            module.register_forward_hook(lambda *_, which=(at, node): ran.append(which))
    plain = net.extract(TREE)
    ran.clear()
    net(x)  # the likely tree of uniform logits goes through node 0 everywhere
    assert ran == [(0, 0), (1, 0), (2, 0)]
    ran.clear()
    plain(x, tasks=[3, 1])
    assert ran == [(0, 0), (1, 0), (2, 2)]


def test_costs_are_counted_node_by_node_and_shared_nodes_once():
    net, x = space(dtype=torch.float32).extract(TREE), rows().float()
    costs = net.node_costs(x)
    layer, head = 2 * 25e-6, 2 * 10e-6
    assert costs.amount.tolist() == pytest.approx([layer] * 5 + [head] * 4)
    assert net.route().cost(costs).amount.tolist() == pytest.approx([3 * layer + head] * 4)
    assert float(costs.sum()) == pytest.approx(float(count_flops(net, x)) / len(x))
    with pytest.raises(InputError, match="at least one input"):
        net.node_costs(x[:0])


def test_expected_nodes_are_those_of_the_tree_when_it_is_certain():
    net = space()
    prefer(net, TREE)
    assert net.expected_nodes().item() == pytest.approx(5)
    net = space(nodes=(2,), tasks=2)
    assert net.expected_nodes().item() == pytest.approx(2 * (1 - 0.25))
    net.expected_nodes().backward()
    assert net.logits[0].grad is not None


def two_groups(seed, updates):
    """Batches of four tasks that read one of two features with alternating sign."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        x = torch.randn(64, 5, generator=generator)
        yield x, torch.stack([x[:, 0], -x[:, 1], -x[:, 0], x[:, 1]], dim=1).tanh()


def losses(outputs, target):
    return (torch.stack([o[:, 0] for o in outputs], dim=1) - target).square().mean(dim=0)


def narrow(seed):
    """One shared layer, then two nodes of one unit each: a node can serve one feature only."""
    torch.manual_seed(seed)
    levels = [[nn.Linear(5, 8)], [nn.Sequential(nn.Linear(8, 1), nn.Tanh()) for _ in range(2)]]
    return BranchingNetwork(levels, [nn.Linear(1, 1) for _ in range(4)])


def test_tasks_that_need_the_same_feature_end_up_on_one_node():
    net = narrow(3)
    tree = search_branches(net, two_groups(3, 250), losses, updates=250, rate=1e-2, seed=3)
    assert tree.groups(1) == ((0, 2), (1, 3))
    assert not net.training


def test_logits_wait_for_the_warm_up_and_a_charge_joins_what_is_alike():
    net = narrow(1)
    search_branches(net, two_groups(0, 5), losses, updates=5, warm_up=1.0)
    assert not net.logits[1].any()
    before = net.expected_nodes().item()
    search_branches(net, two_groups(0, 30), losses, updates=30, warm_up=0.0, charge=50.0, trees=2)
    assert net.expected_nodes().item() < before


def test_what_does_not_fit_is_refused():
    net = space()
    with pytest.raises(InputError, match="tasks are 0 to 3, got 4"):
        net(rows(), tasks=[4])
    with pytest.raises(InputError, match="as many batches, got 3"):
        search_branches(narrow(0), two_groups(0, 3), losses, updates=4)
    with pytest.raises(InputError, match="one number for each of 4 tasks"):
        search_branches(narrow(0), two_groups(0, 3), lambda o, y: y.mean(), updates=1)
    for tree in (Tree(((0, 0),)), Tree(((0, 1), *TREE.parents[1:]))):
        with pytest.raises(InputError, match="a tree over levels of"):
            net.extract(tree)
    with pytest.raises(InputError, match="at least one node"):
        BranchingNetwork([[]], [nn.Linear(2, 2)])


def test_gradients_reach_logits_and_every_node_of_a_sample():
    net, x = space(), rows()
    torch.stack(
        net.sampled(x, generator=torch.Generator().manual_seed(0))
    ).square().sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())
    assert net.logits[1].grad.any()


def test_state_is_saved_and_loaded():
    net, other, x = space(), space(seed=4), rows()
    prefer(net, TREE)
    other.load_state_dict(net.state_dict())
    for a, b in zip(net(x), other(x), strict=True):
        assert_close(a, b)
