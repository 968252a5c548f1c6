import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe import Context, FeedForwardExperts
from pointsman.moe.experts.lora import LoRAExperts
from pointsman.moe.merging import SoftMerging
from pointsman.moe.routers.base import Router

E, D = 3, 5


def layer(dropout: float = 0.0, **options: object) -> SoftMerging:
    torch.manual_seed(0)
    experts = FeedForwardExperts(E, D, 4, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in experts.parameters():
            weight.normal_()
    return SoftMerging(nn.Linear(D, E), experts, dropout=dropout).double()


def tokens(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, D, generator=generator, dtype=torch.float64)


def one_expert(experts: FeedForwardExperts, weights_E: Tensor, x: Tensor) -> Tensor:
    """A feed-forward with averaged weights, in plain operations."""
    up = torch.einsum("e,efd->fd", weights_E, experts.up_EFD)
    hidden = x @ up.T
    if experts.up_bias_EF is not None:
        hidden = hidden + weights_E @ experts.up_bias_EF
    if experts.gated:
        gate, plain = hidden.chunk(2, dim=-1)
        hidden = experts.activation(gate) * plain
    else:
        hidden = experts.activation(hidden)
    return hidden @ torch.einsum("e,edf->df", weights_E, experts.down_EDF).T


@pytest.mark.parametrize(
    "options", [{}, {"gated": True, "activation": "silu"}, {"bias": False, "out": 7}]
)
def test_each_sequence_runs_through_its_own_merged_expert(options: dict[str, object]) -> None:
    module, x = layer(**options), tokens(2, 4, 6)
    y, routing = module(x)
    assert routing.num_tokens == routing.route.num_inputs == 8
    weights = module.router(x.mean(2)).softmax(-1)
    assert_close(routing.route.to_dense(), weights.reshape(8, E))
    for i in range(2):
        for j in range(4):
            assert_close(y[i, j], one_expert(module.experts, weights[i, j], x[i, j]))  # type: ignore[arg-type]


def test_padding_counts_nowhere_and_a_sequence_of_padding_is_not_routed() -> None:
    module, x = layer(), tokens(4, 6)
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[1], mask[2] = False, True
    x[~mask] = torch.nan
    y, routing = module(x, mask=mask)
    assert routing.kept is not None
    assert routing.kept.tolist() == [0, 2, 3]
    assert (routing.route.num_inputs, routing.num_tokens) == (3, 4)
    assert (y[~mask] == 0).all()
    for sequence in (0, 2, 3):
        alone, _ = module(x[sequence][mask[sequence]])
        assert_close(y[sequence][mask[sequence]], alone)


def test_a_router_that_is_sure_gives_that_expert() -> None:
    module, x = layer(), tokens(2, 6)
    with torch.no_grad():
        module.router.weight.zero_()
        module.router.bias.copy_(torch.tensor([0.0, 5000.0, 0.0]))
    y, _ = module(x)
    assert_close(y, one_expert(module.experts, torch.eye(E).double()[1], x))  # type: ignore[arg-type]


def test_one_expert_is_that_expert() -> None:
    experts = FeedForwardExperts(1, D, 4).double()
    x = tokens(3, 6)
    y, _ = SoftMerging(nn.Linear(D, 1).double(), experts)(x)
    assert_close(y.reshape(18, D), experts(x.reshape(18, D), torch.tensor([0, 18])))


def test_gradcheck_through_router_and_experts() -> None:
    module, x = layer(), tokens(2, 3).requires_grad_()
    names, weights = zip(*module.named_parameters(), strict=True)

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        values = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, values, (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *weights))


def test_dropout_leaves_experts_out_in_training_alone() -> None:
    module, x = layer(dropout=0.5), tokens(200, 2)
    _, routing = module(x)
    weights = routing.route.to_dense()
    assert_close(weights.sum(1), torch.ones(200, dtype=torch.float64))
    share = (weights < 1e-6).double().mean().item()
    assert 0.33 < share < 0.42  # half, but for those that lost all and got them back
    module.eval()
    assert (module(x)[1].route.to_dense() > 1e-6).all()


def test_no_tokens_and_no_sequences_give_zeros() -> None:
    module = layer()
    for shape in ((0, 6), (2, 0), (0, 0)):
        y, routing = module(tokens(*shape))
        assert y.shape == (*shape, D)
        assert routing.route.num_inputs == shape[0]
    y, routing = module(tokens(2, 3), mask=torch.zeros(2, 3, dtype=torch.bool))
    assert (y == 0).all()
    assert routing.route.num_inputs == 0


def test_other_banks_are_merged_too() -> None:
    torch.manual_seed(0)
    experts = LoRAExperts(E, D, rank=2)
    nn.init.normal_(experts.b_EOR)
    module, x = SoftMerging(nn.Linear(D, E), experts).double(), tokens(2, 6)
    y, routing = module(x)
    for n, weights_E in enumerate(routing.route.to_dense()):
        a = torch.einsum("e,erd->rd", weights_E, experts.a_ERD)
        b = torch.einsum("e,eor->or", weights_E, experts.b_EOR)
        assert_close(y[n], x[n] @ a.T @ b.T)


class ByTask(Router):
    """Scores that hang on the task of a sequence alone."""

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        (task,) = context.require("task", reader="ByTask")
        return 9.0 * nn.functional.one_hot(task, E).to(x_TD)


def test_a_router_may_read_the_context_of_its_sequences() -> None:
    module, task = layer(), torch.tensor([2, 0, 1])
    module.router = ByTask()
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    _, routing = module(tokens(3, 4), mask=mask, context=Context(task=task))
    assert routing.route.answered_by().tolist() == [2, 1]


def test_what_cannot_be_merged_is_refused() -> None:
    bank = FeedForwardExperts(E, D, 4)
    bank.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(InputError, match=r"each of 3 experts, got scale of shape \(\)"):
        SoftMerging(nn.Linear(D, E), bank)
    with pytest.raises(InputError, match="dropout must be at least 0 and below 1, got 1"):
        layer(dropout=1)
    with pytest.raises(InputError, match=r"\(\.\.\., S, D\), got \(5,\)"):
        layer()(tokens())
    with pytest.raises(InputError, match="the mask must be bool"):
        layer()(tokens(2, 3), mask=torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="ByTask reads `task`"):
        module = layer()
        module.router = ByTask()
        module(tokens(2, 3))
