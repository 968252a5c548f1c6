"""Dense feed-forwards as experts and back: equality where it must hold, and clear refusals."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import DegenerateWarning, InputError
from pointsman.moe import FeedForwardExperts, MoE
from pointsman.moe.convert import (
    Dense,
    GatedFeedForward,
    OutputBias,
    average,
    copy,
    merge,
    read_dense,
    redraw,
    split,
    top_k_slices,
)
from pointsman.route import Route
from pointsman.select import guarantees, top_k

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def plain(dtype: torch.dtype = torch.float64, *, bias: bool = True, out: int = 6) -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Linear(6, 12, bias=bias), nn.GELU(), nn.Linear(12, out, bias=bias)
    return nn.Sequential(*layers).to(dtype)


def gated(dtype: torch.dtype = torch.float64, *, bias: bool = False) -> nn.Module:
    torch.manual_seed(1)
    return GatedFeedForward(6, 12, bias=bias, down_bias=bias).to(dtype)


KINDS = {
    "plain": plain,
    "without bias": partial(plain, bias=False),
    "wider output": partial(plain, out=9),
    "gated": gated,
    "gated with bias": partial(gated, bias=True),
}


def tokens(dtype: torch.dtype = torch.float64, count: int = 40) -> Tensor:
    return torch.randn(count, 6, generator=generator(), dtype=torch.float64).to(dtype)


@guarantees(batch_independent=True, causal=True)
def everyone(scores_TE: Tensor) -> Route:
    return Route.from_dense(torch.ones_like(scores_TE))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_equal_the_dense_layer_to_1e_12_while_weights_sum_to_one(kind: str) -> None:
    mlp, x = KINDS[kind](), tokens()
    for k in (2, 3, 5):
        y, routing = copy(mlp, 5, k=k, generator=generator())(x)
        assert_close(y, mlp(x), rtol=0, atol=1e-12)
        assert len(routing.route) == k * len(x)


@pytest.mark.parametrize("kind", KINDS)
def test_slices_equal_the_dense_layer_to_1e_12(kind: str) -> None:
    mlp, x = KINDS[kind](), tokens()
    for copies, slices, k in ((4, 2, None), (3, 4, None), (1, 12, None), (4, 2, 4), (2, 3, 6)):
        y, routing = split(mlp, copies, slices, k=k, generator=generator())(x)
        assert_close(y, mlp(x), rtol=0, atol=1e-12)
        assert len(routing.route) == (k or slices) * len(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_type_device_and_trainability_are_kept(dtype: torch.dtype) -> None:
    mlp = plain(dtype)
    mlp[0].requires_grad_(False)  # type: ignore[index, operator]
    for moe in (copy(mlp, 4, generator=generator()), split(mlp, 2, 2, generator=generator())):
        assert {weight.dtype for weight in moe.parameters()} == {dtype}
        y, _ = moe(tokens(dtype))
        assert y.dtype == dtype
        assert_close(y, mlp(tokens(dtype)), rtol=0.1, atol=0.02)
        experts = moe.experts
        assert isinstance(experts, FeedForwardExperts)
        assert not experts.up_EFD.requires_grad
        assert experts.down_EDF.requires_grad


def test_slices_of_tokens_that_tie_everywhere_still_equal_the_dense_layer() -> None:
    mlp, x = plain(), torch.zeros(3, 6, dtype=torch.float64)
    y, routing = split(mlp, 4, 3)(x)
    assert_close(y, mlp(x), rtol=0, atol=1e-12)
    assert routing.route.branches.tolist() == [0, 1, 2] * 3


def test_plain_top_k_does_not_keep_the_scale_of_slices() -> None:
    mlp, x = plain(), tokens()
    moe = split(mlp, 4, 2, select=partial(top_k, k=2), generator=generator())
    assert (moe(x)[0] - mlp(x)).abs().max() > 1e-3


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 9),
    st.integers(0, 2**31),
)
def test_slices_are_taken_by_copies_and_weights_sum_to_their_number(
    copies: int, slices: int, whole: int, rows: int, seed: int
) -> None:
    whole = min(whole, copies)
    draws = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 3, (rows, copies), generator=draws).double()
    route = top_k_slices(scores.repeat_interleave(slices, 1), whole * slices, slices).validate()
    copy_of = route.branches.reshape(rows, whole, slices) // slices
    assert (copy_of == copy_of[:, :, :1]).all()
    total = torch.zeros(rows, dtype=torch.float64).index_add(0, route.inputs, route.weights)
    assert_close(total, torch.full((rows,), float(slices), dtype=torch.float64))


def test_gradients_reach_router_and_experts_and_are_right() -> None:
    x = tokens(count=4).requires_grad_()
    for moe in (copy(gated(), 3, generator=generator()), split(plain(), 2, 3)):

        def run(x: Tensor, moe: MoE = moe) -> Tensor:
            output: Tensor = moe(x)[0]
            return output

        assert torch.autograd.gradcheck(run, (x,))
        # Copies that are still alike tell the router nothing: set them apart.
        redraw(moe, 0.5, generator=generator())
        moe(x)[0].square().sum().backward()
        assert all(w.grad is not None and bool(w.grad.any()) for w in moe.parameters())


def test_one_copy_with_weights_that_sum_to_one_warns() -> None:
    with pytest.warns(DegenerateWarning, match="no gradient"):
        copy(plain(), 4, k=1)


@pytest.mark.parametrize("kind", KINDS)
def test_average_is_the_way_back_from_copies(kind: str) -> None:
    mlp = KINDS[kind]()
    back = average(copy(mlp, 4))
    assert type(back) is type(mlp)
    for (name, ours), theirs in zip(back.state_dict().items(), mlp.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(weight.requires_grad for weight in back.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_merge_is_the_way_back_from_the_slices_of_one_copy(kind: str) -> None:
    mlp = KINDS[kind]()
    back = merge(split(mlp, 1, 3))
    for (name, ours), theirs in zip(back.state_dict().items(), mlp.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("kind", KINDS)
def test_merge_gives_what_all_experts_give_together(kind: str) -> None:
    moe = copy(KINDS[kind](), 3, redrawn=0.5, generator=generator())
    x = tokens()
    assert_close(merge(moe)(x), moe(x, select=everyone)[0], rtol=0, atol=1e-12)
    shared = MoE(moe.router, moe.select, moe.experts, shared=KINDS[kind]())
    assert_close(merge(shared)(x), shared(x, select=everyone)[0], rtol=0, atol=1e-12)


def test_redrawing_changes_the_share_asked_for_and_keeps_the_spread() -> None:
    mlp = nn.Sequential(nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 64))
    moe = copy(mlp, 3, redrawn=0.25, generator=generator())
    experts = moe.experts
    assert isinstance(experts, FeedForwardExperts)
    changed_EF = (experts.up_EFD != mlp[0].weight).any(dim=2)
    assert changed_EF.sum(dim=1).tolist() == [100] * 3
    assert not torch.equal(changed_EF[0], changed_EF[1])
    assert torch.equal(changed_EF, (experts.down_EDF != mlp[2].weight).any(dim=1))
    bias_EF = experts.up_bias_EF
    assert bias_EF is not None
    assert torch.equal(changed_EF, bias_EF == 0)
    new = experts.up_EFD[0][changed_EF[0]]
    assert_close(new.std(), mlp[0].weight.std(), rtol=0.05, atol=0)


def test_redrawn_units_are_like_those_they_replace_not_like_all() -> None:
    mlp = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 8))
    with torch.no_grad():
        mlp[0].weight[0] = 1e6
        mlp[2].weight[:, 0] = 1e6
    experts = copy(mlp, 6, redrawn=0.5, generator=generator()).experts
    assert isinstance(experts, FeedForwardExperts)
    spared = (experts.up_EFD[:, 0] == 1e6).all(dim=1)
    assert 0 < int(spared.sum()) < 6
    assert experts.up_EFD[spared][:, 1:].abs().max() < 10
    assert experts.down_EDF[spared][:, :, 1:].abs().max() < 10


def test_what_a_layer_holds_is_its_own() -> None:
    mlp = plain()
    moe = copy(mlp, 3)
    before = [weight.clone() for weight in mlp.parameters()]
    redraw(moe, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, mlp.parameters(), strict=True))


class Odd(nn.Module):
    """Names and order that say nothing."""

    def __init__(self, *, fused: bool, swapped: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.z = nn.Dropout(dropout)
        self.a = nn.Linear(12, 6)
        self.fused, self.swapped = fused, swapped
        self.b = nn.Linear(6, 24 if fused else 12)
        if not fused:
            self.c = nn.Linear(6, 12)
        self.act = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.b(x).chunk(2, -1) if self.fused else (self.b(x), self.c(x))
        if self.swapped:
            first, second = second, first
        y: Tensor = self.z(self.a(self.act(first) * second))
        return y


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("swapped", [True, False])
def test_layers_are_read_by_what_they_compute_not_by_name(fused: bool, swapped: bool) -> None:
    mlp, x = Odd(fused=fused, swapped=swapped).double(), tokens()
    assert_close(read_dense(mlp)(x), mlp(x), rtol=0, atol=1e-12)
    assert_close(copy(mlp, 3)(x)[0], mlp(x), rtol=0, atol=1e-12)
    assert_close(split(mlp, 2, 4)(x)[0], mlp(x), rtol=0, atol=1e-12)


def test_reading_leaves_training_mode_alone() -> None:
    mlp = Odd(fused=True, swapped=False, dropout=0.3)
    mlp.a.eval()
    assert read_dense(mlp).dropout == 0.3
    assert mlp.training
    assert mlp.z.training
    assert not mlp.a.training


def test_what_is_not_a_feed_forward_is_refused() -> None:
    odd = nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 6)
    for module in (
        nn.Linear(6, 6),
        nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 6)),
        nn.Sequential(*odd),
        nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6)),
        nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU()),
        nn.TransformerEncoderLayer(6, 2, 12),
        nn.Identity(),
    ):
        with pytest.raises(InputError, match="cannot be read as a dense feed-forward"):
            read_dense(module)


def test_dropout_is_not_lost_silently() -> None:
    inside = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 6))
    with pytest.raises(InputError, match=r"drops hidden units with p = 0\.1"):
        copy(inside, 4)
    after = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6), nn.Dropout(0.1))
    with pytest.raises(InputError, match=r"put nn\.Dropout after the layer"):
        split(after, 4, 2)
    inside[2].p = 0.0
    copy(inside, 4)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="at least one expert, got 0"):
        copy(plain(), 0)
    with pytest.raises(InputError, match="5 slices of 12 hidden units"):
        split(plain(), 2, 5)
    with pytest.raises(InputError, match="0 copies"):
        split(plain(), 0, 2)
    with pytest.raises(InputError, match=r"0 to 1, got 1\.5"):
        copy(plain(), 2, redrawn=1.5)
    with pytest.raises(InputError, match="got Identity"):
        merge(MoE(nn.Linear(6, 3), partial(top_k, k=2), nn.Identity()))
    with pytest.raises(InputError, match="others"):
        merge(MoE(nn.Linear(6, 3), partial(top_k, k=2), copy(plain(), 3).experts, shared=gated()))
    with pytest.raises(InputError, match="`merge` sets it beside"):
        average(MoE(nn.Linear(6, 3), partial(top_k, k=2), copy(plain(), 3).experts, shared=plain()))
    with pytest.raises(InputError, match="'swish'"):
        GatedFeedForward(4, 4, "swish")


def test_no_tokens_and_any_leading_shape() -> None:
    mlp = plain()
    for moe in (copy(mlp, 3), split(mlp, 2, 2)):
        assert moe(torch.zeros(0, 6, dtype=torch.float64))[0].shape == (0, 6)
        x = tokens(count=12).reshape(2, 2, 3, 6)
        assert_close(moe(x)[0], mlp(x), rtol=0, atol=1e-12)
    assert OutputBias(torch.ones(3))(torch.zeros(2, 5)).tolist() == [[1.0] * 3] * 2


def test_a_dense_reading_can_be_given_in_place_of_a_module() -> None:
    dense = read_dense(plain())
    assert isinstance(dense, Dense)
    assert_close(copy(dense, 3)(tokens())[0], dense(tokens()), rtol=0, atol=1e-12)


def test_a_layer_of_copies_is_saved_and_loaded() -> None:
    a, b = copy(plain(), 3, redrawn=0.5), copy(plain(), 3)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(tokens())[0], b(tokens())[0])
