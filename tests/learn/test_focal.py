import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.learn.focal import class_balanced, focal


def test_without_gamma_it_is_the_cross_entropy_with_weights_too():
    torch.manual_seed(0)
    scores, labels = torch.randn(20, 3).double(), torch.randint(3, (20,))
    assert_close(focal(scores, labels, gamma=0.0), functional.cross_entropy(scores, labels))
    weights = torch.tensor([1.0, 2.0, 0.0]).double()
    each = functional.cross_entropy(scores, labels, weight=weights, reduction="sum")
    assert_close(focal(scores, labels, gamma=0.0, weights_A=weights), each / 20)


def test_what_is_sure_counts_for_less_by_the_formula():
    scores = torch.tensor([[0.8, 0.2]]).double().log()
    right, wrong = focal(scores, torch.tensor([0])), focal(scores, torch.tensor([1]))
    assert float(right) == pytest.approx(0.2**2 * -torch.tensor(0.8).log().item(), rel=1e-6)
    assert float(wrong) == pytest.approx(0.8**2 * -torch.tensor(0.2).log().item(), rel=1e-6)


def test_gradients_are_right():
    scores = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda s: focal(s, torch.tensor([0, 2, 1, 1])), scores)


def test_weights_go_from_equal_to_inverse_counts_with_mean_one():
    labels = torch.tensor([[0] * 8, [0] * 4 + [2] * 4])
    assert_close(class_balanced(labels, 3, beta=0.0), torch.tensor([1.0, 0, 1]).double())
    near = class_balanced(labels, 3, beta=1 - 1e-9)
    assert near.tolist() == pytest.approx([16 / 2 / 12, 0, 16 / 2 / 4], rel=1e-5)
    some = class_balanced(labels, 3, beta=0.9)
    assert float(some[labels.flatten()].mean()) == pytest.approx(1.0)
    assert float(some[2] / some[0]) == pytest.approx((1 - 0.9**12) / (1 - 0.9**4))


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="one label each"):
        focal(torch.zeros(3, 2), torch.zeros(4).long())
    with pytest.raises(InputError, match="gamma"):
        focal(torch.zeros(3, 2), torch.zeros(3).long(), gamma=-1)
    with pytest.raises(InputError, match="beta"):
        class_balanced(torch.zeros(3).long(), 2, beta=1.0)
    with pytest.raises(InputError, match="from 0 to 1"):
        class_balanced(torch.tensor([2]), 2)
    assert float(focal(torch.zeros(0, 2), torch.zeros(0).long())) == 0.0
