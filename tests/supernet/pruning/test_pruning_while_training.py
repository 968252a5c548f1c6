"""Masks by transport, the game of units, fading, and the gates that they share."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.supernet.channels import channel_groups, zeroed
from pointsman.supernet.pruning import (
    Fading,
    PruningGame,
    TransportPruning,
    gated_parameters,
    mixed_saliency,
    participation,
    run_gated,
    transport_mask,
    trial_saliency,
)
from pointsman.supernet.pruning.hesso import lowest

X = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (16,), generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def train(module: nn.Module, steps: int, after=lambda: None) -> None:
    optimiser = torch.optim.SGD(module.parameters(), 0.2)
    module.train()
    for _ in range(steps):
        optimiser.zero_grad()
        functional.cross_entropy(module(X), Y).backward()
        optimiser.step()
        after()
    module.eval()


def test_a_gate_of_zero_is_a_unit_at_zero_and_one_leaves_it_alone():
    model = network()
    first, second = channel_groups(model, X)
    gates = {first: torch.ones(8), second: torch.ones(6)}
    torch.testing.assert_close(run_gated(model, gates, X), model(X))
    gates[first][[2, 5]] = 0
    gates[second][0] = 0
    without = zeroed(model, {first: [0, 1, 3, 4, 6, 7], second: range(1, 6)})
    torch.testing.assert_close(run_gated(model, gates, X), without(X))
    assert sorted(gated_parameters(model, gates)) == ["2.weight", "4.weight"]


def test_masks_keep_their_sum_and_gradients_flow_to_scores():
    scores = torch.tensor([0.1, 0.9, 0.4, 0.6], dtype=torch.float64, requires_grad=True)
    mask = transport_mask(scores, torch.zeros(4, dtype=torch.float64), 2, 0.3).sigmoid()
    assert mask.sum().item() == pytest.approx(2)
    mask[1].backward()
    assert scores.grad[1] > 0
    assert (scores.grad[[0, 2, 3]] < 0).all()
    for keep in (0, 4):
        with pytest.raises(InputError, match="1 to 3 are kept"):
            transport_mask(scores, torch.zeros(4), keep, 0.3)


@pytest.mark.parametrize("together", [True, False])
def test_transport_pruning_cuts_to_the_share_and_its_network_is_the_same(together):
    pruning = TransportPruning(network(), X, keep=0.5, together=together, epsilon=0.5)
    train(pruning, 20)
    small = pruning.extract()
    assert small[0].out_features + small[2].out_features == 7
    if not together:
        assert (small[0].out_features, small[2].out_features) == (4, 3)
    torch.testing.assert_close(small(X), pruning(X))
    assert pruning.model[0].out_features == 8


def test_players_with_nothing_to_gain_leave_and_without_prices_all_stay():
    s = participation(
        torch.tensor([0.5, 0.5]),
        torch.tensor([0.2, 0.2]),
        torch.eye(2),
        price=0.3,
        rivalry=0,
        rate=1,
    )
    torch.testing.assert_close(s, torch.tensor([0.4, 0.4]))
    alike = torch.ones(2, 2)
    s = participation(s, torch.tensor([0.2, 0.0]), alike, price=0.0, rivalry=1.0, rate=1.0)
    torch.testing.assert_close(s, torch.tensor([0.2, 0.0]))
    dear = PruningGame(network(), X, price=10.0)
    train(dear, 3)
    assert set(dear.left.values()) == {0}
    assert dear.extract()[0].out_features == 1
    mild = PruningGame(network(), X, price=0.002, rate=0.5)
    train(mild, 30)
    assert 0 < mild.taking_part.min() < 1
    torch.testing.assert_close(mild.extract()(X), mild(X))


def test_units_fade_to_exact_zero_in_periods_and_are_cut_for_nothing():
    model = network()
    fading = Fading(model, X, remove=0.5, start=2, period=3, periods=2)
    seen = []
    train(model, 9, lambda: (fading.step(), seen.append(int(fading.redundant.sum()))))
    assert seen == [0, 0, 3, 3, 3, 7, 7, 7, 7]
    small = fading.extract()
    assert small[0].out_features + small[2].out_features == 7
    torch.testing.assert_close(small(X), model(X))
    with pytest.raises(InputError, match="cut once they are zero"):
        Fading(network(), X, remove=0.5, start=0, period=5).extract()
    with pytest.raises(InputError, match="a share between 0 and 1"):
        Fading(network(), X, remove=1.0, start=0, period=5)


def test_trials_leave_the_network_alone_and_scores_add_up_from_the_criteria():
    model = network()
    before = {name: weight.clone() for name, weight in model.named_parameters()}

    def loss(net):
        return functional.cross_entropy(net(X), Y)

    scores = trial_saliency(model, X, loss, remove=0.4)
    assert scores.shape == (14,)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None

    single = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    loss(single).backward()
    groups = channel_groups(single, X)

    def owned(parameter):
        first, bias, second = (parameter(w) for w in list(single.parameters())[:3])
        return torch.cat([first, bias[:, None], second.T], dim=1)

    w, g = owned(lambda p: p.detach()), owned(lambda p: p.grad)
    along = (w * g).sum(1)
    criteria = [w.norm(dim=1), w.norm(dim=1) / 9**0.5, 1 + functional.cosine_similarity(w, g)]
    criteria += [along.abs(), along.square() / 2]
    by_hand = sum(c / c.norm() for c in criteria) / 5
    torch.testing.assert_close(mixed_saliency(single, groups), by_hand)
    assert lowest(by_hand, groups, 2).nonzero().flatten().tolist() == sorted(
        by_hand.argsort()[:2].tolist()
    )
    assert lowest(by_hand, groups, 9).sum() == 3  # the best of a group always stays
