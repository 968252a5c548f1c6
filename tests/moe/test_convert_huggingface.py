"""Sparse blocks of transformers as routed layers and back: bit for bit, on tiny random models."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe import MoE
from pointsman.moe.convert import (
    copy,
    from_block,
    is_sparse_block,
    load_block,
    save_block,
    softmax_top_k,
)

tf: Any = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers.models.mixtral import modeling_mixtral as mixtral  # noqa: E402
from transformers.models.olmoe import modeling_olmoe as olmoe  # noqa: E402
from transformers.models.qwen2_moe import modeling_qwen2_moe as qwen2  # noqa: E402
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3  # noqa: E402

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
}
SMALL = {**SIZES, "moe_intermediate_size": 12, "num_experts": 8, "num_experts_per_tok": 3}


def block(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A sparse block whose weights are large enough to choose clearly."""
    torch.manual_seed(0)
    made: Any = {
        "olmoe": lambda: olmoe.OlmoeSparseMoeBlock(
            tf.OlmoeConfig(
                **SIZES, intermediate_size=12, num_experts=8, num_experts_per_tok=3, **changes
            )
        ),
        "mixtral": lambda: mixtral.MixtralSparseMoeBlock(
            tf.MixtralConfig(**SIZES, intermediate_size=12, num_local_experts=8, **changes)
        ),
        "qwen2": lambda: qwen2.Qwen2MoeSparseMoeBlock(
            tf.Qwen2MoeConfig(**SMALL, shared_expert_intermediate_size=20, **changes)
        ),
        "qwen3": lambda: qwen3.Qwen3MoeSparseMoeBlock(
            tf.Qwen3MoeConfig(**{**SMALL, "norm_topk_prob": True, **changes})
        ),
    }[family]()
    made.experts.config._experts_implementation = "eager"
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(std=0.4)
    return made.to(dtype).eval()


FAMILIES = ["olmoe", "mixtral", "qwen2", "qwen3"]
OTHERS = [("olmoe", {"norm_topk_prob": True}), ("qwen3", {"norm_topk_prob": False})]
CASES = [(family, {}) for family in FAMILIES] + OTHERS


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 9, 32, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("family", "changes"), CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)],
)
def test_outputs_equal_those_of_the_eager_block(
    family: str, changes: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    theirs = block(family, dtype, **changes)
    y, routing = from_block(theirs)(tokens(dtype))
    expected = theirs(tokens(dtype))
    assert y.dtype == dtype
    assert y.shape == expected.shape
    assert (y - expected).abs().max() <= tolerance * expected.abs().max()
    _, weights, indices = theirs.gate(tokens(dtype).reshape(18, 32))
    assert torch.equal(routing.route.branches.reshape(indices.shape), indices)
    assert torch.equal(routing.route.weights.reshape(weights.shape), weights.to(dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_the_eager_block(family: str) -> None:
    theirs, x = block(family, torch.float64), tokens(torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    (theirs(a) * probe).sum().backward()
    expected = [weight.grad.clone() for weight in theirs.parameters()]
    theirs.zero_grad()
    (from_block(theirs)(b)[0] * probe).sum().backward()
    # Their routing weights are rounded to float32, and so are the gradients through them.
    assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-6)
    for weight, grad in zip(theirs.parameters(), expected, strict=True):
        assert_close(weight.grad, grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_the_very_same(family: str) -> None:
    theirs = block(family)
    ours = from_block(theirs)
    assert {id(weight) for weight in ours.parameters()} == {id(w) for w in theirs.parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dicts_go_round_bit_for_bit(family: str) -> None:
    theirs = block(family, torch.bfloat16)
    state = theirs.state_dict()
    k, renormalize = theirs.gate.top_k, getattr(theirs.gate, "norm_topk_prob", True)
    ours = load_block(state, k=k, renormalize=renormalize)
    back = save_block(ours)
    assert set(back) == set(state) == set(save_block(from_block(theirs)))
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert all(back[name].dtype == state[name].dtype for name in state)
    assert torch.equal(
        ours(tokens(torch.bfloat16))[0], from_block(theirs)(tokens(torch.bfloat16))[0]
    )


@pytest.mark.parametrize(
    ("family", "layout", "first"),
    [
        ("olmoe", "experts", "experts.0.gate_proj.weight"),
        ("qwen2", "experts", "experts.0.gate_proj.weight"),
        ("mixtral", "mixtral", "experts.0.w1.weight"),
    ],
)
def test_older_names_go_round_bit_for_bit(family: str, layout: Any, first: str) -> None:
    theirs = block(family)
    old = save_block(from_block(theirs), layout, prefix="layers.3.mlp.")
    gate = theirs.experts.gate_up_proj[0, :12]
    assert torch.equal(old[f"layers.3.mlp.{first}"], gate)
    ours = load_block(
        {**old, "layers.4.mlp.gate.weight": gate}, k=2, renormalize=True, prefix="layers.3.mlp."
    )
    again = save_block(ours)
    assert set(again) == set(theirs.state_dict())
    assert all(torch.equal(again[name], t) for name, t in theirs.state_dict().items())


@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
def test_names_are_those_that_transformers_writes(family: str, tmp_path: Any) -> None:
    from safetensors.torch import load_file

    kinds = {
        "olmoe": (tf.OlmoeForCausalLM, tf.OlmoeConfig, "mlp.", "experts"),
        "mixtral": (tf.MixtralForCausalLM, tf.MixtralConfig, "block_sparse_moe.", "mixtral"),
    }
    model_class, config_class, middle, layout = kinds[family]
    tokens_of = {"vocab_size": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    experts = {"num_local_experts" if family == "mixtral" else "num_experts": 4}
    config = config_class(
        **SIZES,
        **tokens_of,
        **experts,
        intermediate_size=12,
        num_hidden_layers=1,
        num_experts_per_tok=2,
    )
    model = model_class(config)
    with no_bars():
        model.save_pretrained(tmp_path)
    prefix = f"model.layers.0.{middle}"
    written = load_file(tmp_path / "model.safetensors")
    sparse = model.model.layers[0].mlp
    renormalize = getattr(sparse.gate, "norm_topk_prob", True)
    moe = load_block(written, k=sparse.gate.top_k, renormalize=renormalize, prefix=prefix)
    assert torch.equal(moe(tokens())[0], from_block(sparse)(tokens())[0])
    again = save_block(moe, layout, prefix=prefix)  # type: ignore[arg-type]
    assert all(torch.equal(written[name], tensor) for name, tensor in again.items())
    assert {name for name in written if name.startswith(prefix)} == set(again)


@contextmanager
def no_bars() -> Iterator[None]:
    tf.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        tf.utils.logging.enable_progress_bar()


def test_weights_are_a_softmax_in_float32_whatever_the_type() -> None:
    scores = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).double()
    route = softmax_top_k(scores, 3, renormalize=False)
    exact = scores.float().softmax(dim=1).double()
    assert torch.equal(route.weights, exact[route.inputs, route.branches])
    assert softmax_top_k(scores.bfloat16(), 3).weights.dtype == torch.bfloat16
    assert len(softmax_top_k(scores[:0], 3)) == 0


def test_what_computes_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="Linear is no sparse block"):
        from_block(nn.Linear(3, 3))
    assert not is_sparse_block(nn.Linear(3, 3))
    assert is_sparse_block(block("olmoe"))
    with pytest.raises(InputError, match="jitters"):
        from_block(block("mixtral", router_jitter_noise=0.1))

    other = block("olmoe")
    other.gate.register_forward_hook(lambda _, __, out: (out[0], out[1] * 2, out[2]))
    with pytest.raises(InputError, match="computes something else"):
        from_block(other)


def test_blocks_that_are_not_whole_are_refused() -> None:
    state = block("qwen2").state_dict()
    for name in ("gate.weight", "experts.down_proj", "shared_expert.up_proj.weight"):
        with pytest.raises(InputError, match=rf"needs the tensor {name}, which is missing"):
            load_block({n: t for n, t in state.items() if n != name}, k=2, renormalize=True)
    with pytest.raises(InputError, match="does not fit together"):
        short = {**state, "experts.down_proj": state["experts.down_proj"][:, :5]}
        load_block(short, k=2, renormalize=True)


def test_layers_that_no_block_can_hold_are_refused() -> None:
    dense = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    with pytest.raises(InputError, match="gated experts, without biases"):
        save_block(copy(dense, 4))
    whole = from_block(block("olmoe"))
    with pytest.raises(InputError, match="SharedExpert, got Linear"):
        save_block(MoE(whole.router, whole.select, whole.experts, shared=nn.Linear(32, 32)))
