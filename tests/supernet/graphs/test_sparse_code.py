"""Coefficients of operations that are never trained."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.graphs import readout_scores, sparse_code, unit_gate
from pointsman.supernet.supernet import Supernet


class Given(nn.Module):
    """Gives the same outputs whatever comes in."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, x):
        return self.outputs


@pytest.fixture
def labels():
    return torch.arange(60) % 3


def supernet_of(labels):
    """One operation knows the labels, two give noise of the same scale."""
    torch.manual_seed(0)
    noise = torch.randn(2, 60, 3)
    knows = nn.functional.one_hot(labels).float() * 1.7
    return Supernet(
        nn.Sequential(
            OneOf("a", {"noise": Given(noise[0]), "knows": Given(knows), "more": Given(noise[1])})
        )
    )


def test_the_operation_that_knows_the_labels_is_found_and_no_weight_changes(labels):
    supernet = supernet_of(labels)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    code = sparse_code(supernet, lambda net: cross_entropy(net(labels), labels), penalty=0.0)
    assert code.derive() == (1,)
    for name, value in supernet.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in supernet.parameters())
    assert supernet.dials[0].mixture is None
    assert not supernet.training


def test_a_larger_penalty_leaves_a_sparser_code(labels):
    def size(penalty):
        supernet = supernet_of(labels)
        code = sparse_code(
            supernet, lambda net: cross_entropy(net(labels), labels), penalty=penalty, steps=200
        )
        return float(unit_gate(code.alpha[0]).abs().sum().detach())

    assert size(5.0) < size(0.0)


def test_the_mixture_has_unit_length_and_its_gradient_is_along_the_sphere():
    logits = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64, requires_grad=True)
    weights = unit_gate(logits)
    assert_close(weights.detach(), torch.tensor([0.6, -0.8, 0.0], dtype=torch.float64))
    slope = torch.autograd.grad(weights[2] + weights[0], logits)[0]
    assert_close(slope @ logits, torch.zeros((), dtype=torch.float64))


def test_no_steps_are_refused(labels):
    with pytest.raises(InputError, match="at least one step, got 0"):
        sparse_code(supernet_of(labels), lambda net: net(labels).sum(), steps=0)


def test_read_outs_are_judged_by_what_they_say_and_not_by_their_scale(labels):
    torch.manual_seed(0)
    knows = nn.functional.one_hot(labels).float()
    outputs = {
        "loud noise": 1000 * torch.randn(60, 3),
        "faint": 1e-3 * (knows + 0.1 * torch.randn(60, 3)),
        "constant": torch.ones(60, 3),
    }
    half = torch.arange(60) < 30
    scores = readout_scores(outputs, labels, half, ~half)
    assert scores["faint"] == 1.0
    assert max(scores["loud noise"], scores["constant"]) < 0.7
