"""Exit networks as files: loaded, they answer as the network does, and say what they cannot do."""

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.depth import EarlyExit
from pointsman.depth.export import export_exits, load_exits
from pointsman.errors import InputError, PolicyError


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.relu(self.inner(x))


class Skipping(nn.Module):
    """A connection that skips the exit."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 6), Residual(), nn.Linear(6, 3)

    def forward(self, x):
        skip = self.first(x)
        return self.out(self.second(torch.relu(skip)) + skip)


class EachRow(nn.Module):
    def forward(self, x):
        return torch.stack([row + 1 if float(row.sum()) > 0 else row - 1 for row in x])


X = 3 * torch.randn(30, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(0)
    net = EarlyExit(Skipping(), ["second"], example=X[:1]).train()
    folder = tmp_path_factory.mktemp("export") / "net"
    return net, export_exits(net, X[:1], folder), folder


def test_a_loaded_network_answers_as_the_network_does(made):
    net, exported, folder = made
    assert net.training
    for other in (exported, load_exits(str(folder))):
        assert other.exits == net.exits == ("second", "out")
        assert other.num_classes == 3
        threshold = float(net.logits(X)[0].softmax(dim=1).amax(dim=1).median())
        for knob in (0.0, threshold, 2.0):
            expected, found = net.run(X, knob), other.run(X, knob)
            assert found.stage.tolist() == expected.stage.tolist()
            assert_close(found.output, expected.output)
        assert 0 < int(net.run(X, threshold).stage.sum()) < 30


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_any_number_of_inputs_runs(made, rows):
    net, exported, _ = made
    found = exported.run(X[:rows], 2.0)
    assert found.output.shape == (rows, 3)
    assert_close(found.output, net.run(X[:rows], 2.0).output)


def test_files_hold_only_what_they_use(made):
    _, _, folder = made
    described = json.loads((folder / "exits.json").read_text())
    assert [stage["exit"] for stage in described["stages"]] == ["second", "out"]
    program = torch.export.load(folder / "answer_0.pt2")
    shapes = {tuple(x.shape) for x in [*program.constants.values(), *program.state_dict.values()]}
    assert shapes == {(3, 6), (3,)}


def test_a_model_of_transformers_is_exported_with_what_its_layers_share(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 20, "num_labels": 3}
    config = transformers.GPT2Config(pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    model = transformers.GPT2ForSequenceClassification(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(3, 20, (9, 5), generator=torch.Generator().manual_seed(0))
    ids[4, 3:] = 0
    net = EarlyExit(model, [0], example=ids)
    exported = export_exits(net, ids, tmp_path)
    threshold = float(net.logits(ids)[0].softmax(dim=1).amax(dim=1).median())
    expected, found = net.run(ids, threshold), exported.run(ids, threshold)
    assert set(expected.stage.tolist()) == {0, 1}
    assert found.stage.tolist() == expected.stage.tolist()
    assert_close(found.output, expected.output)


def test_a_segment_with_control_flow_of_its_own_is_named(tmp_path):
    backbone = nn.Sequential(nn.Linear(4, 6), EachRow(), nn.Linear(6, 3))
    net = EarlyExit(backbone, [0], example=X)
    with pytest.raises(InputError, match="the segment up to '2' cannot be exported") as caught:
        export_exits(net, X, tmp_path)
    assert "\n" not in str(caught.value)


def test_other_sizes_are_refused(made):
    with pytest.raises(InputError, match="exported for inputs of other sizes"):
        made[1].run(torch.randn(3, 5), 0.5)


def damaged(folder, tmp_path, damage):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    damage(copy)
    return copy


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda at: (at / "exits.json").unlink(), "holds no exported exit network"),
        (lambda at: (at / "exits.json").write_text("{"), "holds no exported exit network"),
        (lambda at: (at / "exits.json").write_text("{}"), "holds no exported exit network"),
        (
            lambda at: (at / "exits.json").write_text(
                '{"format": "pointsman exits", "version": 9}'
            ),
            "version 9.*reads .* up to 1",
        ),
        (lambda at: (at / "answer_1.pt2").unlink(), "answer_1.pt2 is missing"),
        (lambda at: (at / "advance_0.pt2").write_bytes(b"no"), "advance_0.pt2 is damaged"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(made, tmp_path, damage, text):
    with pytest.raises(PolicyError, match=text) as caught:
        load_exits(damaged(made[2], tmp_path, damage))
    assert "\n" not in str(caught.value)
