import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from pointsman.cost import count_flops
from pointsman.depth.layers.duo import (
    DuoDecoder,
    DuoRouters,
    SizedFeedForward,
    fit_duo_routers,
    mixed_loss,
    random_choices,
)
from pointsman.depth.layers.duo_patterns import (
    all_patterns,
    big_layers,
    difficulty,
    oracle_choices,
    pattern_losses,
)
from pointsman.errors import InputError


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"vocabulary": 13, "width": 16, "layers": 3, "heads": 2, "context": 10}
    return DuoDecoder(bypass=True, **sizes).double().eval()


def test_only_the_chosen_branch_of_each_token_runs_and_adds():
    torch.manual_seed(0)
    inner = SizedFeedForward(4, 16, 2, bypass=True)
    x, choice = torch.randn(2, 3, 4), torch.tensor([[0, 1, 2], [2, 2, 1]])
    added = inner(x, choice)
    assert_close(added[0, 0], inner.sizes[0](x[0, 0]))
    assert_close(added[1, 2], inner.sizes[1](x[1, 2]))
    assert added[0, 2].tolist() == [0.0] * 4
    weights = functional.one_hot(choice, 3).float()
    assert_close(inner(x, weights), added)
    assert_close(inner(x), inner.sizes[0](x))
    big, small = 2 * 2 * 4 * 16, 2 * 2 * 4 * 2
    assert float(count_flops(inner, x, choice)) * 1e6 == pytest.approx(big + 2 * small)
    with pytest.raises(InputError, match="one branch a token"):
        inner(x, choice[:, :2])
    with pytest.raises(InputError, match="one number a token"):
        inner(x, weights[..., :2])


def test_all_big_is_the_decoder_and_the_route_pays_for_each_choice(model):
    ids = torch.randint(13, (2, 6))
    assert_close(model(ids), model.decoder(ids))
    assert_close(model(ids, torch.zeros(2, 6, 3).long()), model.decoder(ids))
    choices = random_choices(model, ids, torch.Generator().manual_seed(0))
    route = model.route(choices).validate()
    assert len(route) == 2 * 6 * 3
    spent = route.cost(model.branch_costs())
    per = np.array([2 * 2 * 16 * 64, 2 * 2 * 16 * 4, 0]) / 1e6
    np.testing.assert_allclose(spent.amount, per[choices.flatten(0, 1).numpy()].sum(axis=1))
    whole = float(count_flops(lambda: model(ids, torch.full((2, 6, 3), 2))))
    assert float(count_flops(lambda: model(ids, choices))) == pytest.approx(
        whole + float(spent.sum())
    )


def test_a_pattern_tried_is_one_token_run_differently_in_a_big_context(model):
    windows = torch.randint(13, (2, 8))
    patterns = all_patterns(3, 3)
    losses = pattern_losses(model, windows, patterns)
    ids, targets = windows[:, :-1], windows[:, 1:]
    plain = functional.cross_entropy(model(ids).transpose(1, 2), targets, reduction="none")
    assert_close(losses[patterns.index((0, 0, 0))], plain)
    for pattern in [(1, 0, 2), (2, 1, 1), (0, 2, 0)]:
        for token in (0, 3, 6):
            choices = torch.zeros(2, 7, 3).long()
            choices[:, token] = torch.tensor(pattern)
            logits = model(ids, choices)[:, token]
            expected = functional.cross_entropy(logits, targets[:, token], reduction="none")
            assert_close(losses[patterns.index(pattern)][:, token], expected)
    noisy = pattern_losses(
        model, windows, patterns, dropout=0.3, generator=torch.Generator().manual_seed(0)
    )
    assert not torch.allclose(noisy, losses)


def test_the_oracle_takes_the_least_loss_at_its_budget(model):
    patterns = all_patterns(3, 3)
    losses = torch.randn(27, 2, 5).double()
    for big in (0, 1, 3):
        best, choices = oracle_choices(losses, patterns, big)
        assert torch.equal((choices == 0).sum(dim=-1), torch.full((2, 5), big))
        rows = [at for at, pattern in enumerate(patterns) if big_layers(pattern) == big]
        assert_close(best, losses[rows].amin(dim=0))
    best, choices = oracle_choices(losses, patterns)
    at = patterns.index(tuple(choices[1, 2].tolist()))
    assert losses[at, 1, 2] == best[1, 2]
    assert bool((difficulty(losses, patterns) >= 0).all())
    with pytest.raises(InputError, match="has 4 big layers"):
        oracle_choices(losses, patterns, 4)
    with pytest.raises(InputError, match="for each of 3 layers"):
        pattern_losses(model, torch.zeros(1, 3).long(), [(0, 0)])
    with pytest.raises(InputError, match="at most 100,000"):
        all_patterns(20)


def test_routers_keep_their_budget_and_leave_the_model_alone(model):
    text = torch.randint(13, (400,), generator=torch.Generator().manual_seed(0))
    before = [value.clone() for value in model.parameters()]
    routers = fit_duo_routers(model, text, 1 / 3, updates=5, window=8, batch=4)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(value.requires_grad for value in model.parameters())
    ids = text[:320].reshape(40, 8)
    routers.fit_bar(model, ids, 1 / 3)
    logits, choices = routers.choices(model, ids)
    assert float((choices == 0).double().mean()) == pytest.approx(1 / 3, abs=0.05)
    assert_close(logits, model(ids, choices))
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        fit_duo_routers(model, text, 1.5)


def test_losses_reach_what_they_train(model):
    windows = torch.randint(13, (3, 8))
    mixed_loss(model, windows, torch.Generator().manual_seed(0)).backward()
    inner = model.block(1).feed_forward
    assert all(size[0].weight.grad is not None for size in inner.sizes)
    routers = DuoRouters(model)
    loss = routers.loss(model, windows, 0.5, 1.0, 0.0)
    assert bool(routers.loss(model, windows, 0.0, 1.0, 1.0) > loss)
    loss.backward()
    assert all(float(layer.weight.grad.abs().sum()) > 0 for layer in routers.maps)
