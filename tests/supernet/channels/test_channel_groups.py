"""Groups are found through every kind of connection, and cutting them is setting them to zero."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.supernet.channels import channel_groups, narrow, reorder, zeroed


class Residual(nn.Module):
    """Two convolutions around a sum, and a concatenation behind it."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.branch, self.side = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(10 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.branch(x)
        x = torch.cat([x, torch.sigmoid(self.side(x))], 1)
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Attention(nn.Module):
    """Grouped queries from one matrix; sizes are written down as numbers."""

    def __init__(self, fused: bool):
        super().__init__()
        self.heads, self.head_dim, self.inner = 4, 4, 16
        self.fused = fused
        self.qkv = nn.Linear(8, 3 * self.inner)
        self.out = nn.Linear(self.inner, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        if self.fused:
            parts = self.qkv(x).view(batch, length, 3, self.heads, self.head_dim)
            q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (
                part.view(batch, length, self.heads, self.head_dim).transpose(1, 2)
                for part in self.qkv(x).split(self.inner, dim=2)
            )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, self.inner))


def cut_in_half(model: nn.Module, example: object) -> nn.Module:
    """Every group alone and all exact ones together, each checked against zeros."""
    groups = channel_groups(model, example)
    draw = torch.Generator().manual_seed(0)
    kept = {
        group: sorted(torch.randperm(group.size, generator=draw)[: group.size // 2].tolist())
        for group in groups
        if group.exact
    }
    for group, units in kept.items():
        narrow(model, {group: units}, example)
    return narrow(model, kept, example)


def names(model: nn.Module, example: object) -> dict[str, int]:
    return {group.name: group.size for group in channel_groups(model, example)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_channels_that_meet_in_a_sum_are_one_group_and_a_concatenation_keeps_parts_apart():
    model = Residual().eval()
    x = torch.rand(2, 3, 8, 8)
    assert names(model, x) == {"stem": 6, "side": 4}
    stem = channel_groups(model, x)[0]
    owned = {(part.name, part.dim): part.rows_UR.shape[1] for part in stem.slices}
    assert owned[("branch.weight", 0)] == owned[("branch.weight", 1)] == 1
    assert owned[("head.weight", 1)] == 4  # a pixel each
    small = cut_in_half(model, x)
    assert small.head.in_features == (3 + 2) * 4
    assert (small.stem.out_channels, small.norm.num_features, small.branch.in_channels) == (3, 3, 3)


def test_grouped_convolutions_lose_whole_groups_and_depthwise_ones_single_channels():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 16, 3, groups=4),
        nn.Conv2d(16, 6, 1),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.GroupNorm(3, 6),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
        nn.PixelShuffle(2),
        nn.Conv2d(1, 2, 1),
    ).eval()
    x = torch.rand(1, 3, 9, 9)
    assert names(model, x)["0"] == 4
    small = cut_in_half(model, x)
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (2, 4, 8)
    plain = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1))
    assert cut_in_half(plain.eval(), x)[1].groups == 3


@pytest.mark.parametrize("fused", [True, False])
def test_heads_are_units_and_numbers_that_count_them_are_adjusted(fused):
    model, x = Attention(fused).eval(), torch.rand(2, 5, 8)
    assert names(model, x) == {"qkv": 4}
    small = cut_in_half(model, x)
    assert (small.heads, small.head_dim, small.inner) == (2, 4, 8)
    assert small.qkv.weight.shape == (24, 8)


def test_the_number_of_a_layer_is_no_length_even_if_it_is_as_large_as_one():
    model = Attention(fused=True).eval()
    model.layer_idx = model.index = model.heads
    x = torch.rand(1, 5, 8)
    (heads,) = (group for group in channel_groups(model, x) if group.size == 4)
    assert {length.attribute for length in heads.lengths} == {"heads", "inner"}
    small = narrow(model, {heads: [0, 2]}, x)
    assert (small.heads, small.layer_idx, small.index) == (2, 4, 4)


def test_gates_and_equal_parts_shrink_together():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(4, 12), nn.Linear(6, 4)

        def forward(self, x):
            a, b = self.up(x).chunk(2, -1)
            return self.down(functional.silu(a) * b)

    model, x = Gated().eval(), torch.rand(3, 4)
    assert names(model, x) == {"up": 6}
    assert cut_in_half(model, x).up.out_features == 6
    glu = nn.Sequential(nn.Linear(4, 12), nn.GLU(), nn.Linear(6, 2)).eval()
    assert names(glu, x) == {"0": 6}


def test_a_statistic_over_units_makes_a_group_inexact():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
    (group,) = channel_groups(model, torch.rand(2, 4))
    assert not group.exact
    small = narrow(model, {group: [1, 5]}, torch.rand(2, 4))
    assert small[1].normalized_shape == (2,)
    plain = nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 2)
    )
    (group,) = channel_groups(plain.eval(), torch.rand(2, 4))
    assert narrow(plain, {group: [0, 1, 2]}, torch.rand(2, 4))(torch.rand(2, 4)).shape == (2, 2)


def test_inputs_outputs_shared_weights_and_unknown_operations_stay_whole():
    x = torch.rand(4, 2, 6)
    assert names(nn.LSTM(6, 8), x) == {}
    assert names(nn.Linear(6, 3), x) == {}
    table = nn.Embedding(7, 6)
    head = nn.Linear(6, 7, bias=False)
    head.weight = table.weight
    model = nn.Sequential(table, head)
    assert names(model, torch.tensor([1, 2])) == {"0": 6}
    (group,) = channel_groups(model, torch.tensor([1, 2]))
    small = narrow(model, {group: [0, 4]}, torch.tensor([1, 2]))
    assert small[0].weight is small[1].weight
    assert small[1].in_features == 2


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_own_attention_loses_heads_and_keeps_its_width(batch_first):
    model = nn.TransformerEncoderLayer(8, 4, 10, batch_first=batch_first).eval()
    x = torch.rand(3, 5, 8)
    assert names(model, x) == {"self_attn": 4, "linear1": 10}
    small = cut_in_half(model, x)
    assert small.self_attn.in_proj_weight.shape == (12, 8)
    mask = torch.ones(5, 5).triu(1).bool() if batch_first else torch.ones(3, 3).triu(1).bool()
    again = channel_groups(small, x)
    assert [group.size for group in again] == [2, 5]
    narrow(small, {again[0]: [1]}, x)
    heads = channel_groups(model, x)[0]
    less = narrow(model, {heads: [0, 2]})
    torch.testing.assert_close(
        less(x, src_mask=mask), zeroed(model, {heads: [0, 2]})(x, src_mask=mask)
    )


def test_positions_written_into_a_slice_stay_whole():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(8, 2)

        def forward(self, x):
            room = torch.zeros(len(x), 8)
            room[:, :3] = self.one(x)
            return self.two(room)

    assert names(Padded(), torch.rand(2, 4)) == {}


def test_any_order_of_units_gives_the_same_outputs():
    for model, x in (
        (Residual(), torch.rand(2, 3, 8, 8)),
        (Attention(True), torch.rand(2, 5, 8)),
    ):
        groups = channel_groups(model.eval(), x)
        turned = reorder(model, {group: range(group.size)[::-1] for group in groups})
        torch.testing.assert_close(turned(x), model(x))
        assert not torch.equal(next(turned.parameters()), next(model.parameters()))


def test_a_branch_on_computed_numbers_is_refused_with_its_line():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.body = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.gate(x)
            if y.mean() > 0:
                return y
            return self.body(y)

    with pytest.raises(InputError, match="hangs on numbers it computed.*if y.mean"):
        channel_groups(Branching(), torch.rand(2, 4))


def test_whatever_cannot_be_done_is_said():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).eval()
    with pytest.raises(InputError, match="does not run on the example"):
        channel_groups(model, torch.rand(2, 5))
    (group,) = channel_groups(model, torch.rand(2, 4))
    with pytest.raises(InputError, match="at least one of the units 0 to 7"):
        narrow(model, {group: []})
    with pytest.raises(InputError, match="each of the 8 units"):
        reorder(model, {group: [0, 1]})

    class Rigid(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.two(self.one(x).view(-1, 2, 3).flatten(1) + torch.ones(6))

    rigid, x = Rigid().eval(), torch.rand(2, 4)
    for group in channel_groups(rigid, x):
        with pytest.raises(InputError, match="does not run without units of one"):
            narrow(rigid, {group: [0]}, x)
