"""The decoding of this level over tiny models of transformers, against the models themselves."""

import math

import pytest
import torch
from torch.testing import assert_close

from pointsman.depth.decoding.early import decode
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.decoding.forced import forced
from pointsman.depth.decoding.positions import PositionTable
from pointsman.depth.decoding.speculative import speculate
from pointsman.depth.decoding.training import fit_language
from pointsman.depth.decoding.transformers import TransformersDecoder
from pointsman.depth.decoding.trunk import CausalTrunk
from pointsman.errors import InputError

transformers = pytest.importorskip("transformers")
V, CONTEXT = 14, 32
SMALL = {"vocab_size": V, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 3}
LONG = {"max_position_embeddings": CONTEXT, "intermediate_size": 32}


def made(name, **more):
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=V, n_embd=16, n_layer=3, n_head=4, n_positions=CONTEXT, **more
        )
        kind = transformers.GPT2LMHeadModel
    elif name == "opt":
        sizes = {"ffn_dim": 32, "max_position_embeddings": CONTEXT, "word_embed_proj_dim": 8}
        config = transformers.OPTConfig(**SMALL, **sizes, **more)
        kind = transformers.OPTForCausalLM
    else:
        config_kind, kind = {
            "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
            "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
            "neox": (transformers.GPTNeoXConfig, transformers.GPTNeoXForCausalLM),
            "phi": (transformers.PhiConfig, transformers.PhiForCausalLM),
            "cohere": (transformers.CohereConfig, transformers.CohereForCausalLM),
            "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        }[name]
        groups = {} if name in ("neox", "phi") else {"num_key_value_heads": 2}
        config = config_kind(**SMALL, **LONG, **{"pad_token_id": 0} | groups | more)
    model = kind(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(8.0)  # far from the tiny weights of a fresh model, which say nothing
    return model


FAMILIES = ("llama", "gpt2", "opt", "qwen2", "neox", "phi", "cohere", "mistral")
PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([2]), torch.tensor([7, 7, 1])]


@torch.no_grad()
def greedy_by_the_model(model, prompt, new):
    ids = prompt[None]
    for _ in range(new):
        logits = model(input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids[0].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_full_depth_and_speculation_write_what_the_model_writes(name):
    model = made(name)
    exits = LanguageExits(model, at=[0, 1])
    full = decode(exits, PROMPTS, 8)
    drafted = speculate(exits, PROMPTS, 8, drafts=3, exit_=1)
    for row, prompt in enumerate(PROMPTS):
        wanted = greedy_by_the_model(model, prompt, 8)
        assert full.texts()[row].tolist() == wanted
        assert drafted.texts()[row].tolist() == wanted


@pytest.mark.parametrize("keep", ["exact", "propagate"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_early_exits_equal_recomputing_without_a_cache(name, keep):
    exits = LanguageExits(made(name), at=[0, 1])
    with torch.no_grad():
        limit = float(exits(PROMPTS[0][None])[0].softmax(dim=-1).amax(dim=-1).median())
    found = decode(exits, PROMPTS, 6, limit, keep=keep)
    assert len(found.exits.unique()) > 1, "exits should be mixed, or the test says little"
    for row, prompt in enumerate(PROMPTS):
        ids = prompt
        for step in range(6):
            deep = (torch.arange(len(ids)) < len(prompt) - 1)[None]
            there = forced(exits, ids[None], limit, keep=keep, deep=deep)
            assert int(there.exits[0, -1]) == int(found.exits[row, step])
            ids = torch.cat([ids, there.logits[0, -1:].argmax(dim=-1)])
        assert found.texts()[row].tolist() == ids.tolist()


def test_eager_attention_is_masked_alike():
    model = made("llama", attn_implementation="eager")
    found = speculate(LanguageExits(model, at=[0]), PROMPTS, 6, drafts=2)
    assert found.texts()[0].tolist() == greedy_by_the_model(model, PROMPTS[0], 6)


def test_a_model_is_a_trunk_and_its_logits_are_its_own():
    model = made("gpt2")
    trunk = TransformersDecoder(model)
    assert isinstance(trunk, CausalTrunk)
    assert trunk.context == CONTEXT
    ids = torch.randint(V, (2, 7))
    assert_close(LanguageExits(trunk, at=[0])(ids)[-1], model(ids).logits)
    assert_close(trunk(ids), model(ids).logits)
    state = torch.randn(2, 3, 16, dtype=torch.float64)
    assert_close(trunk.finish(state), trunk._finish_by_forward(state), rtol=0, atol=0)


def test_exits_of_a_model_can_be_trained():
    model = made("llama").float()
    exits = LanguageExits(model, at=[0])
    text = torch.arange(400) % 7
    losses = []
    fit_language(
        exits, text, updates=30, batch=4, window=12, rate=1e-2, dropout=0.2,
        on_update=lambda update, loss: losses.append(loss),
    )  # fmt: skip
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    found = decode(exits, torch.tensor([[3, 4, 5]]), 6, 0.5)
    assert found.texts()[0].tolist() == [3, 4, 5, 6, 0, 1, 2, 3, 4]
    assert (found.exits == 0).any()


def test_what_depends_on_positions_is_kept_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr(PositionTable, "CHUNK", 4)
    for name in ("llama", "gpt2"):
        model = made(name)
        exits = LanguageExits(model, at=[0])
        found = speculate(exits, PROMPTS, 20, drafts=3)
        for row, prompt in enumerate(PROMPTS):
            assert found.texts()[row].tolist() == greedy_by_the_model(model, prompt, 20)
        again = decode(exits.float(), PROMPTS[:1], 6)  # the table is of another type now
        assert again.texts()[0].tolist() == found.texts()[0][:11].tolist()


def test_a_sliding_window_bounds_the_context():
    assert TransformersDecoder(made("mistral", sliding_window=20)).context == 20


def test_models_with_another_state_are_refused():
    config = transformers.MambaConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4, max_position_embeddings=32
    )
    with pytest.raises(InputError, match="takes no cache"):
        LanguageExits(transformers.MambaForCausalLM(config), at=[0])
    model = made("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(InputError, match="'sdpa' or 'eager'"):
        LanguageExits(model, at=[0])
    with pytest.raises(InputError, match="tells 32 positions apart"):
        decode(LanguageExits(made("llama"), at=[0]), PROMPTS, 40, math.inf)
