"""One's own networks cut after their modules: skip connections, modes, sizes, clear refusals."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from pointsman.depth import EarlyExit
from pointsman.depth.trunks import TracedTrunk, TransformerTrunk, Trunk, trunk_of
from pointsman.depth.trunks.rows import take_rows
from pointsman.depth.trunks.walking import walk
from pointsman.errors import InputError


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class ResNet(nn.Module):
    """Skip connections inside of blocks, a size read at the start and used at the end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.one = nn.Sequential(Residual(4), Residual(4))
        self.two = nn.Sequential(nn.Conv2d(4, 6, 1), Residual(6))
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        rows = x.shape[0]
        x = functional.dropout(self.stem(x), 0.5, self.training)
        x = self.two(self.one(x)).mean(dim=(2, 3))
        return functional.log_softmax(self.out(x.view(rows, -1)), dim=1)


class Hourglass(nn.Module):
    """A connection that skips most of the network, and a branch on a size."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)
        self.third, self.out = nn.Linear(8, 8), nn.Linear(8, 3)
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x):
        if x.shape[1] != 4:
            raise ValueError("four features are needed")
        skip = self.first(x)
        shift = self.shift * 2
        x = torch.relu(self.second(skip))
        return self.out(self.third(x) + skip + shift)


class Merged(nn.Module):
    """Rows and places in one dimension, alive across a cut."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(3, 3), nn.Linear(6, 2)

    def forward(self, x):
        n, places, width = x.shape
        x = self.inner(x.reshape(n * places, width))
        return self.out(x.reshape(n, places * width))


def image(rows=5):
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def vector(rows=5):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))


def made(kind):
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize(
    ("kind", "x", "cuts", "names"),
    [
        (ResNet, image(), (), ("stem", "one.0", "one.1", "two.0", "two.1", "out")),
        (ResNet, image(), ["one"], ("stem", "one.0", "one", "two.0", "two.1", "out")),
        (ResNet, image(), ["one.0.conv", "two"],
         ("stem", "one.0.conv", "one.0", "one.1", "two.0", "two", "out")),
        (Hourglass, vector(), ["second", "third"], ("first", "second", "third", "out")),
        (Merged, torch.randn(5, 2, 3), (), ("inner", "out")),
    ],
)  # fmt: skip
def test_a_network_run_block_by_block_is_the_network(kind, x, cuts, names):
    net = made(kind)
    trunk = trunk_of(net, x[:2], cuts)
    assert isinstance(trunk, TracedTrunk)
    assert isinstance(trunk, Trunk)
    assert trunk.names == names
    assert_close(walk(trunk, x), net(x), rtol=0, atol=0)
    assert_close(trunk(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "x", "cuts"),
    [
        (ResNet, image(9), ["one.0.conv"]),
        (Hourglass, vector(9), ["second", "third"]),
        (Merged, torch.randn(9, 2, 3), ()),
    ],
)
def test_rows_may_leave_at_every_cut(kind, x, cuts):
    net = made(kind)
    trunk = trunk_of(net, x, cuts)
    state, rows = trunk.begin(x), torch.arange(9)
    for at in range(len(trunk.names)):
        state = trunk.block(at, state)
        state, rows = take_rows(state, torch.arange(len(rows) - 1, 0, -1)), rows[1:].flip(0)
    assert_close(trunk.finish(state), net(x)[rows])


def test_what_skips_a_cut_is_in_the_state():
    net = made(Hourglass)
    trunk = trunk_of(net, vector(), ["second"])
    state = trunk.begin(vector())
    for at in range(2):
        state = trunk.block(at, state)
    assert len(state) == 3  # what second gave, the skip, the shift that all inputs share
    assert_close(trunk.features(state), net.second(net.first(vector())))
    assert all(len(part) == 5 for part in state.values())


def test_no_rows_are_no_rows():
    trunk = trunk_of(made(ResNet), image())
    assert walk(trunk, image(0)).shape == (0, 3)


def test_each_mode_has_steps_of_its_own():
    net = made(ResNet)
    trunk = trunk_of(net, image())
    trunk.train()
    states = [trunk.block(1, trunk.block(0, trunk.begin(image()))) for _ in range(2)]
    assert bool((states[0]["out"] != states[1]["out"]).any())  # the dropout of forward is drawn
    trunk.eval()
    states = [trunk.block(1, trunk.block(0, trunk.begin(image()))) for _ in range(2)]
    assert_close(states[0], states[1])


def test_gradients_reach_every_weight():
    net = made(Hourglass)
    trunk = trunk_of(net, vector(), ["second"]).train()
    walk(trunk, vector()).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert float(parameter.grad.abs().sum()) > 0, name


def test_building_leaves_the_network_alone():
    net = made(ResNet).train()
    net.two[1].norm.eval()
    before = copy.deepcopy(net.state_dict())
    trunk_of(net, image(), ["one.0.conv"])
    assert net.training
    assert not net.two[1].norm.training
    assert_close(net.state_dict(), before)


def test_a_deep_copy_is_independent():
    trunk = trunk_of(made(ResNet), image())
    twin, before = copy.deepcopy(trunk), walk(trunk, image())
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.zero_()
    assert_close(walk(twin, image()), before)


def test_another_image_size_runs_where_no_size_was_built_in():
    net = made(ResNet)
    trunk = trunk_of(net, image())
    larger = torch.randn(3, 1, 12, 12)
    assert_close(walk(trunk, larger), net(larger), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"sizes .*\(2, 3\).* looks at, got .*\(4, 3\)"):
        walk(trunk_of(made(Merged), torch.randn(2, 2, 3)), torch.randn(2, 4, 3))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 8), nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, a, b=None):
        return self.out(self.left(a) if b is None else self.left(a) + self.right(b))


def test_inputs_may_have_names():
    net = made(Named)
    x = {"a": vector(), "b": torch.randn(5, 2)}
    trunk = trunk_of(net, x, ["left"])
    assert_close(walk(trunk, x), net(**x), rtol=0, atol=0)
    rows = torch.tensor([4, 0])
    state = take_rows(trunk.block(0, trunk.begin(x)), rows)
    for at in range(1, len(trunk.names)):
        state = trunk.block(at, state)
    assert_close(trunk.finish(state), net(**x)[rows])


def test_exits_of_a_residual_network_are_those_of_a_run():
    net = EarlyExit(made(ResNet), ["one.0", "two.0"], example=image())
    x = image(60)
    logits = net.logits(x)
    sure = logits.softmax(dim=2).amax(dim=2).median(dim=1).values
    answer = net.run(x, sure[:2].tolist())
    assert len(set(answer.stage.tolist())) == 3
    assert_close(answer.output, logits[answer.stage, torch.arange(60)])
    assert_close(logits[-1], net.backbone(x), rtol=0, atol=0)
    assert net.exits == ("one.0", "two.0", "out")


class Inner(nn.Module):
    def forward(self, x):
        return x + 1 if float(x.mean()) > 0 else x - 1


class Dynamic(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.out = nn.Linear(4, 4), Inner(), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        if x.sum() > 0:
            x = self.inner(x)
        return self.out(x)


class EachRow(nn.Module):
    def forward(self, x):
        return torch.stack([row + 1 if float(row.sum()) > 0 else row - 1 for row in x])


class DynamicInside(Dynamic):
    def __init__(self):
        super().__init__()
        self.inner = EachRow()

    def forward(self, x):
        return self.out(self.inner(self.first(x)))


class Nested(nn.Module):
    """The line stands in a module that a cut lies in."""

    def __init__(self):
        super().__init__()
        self.body, self.end = Dynamic(), nn.Linear(3, 3)

    def forward(self, x):
        return self.end(self.body(x))


class ByRows(Dynamic):
    def forward(self, x):
        x = self.first(x)
        return self.out(x * 2 if len(x.shape) == 2 and x.shape[0] > 3 else x)


class Listed(nn.Module):
    """Cannot be traced, and keeps its layers in a list."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = x if x.sum() > 0 else x.clone()
        for layer in self.layers:
            x = layer(x)
        return x


def test_control_flow_inside_of_a_block_stays_there():
    net = made(DynamicInside)
    assert trunk_of(net, vector(), ["first"]).names == ("first", "inner", "out")


def test_a_list_of_layers_does_where_tracing_does_not():
    trunk = trunk_of(made(Listed), vector())
    assert isinstance(trunk, TransformerTrunk)
    assert trunk.names == ("layers.0", "layers.1", "layers.2")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: trunk_of(Dynamic(), vector()),
         r"Dynamic cannot be cut.*its own forward runs.*line \d+: if x.sum.. > 0:.*numbers in the"),
        (lambda: trunk_of(Nested(), vector(), ["body.first"]),
         r"its module 'body' runs.*test_traced_trunks.py line \d+: if x.sum.. > 0"),
        (lambda: trunk_of(ByRows(), vector()), r"line \d+: .*hangs on how many inputs there are"),
        (lambda: trunk_of(Inner(), vector()), r"line \d+: return x \+ 1 if float.x.mean"),
        (lambda: trunk_of(nn.Linear(4, 3), vector()), "Linear cannot be cut in two"),
        (lambda: trunk_of(made(ResNet), image(0)), "at least one input"),
        (lambda: EarlyExit(made(ResNet), ["three"], example=image()), "no child 'three'.*one.0"),
        (lambda: EarlyExit(made(ResNet), ["out"], example=image()), "'out' is the final exit"),
        (lambda: EarlyExit(made(ResNet), ["two.0", "one.0"], example=image()), "after 'two.0'"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_in_one_line(call, text):
    with pytest.raises(InputError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_module_that_runs_several_times_is_no_place_to_cut():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.out = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.again(self.first(self.again(x))))

    assert trunk_of(Twice(), vector()).names == ("first", "out")
    with pytest.raises(InputError, match="'again' runs several times"):
        trunk_of(Twice(), vector(), ["again"])


def test_models_of_timm_are_cut_too():
    timm = pytest.importorskip("timm", exc_type=Exception)
    net = timm.create_model("resnet10t", num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    trunk = trunk_of(net, x)
    assert len(trunk.names) > 4
    with torch.no_grad():
        assert_close(walk(trunk, x), net(x), rtol=0, atol=0)
