"""Self-speculative decoding, held against the full model's own greedy text without a cache."""

import math

import pytest
import torch
from torch.testing import assert_close

from pointsman.depth.decoder import Decoder
from pointsman.depth.decoding.early import decode
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.decoding.speculative import speculate
from pointsman.errors import InputError

V = 12
PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([2]), torch.tensor([7, 7, 0])]


def exits_of(at=(0, 2), layers=4, context=40, vocabulary=V, dtype=torch.float64, heads=None):
    torch.manual_seed(0)
    decoder = Decoder(vocabulary=vocabulary, width=16, layers=layers, heads=2, context=context)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(1.5)
    return LanguageExits(decoder.to(dtype), at=at, heads=heads).eval()


@torch.no_grad()
def greedy_by_recomputing(model, prompt, new, end=None):
    ids = prompt
    for _ in range(new):
        state = model.trunk.begin(ids[None])
        for at in range(len(model.trunk.names)):
            state = model.trunk.block(at, state)
        ids = torch.cat([ids, model.trunk.finish(state)[0, -1:].argmax(dim=-1)])
        if end is not None and int(ids[-1]) == end:
            break
    return ids.tolist()


@pytest.mark.parametrize("drafts", [1, 3, 30])
@pytest.mark.parametrize("exit_", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_texts_equal_the_full_models_greedy_texts(drafts, exit_, dtype):
    model = exits_of(dtype=dtype)
    found = speculate(model, PROMPTS, 16, drafts=drafts, exit_=exit_)
    for row, prompt in enumerate(PROMPTS):
        assert found.texts()[row].tolist() == greedy_by_recomputing(model, prompt, 16)
    assert 0 < found.accepted < found.drafted, "drafts should be right now and then"
    assert found.rounds < 16 + 1


def test_drafts_that_are_always_right_save_rounds():
    """Later layers that add nothing: the exit says what the model says."""
    model = exits_of(at=(1,))
    with torch.no_grad():
        for block in model.trunk.blocks[2:]:
            block.attention.out.weight.zero_()
            block.feed_forward[2].weight.zero_()
            block.feed_forward[2].bias.zero_()
    found = speculate(model, PROMPTS, 20, drafts=4)
    assert found.accepted == found.drafted
    assert found.rounds == 4
    for row, prompt in enumerate(PROMPTS):
        assert found.texts()[row].tolist() == greedy_by_recomputing(model, prompt, 20)
    assert (found.exits == 0).sum(dim=1).tolist() == [16] * 3


def test_drafts_that_are_never_right_change_nothing():
    model = exits_of(at=(0,))
    model = LanguageExits(model.trunk, at=[0], heads=[NeverRight(model)])
    found = speculate(model, PROMPTS, 10, drafts=3)
    assert found.accepted == 0
    assert found.rounds == 10
    for row, prompt in enumerate(PROMPTS):
        assert found.texts()[row].tolist() == greedy_by_recomputing(model, prompt, 10)


class NeverRight(torch.nn.Module):
    """Says a token that the model never writes here."""

    def __init__(self, model):
        super().__init__()
        written = {token for p in PROMPTS for token in greedy_by_recomputing(model, p, 10)}
        self.unwritten = min(set(range(V)) - written)

    def forward(self, state):
        logits = state.new_zeros(*state.shape[:2], V)
        logits[..., self.unwritten] = 1
        return logits


def test_texts_take_what_is_right_each_at_its_own_pace():
    model = exits_of()
    found = speculate(model, PROMPTS, 16, drafts=4)
    right = (found.exits == 0).sum(dim=1)
    assert len(right.unique()) > 1, "texts should differ, or the test says little"
    alone = [speculate(model, [prompt], 16, drafts=4) for prompt in PROMPTS]
    for row, each in enumerate(alone):
        assert each.texts()[0].tolist() == found.texts()[row].tolist()


@pytest.mark.parametrize("place", [0, 1, 2, 5, 9])
def test_an_end_token_among_the_drafts_ends_the_text(place):
    model = exits_of()
    free = greedy_by_recomputing(model, PROMPTS[0], 14)
    end = free[len(PROMPTS[0]) + place]
    found = speculate(model, PROMPTS, 14, drafts=5, end=end)
    for row, prompt in enumerate(PROMPTS):
        assert found.texts()[row].tolist() == greedy_by_recomputing(model, prompt, 14, end)
        assert bool((found.ids[row, found.lengths[row] :] == 0).all())


@pytest.mark.parametrize("new", [1, 2, 9, 36])
def test_texts_may_fill_the_context(new):
    model = exits_of()
    found = speculate(model, PROMPTS, new, drafts=6)
    for row, prompt in enumerate(PROMPTS):
        assert found.texts()[row].tolist() == greedy_by_recomputing(model, prompt, new)
    with pytest.raises(InputError, match="tells 40 positions apart"):
        speculate(model, PROMPTS, 37)


def test_equal_logits_go_to_the_first_token():
    model = exits_of()
    with torch.no_grad():
        model.trunk.head.weight.zero_()
    found = speculate(model, PROMPTS, 8, drafts=3)
    assert found.texts()[1].tolist() == [2] + [0] * 8
    assert found.accepted == found.drafted


def test_drafting_ends_where_no_text_is_sure():
    model = exits_of()
    eager = speculate(model, PROMPTS, 16, drafts=6)
    careful = speculate(model, PROMPTS, 16, drafts=6, sure=0.6)
    never = speculate(model, PROMPTS, 16, drafts=6, sure=2.0)
    assert careful.ids.tolist() == eager.ids.tolist() == never.ids.tolist()
    assert never.drafted < careful.drafted < eager.drafted
    assert careful.accepted / careful.drafted > eager.accepted / eager.drafted


def test_layers_run_for_drafts_and_once_for_each():
    model = exits_of(at=(1,))
    found = speculate(model, PROMPTS[:1], 16, drafts=3)
    assert found.ran[0] == found.ran[3] == len(PROMPTS[0]) - 1 + found.drafted + found.rounds
    assert found.route.num_inputs == 16
    assert int((found.exits == 0).sum()) == found.accepted


def test_drawn_texts_are_distributed_as_the_full_models():
    """Two tokens after one prompt, 10,000 times, against their exact joint probabilities."""
    torch.manual_seed(3)
    head = torch.nn.Linear(16, 4).double()
    model = exits_of(vocabulary=4, at=(0,), heads=[head])
    prompt = torch.tensor([1, 3])
    joint = torch.zeros(4, 4, dtype=torch.float64)
    for first in range(4):
        ids = torch.cat([prompt, torch.tensor([first])])[None]
        logits = model(ids)[-1].detach()[0] / 0.7
        joint[first] = logits[1].softmax(-1)[first] * logits[2].softmax(-1)
    many, generator = 10_000, torch.Generator().manual_seed(0)
    found = speculate(
        model, prompt.expand(many, 2), 2, drafts=2, temperature=0.7, generator=generator
    )
    written = found.ids[:, 2] * 4 + found.ids[:, 3]
    counts = torch.bincount(written, minlength=16).double().reshape(4, 4)
    error = (joint * (1 - joint) / many).sqrt()
    assert bool(((counts / many - joint).abs() < 4.5 * error).all())
    assert 0.05 < found.accepted / found.drafted < 1
    draft_only = model(prompt[None])[0].detach()[0, -1].div(0.7).softmax(-1)
    assert not torch.allclose(draft_only, joint.sum(dim=1), atol=0.05), "else nothing is tested"


def test_bad_arguments_are_refused():
    model = exits_of()
    with pytest.raises(InputError, match="one of the 2 early exits"):
        speculate(model, PROMPTS, 4, exit_=2)
    with pytest.raises(InputError, match="drafts are at least 1"):
        speculate(model, PROMPTS, 4, drafts=0)
    with pytest.raises(InputError, match="temperature at least 0"):
        speculate(model, PROMPTS, 4, temperature=-1.0)


def test_speculation_and_plain_decoding_leave_the_mode_alone():
    model = exits_of().train()
    full = decode(model, PROMPTS, 6, math.inf)
    found = speculate(model, PROMPTS, 6)
    assert model.training
    assert_close(found.ids, full.ids)
