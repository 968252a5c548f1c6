"""Gates, logits and what is derived from them."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError, UnreachableError
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.elastic.parts import Cut, prefixes
from pointsman.supernet.elastic.sliced import Sliced
from pointsman.supernet.relax import (
    Draw,
    ExpectedCost,
    GumbelGate,
    Node,
    PartialChannels,
    Projection,
    Relaxation,
    dirichlet_gate,
    keep_unsampled,
    operation_costs,
    project,
    release,
    softmax_gate,
    two_path_gate,
)
from pointsman.supernet.space import Choice
from pointsman.supernet.supernet import Supernet


class Times(nn.Module):
    """A factor that is learned."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def place(name: str) -> OneOf:
    return OneOf(name, {"none": Times(0.0), "one": Times(1.0), "three": Times(3.0)})


class TwoEdges(nn.Module):
    """The sum of three edges."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.ModuleList([place("a"), place("b"), place("c")])

    def forward(self, x: Tensor) -> Tensor:
        return sum(edge(x) for edge in self.edges)  # type: ignore[return-value]


def seeded(seed: int = 0) -> Draw:
    return Draw(0.5, torch.Generator().manual_seed(seed))


def set_logits(
    relaxation: Relaxation, *alpha: list[float], beta: list[float] | None = None
) -> None:
    with torch.no_grad():
        for parameter, values in zip(relaxation.alpha, alpha, strict=True):
            parameter.copy_(torch.tensor(values))
        if beta is not None:
            relaxation.beta[0].copy_(torch.tensor(beta))


def test_a_mixture_is_the_weighted_sum_and_its_logits_learn():
    net = Supernet(place("a"))
    relaxation = Relaxation(net, seed=3, spread=1.0)
    relaxation.mix(net)
    out = net(torch.tensor(2.0))
    p = relaxation.probabilities()["a"]
    assert_close(out.detach(), 2 * (p[1] + 3 * p[2]))
    out.backward()
    assert (relaxation.alpha[0].grad != 0).all()
    release(net)
    assert net(torch.tensor(2.0)) == 6


def test_the_strongest_option_is_derived_but_never_a_forbidden_one():
    net = Supernet(TwoEdges())
    relaxation = Relaxation(net, never=["none"])
    set_logits(relaxation, [5.0, 1.0, 0.0], [0.0, 0.0, 2.0], [9.0, -1.0, 0.0])
    assert net.space.decode(relaxation.derive()) == {"a": "one", "b": "three", "c": "three"}


def test_nodes_keep_their_strongest_edges():
    net = Supernet(TwoEdges())
    node = Node(("a", "b", "c"), keep=2)
    relaxation = Relaxation(net, nodes=[node], edge_gate=softmax_gate, never=["none"])
    set_logits(relaxation, [0.0, 0.0, 9.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.0], beta=[0.0, 0.1, 0.2])
    # With the largest probability "a" is the strongest; by shares alone it is the weakest.
    assert net.space.decode(relaxation.derive())["b"] == "none"
    assert net.space.decode(relaxation.derive(disentangled=True))["a"] == "none"


def test_an_edge_left_out_adds_nothing_and_everything_left_out_still_has_a_shape():
    net = Supernet(TwoEdges())
    node = Node(("a", "b", "c"), keep=1)
    relaxation = Relaxation(net, nodes=[node], gate=GumbelGate(), edge_gate=GumbelGate())
    set_logits(
        relaxation, [0.0, 99.0, 0.0], [0.0, 0.0, 99.0], [0.0, 99.0, 0.0], beta=[0.0, 99.0, 0.0]
    )
    relaxation.mix(net, seeded())
    assert_close(net(torch.ones(2)), torch.full((2,), 3.0), rtol=0, atol=0)
    assert_close(net.body.edges[0](torch.ones(2)), torch.zeros(2))  # and not the number 0


def test_gumbel_draws_edges_without_putting_back():
    logits = torch.tensor([0.5, 0.2, 0.3]).log()
    gate, draw = GumbelGate(), seeded()
    draws = torch.stack([gate(logits, 2, draw) for _ in range(500)])
    p = [0.5, 0.2, 0.3]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        both = float((draws[:, i] * draws[:, j]).mean())
        assert both == pytest.approx(p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]), abs=0.07)


@pytest.mark.parametrize("gate", [softmax_gate, GumbelGate(), dirichlet_gate, two_path_gate])
def test_gates_are_weights_that_sum_to_one_learn_and_repeat_with_their_seed(gate):
    logits = torch.tensor([0.3, -0.2, 0.9, 0.0], requires_grad=True)
    weights = gate(logits, 1, seeded(1))
    assert_close(weights.sum().detach(), torch.tensor(1.0))
    assert_close(weights, gate(logits, 1, seeded(1)), rtol=0, atol=0)
    (weights * torch.tensor([1.0, 2.0, 3.0, 5.0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.any()


def test_dirichlet_mixtures_have_their_mean_and_leave_the_global_generator_alone():
    logits = torch.tensor([0.0, 2.0])
    draw, state = seeded(), torch.get_rng_state()
    mean = torch.stack([dirichlet_gate(logits, 1, draw) for _ in range(300)]).mean(dim=0)
    assert_close(mean, torch.tensor([0.25, 0.75]), rtol=0, atol=0.06)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_paths_give_the_gradient_of_the_expected_loss_among_them():
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    losses = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    weights = two_path_gate(logits, 1, seeded(4))
    pair = weights.detach().nonzero().flatten()
    assert len(pair) == 2
    assert sorted(weights.detach()[pair].round().tolist()) == [0, 1]
    (weights @ losses).backward()
    given = logits.grad.clone()
    logits.grad = None
    (logits[pair].softmax(dim=0) @ losses[pair]).backward()
    assert_close(given, logits.grad)


def test_a_step_on_two_paths_leaves_other_probabilities_alone():
    logits = nn.Parameter(torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64))
    optimiser = torch.optim.Adam([logits], lr=0.5, betas=(0.0, 0.999))
    keep_unsampled(optimiser)
    draw = seeded(2)
    for _ in range(5):
        before = logits.detach().softmax(dim=0)
        optimiser.zero_grad()
        weights = two_path_gate(logits, 1, draw)
        (weights @ torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)).backward()
        optimiser.step()
        after = logits.detach().softmax(dim=0)
        drawn = weights.detach() != 0
        assert_close(after[~drawn], before[~drawn], rtol=0, atol=1e-12)
        assert (after[drawn] != before[drawn]).all()


def test_slices_of_a_layer_mix_as_padded_weights():
    layer = nn.Linear(3, 4)
    dial = Dial(Choice("out", (1, 3, 4)))
    kept = prefixes((1, 3, 4), 4)
    net = Supernet(Sliced(layer, [Cut(layer, name, 0, dial, kept) for name in ("weight", "bias")]))
    relaxation = Relaxation(net, spread=1.0)
    relaxation.mix(net)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    p = relaxation.probabilities()["out"]
    padded = [layer(x) * mask for mask in kept]
    assert_close(net(x), sum(w * part for w, part in zip(p, padded, strict=True)))


def test_partial_channels_with_one_part_are_the_mixed_edge_itself():
    edge = place("a")
    x = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    assert_close(PartialChannels(edge, 1)(x), edge(x))


def test_partial_channels_pass_the_others_by_and_shuffle():
    edge = place("a")  # times 3
    x = torch.arange(1.0, 9.0).view(1, 8, 1)
    out = PartialChannels(edge, 4)(x).flatten().tolist()
    assert out == [3.0, 3.0, 5.0, 7.0, 6.0, 4.0, 6.0, 8.0]
    edge.dial.mixture = torch.tensor([0.0, 0.5, 0.0])  # the edge itself weighs a half
    assert PartialChannels(edge, 4)(x).sum() == x.sum() / 2
    with pytest.raises(InputError, match="multiple of 3"):
        PartialChannels(edge, 3)(x)


COSTS = {"a": (0.0, 1.0, 9.0), "b": (0.0, 2.0, 4.0), "c": (1.0, 1.0, 1.0)}


def test_the_expected_cost_is_exact_for_one_option():
    net = Supernet(TwoEdges())
    relaxation = Relaxation(net)
    expected = ExpectedCost(relaxation, COSTS)
    set_logits(relaxation, [0.0, 0.0, 99.0], [0.0, 99.0, 0.0], [0.0, 0.0, 0.0])
    assert float(expected().detach()) == pytest.approx(12.0)
    assert expected.of(net.space.encode({"a": "three", "b": "one", "c": "one"})) == 12.0
    with pytest.raises(InputError, match="'b' has 3 options, got 2"):
        ExpectedCost(relaxation, COSTS | {"b": (1.0, 2.0)})


def test_a_projection_is_the_nearest_point_within_the_bound():
    relaxation = Relaxation(Supernet(TwoEdges()), spread=1.0)
    expected = ExpectedCost(relaxation, COSTS)
    alpha = [parameter.detach().double() for parameter in relaxation.alpha]
    within = project(alpha, expected, upper=20.0)
    assert all(torch.equal(a, b) for a, b in zip(alpha, within, strict=True))
    bound = 0.6 * float(expected(alpha))
    nearest = project(alpha, expected, upper=bound)
    assert float(expected(nearest).detach()) == pytest.approx(bound, rel=1e-3)
    # There the way back to alpha is along the slope of the cost.
    free = [p.requires_grad_() for p in nearest]
    slope = torch.cat(torch.autograd.grad(expected(free), free))
    way = torch.cat([a - p.detach() for a, p in zip(alpha, nearest, strict=True)])
    assert float(torch.cosine_similarity(way, slope, dim=0)) > 0.999
    raised = project(alpha, expected, lower=8.0)
    assert float(expected(raised).detach()) == pytest.approx(8.0, rel=1e-3)


def test_bounds_that_cannot_be_met_say_so():
    relaxation = Relaxation(Supernet(TwoEdges()))
    expected = ExpectedCost(relaxation, COSTS, "kFLOPs")
    with pytest.raises(UnreachableError, match="no logits cost between"):
        project(list(relaxation.alpha), expected, upper=0.5)
    with pytest.raises(InputError, match="lower bound"):
        project(list(relaxation.alpha), expected, upper=1.0, lower=2.0)
    with pytest.raises(UnreachableError, match="cheapest genotype costs 1 kFLOPs"):
        Projection(expected, 0.5)


def test_what_is_derived_under_a_projection_is_within_the_budget():
    relaxation = Relaxation(Supernet(TwoEdges()), never=["none"])
    expected = ExpectedCost(relaxation, COSTS)
    set_logits(relaxation, [0.0, 0.0, 2.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0])
    projection = Projection(expected, 6.5, every=2)
    assert expected.of(relaxation.derive()) > 6.5
    projection(1)
    assert float(expected().detach()) > 6.5
    projection(2)
    assert float(expected().detach()) <= 6.5 * 1.001
    assert expected.of(projection.derive()) <= 6.5


def test_operations_are_measured_at_the_input_that_reaches_them():
    net = Supernet(nn.Sequential(nn.Linear(2, 5), place("a"), place("b")))
    costs = operation_costs(
        net, torch.ones(3, 2), measure=lambda op, x: float(op.factor.detach()) * x.shape[1]
    )
    assert costs == {"a": [0.0, 5.0, 15.0], "b": [0.0, 5.0, 15.0]}


def test_choices_that_cannot_mix_are_named():
    class Stuck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dial = Dial(Choice("stuck", (1, 2)))

        def dials(self) -> tuple[Dial, ...]:
            return (self.dial,)

        def plain(self) -> nn.Module:
            return nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return x

    net = Supernet(nn.Sequential(place("a"), Stuck()))
    relaxation = Relaxation(net)
    assert [choice.name for choice in relaxation.choices] == ["a"]
    assert relaxation.derive()[1] == 1  # what is in force
    with pytest.raises(InputError, match="stuck"):
        Relaxation(net, only=["stuck"])
    with pytest.raises(InputError, match="nothing in this supernet can mix"):
        Relaxation(Supernet(Stuck()))


def test_nodes_and_gates_refuse_what_they_cannot_do():
    net = Supernet(TwoEdges())
    for keep in (0, 4):
        with pytest.raises(InputError, match="keeps between 1 and all of its 3"):
            Node(("a", "b", "c"), keep=keep)
    with pytest.raises(InputError, match="edges are relaxed choices"):
        Relaxation(net, nodes=[Node(("a", "z"), keep=1)])
    with pytest.raises(InputError, match="no option that may be taken"):
        Relaxation(net, never=["none", "one", "three"])
    with pytest.raises(InputError, match="temperatures"):
        GumbelGate(end=0.0)


def test_the_temperature_falls_with_progress():
    logits = torch.zeros(2, requires_grad=True)
    slopes = []
    for progress in (0.0, 0.5, 1.0):
        weights = GumbelGate(10, 0.5)(logits, 1, Draw(progress, torch.Generator().manual_seed(7)))
        slopes.append(float(torch.autograd.grad(weights[0] - weights[1], logits)[0][0].abs()))
    assert all(before < after for before, after in pairwise(slopes))
