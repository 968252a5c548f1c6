"""A chosen subnet leaves the supernet: recalibrated, saved and exported."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pointsman.errors import InputError, PolicyError
from pointsman.supernet.elastic import Bits, Depth, Kernel, OneOf, Width
from pointsman.supernet.export import export_onnx, export_program
from pointsman.supernet.making import make_elastic
from pointsman.supernet.recalibration import recalibrate
from pointsman.supernet.saved import load_subnet, save_subnet
from pointsman.supernet.supernet import Supernet

X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def convolutions() -> tuple[Supernet, Tensor]:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))),
        OneOf("it", {"less": nn.Conv2d(8, 4, 1), "more": nn.Conv2d(8, 4, 3, padding=1)}),
        nn.Flatten(),
        nn.Linear(144, 3),
    )
    declared = [Depth("2", counts=(1, 2)), Kernel("2.*", (1, 3)), Width("0", counts=(2, 5, 8))]
    return make_elastic(body, X, declared), X


def test_recalibrated_statistics_are_those_of_the_batches() -> None:
    net, _ = convolutions()
    net.use((0, 0, 0, 0, 0))
    plain = net.extract((0, 0, 0, 0, 0))
    weights = [p.detach().clone() for p in plain.parameters()]
    batches = [torch.randn(8, 2, 6, 6) + shift for shift in (0, 4)]
    assert recalibrate(plain, batches) == 1
    with torch.no_grad():
        hidden = [plain[0](batch).transpose(0, 1).flatten(1) for batch in batches]
    mean = torch.stack([h.mean(1) for h in hidden]).mean(0)
    torch.testing.assert_close(plain[1].running_mean, mean)
    assert plain[1].momentum == 0.1
    assert plain[1].training
    for before, after in zip(weights, plain.parameters(), strict=True):
        torch.testing.assert_close(before, after)
    recalibrate(net, batches)  # of the subnet in force
    torch.testing.assert_close(net.extract(net.in_force)[1].running_mean, mean)


def test_recalibration_without_a_batch_is_refused_and_changes_nothing() -> None:
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(9, 3) + 5)
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    with pytest.raises(InputError, match="one batch at least, got none"):
        recalibrate(norm, [])
    torch.testing.assert_close(norm.running_mean, before)
    assert recalibrate(nn.Linear(2, 2), []) == 0


def test_a_saved_subnet_is_rebuilt_by_the_same_declarations(tmp_path: Path) -> None:
    net, x = convolutions()
    genotype = (1, 0, 1, 1, 0)
    trained = net.extract(genotype).eval()
    with torch.no_grad():
        trained[5].bias.add_(1)
    save_subnet(tmp_path / "it", net, genotype, subnet=trained, about={"accuracy": 0.9})
    other, _ = convolutions()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    loaded, found = load_subnet(tmp_path / "it", other)
    torch.testing.assert_close(loaded.eval()(x), trained(x))
    assert found["choices"] == net.space.decode(genotype)
    assert found["about"] == {"accuracy": 0.9}


def test_a_folder_of_another_space_or_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    net, _x = convolutions()
    save_subnet(tmp_path / "it", net, (0,) * 5)
    other = make_elastic(nn.Sequential(nn.Linear(3, 3)), None, [Bits("0", (2, 32))])
    with pytest.raises(PolicyError, match="another space"):
        load_subnet(tmp_path / "it", other)
    with pytest.raises(PolicyError, match="do not fit the module"):
        load_subnet(tmp_path / "it", nn.Linear(2, 2))
    file = tmp_path / "it" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(PolicyError, match="digest does not match"):
        load_subnet(tmp_path / "it", net)


def test_an_exported_program_gives_the_same_for_other_batch_sizes_too(tmp_path: Path) -> None:
    net, x = convolutions()
    plain = net.extract((1, 0, 1, 1, 0)).eval()
    assert export_program(plain, x, tmp_path / "it.pt2") < 1e-4
    program = torch.export.load(tmp_path / "it.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(x[:3])[0], plain(x[:3]), rtol=1e-4, atol=1e-5)


def test_an_onnx_file_gives_the_same(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    net, x = convolutions()
    plain = net.extract((0,) * 5).eval()
    assert export_onnx(plain, x, tmp_path / "it.onnx") < 1e-4


def test_a_module_that_cannot_be_exported_says_so(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(InputError, match="torch cannot export Branches"):
        export_program(Branches(), torch.randn(2, 2), tmp_path / "it.pt2")
