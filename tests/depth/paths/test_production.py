"""Production systems: one rule changes one slot, only chosen rules run, order of rules is free."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.cost import count_flops
from pointsman.depth.paths import ProductionSystem, RuleBank
from pointsman.errors import InputError, RouteError


def system(seed=0, **options):
    torch.manual_seed(seed)
    defaults = {"width": 5, "rules": 3, "rule_width": 4, "hidden": 6, "steps": 2}
    return ProductionSystem(**{**defaults, **options}).double().eval()


def states(count=20, slots=4, seed=1):
    return 2 * torch.randn(count, slots, 5, generator=torch.Generator().manual_seed(seed)).double()


def by_hand(net, slots):
    """One state, one application."""
    keys, queries = net.match_key(slots), net.match_query(net.embedding_NW)
    p, r = divmod(int((keys @ queries.T).argmax()), net.num_rules)
    asked = torch.cat([slots[p], net.embedding_NW[r]])
    c = int((net.context_key(slots) @ net.context_query(asked)).argmax())
    bank, row = net.bank, torch.cat([slots[p], slots[c]])
    hidden = torch.relu(row @ bank.up_NWH[r] + bank.up_bias_NH[r])
    after = slots.clone()
    after[p] += hidden @ bank.down_NHO[r] + bank.down_bias_NO[r]
    return after, (r, p, c)


@torch.no_grad()
def test_each_step_applies_the_best_matching_rule_to_its_slot():
    net, x = system(), states()
    after, applied = net(x)
    for at in range(len(x)):
        slots = x[at]
        for step in range(2):
            slots, (r, p, c) = by_hand(net, slots)
            found = (applied.rule, applied.primary, applied.context)
            assert tuple(int(part[at, step, 0]) for part in found) == (r, p, c)
        assert_close(after[at], slots)


@pytest.mark.parametrize("training", [True, False])
def test_slots_that_no_rule_took_are_bitwise_as_they_were(training):
    net, x = system(steps=1).train(training), states()
    after, applied = net(x)
    kept = torch.ones(x.shape[:2], dtype=torch.bool).scatter(1, applied.primary[:, 0], False)
    assert torch.equal(after[kept], x[kept])
    assert (after[~kept] != x[~kept]).any(dim=1).all()


@pytest.mark.parametrize("parallel", [True, False])
def test_rules_and_slots_can_be_listed_in_any_order(parallel):
    net, other, x = system(parallel=parallel), system(parallel=parallel), states()
    order, seats = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    with torch.no_grad():
        other.embedding_NW[:3] = net.embedding_NW[order]
        for weight in other.bank.parameters():
            weight.copy_(weight[order])
        after, applied = net(x)
        moved, same = other(x[:, seats])
    assert_close(moved, after[:, seats])
    rule = torch.where(same.rule >= 0, order[same.rule], -1)
    if parallel:
        assert torch.equal(rule, applied.rule[:, :, seats])
    else:
        assert torch.equal(rule, applied.rule)
        assert torch.equal(seats[same.primary], applied.primary)


def test_training_and_evaluation_agree_where_the_draw_is_certain():
    for parallel in (False, True):
        net, x = system(parallel=parallel), states()
        with torch.no_grad():
            for layer in (net.match_query, net.context_query):
                layer.weight *= 1e4
            wanted, applied = net(x)
            found, drawn = net.train()(x)
        assert_close(found, wanted)
        assert torch.equal(drawn.rule, applied.rule)


def test_parallel_slots_look_at_the_state_before_the_step_and_may_rest():
    net, x = system(parallel=True, steps=1), states(60)
    with torch.no_grad():
        after, applied = net(x)
    assert applied.rule.shape == (60, 1, 4)
    resting = applied.rule[:, 0] == -1
    assert resting.any()
    assert not resting.all()
    assert torch.equal(after[resting], x[resting])
    at, slot = (~resting).nonzero()[0].tolist()
    row = torch.cat([x[at, slot], x[at, applied.context[at, 0, slot]]])
    assert_close(
        after[at, slot], x[at, slot] + net.bank.every(row[None])[applied.rule[at, 0, slot], 0]
    )


def test_a_bank_runs_only_the_rule_asked_for():
    bank = RuleBank(3, 4, 5, 2).double()
    rows, rule = torch.randn(7, 4).double(), torch.tensor([2, 0, -1, 2, 0, -1, 2])
    found = bank(rows, rule)
    every = bank.every(rows)
    for at, r in enumerate(rule.tolist()):
        assert_close(found[at], every[r, at] if r >= 0 else torch.zeros(2).double())
    found.sum().backward()
    assert not bank.up_NWH.grad[1].any()
    assert bank.up_NWH.grad[2].any()
    chosen = count_flops(bank, rows, rule).to("FLOPs").amount
    assert chosen == 5 * 2 * (4 * 5 + 5 * 2)


def test_training_sends_gradient_to_rules_embeddings_and_matching():
    net, x = system(steps=1).train(), states()
    net(x, generator=torch.Generator().manual_seed(0))[0].square().sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad.any(), name


def test_draws_repeat_with_their_generator():
    net, x = system().train(), states()
    first, second = (net(x, generator=torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, net(x, generator=torch.Generator().manual_seed(4))[0])


def test_rules_are_paid_as_applied_and_matching_for_every_state():
    net, x = system().float(), states(8).float()
    with torch.no_grad():
        _, applied = net(x)
    route = applied.route().validate()
    assert len(route) == 8 * 2
    spent = route.cost(net.rule_cost()).sum() + net.matching_cost(x) * 8
    assert float(spent) == pytest.approx(float(count_flops(net, x)))
    assert net.rule_cost().to("FLOPs").amount.tolist() == [2 * (10 * 6 + 6 * 5)] * 3
    with pytest.raises(InputError, match="at least one state"):
        net.matching_cost(x[:0])


def test_a_condition_moves_the_match_and_nothing_else():
    net, x = system(condition_width=2, steps=1), states()
    none = net(x, torch.zeros(20, 2).double())
    with torch.no_grad():
        queries = net.match_query(net.embedding_NW)
        net.match_condition.weight.copy_(100 * torch.linalg.pinv(queries)[:, 1:3])
    for r, condition in ((1, [1.0, 0.0]), (2, [0.0, 1.0])):
        after, applied = net(x, torch.tensor([condition] * 20).double())
        assert (applied.rule == r).all()
        same = applied.rule == none[1].rule
        same &= (applied.primary == none[1].primary) & (applied.context == none[1].context)
        assert torch.equal(after[same[:, 0, 0]], none[0][same[:, 0, 0]])
    assert float(net.matching_cost(x, torch.zeros(20, 2).double())) > 0
    for wrong in (None, torch.zeros(20, 3).double()):
        with pytest.raises(InputError, match=r"a condition of shape \(20, 2\)"):
            net(x, wrong)
    with pytest.raises(InputError, match="no condition"):
        system()(x, torch.zeros(20, 2).double())


def test_an_empty_batch_of_states_passes():
    for parallel in (False, True):
        after, applied = system(parallel=parallel)(states(0))
        assert after.shape == (0, 4, 5)
        assert applied.rule.shape == (0, 2, 4 if parallel else 1)


def test_state_is_saved_and_loaded():
    net, other, x = system(), system(seed=7), states()
    other.load_state_dict(net.state_dict())
    assert_close(net(x)[0], other(x)[0])
    assert isinstance(net.dropout, nn.Dropout)


def test_bad_sizes_and_states_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        system(rules=0)
    for shape in ((3, 5), (3, 0, 5), (3, 2, 6)):
        with pytest.raises(InputError, match=r"slots are \(states, slots, 5\)"):
            system()(torch.zeros(shape).double())
    with pytest.raises(RouteError, match="temperature"):
        system(temperature=0.0).train()(states())
