"""The bank of feed-forward experts: its fast paths against the loop that can be read."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe import FeedForwardExperts
from pointsman.moe.experts import grouped as module
from pointsman.moe.experts.grouped import ACTIVATIONS, fresh, grouped
from pointsman.moe.experts.kernel import by_grouped_mm, fits
from pointsman.moe.experts.reference import by_loop

SIZES = (3, 0, 1, 4, 0)  # rows of each expert: empty in the middle and at the end, one alone
OFFSETS = (0, 3, 3, 4, 8, 8)


def tensors(
    gated: bool = False, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (8, 5), up, bias and down to width 4 of five experts of hidden width 6."""
    generator = torch.Generator().manual_seed(seed)
    wide = 12 if gated else 6
    rows, up, bias, down = (
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((8, 5), (5, wide, 5), (5, wide), (5, 4, 6))
    )
    return rows, up, bias, down


def loop(
    activation: str, gated: bool, rows: Tensor, up: Tensor, bias: Tensor | None, down: Tensor
) -> Tensor:
    return by_loop(rows, list(SIZES), up, bias, down, ACTIVATIONS[activation].plain, gated)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    gated=st.booleans(),
    bias=st.booleans(),
    group=st.sampled_from([1, 40, 2**18]),
    seed=st.integers(0, 99),
)
def test_the_fast_path_equals_the_loop(
    sizes: list[int], activation: str, gated: bool, bias: bool, group: int, seed: int
) -> None:
    """Values and gradients, whatever the rows of each expert and how experts are grouped."""
    torch.manual_seed(seed)
    bank = FeedForwardExperts(
        len(sizes), 5, 3, activation=activation, gated=gated, bias=bias, out=4
    ).double()
    if bank.up_bias_EF is not None:
        torch.nn.init.normal_(bank.up_bias_EF)
    rows = torch.randn(sum(sizes), 5, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    weights = (bank.up_EFD, bank.up_bias_EF, bank.down_EDF)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GROUP", group)
        found = bank(rows, offsets)
        expected = by_loop(rows, sizes, *weights, bank.activation, gated)
        assert_close(found, expected)
        with torch.no_grad():
            assert_close(bank(rows, offsets), expected)
        seed_grad = torch.randn_like(found)
        wanted = [rows, *(weight for weight in weights if weight is not None)]
        ours = torch.autograd.grad(found, wanted, seed_grad)
    theirs = torch.autograd.grad(expected, wanted, seed_grad)
    assert_close(ours, theirs)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("gated", [False, True])
def test_gradients_of_first_and_second_order_are_right(activation: str, gated: bool) -> None:
    inputs = tensors(gated)

    def run(rows: Tensor, up: Tensor, bias: Tensor, down: Tensor) -> Tensor:
        return grouped(rows, OFFSETS, up, bias, down, activation, gated)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("learning", [(0,), (1,), (2,), (3,), (1, 3), (0, 2)])
@pytest.mark.parametrize("gated", [False, True])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(
    learning: tuple[int, ...], gated: bool
) -> None:
    inputs = tuple(
        tensor.detach().requires_grad_(place in learning)
        for place, tensor in enumerate(tensors(gated))
    )
    found = grouped(inputs[0], OFFSETS, *inputs[1:], "gelu", gated)
    expected = loop("gelu", gated, *inputs)
    seed = torch.randn_like(found)
    found.backward(seed)
    theirs = torch.autograd.grad(expected, [inputs[place] for place in learning], seed)
    for place, grad in zip(learning, theirs, strict=True):
        assert_close(inputs[place].grad, grad)
    assert [t.grad is not None for t in inputs] == [place in learning for place in range(4)]


def test_a_bank_that_is_frozen_whole_gives_no_graph() -> None:
    bank = FeedForwardExperts(5, 5, 6).requires_grad_(False)
    assert not bank(torch.randn(8, 5), torch.tensor(OFFSETS)).requires_grad


def test_gradients_without_memory_of_their_own_are_taken() -> None:
    inputs = tensors()
    found = grouped(inputs[0], OFFSETS, *inputs[1:], "silu", False)
    ours = torch.autograd.grad(found.sum(), inputs)
    assert_close(ours, torch.autograd.grad(loop("silu", False, *inputs).sum(), inputs))


def test_rows_and_weights_need_not_be_contiguous() -> None:
    rows, up, bias, down = tensors()
    inputs = (rows[:, torch.tensor([0, 1, 2, 3, 4])], up.transpose(1, 2), bias, down)
    strided = torch.empty_strided((8, 5), (1, 8), dtype=torch.float64).copy_(rows.detach())
    strided.requires_grad_()
    turned = inputs[1].contiguous().detach().requires_grad_()
    found = grouped(strided, OFFSETS, turned.transpose(1, 2), bias, down, "gelu", False)
    expected = loop("gelu", False, rows, up, bias, down)
    assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    assert_close(strided.grad, rows.grad)
    assert turned.grad is not None
    assert_close(turned.grad.transpose(1, 2), up.grad)


def test_a_second_backward_over_a_kept_graph_gives_the_same() -> None:
    for activation in ACTIVATIONS:
        inputs = tensors(gated=True)
        found = grouped(inputs[0], OFFSETS, *inputs[1:], activation, True)
        seed = torch.randn_like(found)
        first = torch.autograd.grad(found, inputs, seed, retain_graph=True)
        assert_close(torch.autograd.grad(found, inputs, seed), first)


def test_experts_without_rows_get_zeros_also_where_the_stack_is_large() -> None:
    """Above a million numbers the memory of gradients comes from elsewhere."""
    bank = FeedForwardExperts(5, 256, 1024)
    offsets = torch.tensor(OFFSETS)
    bank(torch.randn(8, 256), offsets).sum().backward()
    for weight in (bank.up_EFD, bank.down_EDF, bank.up_bias_EF):
        assert weight is not None
        assert weight.grad is not None
        used = [bool(grad.any()) for grad in weight.grad]
        assert used == [high > low for low, high in pairwise(OFFSETS)]


def test_large_memory_is_aligned_writable_and_zero_where_asked() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        like = torch.empty(0, dtype=dtype)
        made = fresh(like, 1025, 1025, zero=True)
        assert made.dtype == dtype
        assert made.shape == (1025, 1025)
        assert made.is_contiguous()
        assert made.data_ptr() % 64 == 0
        assert not made.any()
        assert fresh(like, 1025, 1025).fill_(1).sum(dtype=torch.float64) == 1025**2


def test_the_gradient_of_a_large_stack_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def spied(*arguments: object, **keywords: object) -> Tensor:
        tensor = fresh(*arguments, **keywords)  # type: ignore[arg-type]
        made.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(module, "fresh", spied)
    bank = FeedForwardExperts(5, 256, 1024)
    bank(torch.randn(8, 256), torch.tensor(OFFSETS)).sum().backward()
    for weight in (bank.up_EFD, bank.down_EDF):
        assert weight.grad is not None
        assert weight.grad.data_ptr() in made


def test_half_precision_is_kept_and_close() -> None:
    for gated in (False, True):
        inputs = tensors(gated, torch.bfloat16)
        found = grouped(inputs[0], OFFSETS, *inputs[1:], "gelu", gated)
        assert found.dtype == torch.bfloat16
        expected = loop("gelu", gated, *(tensor.float() for tensor in inputs))
        assert_close(found.float(), expected, rtol=0.05, atol=0.2)
        found.sum().backward()
        assert all(t.grad is not None and t.grad.dtype == torch.bfloat16 for t in inputs)


def test_any_function_may_be_the_activation() -> None:
    bank = FeedForwardExperts(5, 5, 6, activation=torch.tanh).double()
    named = FeedForwardExperts(5, 5, 6, activation=functional.silu).double()
    quick = FeedForwardExperts(5, 5, 6, activation="silu").double()
    quick.load_state_dict(named.state_dict())
    rows, offsets = torch.randn(8, 5, dtype=torch.float64), torch.tensor(OFFSETS)
    assert_close(named(rows, offsets), quick(rows, offsets))
    answer = torch.tanh(rows[3:4] @ bank.up_EFD[2].T) @ bank.down_EDF[2].T
    assert_close(bank(rows, offsets)[3:4], answer)


def test_the_gate_comes_first_as_in_hugging_face() -> None:
    bank = FeedForwardExperts(1, 5, 6, activation="silu", gated=True, bias=False)
    assert bank.up_bias_EF is None
    rows = torch.randn(7, 5)
    gate, plain = functional.linear(rows, bank.up_EFD[0]).chunk(2, dim=-1)
    expected = functional.linear(functional.silu(gate) * plain, bank.down_EDF[0])
    assert_close(bank(rows, torch.tensor([0, 7])), expected)


def test_no_rows_give_no_rows_and_zero_gradients() -> None:
    for gated in (False, True):
        bank = FeedForwardExperts(3, 5, 6, gated=gated, out=4)
        rows = torch.zeros(0, 5, requires_grad=True)
        answers = bank(rows, torch.zeros(4, dtype=torch.int64))
        assert answers.shape == (0, 4)
        answers.sum().backward()
        assert bank.up_EFD.grad is not None
        assert not bank.up_EFD.grad.any()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.randn(8, 7), r"rows of width 5, got shape \(8, 7\)"),
        (torch.randn(8, 5).double(), r"float32 on cpu, the tokens torch.float64 on cpu: use .to"),
        (torch.randn(8, 5, device="meta"), r"float32 on cpu, the tokens torch.float32 on meta"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeedForwardExperts(5, 5, 6)(rows, torch.tensor(OFFSETS))


def test_sizes_and_activations_that_are_none_are_refused() -> None:
    for sizes in ((0, 4, 4), (2, 0, 4), (2, 4, 0)):
        with pytest.raises(InputError, match="num_experts, width and hidden of at least 1"):
            FeedForwardExperts(*sizes)
    with pytest.raises(InputError, match="at least 1, got 2, 4 and 4, out 0"):
        FeedForwardExperts(2, 4, 4, out=0)
    with pytest.raises(InputError, match="one of gelu, relu, silu or a function, got 'swish'"):
        FeedForwardExperts(2, 4, 4, activation="swish")


# -------------------------------------------------------------------- the path of GPUs


def aligned(gated: bool, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = 16 if gated else 8
    return [
        torch.randn(shape, generator=generator).mul(0.3).bfloat16().to(device).requires_grad_()
        for shape in ((8, 16), (5, wide, 16), (5, wide), (5, 24, 8))
    ]


def assert_kernel_equals_loop(device: str, gated: bool) -> None:
    rows, up, bias, down = inputs = aligned(gated, device)
    assert fits(rows, up, down)
    places = torch.tensor(OFFSETS, device=device)
    found = by_grouped_mm(rows, places, up, bias, down, functional.silu, gated)
    expected = loop("silu", gated, *(tensor.float() for tensor in inputs))
    assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    for seed in (torch.ones_like(found), torch.ones((), device=device).expand(found.shape)):
        ours = torch.autograd.grad(found, inputs, seed.bfloat16(), retain_graph=True)
        theirs = torch.autograd.grad(expected, inputs, seed, retain_graph=True)
        assert_close(ours, theirs, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("gated", [False, True])
def test_the_grouped_product_equals_the_loop(gated: bool) -> None:
    assert_kernel_equals_loop("cpu", gated)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("gated", [False, True])
def test_the_grouped_product_equals_the_loop_on_a_gpu(gated: bool) -> None:
    assert_kernel_equals_loop("cuda", gated)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bank_gives_the_same_on_a_gpu(dtype: torch.dtype) -> None:
    bank = FeedForwardExperts(5, 16, 8, gated=True).to(dtype)
    rows, offsets = torch.randn(8, 16, dtype=dtype), torch.tensor(OFFSETS)
    expected = bank(rows, offsets)
    found = bank.cuda()(rows.cuda(), offsets.cuda())
    assert_close(found.cpu(), expected, rtol=0.05, atol=0.05)


def test_the_grouped_product_is_only_used_where_it_runs() -> None:
    rows, up, _, down = aligned(gated=False)
    assert not fits(rows.float(), up.float(), down.float())
    assert not fits(rows[:, :15], up[:, :, :15], down)
    assert not fits(rows, up[:, :7], down[:, :, :7])
    assert not fits(rows, up, down[:, :23])
