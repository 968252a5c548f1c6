"""Networks as graphs, and the network that rewrites them."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.channels import channel_groups, reorder
from pointsman.supernet.pruning.metanetwork import (
    Chain,
    MetaNetwork,
    rewrite,
    sparsity,
    train_metanetwork,
)


def chain_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    net(torch.randn(8, 2, 4, 4))  # moves the statistics
    return net.eval()


def test_a_network_and_its_graph_are_one() -> None:
    net, other = chain_net(0), chain_net(1)
    chain = Chain(net)
    graph = chain.graph(net)
    assert [tuple(edge.shape) for edge in graph.edges] == [(5, 2, 9), (4, 5, 9), (3, 4, 9)]
    weights = chain.weights(other, graph)
    assert weights.keys() == dict(net.named_parameters()).keys()
    for name, weight in net.named_parameters():
        assert torch.equal(weights[name], weight)


def test_another_order_of_hidden_channels_gives_the_same_change_in_that_order() -> None:
    net = chain_net()
    groups = channel_groups(net, torch.zeros(1, 2, 4, 4))
    orders = {group: torch.randperm(group.size).tolist() for group in groups}
    assert len(orders) == 2
    torch.manual_seed(0)
    meta = MetaNetwork(9, hidden=8, rounds=2)
    one, other = reorder(rewrite(meta, net), orders), rewrite(meta, reorder(net, orders))
    for name, value in one.state_dict().items():
        assert_close(other.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert not torch.equal(rewrite(meta, net)[0].weight, net[0].weight)


def test_the_penalty_has_the_published_gradient() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    chain = Chain(net)
    graph = chain.graph(net)
    edges = [edge.requires_grad_() for edge in graph.edges]
    gradient = torch.autograd.grad(sparsity(graph, alpha=16.0), edges)
    first, bias, second = net[0].weight, net[0].bias, net[2].weight
    norm = (first.square().sum(1) + bias.square() + second.square().sum(0)).sqrt()
    gamma = 16 ** ((norm.max() - norm) / (norm.max() - norm.min()))
    assert_close(gradient[0][..., 0], gamma[:, None] * first)
    assert_close(gradient[1][..., 0], gamma * second)


def test_scales_that_a_network_does_not_have_stay_constant() -> None:
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    chain = Chain(net)
    torch.manual_seed(0)
    changed = MetaNetwork(chain.positions)(chain.graph(net))
    bias, scale, shift = changed.nodes[1][:, :3].T
    assert_close(torch.stack([bias, scale - 1, shift]), torch.zeros(3, 4))
    assert bool((changed.nodes[2][:, 0] != net[2].bias).any())


def test_training_lowers_the_objective_on_the_networks_it_sees() -> None:
    nets = [chain_net(seed) for seed in range(2)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 2, 4, 4, generator=generator)
    values = []

    def loss(run: object) -> torch.Tensor:
        value = run(x).square().mean()  # type: ignore[operator]
        values.append(float(value.detach()))
        return value

    train_metanetwork(nets, loss, steps=60, rate=2e-2, strength=0.0, hidden=8, rounds=1)
    assert sum(values[-2:]) < 0.7 * sum(values[:2])


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="got LayerNorm at '1'"):
        Chain(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)))
    with pytest.raises(InputError, match="two layers or more, got 1"):
        Chain(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(InputError, match="'1' takes 3 and gets 2"):
        Chain(nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 2)))
    with pytest.raises(InputError, match="got 0 and 1"):
        train_metanetwork([], lambda run: torch.zeros(()), steps=1)
    with pytest.raises(InputError, match="kernels of 1 positions"):
        rewrite(MetaNetwork(1), chain_net())
