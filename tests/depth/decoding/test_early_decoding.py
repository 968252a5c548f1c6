"""Early-exit decoding, held against runs that recompute every text from its start."""

import math

import pytest
import torch
from torch.testing import assert_close

from pointsman.depth.decoder import Decoder
from pointsman.depth.decoding.early import decode, falling
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.decoding.forced import forced
from pointsman.errors import InputError
from pointsman.select import margin

V = 12


def exits_of(at=(0, 2), layers=4, context=24, seed=0):
    torch.manual_seed(seed)
    decoder = Decoder(vocabulary=V, width=16, layers=layers, heads=2, context=context)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(2.0)  # so that exits differ, and are sure at different places
    return LanguageExits(decoder.double(), at=at).eval()


PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([2]), torch.tensor([7, 7, 0])]


def by_recomputing(model, prompt, new, thresholds, keep, end=None, confidence=None):
    """One text, without a cache: at every step the whole text again."""
    ids, exits, more = prompt, [], {} if confidence is None else {"confidence": confidence}
    for step in range(new):
        limits = thresholds(step) if callable(thresholds) else thresholds
        deep = (torch.arange(len(ids)) < len(prompt) - 1)[None]
        found = forced(model, ids[None], limits, keep=keep, deep=deep, **more)
        if callable(thresholds) and keep == "propagate":
            raise AssertionError("earlier thresholds would be forgotten")
        ids = torch.cat([ids, found.logits[0, -1:].argmax(dim=-1)])
        exits.append(int(found.exits[0, -1]))
        if end is not None and int(ids[-1]) == end:
            break
    return ids, exits


@pytest.mark.parametrize("keep", ["exact", "propagate"])
@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.5, 0.7, math.inf])
def test_batches_with_mixed_exits_equal_recomputing_each_text(keep, threshold):
    model = exits_of()
    found = decode(model, PROMPTS, 12, threshold, keep=keep)
    for row, prompt in enumerate(PROMPTS):
        ids, exits = by_recomputing(model, prompt, 12, threshold, keep)
        assert found.texts()[row].tolist() == ids.tolist()
        assert found.exits[row].tolist() == exits
    if threshold in (0.35, 0.5):
        assert len(found.exits.unique()) > 1, "exits should be mixed, or the test says little"


def test_the_two_ways_of_keeping_differ_and_both_differ_from_full_depth():
    texts = {
        name: decode(exits_of(), PROMPTS, 18, threshold, keep=keep).ids.tolist()
        for name, keep, threshold in [
            ("exact", "exact", 0.4),
            ("propagate", "propagate", 0.4),
            ("full", "exact", math.inf),
        ]
    }
    assert texts["exact"] != texts["propagate"] != texts["full"] != texts["exact"]


def test_logits_of_exits_are_those_of_the_full_network_on_the_same_text():
    """What "exact" says: whoever left before, an exit sees what it would see without exits."""
    model = exits_of()
    found = decode(model, PROMPTS[:1], 14, 0.45)
    whole = [logits.detach() for logits in model(found.ids[:, :-1])]
    for place, exit_ in enumerate(found.exits[0].tolist()):
        at = len(PROMPTS[0]) - 1 + place
        assert int(whole[exit_][0, at].argmax()) == int(found.ids[0, at + 1])
        for earlier in range(exit_):
            assert float(whole[earlier][0, at].softmax(dim=-1).max()) < 0.45


@pytest.mark.parametrize("keep", ["exact", "propagate"])
def test_an_end_token_ends_its_own_text_only(keep):
    model = exits_of()
    free = decode(model, PROMPTS, 10, 0.4, keep=keep)
    end = int(free.ids[0, len(PROMPTS[0]) + 3])
    found = decode(model, PROMPTS, 10, 0.4, keep=keep, end=end)
    for row, prompt in enumerate(PROMPTS):
        expected, _ = by_recomputing(model, prompt, 10, 0.4, keep, end)
        assert found.texts()[row].tolist() == expected.tolist()
    assert found.lengths[0] <= len(PROMPTS[0]) + 4
    assert (found.exits >= 0).sum(dim=1).tolist() == (
        found.lengths - torch.tensor([len(prompt) for prompt in PROMPTS])
    ).tolist()


def test_thresholds_may_differ_by_exit_and_fall_with_time():
    model = exits_of()
    per_exit = decode(model, PROMPTS, 10, [0.9, 0.3])
    assert (
        per_exit.texts()[0].tolist()
        == by_recomputing(model, PROMPTS[0], 10, [0.9, 0.3], "exact")[0].tolist()
    )
    limits = falling(0.4, 4.0, 10)
    assert limits(0) == pytest.approx(0.46)
    assert limits(10) < limits(1)
    found = decode(model, PROMPTS, 10, limits, confidence=margin)
    expected, exits = by_recomputing(model, PROMPTS[2], 10, limits, "exact", confidence=margin)
    assert found.texts()[2].tolist() == expected.tolist()
    assert found.exits[2].tolist() == exits


class SureTwice:
    """Sure once two exits in a row said the same: a rule that remembers."""

    def sureness(self, logits, stage, memory):
        said = logits.argmax(dim=-1)
        agrees = torch.zeros(len(said)) if memory is None else (memory == said).float()
        return agrees, said


def test_a_rule_remembers_from_exit_to_exit_of_one_token():
    model = exits_of(at=(0, 1, 2), layers=5)
    found = decode(model, PROMPTS, 10, 1.0, confidence=SureTwice())
    assert not bool((found.exits == 0).any())
    assert bool((found.exits == 1).any())
    assert bool((found.exits > 1).any())
    ids, exits = by_recomputing(model, PROMPTS[0], 10, 1.0, "exact", confidence=SureTwice())
    assert found.texts()[0].tolist() == ids.tolist()
    assert found.exits[0].tolist() == exits


def test_what_ran_is_counted():
    model = exits_of()
    early = decode(model, PROMPTS, 10, 0.0, keep="propagate")
    prompts = sum(map(len, PROMPTS))
    assert early.ran.tolist() == [prompts + 27] + [prompts - 3] * 3
    assert early.stored.tolist() == [0, 30, 30, 30]
    assert early.asked.tolist() == [30, 0, 0]
    waiting = decode(model, PROMPTS, 10, 0.0)
    assert waiting.ran.tolist() == [prompts + 27, 0, 0, 0]  # not even the prompts go deeper
    full = decode(model, PROMPTS, 10)
    assert full.ran.tolist() == [prompts + 27] * 4
    assert full.asked.tolist() == [0, 0, 30]
    mixed = decode(model, PROMPTS, 10, 0.5)
    assert (mixed.route.answered_by() == mixed.exits.flatten()).all()
    assert mixed.route.num_inputs == 30
    assert mixed.ran[0] == prompts + 27 > mixed.ran[-1] > 0


def test_texts_may_fill_the_context_and_no_more():
    model = exits_of(context=8)
    found = decode(model, PROMPTS[:1], 4, 0.5)  # the last token needs no position
    assert found.lengths.tolist() == [9]
    for keep in ("exact", "propagate"):
        with pytest.raises(InputError, match="tells 8 positions apart"):
            decode(model, PROMPTS[:1], 5, keep=keep)


def test_nothing_to_write_and_nobody_to_write_for():
    model = exits_of()
    assert decode(model, PROMPTS[:1], 0).texts()[0].tolist() == PROMPTS[0].tolist()
    nobody = decode(model, torch.zeros(0, 3, dtype=torch.int64), 4)
    assert nobody.ids.shape[0] == 0
    assert nobody.route.num_inputs == 0


def test_bad_arguments_are_refused():
    model = exits_of()
    with pytest.raises(InputError, match="at least one token id"):
        decode(model, [torch.zeros(0, dtype=torch.int64)], 2)
    with pytest.raises(InputError, match="exact, propagate"):
        decode(model, PROMPTS, 2, keep="forget")
    with pytest.raises(InputError, match="3 stages need 2 thresholds"):
        decode(model, PROMPTS, 2, [0.5] * 5)
    with pytest.raises(InputError, match="no layer 9"):
        LanguageExits(model.trunk, at=[9])
    with pytest.raises(InputError, match="once each, in the order"):
        LanguageExits(model.trunk, at=[2, 1])
    with pytest.raises(InputError, match="once each, in the order"):
        LanguageExits(model.trunk, at=["blocks.3"])
    with pytest.raises(InputError, match="2 exits need 2 heads, got 1"):
        LanguageExits(model.trunk, at=[0, 1], heads=[torch.nn.Identity()])
    with pytest.raises(InputError, match="decoding needs a Decoder"):
        LanguageExits(torch.nn.Linear(2, 2), at=[0])


def test_own_heads_are_used_where_given():
    model = exits_of()
    head = torch.nn.Linear(16, V).double()
    own = LanguageExits(model.trunk, at=[1], heads=[head])
    ids = torch.tensor([[1, 2, 3]])
    state = model.trunk.block(1, model.trunk.block(0, model.trunk.begin(ids)))
    assert_close(own(ids)[0], head(state))
