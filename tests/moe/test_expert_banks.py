"""What each bank owes beside the battery: low rank, merging, kernels, mixed parts, FLOPs."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.cost import count_flops
from pointsman.errors import InputError
from pointsman.moe import FeedForwardExperts, MoE
from pointsman.moe.experts import (
    ConvolutionExperts,
    Identity,
    LinearExperts,
    LoRAExperts,
    MixedExperts,
    Zero,
    freeze,
)
from pointsman.select import top_k


def filled(bank: LoRAExperts) -> LoRAExperts:
    torch.manual_seed(0)
    for weight in bank.parameters():
        nn.init.normal_(weight)
    return bank.double()


def flops(bank: nn.Module, rows: Tensor, *offsets: int) -> int:
    return round(float(count_flops(bank, rows, torch.tensor(offsets))) * 1e6)


def test_low_rank_experts_start_as_their_frozen_base() -> None:
    base = freeze(nn.Linear(6, 4))
    layer = MoE(nn.Linear(6, 3), partial(top_k, k=2), LoRAExperts(3, 6, 4, 2), shared=base)
    x = torch.randn(5, 6)
    y, _ = layer(x)
    assert torch.equal(y, base(x))
    y.sum().backward()
    assert base.weight.grad is None
    assert base.bias.grad is None
    assert layer.experts.b_EOR.grad.any()


def test_alpha_is_divided_by_the_rank() -> None:
    plain, scaled = LoRAExperts(2, 4, rank=8), LoRAExperts(2, 4, rank=8, alpha=16)
    assert (plain.scale, scaled.scale) == (1.0, 2.0)


def test_dropout_is_of_training_alone() -> None:
    bank = filled(LoRAExperts(1, 6, rank=2, dropout=0.5))
    x, offsets = torch.ones(4, 6, dtype=torch.float64), torch.tensor([0, 4])
    assert not torch.equal(bank(x, offsets), bank(x, offsets))
    bank.eval()
    assert torch.equal(bank(x, offsets), bank(x, offsets))


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("k", [1, 5])
def test_starting_from_tokens_gives_what_the_layer_gives(rank: int, k: int) -> None:
    bank = filled(LoRAExperts(90, 6, 4, rank, alpha=3.0, bias=True)).eval()
    x = torch.randn(7, 6, dtype=torch.float64)
    route = top_k(torch.randn(7, 90, dtype=torch.float64), k)
    y = route.combine(bank(route.dispatch(x), route.by_branch().offsets))
    assert_close(bank.on_route(x, route), y)
    assert_close(bank.dense(x, route.to_dense()), y)


def test_rows_or_all_experts_at_once_whichever_is_quicker() -> None:
    bank, x = LoRAExperts(90, 6, 4, 1), torch.randn(7, 6)

    def counted(k: int) -> int:
        route = top_k(torch.randn(7, 90), k)
        return round(float(count_flops(partial(bank.on_route, route=route), x)) * 1e6)

    assert counted(1) == 7 * 1 * 2 * (6 + 4)
    assert counted(5) == 7 * 90 * 2 * (6 + 4)


@pytest.mark.parametrize("rank", [1, 3])
def test_only_products_of_chosen_experts_count(rank: int) -> None:
    bank = LoRAExperts(50, 6, 4, rank)
    assert flops(bank, torch.randn(5, 6), 0, 2, *[2] * 48, 5) == 5 * 2 * rank * (6 + 4)


def test_merged_low_rank_experts_are_one_linear_layer() -> None:
    bank, base = filled(LoRAExperts(3, 6, 4, 2, alpha=5.0, bias=True)), nn.Linear(6, 4).double()
    weights, x = torch.tensor([0.5, -1.0, 2.0]).double(), torch.randn(7, 6).double()
    wanted = bank.dense(x, weights.expand(7, 3)) + base(x)
    assert_close(bank.to_linear(weights, base)(x), wanted)
    assert_close(bank.to_linear(weights)(x), wanted - base(x))
    two = torch.stack([weights, 2 * weights])
    assert_close(bank.merged(two)[1], bank.merged(weights) * 2)
    made = bank.to_linear(weights, base)
    assert made.weight.requires_grad
    assert (made.in_features, made.out_features) == (6, 4)


def test_merged_linear_experts() -> None:
    bank = LinearExperts(3, 5, 4)
    weights, x = torch.tensor([0.5, -1.0, 2.0]), torch.randn(7, 5)
    matrix, bias = bank.merged(weights)
    rows = torch.cat([x, x, x])
    each = bank(rows, torch.tensor([0, 7, 14, 21])).reshape(3, 7, 4)
    assert bias is not None
    assert_close(x @ matrix.T + bias, torch.einsum("e,eno->no", weights, each))
    plain, none = LinearExperts(3, 5, bias=False).merged(torch.ones(2, 3))
    assert plain.shape == (2, 5, 5)
    assert none is None


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 6), (1, 1, 6), (5, 2, 3)])
def test_convolutions_keep_the_size_unless_they_stride(kernel: int, stride: int, side: int) -> None:
    bank = ConvolutionExperts(2, 3, 4, kernel, stride=stride)
    assert bank(torch.randn(5, 3, 6, 6), torch.tensor([0, 2, 5])).shape == (5, 4, side, side)


def test_images_are_routed_whole() -> None:
    router = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    select = partial(top_k, k=1, renormalize=False)
    layer = MoE(router, select, ConvolutionExperts(2, 3, 4), input_dims=3)
    x = torch.randn(5, 3, 6, 6)
    y, routing = layer(x)
    assert y.shape == (5, 4, 6, 6)
    chosen = int(routing.route.branches[0])
    alone = nn.functional.conv2d(
        x[:1], layer.experts.weight_EOCKK[chosen], layer.experts.bias_EO[chosen], padding=1
    )
    assert_close(y[:1], routing.route.weights[0] * alone)


def test_mixed_experts_cost_what_they_run() -> None:
    wide, narrow = FeedForwardExperts(1, 6, 20), FeedForwardExperts(2, 6, 3)
    bank, x = MixedExperts([Identity(), wide, Zero(), narrow]), torch.randn(8, 6)
    assert (bank.num_experts, bank.first) == (5, [0, 1, 2, 3])
    assert flops(bank, x, 0, 4, 4, 8, 8, 8) == 0
    assert flops(bank, x, 0, 0, 8, 8, 8, 8) == 8 * 4 * 6 * 20
    assert flops(bank, x, 0, 2, 3, 5, 7, 8) == 1 * 4 * 6 * 20 + 3 * 4 * 6 * 3


def test_skipping_leaves_a_token_with_what_is_shared() -> None:
    layer = MoE(
        nn.Linear(6, 2), partial(top_k, k=1), MixedExperts([Zero(), Identity()]),
        shared=nn.Identity(), balance=((0.0, lambda routing, _: routing.scores.sum()),),
    )  # fmt: skip
    x = torch.randn(9, 6)
    y, routing = layer(x)
    skipped = routing.route.branches == 0
    assert_close(y, torch.where(skipped[:, None], x, 2 * x))


def test_mixed_experts_of_images() -> None:
    bank = MixedExperts([ConvolutionExperts(2, 3, 3), nn.Conv2d(3, 3, 1), Identity()])
    x = torch.randn(6, 3, 4, 4)
    y = bank(x, torch.tensor([0, 1, 3, 4, 6]))
    assert_close(y[4:], x[4:])
    assert_close(y[3:4], bank.parts[1](x[3:4]))


def test_bad_parts_are_refused() -> None:
    with pytest.raises(InputError, match="at least one part"):
        MixedExperts([])
    bank = MixedExperts([nn.Linear(4, 3), Identity()])
    with pytest.raises(InputError, match=r"one shape, got \(3,\) and \(4,\)"):
        bank(torch.randn(2, 4), torch.tensor([0, 1, 2]))
    with pytest.raises(InputError, match="divide the channels"):
        ConvolutionExperts(2, 3, 4, groups=2)
    with pytest.raises(InputError, match="rank of at least 1, got 0"):
        LoRAExperts(2, 3, rank=0)
