"""Routed layers inside models of transformers: same outputs, tokens, gradients and state dicts."""

import copy as copies
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import DegenerateWarning, InputError
from pointsman.moe import MoE
from pointsman.moe.balance import switch
from pointsman.moe.convert import (
    RoutedBlock,
    adopt,
    collected,
    copy,
    load_block,
    padded,
    release,
    routed_layers,
    split,
    wrap,
)

tf: Any = pytest.importorskip("transformers", reason="transformers is not installed")

# Imported here, so that no test pays for it.
MODELS = (
    tf.BertModel,
    tf.GPT2LMHeadModel,
    tf.LlamaForCausalLM,
    tf.MixtralForCausalLM,
    tf.OlmoeForCausalLM,
    tf.OPTForCausalLM,
    tf.Phi3ForCausalLM,
    tf.Qwen2MoeForCausalLM,
    tf.Qwen3MoeForCausalLM,
    tf.ViTModel,
)

TOKENS = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    **TOKENS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SMALL = {**SIZES, "moe_intermediate_size": 12, "num_experts": 8, "num_experts_per_tok": 3}
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8}
BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2}

SPARSE: dict[str, Callable[[], Any]] = {
    "olmoe": lambda: tf.OlmoeForCausalLM(
        tf.OlmoeConfig(**SIZES, intermediate_size=12, num_experts=8, num_experts_per_tok=3)
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(
        tf.MixtralConfig(**SIZES, intermediate_size=12, num_local_experts=8)
    ),
    "qwen2": lambda: tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(**SMALL, shared_expert_intermediate_size=20)
    ),
    "qwen3": lambda: tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**SMALL, head_dim=8)),
}
DENSE: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**TOKENS, **GPT2)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, intermediate_size=24)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**SIZES, intermediate_size=24)),
    "bert": lambda: tf.BertModel(tf.BertConfig(**BERT, intermediate_size=24)),
    "vit": lambda: tf.ViTModel(tf.ViTConfig(**VISION, patch_size=4, intermediate_size=24)),
}
WRITERS = ("gpt2", "llama", "phi3")


def model_of(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    model = make().eval()
    model.config._experts_implementation = "eager"
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return model


def ids() -> Tensor:
    return torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(0))


def output_of(model: Any) -> Tensor:
    if isinstance(model, tf.ViTModel):
        images = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)
        found: Tensor = model(images).last_hidden_state
        return found
    answer = model(ids())
    return answer.logits if "logits" in answer else answer.last_hidden_state


def written_by(model: Any) -> Tensor:
    found: Tensor = model.generate(ids(), max_new_tokens=3, do_sample=False)
    return found


@pytest.mark.parametrize("family", SPARSE)
def test_an_adopted_model_gives_the_same_outputs_and_tokens(family: str) -> None:
    model = model_of(SPARSE[family])
    before, text = output_of(model), written_by(model)
    assert adopt(model) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert isinstance(model.model.layers[0].mlp, RoutedBlock)
    assert_close(output_of(model), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(written_by(model), text)


@pytest.mark.parametrize("family", SPARSE)
def test_state_dicts_keep_their_names_and_the_model_can_be_released(family: str) -> None:
    model = model_of(SPARSE[family])
    before, state = output_of(model), copies.deepcopy(model.state_dict())
    adopt(model)
    assert set(model.state_dict()) == set(state)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    model.load_state_dict(state)
    assert release(model) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert torch.equal(output_of(model), before)
    assert not routed_layers(model)


def test_new_weights_go_back_with_a_release() -> None:
    model, other = model_of(SPARSE["olmoe"]), model_of(SPARSE["olmoe"])
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.01)
    adopt(model)
    model.load_state_dict(other.state_dict(), assign=True)
    release(model)
    assert torch.equal(output_of(model), output_of(other))


def test_an_adopted_model_is_saved_as_a_model_of_transformers(tmp_path: Any) -> None:
    model = model_of(SPARSE["qwen2"])
    before = output_of(model)
    adopt(model)
    tf.utils.logging.disable_progress_bar()
    try:
        model.save_pretrained(tmp_path)
        again = tf.Qwen2MoeForCausalLM.from_pretrained(tmp_path)
    finally:
        tf.utils.logging.enable_progress_bar()
    assert_close(output_of(again.eval()), before, rtol=1e-5, atol=1e-5)


def test_an_adopted_model_is_copied_moved_and_cast() -> None:
    model = model_of(SPARSE["qwen2"])
    adopt(model)
    twin = copies.deepcopy(model)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
    assert bool(output_of(model).any())
    half = copies.deepcopy(model).bfloat16()
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert output_of(half).dtype == torch.bfloat16
    release(half)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert output_of(half).dtype == torch.bfloat16


def test_an_optimiser_made_before_goes_on_training_after() -> None:
    model = model_of(SPARSE["olmoe"])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    adopt(model)
    weights = dict(model.named_parameters())
    before = weights["model.layers.0.mlp.moe.experts.up_EFD"].clone()
    model(ids(), labels=ids()).loss.backward()
    optimiser.step()
    assert not torch.equal(weights["model.layers.0.mlp.moe.experts.up_EFD"], before)


def test_router_logits_and_their_loss_go_on_working() -> None:
    model = model_of(SPARSE["olmoe"])
    before = model(ids(), labels=ids(), output_router_logits=True)
    fresh = model_of(SPARSE["olmoe"])
    adopt(model)
    adopt(fresh)  # the model's hooks were not installed before
    for adopted in (model, fresh):
        after = adopted(ids(), labels=ids(), output_router_logits=True)
        assert_close(after.aux_loss, before.aux_loss)
        assert_close(after.loss, before.loss)
        assert len(after.router_logits) == 2


def train(model: Any, *, balanced: bool = True) -> tuple[dict[str, Tensor], dict[str, int]]:
    model.zero_grad()
    with collected(model) as found:
        loss = model(ids(), labels=ids()).loss
        (loss + found.loss if balanced else loss).backward()
    grads = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}
    return grads, {name: len(calls) for name, calls in found.routings.items()}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("kind", ["olmoe", "gpt2"])
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_gradient_checkpointing_gives_equal_gradients_and_counts(
    kind: str, reentrant: bool | None
) -> None:
    model = model_of({**SPARSE, **DENSE}[kind])
    if kind == "olmoe":
        adopt(model)
    else:
        wrap(model, partial(split, copies=2, slices=2))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    for layer in routed_layers(model).values():
        layer.balance = ((0.1, switch),)
    model.train()
    model.config.use_cache = False
    balanced = not reentrant
    plain, calls = train(model, balanced=balanced)
    assert set(calls.values()) == {1}
    kwargs = None if reentrant is None else {"use_reentrant": reentrant}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    saved, again = train(model, balanced=balanced)
    assert again == calls
    assert saved.keys() == plain.keys()
    for name, grad in plain.items():
        assert_close(saved[name], grad, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_balancing_terms_lost_to_reentrant_checkpointing_are_told() -> None:
    model = model_of(SPARSE["olmoe"])
    adopt(model)
    for layer in routed_layers(model).values():
        layer.balance = ((0.1, switch),)
    model.train()
    model.config.use_cache = False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.warns(DegenerateWarning, match="reentrant"):
        train(model)


def test_collected_counts_calls_and_stops_listening() -> None:
    model = model_of(SPARSE["qwen3"])
    with pytest.raises(InputError, match="`adopt` or `wrap` it first"), collected(model):
        pass
    adopt(model)
    with collected(model) as found:
        output_of(model)
        output_of(model)
    output_of(model)
    assert {name: len(calls) for name, calls in found.routings.items()} == {
        "model.layers.0.mlp.moe": 2,
        "model.layers.1.mlp.moe": 2,
    }
    assert float(found.loss) == 0
    assert found.routings["model.layers.1.mlp.moe"][0].route.num_inputs == 18


@pytest.mark.parametrize("kind", ["olmoe", "llama"])
def test_padding_takes_no_expert_where_it_is_told(kind: str) -> None:
    model = model_of({**SPARSE, **DENSE}[kind])
    if kind == "olmoe":
        adopt(model)
    else:
        wrap(model, partial(split, copies=2, slices=2))
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    before = model(ids(), attention_mask=mask).logits
    with padded(model, mask), collected(model) as found:
        after = model(ids(), attention_mask=mask).logits
    assert_close(after[mask.bool()], before[mask.bool()], rtol=1e-5, atol=1e-5)
    assert [calls[0].route.num_inputs for calls in found.routings.values()] == [15, 15]
    assert torch.equal(model(ids(), attention_mask=mask).logits, before)
    with pytest.raises(InputError, match="no routed block"), padded(nn.Linear(2, 2), mask):
        pass


@pytest.mark.parametrize(
    ("family", "how"),
    [(family, how) for family in DENSE for how in ("copy", "split")]
    + [("llama", "copy of 1"), ("gpt2", "whole split")],
)
def test_a_wrapped_model_gives_the_same_outputs_and_tokens(family: str, how: str) -> None:
    make: Callable[..., MoE] = {
        "copy": partial(copy, num_experts=4),
        "split": partial(split, copies=3, slices=4),
        "copy of 1": partial(copy, num_experts=1, k=1),
        "whole split": partial(split, copies=1, slices=2),
    }[how]
    model = model_of(DENSE[family])
    before = output_of(model)
    text = written_by(model) if family in WRITERS else None
    assert len(wrap(model, make)) == 2
    assert_close(output_of(model), before, rtol=1e-4, atol=1e-4)
    if text is not None:
        assert torch.equal(written_by(model), text)


def test_only_what_was_asked_for_is_wrapped() -> None:
    model = model_of(DENSE["llama"])
    names = wrap(model, partial(copy, num_experts=3), where=lambda name, _: ".1." in name)
    assert names == ["model.layers.1.mlp"]
    assert list(routed_layers(model)) == ["model.layers.1.mlp.moe"]
    with pytest.raises(InputError, match="no dense feed-forward to replace where asked"):
        wrap(model, partial(copy, num_experts=3), where=lambda name, _: ".1." in name)


def test_bert_keeps_its_residual_norm_and_dropout() -> None:
    model = model_of(DENSE["bert"])
    names = wrap(model, partial(copy, num_experts=3))
    assert names == ["encoder.layer.0.intermediate", "encoder.layer.1.intermediate"]
    output = model.encoder.layer[0].output
    assert isinstance(output.dense, nn.Identity)
    assert isinstance(output.LayerNorm, nn.LayerNorm)


def test_dropout_at_the_end_is_kept_and_one_inside_is_refused() -> None:
    model = model_of(DENSE["gpt2"])
    model.train()
    wrap(model, partial(copy, num_experts=3))
    routed = model.transformer.h[0].mlp
    assert routed.training
    assert routed.after.p == 0.1
    inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4))
    parts = nn.ModuleDict({"a": inner, "head": nn.Sequential(*inner[:3], nn.Linear(8, 2))})
    with pytest.raises(InputError, match="drops hidden units"):
        wrap(parts, partial(copy, num_experts=3))
    inner[2].p = 0.0  # what changes the width, such as a head, is left alone, dropout and all
    assert wrap(parts, partial(copy, num_experts=3)) == ["a"]


def test_a_wrapped_model_trains_and_is_saved_and_loaded() -> None:
    model = model_of(DENSE["llama"])
    wrap(model, partial(copy, num_experts=4, redrawn=0.5))
    model(ids(), labels=ids()).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    twin = model_of(DENSE["llama"])
    wrap(twin, partial(copy, num_experts=4))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(output_of(twin), output_of(model))


def test_models_without_such_layers_are_refused() -> None:
    with pytest.raises(InputError, match="no sparse block to adopt: `wrap`"):
        adopt(model_of(DENSE["llama"]))
    sparse = model_of(SPARSE["qwen2"])
    with pytest.raises(InputError, match="no dense feed-forward"):
        wrap(sparse, partial(copy, num_experts=3))  # its shared expert is part of a sparse block
    with pytest.raises(InputError, match="no sparse block to adopt where asked"):
        adopt(sparse, where=lambda *_: False)
    # OPT keeps the linear layers of its feed-forward among those of the whole decoder layer.
    opt = tf.OPTConfig(**TOKENS, hidden_size=16, ffn_dim=24, num_hidden_layers=1)
    opt.num_attention_heads, opt.word_embed_proj_dim = 2, 16
    with pytest.raises(InputError, match="no dense feed-forward"):
        wrap(tf.OPTForCausalLM(opt), partial(copy, num_experts=3))


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = model_of(SPARSE["olmoe"])
    last = model.model.layers[1].mlp.gate
    handle = last.register_forward_hook(lambda _, __, out: (out[0], out[1] * 2, out[2]))
    with pytest.raises(InputError, match="computes something else"):
        adopt(model)
    assert not routed_layers(model)
    handle.remove()
    assert len(adopt(model)) == 2


def test_a_model_of_torch_alone_is_wrapped_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), nn.ReLU()
    )
    x = torch.randn(5, 6)
    before = model(x)
    assert wrap(model, partial(split, copies=2, slices=2)) == ["1"]
    assert_close(model(x), before)
    assert isinstance(model[1], RoutedBlock)
    assert list(routed_layers(model)) == ["1.moe"]


def test_load_block_reads_a_block_out_of_a_model() -> None:
    model = model_of(SPARSE["olmoe"])
    gate = model.model.layers[1].mlp.gate
    moe = load_block(
        model.state_dict(),
        k=gate.top_k,
        renormalize=gate.norm_topk_prob,
        prefix="model.layers.1.mlp.",
    )
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    assert_close(moe(x)[0], model.model.layers[1].mlp(x), rtol=1e-5, atol=1e-5)
