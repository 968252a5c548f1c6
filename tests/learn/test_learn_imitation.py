import pytest
import torch
from torch.testing import assert_close

from pointsman.errors import InputError, RouteError
from pointsman.learn import imitation
from pointsman.select import top_k


def drawn(seed: int, inputs: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(inputs, 4, generator=generator, dtype=torch.float64)


def test_imitation_is_the_mean_square_over_all_and_over_the_chosen() -> None:
    scores, target = drawn(0), drawn(1)
    square = (scores.softmax(1) - target.softmax(1)) ** 2
    chosen = top_k(target, 2)
    best = target.topk(2, dim=1).indices
    assert_close(imitation(scores, target), square.mean())
    wanted = square.mean() + 0.3 * square.gather(1, best).mean()
    assert_close(imitation(scores, target, chosen, theta=0.3), wanted)
    assert_close(imitation(target + 5.0, target, chosen), torch.zeros((), dtype=torch.float64))


def test_imitation_teaches_the_scores_alone() -> None:
    scores, target = drawn(0).requires_grad_(), drawn(1).requires_grad_()
    chosen = top_k(target.detach(), 2)
    assert torch.autograd.gradcheck(lambda s: imitation(s, target.detach(), chosen), (scores,))
    imitation(scores, target, chosen).backward()
    assert target.grad is None
    assert scores.grad is not None
    rate = 20.0
    with torch.no_grad():
        nearer = scores - rate * scores.grad
    assert imitation(nearer, target) < imitation(scores, target)


def test_imitation_takes_no_inputs_and_rows_without_eligible_branch() -> None:
    none = drawn(0, 0).requires_grad_()
    assert imitation(none, drawn(1, 0), top_k(drawn(1, 0), 2)).item() == 0.0
    scores = drawn(0)
    scores[2] = -torch.inf
    scores.requires_grad_()
    imitation(scores, drawn(1)).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_imitation_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"one shape, got \(6, 4\) and \(5, 4\)"):
        imitation(drawn(0), drawn(1, 5))
    with pytest.raises(RouteError, match="do not fit a route of 5 inputs"):
        imitation(drawn(0), drawn(1), top_k(drawn(1, 5), 1))
