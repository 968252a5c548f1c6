import math

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from pointsman.depth.decoder import Decoder
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.decoding.forced import TokenCosts, forced, layer_runs, text_frontier
from pointsman.depth.decoding.training import (
    exit_loss,
    fit_language,
    rising_dropout,
    rising_weights,
)
from pointsman.errors import InputError

V = 9


def exits_of(at=(0, 1), layers=3):
    torch.manual_seed(0)
    return LanguageExits(Decoder(vocabulary=V, width=16, layers=layers, heads=2, context=16), at=at)


def test_dropout_rises_from_none_to_the_most():
    rates = rising_dropout(5, 0.3)
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.3)
    assert list(rates) == sorted(rates)
    assert rising_dropout(1, 0.3) == (0.0,)
    with pytest.raises(InputError, match="dropout below 1"):
        rising_dropout(3, 1.0)


def test_losses_weigh_deeper_exits_more_and_the_last_alone_at_scale_nought():
    model = exits_of(at=(0, 1, 2), layers=4)
    weights = rising_weights(model, 0.5)
    assert weights == pytest.approx([w / 12 for w in (0.5, 1.5, 3.0, 7.0)])
    assert rising_weights(model, 0.0) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(InputError, match="at least 0, got -1"):
        rising_weights(model, -1.0)


def test_the_loss_is_the_weighted_cross_entropy_of_every_exit():
    model, ids = exits_of().eval(), torch.randint(V, (2, 6))
    outputs = model(ids[:, :-1])
    each = [functional.cross_entropy(x.flatten(0, 1), ids[:, 1:].flatten()) for x in outputs]
    assert_close(exit_loss(model, ids, (0.5, 0.0, 2.0), (0.9,) * 3), 0.5 * each[0] + 2 * each[2])


def test_a_layer_that_is_dropped_does_not_run_for_its_sequences():
    model, ids = exits_of().train(), torch.randint(V, (50, 4))
    whole = model(ids)
    torch.manual_seed(1)
    dropped = model(ids, (0.0, 0.5, 0.0))
    same = [
        bool(torch.allclose(a, b, atol=1e-6)) for a, b in zip(dropped[1], whole[1], strict=True)
    ]
    passed = [bool(torch.allclose(a, b)) for a, b in zip(dropped[1], whole[0], strict=True)]
    assert 10 < sum(same) < 40
    assert all(a != b for a, b in zip(same, passed, strict=True))
    assert_close(dropped[0], whole[0])
    ran = []
    model.trunk.blocks[1].register_forward_hook(lambda *call: ran.append(len(call[1][0])))
    torch.manual_seed(1)
    model(ids, (0.0, 0.5, 0.0))
    assert ran == [sum(same)]
    model(ids[:1], (0.0, 0.999999, 0.0))  # nobody left for the layer
    assert len(ran) == 1


def test_training_lowers_the_loss_of_every_exit():
    model, text = exits_of(), torch.arange(600) % 7

    @torch.no_grad()
    def losses():
        model.eval()
        return [float(exit_loss(model, text[None, :15], w)) for w in torch.eye(3).tolist()]

    before = losses()
    fit_language(model, text, updates=40, batch=4, window=12, rate=1e-2)
    assert not model.training
    assert all(a < 0.7 * b for a, b in zip(losses(), before, strict=True))
    with pytest.raises(InputError, match="more than 13 tokens"):
        fit_language(model, text[:13], updates=1, window=12)


def test_layers_run_for_waiting_tokens_only_where_a_later_one_needs_them():
    exits = torch.tensor([[0, 0, 1, 0], [2, 0, 0, 0]])
    bounds = (0, 1, 2, 4)
    assert layer_runs(exits, bounds, "propagate").tolist() == [[4, 1, 0, 0], [4, 1, 1, 1]]
    assert layer_runs(exits, bounds, "exact").tolist() == [[4, 3, 0, 0], [4, 1, 1, 1]]


def test_bits_and_costs_of_texts_at_every_threshold():
    model, text = exits_of(), torch.arange(900) % 7
    fit_language(model, text, updates=40, batch=4, window=12, rate=1e-2)
    ids = torch.stack([text[at : at + 12] for at in range(20)])
    ids[:, 6] = torch.arange(20) % V  # something that cannot be foreseen
    found = text_frontier(model, ids, (math.inf, 0.9, 0.5, 0.0))
    costs = [point.cost for point in found.points]
    assert costs == sorted(costs, reverse=True)
    assert found.points[0].quality == found.reference.quality
    assert found.points[0].cost == pytest.approx(found.reference.cost)
    full = functional.cross_entropy(model(ids[:, :-1])[-1].mT, ids[:, 1:], reduction="none")
    quality = (1 - full.mean(dim=1) / math.log(V)).clamp(min=0)
    assert found.reference.quality == pytest.approx(float(quality.detach().mean()), abs=1e-5)
    each = TokenCosts.count(model, ids[:1])
    spread = each.layer[0] + each.store[1] + each.store[2] + each.answer[0]
    assert costs[-1] == pytest.approx(spread)
    assert 0 < each.store[1] < 0.3 * each.layer[1]
    exact = text_frontier(model, ids, (0.9,), keep="exact")
    assert exact.points[0].quality >= found.points[1].quality - 0.05
    with pytest.raises(InputError, match="highest threshold to the lowest"):
        text_frontier(model, ids, (0.1, 0.9))
    with pytest.raises(InputError, match="at least 2 tokens"):
        text_frontier(model, ids[:, :1])


def test_tokens_that_must_go_deep_do():
    model, ids = exits_of().eval(), torch.randint(V, (2, 8))
    deep = torch.zeros(2, 8, dtype=torch.bool)
    deep[:, :3] = True
    found = forced(model, ids, 0.0, keep="propagate", deep=deep)
    assert found.exits.tolist() == [[2] * 3 + [0] * 5] * 2
    assert_close(found.logits[:, :3], model(ids[:, :3])[-1].detach())
    with pytest.raises(InputError, match="keep is one of"):
        forced(model, ids, keep="none")
