"""One battery over every exported bank of experts: what all of them owe the layer.

Legend: N rows sorted by expert, E experts, T tokens.
"""

import io
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe import MoE, experts
from pointsman.moe.experts import (
    ConvolutionExperts,
    FeedForwardExperts,
    Identity,
    LinearExperts,
    LoRAExperts,
    MixedExperts,
    Zero,
)
from pointsman.route import Route
from pointsman.select import top_k

E, D = 4, 5
SIZES = (3, 0, 2, 1)  # the second expert has no rows

One = Callable[[nn.Module, Tensor, int], Tensor]  # bank, rows of one expert, its number -> answers


@dataclass(frozen=True)
class Case:
    """A bank, what one of its experts computes, and the shape of a row."""

    make: Callable[[int], nn.Module]
    one: One
    row: tuple[int, ...] = (D,)
    stacked: bool = True  # every weight has the experts as its first dimension

    def bank(self, num_experts: int = E, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(0)
        bank = self.make(num_experts).to(dtype)
        with torch.no_grad():  # weights that start at zero would hide mistakes
            for weight in bank.parameters():
                weight.add_(0.3 * torch.randn(weight.shape, dtype=torch.float32).to(dtype))
        return bank.eval()

    def rows(self, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(count, *self.row, generator=generator).to(dtype)


def feed_forward(bank: nn.Module, x: Tensor, e: int) -> Tensor:
    hidden = x @ bank.up_EFD[e].T
    hidden = hidden if bank.up_bias_EF is None else hidden + bank.up_bias_EF[e]
    if bank.gated:
        gate, hidden = hidden.chunk(2, dim=1)
        hidden = bank.activation(gate) * hidden
    else:
        hidden = bank.activation(hidden)
    return hidden @ bank.down_EDF[e].T


def lora(bank: nn.Module, x: Tensor, e: int) -> Tensor:
    y = x @ (bank.scale * bank.b_EOR[e] @ bank.a_ERD[e]).T
    return y if bank.bias_EO is None else y + bank.bias_EO[e]


def linear(bank: nn.Module, x: Tensor, e: int) -> Tensor:
    y = x @ bank.weight_EOD[e].T
    return y if bank.bias_EO is None else y + bank.bias_EO[e]


def convolution(bank: nn.Module, x: Tensor, e: int) -> Tensor:
    bias = None if bank.bias_EO is None else bank.bias_EO[e]
    weight = bank.weight_EOCKK[e]
    return functional.conv2d(x, weight, bias, bank.stride, bank.padding, groups=bank.groups)


def mixed(bank: nn.Module, x: Tensor, e: int) -> Tensor:
    for part in bank.parts:
        held = getattr(part, "num_experts", 1)
        if e < held:
            if isinstance(part, FeedForwardExperts):
                return feed_forward(part, x, e)
            return part(x)
        e -= held
    raise AssertionError


def mixture(num_experts: int) -> MixedExperts:
    if num_experts == 1:
        return MixedExperts([nn.Linear(D, D)])
    small = FeedForwardExperts(num_experts - 3, D, 3) if num_experts > 3 else None
    parts: list[nn.Module] = [Zero(), nn.Sequential(nn.Linear(D, 7), nn.Tanh(), nn.Linear(7, D))]
    return MixedExperts([*parts, *([small] if small else []), Identity()])


SIMPLE: dict[str, Case] = {
    "gelu": Case(lambda e: FeedForwardExperts(e, D, 7), feed_forward),
    "relu": Case(lambda e: FeedForwardExperts(e, D, 7, activation="relu", out=3), feed_forward),
    "silu gated": Case(
        lambda e: FeedForwardExperts(e, D, 7, activation="silu", gated=True, bias=False),
        feed_forward,
    ),
    "gelu gated": Case(lambda e: FeedForwardExperts(e, D, 7, gated=True), feed_forward),
    "own activation": Case(
        lambda e: FeedForwardExperts(e, D, 7, activation=torch.tanh), feed_forward
    ),
    "linear": Case(lambda e: LinearExperts(e, D, 3), linear),
    "linear without bias": Case(lambda e: LinearExperts(e, D, bias=False), linear),
    "lora": Case(lambda e: LoRAExperts(e, D, 3, 2, alpha=3.0), lora),
    "lora with bias": Case(lambda e: LoRAExperts(e, D, rank=3, bias=True), lora),
    "lora of rank 1": Case(lambda e: LoRAExperts(e, D, 3, 1, alpha=0.5, bias=True), lora),
    "convolution": Case(lambda e: ConvolutionExperts(e, 2, 3), convolution, (2, 4, 3)),
    "convolution in groups": Case(
        lambda e: ConvolutionExperts(e, 4, 2, 2, stride=2, padding=0, groups=2, bias=False),
        convolution,
        (4, 4, 4),
    ),
    "mixed": Case(mixture, mixed, stacked=False),
}
BANKS = pytest.mark.parametrize("case", SIMPLE.values(), ids=SIMPLE.keys())


def offsets_of(sizes: tuple[int, ...]) -> Tensor:
    return functional.pad(torch.tensor(sizes).cumsum(0), (1, 0))


def by_loop(case: Case, bank: nn.Module, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
    pieces = rows.split(list(sizes))
    return torch.cat([case.one(bank, x, e) for e, x in enumerate(pieces) if len(x)])


def test_every_exported_bank_is_in_the_battery() -> None:
    found = {getattr(experts, name) for name in experts.__all__}
    banks = {each for each in found if isinstance(each, type)} - {Identity, Zero}
    assert banks == {type(case.make(E)) for case in SIMPLE.values()}


@BANKS
def test_answers_are_those_of_a_loop_over_experts(case: Case) -> None:
    bank, rows = case.bank(), case.rows(sum(SIZES))
    assert bank.num_experts == E
    for sizes in (SIZES, (0, 0, 0, 6), (6, 0, 0, 0), (1, 2, 2, 1)):
        assert_close(bank(rows, offsets_of(sizes)), by_loop(case, bank, rows, sizes))


@BANKS
def test_gradients_are_those_of_a_loop_over_experts(case: Case) -> None:
    bank, rows = case.bank(), case.rows(sum(SIZES)).requires_grad_()
    wanted = [rows, *bank.parameters()]
    fast, loop = bank(rows, offsets_of(SIZES)), by_loop(case, bank, rows, SIZES)
    probe = torch.randn(loop.shape, dtype=loop.dtype)
    for grad, y in zip(
        torch.autograd.grad(fast, wanted, probe, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(loop, wanted, probe, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        assert_close(grad, y)


@BANKS
def test_gradients_and_their_gradients_in_float64(case: Case) -> None:
    bank, rows = case.bank(), case.rows(3).requires_grad_()
    sizes = offsets_of((2, 0, 1, 0))
    inputs = (rows, *bank.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: bank(x, sizes), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: bank(x, sizes), inputs, fast_mode=True)


@BANKS
def test_gradient_check_of_the_whole_layer(case: Case) -> None:
    router = nn.Sequential(nn.Flatten(), nn.Linear(case.rows(1).numel(), E)).double()
    layer = MoE(router, partial(top_k, k=2), case.bank(), input_dims=len(case.row))
    x = case.rows(3).requires_grad_()
    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x)[0], inputs, fast_mode=True)


@BANKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_type_is_kept_forward_and_backward(case: Case, dtype: torch.dtype) -> None:
    bank, rows = case.bank(dtype=dtype), case.rows(sum(SIZES), dtype).requires_grad_()
    y = bank(rows, offsets_of(SIZES))
    assert y.dtype == dtype
    y.sum().backward()
    assert rows.grad is not None
    assert {w.grad.dtype for w in bank.parameters() if w.grad is not None} <= {dtype}
    exact = case.bank()(rows.detach().double(), offsets_of(SIZES))
    tolerance = {torch.bfloat16: 0.1, torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    assert_close(y.double(), exact, rtol=tolerance, atol=tolerance)


@BANKS
def test_a_gradient_of_stride_zero(case: Case) -> None:
    bank, rows = case.bank(), case.rows(sum(SIZES)).requires_grad_()
    y = bank(rows, offsets_of(SIZES))
    (expanded,) = torch.autograd.grad(y.sum(), rows, retain_graph=True)
    (plain,) = torch.autograd.grad(y, rows, torch.ones_like(y).contiguous())
    assert_close(expanded, plain)


@BANKS
def test_rows_that_are_not_contiguous(case: Case) -> None:
    bank, rows = case.bank(), case.rows(sum(SIZES))
    spread = torch.stack([rows, rows], dim=-1)[..., 0]
    assert not spread.is_contiguous()
    assert_close(bank(spread, offsets_of(SIZES)), bank(rows, offsets_of(SIZES)))


@BANKS
def test_experts_without_rows_learn_nothing(case: Case) -> None:
    bank, rows = case.bank(), case.rows(sum(SIZES)).requires_grad_()
    idle = [*(bank if case.stacked else bank.parts[1]).parameters()]
    with torch.no_grad():  # an idle expert's weights must not even be looked at
        for weight in idle:
            (weight[1] if case.stacked else weight).fill_(torch.nan)
    y = bank(rows, offsets_of(SIZES))
    assert y.isfinite().all()
    y.square().sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()
    for weight in idle:
        if not case.stacked:
            assert weight.grad is None
        elif weight.grad is not None:
            assert not weight.grad[1].any()
            assert weight.grad[0].any()


@BANKS
def test_no_rows_give_no_answers_and_a_graph(case: Case) -> None:
    bank, rows = case.bank(), case.rows(0).requires_grad_()
    y = bank(rows, offsets_of((0, 0, 0, 0)))
    assert y.shape == (0, *bank(case.rows(1), offsets_of((1, 0, 0, 0))).shape[1:])
    if case.stacked:  # a mixed bank asks its first part, and skipping has no graph
        y.sum().backward()


@BANKS
def test_one_expert_is_dense(case: Case) -> None:
    bank, rows = case.bank(1), case.rows(6)
    assert_close(bank(rows, offsets_of((6,))), case.one(bank, rows, 0))


@BANKS
def test_renaming_experts_together_with_their_weights_changes_nothing(case: Case) -> None:
    if not case.stacked:
        pytest.skip("parts of several kinds have no common stack")
    bank, rows = case.bank(), case.rows(8)
    route = top_k(torch.randn(8, E, dtype=torch.float64), 2)
    order = torch.tensor([2, 0, 3, 1])
    renamed = deepcopy(bank)
    with torch.no_grad():
        for weight in renamed.parameters():
            weight.copy_(weight[order])
    other = Route.from_dense(route.to_dense()[:, order])

    def answer(bank: nn.Module, route: Route) -> Tensor:
        return route.combine(bank(route.dispatch(rows), route.by_branch().offsets))

    assert_close(answer(renamed, other), answer(bank, route))


@BANKS
def test_saved_loaded_and_copied(case: Case) -> None:
    bank, rows, sizes = case.bank(), case.rows(sum(SIZES)), offsets_of(SIZES)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    torch.manual_seed(9)
    loaded = case.make(E).double().eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (loaded, deepcopy(bank)):
        assert torch.equal(other(rows, sizes), bank(rows, sizes))
    copied = deepcopy(bank)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.zero_()
    assert any(weight.any() for weight in bank.parameters())


@BANKS
def test_frozen_weights(case: Case) -> None:
    bank, rows = case.bank(), case.rows(sum(SIZES)).requires_grad_()
    sizes = offsets_of(SIZES)
    (free,) = torch.autograd.grad(bank(rows, sizes).square().sum(), rows)
    weights = list(bank.parameters())
    for frozen in (weights, weights[:1], weights[-1:]):
        for weight in weights:
            weight.requires_grad_(all(weight is not each for each in frozen))
            weight.grad = None
        rows.grad = None
        bank(rows, sizes).square().sum().backward()
        assert_close(rows.grad, free)
        assert all(weight.grad is None for weight in frozen)


@BANKS
def test_only_weights_learn_where_rows_have_no_gradient(case: Case) -> None:
    bank, rows = case.bank(), case.rows(sum(SIZES))
    bank(rows, offsets_of((1, 2, 2, 1))).square().sum().backward()
    assert all(weight.grad is not None for weight in bank.parameters())


@BANKS
def test_a_call_does_not_change_its_inputs_and_repeats(case: Case) -> None:
    bank, rows = case.bank(), case.rows(sum(SIZES)).requires_grad_()
    before, sizes = rows.detach().clone(), offsets_of(SIZES)
    y = bank(rows, sizes)
    first = torch.autograd.grad(y.square().sum(), rows, retain_graph=True)[0]
    again = torch.autograd.grad(y.square().sum(), rows)[0]
    assert_close(first, again)
    assert torch.equal(rows, before)
    assert torch.equal(bank(rows, sizes), y)


@BANKS
def test_rows_of_another_type_or_width_are_refused(case: Case) -> None:
    bank = case.bank()
    if isinstance(bank, MixedExperts):
        pytest.skip("its parts refuse by themselves")
    sizes = offsets_of(SIZES)
    with pytest.raises(InputError, match="xperts"):
        bank(case.rows(sum(SIZES), torch.float32), sizes)
    with pytest.raises(InputError, match="xperts"):
        bank(torch.cat([case.rows(sum(SIZES))] * 2, dim=1), sizes)
    with pytest.raises(InputError, match="xperts"):
        bank(case.rows(sum(SIZES)).to("meta"), sizes)


@BANKS
def test_autocast(case: Case) -> None:
    bank, rows, sizes = case.bank(dtype=torch.float32), case.rows(6, torch.float32), (1, 2, 2, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = bank(rows, offsets_of(sizes))
    assert_close(y.float(), by_loop(case, bank, rows, sizes), rtol=0.1, atol=0.1)


@BANKS
def test_sizes_below_one_are_refused(case: Case) -> None:
    if isinstance(case.bank(), MixedExperts):
        return
    for count in (0, -1):
        with pytest.raises(InputError, match="at least 1"):
            case.make(count)
