"""Graphs and the layers over them."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.graphs import Gather, Graph, GraphLayer
from pointsman.supernet.supernet import Supernet

# 0 hears from 1 and 2, 1 from nobody, 2 from 0, 3 from nobody
EDGES = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).float()
GATHERINGS = ("sum", "mean", "max")
ATTENTIONS = ("constant", "symmetric", "attentive", "cosine")


@pytest.fixture
def graph():
    return Graph(EDGES)


@pytest.fixture
def x():
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def test_every_node_is_its_own_neighbour_and_lists_are_filled_with_it(graph):
    assert graph.degrees.tolist() == [3, 1, 2, 1]
    assert graph.neighbours_NK.tolist() == [[0, 1, 2], [1, 1, 1], [0, 2, 2], [3, 3, 3]]
    assert graph.present_NK.sum(dim=1).tolist() == [3, 1, 2, 1]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("gathering", GATHERINGS)
def test_gathering_is_what_a_loop_over_neighbours_gives(graph, x, gathering, attention):
    torch.manual_seed(0)
    gather = Gather(graph, gathering, attention, 3)
    unit = nn.functional.normalize(x, dim=1)
    degrees = graph.degrees
    for node, row in enumerate(gather(x)):
        near = [0, 1, 2] if node == 0 else [0, 2] if node == 2 else [node]
        root = (degrees[node] * degrees[near]).rsqrt()
        if attention == "attentive":
            own, other = gather.weigh.ends_2D
            scores = torch.stack([own @ x[node] + other @ x[j] for j in near])
            weights = nn.functional.leaky_relu(scores, 0.2).softmax(dim=0)
        else:
            weights = {
                "constant": torch.ones(len(near)),
                "symmetric": root,
                "cosine": root * torch.stack([unit[node] @ unit[j] for j in near]),
            }[attention]
        parts = weights[:, None] * x[near]
        expected = parts.amax(dim=0) if gathering == "max" else parts.sum(dim=0)
        assert_close(row, expected / (len(near) if gathering == "mean" else 1))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("gathering", GATHERINGS)
def test_renumbering_the_nodes_renumbers_the_outputs(graph, x, gathering, attention):
    order = torch.tensor([2, 0, 3, 1])
    outputs = []
    for edges, features in ((EDGES, x), (EDGES[order][:, order], x[order])):
        torch.manual_seed(1)
        layer = GraphLayer(Graph(edges), 3, 5, gathering=gathering, attention=attention)
        outputs.append(layer(features))
    assert_close(outputs[1], outputs[0][order])


def test_gradients_reach_features_and_attention(graph):
    torch.manual_seed(0)
    for gathering in GATHERINGS:
        gather = Gather(graph, gathering, "attentive", 3).double()
        x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(gather, x)
        gather(x).square().sum().backward()
        assert gather.weigh.ends_2D.grad.abs().sum() > 0


def test_the_graph_is_shared_by_layers_and_not_saved(graph):
    net = nn.Sequential(GraphLayer(graph, 3, 4, attention="cosine"), GraphLayer(graph, 4, 2))
    assert sum(isinstance(module, Graph) for module in net.modules()) == 1
    assert set(net.state_dict()) == {
        f"{at}.linear.{name}" for at in range(2) for name in ("weight", "bias")
    }


def test_layers_are_operations_of_a_supernet_and_come_out_of_it(graph, x):
    torch.manual_seed(0)
    layers = {name: GraphLayer(graph, 3, 3, attention=name) for name in ATTENTIONS}
    supernet = Supernet(nn.Sequential(OneOf("layer", layers), nn.Linear(3, 2)))
    for genotype in supernet.space.enumerate():
        supernet.use(genotype)
        assert_close(supernet.extract(genotype)(x), supernet(x), rtol=0, atol=0)


def test_edges_that_are_not_0_or_1_and_unknown_options_are_refused(graph):
    for edges in (EDGES * 2, EDGES[:3]):
        with pytest.raises(InputError, match="square matrix of 0 and 1"):
            Graph(edges)
    with pytest.raises(InputError, match="'median'"):
        Gather(graph, "median", "constant", 3)
    with pytest.raises(InputError, match="'sigmoid'"):
        GraphLayer(graph, 3, 3, activation="sigmoid")
