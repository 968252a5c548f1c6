"""Which weights a network over a graph may inherit."""

from collections import OrderedDict

import torch
from torch import nn
from torch.testing import assert_close

from pointsman.supernet.graphs import Graph, GraphLayer, inherit

GRAPH = Graph(torch.ones(3, 3))


def network(seed, *layers):
    torch.manual_seed(seed)
    return nn.Sequential(*(GraphLayer(GRAPH, 4, 4, **options) for options in layers))


def test_layers_that_agree_share_and_others_keep_their_own():
    ancestor = network(0, {"attention": "attentive"}, {"activation": "tanh"})
    child = network(1, {"attention": "attentive", "gathering": "max"}, {"activation": "relu"})
    own = child[1].linear.weight.detach().clone()
    assert set(inherit(child, ancestor)) == {
        "0.linear.weight",
        "0.linear.bias",
        "0.gather.weigh.ends_2D",
    }
    assert_close(child[0].gather.weigh.ends_2D, ancestor[0].gather.weigh.ends_2D)
    assert_close(child[1].linear.weight, own, rtol=0, atol=0)


def test_a_copy_is_a_copy():
    ancestor, child = network(0, {}), network(1, {})
    inherit(child, ancestor)
    with torch.no_grad():
        child[0].linear.weight.zero_()
    assert ancestor[0].linear.weight.abs().sum() > 0


def test_normalisations_and_skips_are_never_shared():
    def layer(seed):
        found = network(seed, {})
        found[0].norm = nn.BatchNorm1d(4)
        found[0].skip = nn.Linear(4, 4)
        found[0].extra = nn.Sequential(OrderedDict(skip=nn.Linear(4, 4), norm=nn.LayerNorm(4)))
        return found

    assert set(inherit(layer(0), layer(1))) == {"0.linear.weight", "0.linear.bias"}


def test_other_shapes_are_not_shared():
    torch.manual_seed(0)
    narrow, wide = (nn.Sequential(GraphLayer(GRAPH, 4, size)) for size in (2, 4))
    assert inherit(narrow, wide) == []
