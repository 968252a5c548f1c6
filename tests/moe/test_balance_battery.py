"""One battery over everything that `pointsman.moe.balance` exports: terms, selections, weights.

A term owes a scalar of its layer in the type of the scores, right gradients, 0 without tokens, no
word about padding, and no change of state outside of `after_step`.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.moe import Context, FeedForwardExperts, MoE, Routing, balance
from pointsman.moe.routers import Router, Scored
from pointsman.route import Route
from pointsman.select import guarantee_of, guarantees, relu, top_k

E, D, S = 5, 4, 4  # experts, width, places of a sequence
SHAPE = (2, S)  # of the tokens
HALF = (torch.bfloat16, torch.float16)


class Noisy(Router):
    """Scores with noise that a token's features determine, and experts it may not have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(E, D))
        self.closed: Callable[[Tensor], Tensor] | None = None

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Scored:
        clean = x_TD @ self.weight.T
        scores = clean + 0.3 * torch.sin(11 * clean)
        if self.closed is not None:
            closed = self.closed(scores)
            clean, scores = (each.masked_fill(closed, -torch.inf) for each in (clean, scores))
        return Scored(scores, clean, torch.nn.functional.softplus(x_TD @ self.weight.T))


@dataclass(frozen=True)
class Case:
    """A term, and which of the common rules it is excused from.

    Args:
        make: a fresh term.
        ordered: why it may depend on the order of tokens; empty if it may not.
        stateful: it has buffers that `after_step` changes.
    """

    make: Callable[[], Any]
    ordered: str = ""
    stateful: bool = False


def plain(term: Callable[..., Tensor], **keywords: Any) -> Case:
    return Case(lambda: partial(term, **keywords) if keywords else term)


TERMS: dict[str, Case] = {
    "AdaptiveL1": Case(lambda: balance.AdaptiveL1(1, start=0.5), stateful=True),
    "DirichletPrior": Case(lambda: balance.DirichletPrior(1.5)),
    "ExpertRouterCoupling": Case(balance.ExpertRouterCoupling),
    "chunk_sparsity": replace(
        plain(balance.chunk_sparsity, chunk=2), ordered="it counts experts of a stretch of tokens"
    ),
    "entropy": plain(balance.entropy),
    "grouped_switch": plain(balance.grouped_switch, group_of=[0, 0, 1, 1, 1]),
    "importance": plain(balance.importance),
    "load": plain(balance.load),
    "locality": replace(
        plain(balance.locality, length=S, sharpness=2.0), ordered="it compares neighbours"
    ),
    "router_z": plain(balance.router_z),
    "sequence_switch": replace(
        plain(balance.sequence_switch, length=S), ordered="it balances each sequence by itself"
    ),
    "switch": plain(balance.switch),
}
SELECTIONS: dict[str, Callable[[], Any]] = {
    "BiasedTopK": lambda: balance.BiasedTopK(E, 2, rate=0.1),
    "ByMode": lambda: balance.ByMode(partial(top_k, k=1, renormalize=False), relu),
}
WEIGHTS = {"NormedWeights"}
READINGS = {"chances", "dominance"}  # numbers to look at, tested in test_balance.py
named = pytest.mark.parametrize("name", TERMS)


def layer_with(term: object, *, select: Any = None, estimator: Any = None) -> MoE:
    torch.manual_seed(0)
    experts = FeedForwardExperts(E, D, 3, activation="silu", gated=True)
    pairs = () if term is None else ((1.0, term),)
    select = partial(top_k, k=2) if select is None else select
    return MoE(Noisy(), select, experts, balance=pairs, estimator=estimator)


def tokens(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or SHAPE), D, generator=generator, dtype=torch.float64).to(dtype)


def value(layer: MoE, x: Tensor, **keywords: Any) -> Tensor:
    routing: Routing = layer(x, **keywords)[1]
    (loss,) = routing.losses.values()
    return loss


def states(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_everything_exported_is_covered() -> None:
    assert {*TERMS, *SELECTIONS, *WEIGHTS, *READINGS} == set(balance.__all__)


@named
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_a_term_is_a_scalar_in_the_type_of_the_scores(name: str, dtype: torch.dtype) -> None:
    layer = layer_with(TERMS[name].make()).to(dtype)
    x = tokens(dtype=dtype).requires_grad_()
    loss = value(layer, x)
    assert loss.shape == ()
    assert loss.dtype == dtype
    assert loss.isfinite()
    loss.backward()
    for parameter in (x, *layer.parameters()):
        assert parameter.grad is None or parameter.grad.isfinite().all()


def check_gradients(
    layer: MoE, x: Tensor, read: Callable[[tuple[Tensor, Routing]], Tensor], *, besides: str = ""
) -> list[Tensor | None]:
    """Gradcheck to the tokens and to what decides; gives the gradients of the latter."""
    wanted = ("router.", "select.", "estimator.")
    chosen = {
        name: parameter.detach().requires_grad_()
        for name, parameter in layer.named_parameters()
        if name.startswith(wanted) or name == besides
    }

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(chosen, parameters, strict=True))
        return read(torch.func.functional_call(layer, given, (x,)))

    parameters = list(chosen.values())
    loss = run(x, *parameters).sum()
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *parameters))
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


@named
def test_gradients_are_right_in_double_precision(name: str) -> None:
    layer = layer_with(TERMS[name].make()).double().eval()
    coupled = "experts.up_EFD" if name == "ExpertRouterCoupling" else ""
    grads = check_gradients(
        layer, tokens(), lambda found: next(iter(found[1].losses.values())), besides=coupled
    )
    assert all(grad is not None and grad.any() for grad in grads), "nothing learns from it"


@pytest.mark.parametrize("name", [name for name, case in TERMS.items() if not case.ordered])
def test_the_order_of_tokens_does_not_matter(name: str) -> None:
    layer = layer_with(TERMS[name].make()).double().eval()
    x = tokens(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    assert_close(value(layer, x[order]), value(layer, x))


@pytest.mark.parametrize("name", [name for name, case in TERMS.items() if case.ordered])
def test_the_order_of_tokens_matters_where_it_is_said_to(name: str) -> None:
    layer = layer_with(TERMS[name].make()).double().eval()
    x = tokens(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    assert not torch.isclose(value(layer, x[order]), value(layer, x))


@named
def test_a_padded_sequence_changes_nothing(name: str) -> None:
    layer = layer_with(TERMS[name].make()).double().eval()
    x = tokens(3, S)
    x[2] = 1e3
    mask = torch.ones(3, S, dtype=torch.bool)
    mask[2] = False
    assert_close(value(layer, x, mask=mask), value(layer, x[:2]))


@named
def test_what_stands_in_the_padding_does_not_matter(name: str) -> None:
    layer = layer_with(TERMS[name].make()).double().eval()
    x, other = tokens(), tokens()
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    other[~mask] = torch.nan
    found = value(layer, other, mask=mask)
    assert_close(found, value(layer, x, mask=mask))
    if not TERMS[name].ordered:
        assert_close(found, value(layer, x[mask]))


@named
@pytest.mark.parametrize("shape", [(0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tokens_give_zero_with_a_gradient(
    name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    layer = layer_with(TERMS[name].make()).to(dtype)
    loss = value(layer, tokens(*shape, dtype=dtype))
    assert float(loss.detach()) == 0
    assert loss.dtype == dtype
    assert loss.grad_fn is not None
    loss.backward()


@named
def test_only_padding_gives_zero(name: str) -> None:
    layer = layer_with(TERMS[name].make())
    x = tokens(dtype=torch.float32)
    loss = value(layer, x, mask=torch.zeros(SHAPE, dtype=torch.bool))
    assert float(loss.detach()) == 0
    loss.backward()


def _some_closed(scores: Tensor) -> Tensor:
    closed = torch.zeros_like(scores, dtype=torch.bool)
    closed[:, 1] = True
    closed[::2, 3] = True
    closed[3] = True  # a token without any expert
    return closed


def _all_closed(scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


@named
@pytest.mark.filterwarnings("ignore::pointsman.errors.DegenerateWarning")
@pytest.mark.parametrize("closed", [_some_closed, _all_closed])
def test_closed_experts_leave_values_and_gradients_finite(
    name: str, closed: Callable[[Tensor], Tensor]
) -> None:
    layer = layer_with(TERMS[name].make())
    assert isinstance(layer.router, Noisy)
    layer.router.closed = closed
    x = tokens(dtype=torch.float32).requires_grad_()
    loss = value(layer, x)
    assert loss.isfinite()
    loss.backward()
    for parameter in (x, *layer.parameters()):
        assert parameter.grad is None or parameter.grad.isfinite().all()


@named
@pytest.mark.parametrize("k", [1, E])
def test_one_expert_and_all_experts_a_token_are_fine(name: str, k: int) -> None:
    layer = layer_with(TERMS[name].make(), select=partial(top_k, k=k, renormalize=False)).double()
    x = tokens().requires_grad_()
    loss = value(layer, x)
    assert loss.isfinite()
    loss.backward()
    assert x.grad is None or x.grad.isfinite().all()


@named
def test_a_single_expert_is_fine(name: str) -> None:
    case = TERMS[name]
    term = case.make() if name != "grouped_switch" else partial(case.make().func, group_of=[0])
    torch.manual_seed(0)
    layer = MoE(
        Noisy(), partial(top_k, k=1), FeedForwardExperts(1, D, 3), balance=[(1.0, term)]
    ).double()
    assert isinstance(layer.router, Noisy)
    layer.router.weight = nn.Parameter(torch.randn(1, D, dtype=torch.float64))
    loss = value(layer, tokens())
    assert loss.isfinite()
    loss.backward()


@named
def test_long_sums_are_exact_enough_in_half_precision(name: str) -> None:
    layer = layer_with(TERMS[name].make()).bfloat16().eval()
    routing = layer(tokens(1024, S, dtype=torch.bfloat16))[1]
    route, spread = routing.route, routing.spread
    assert spread is not None
    exact = replace(
        routing,
        scores=routing.scores.double(),
        clean=routing.clean.double(),
        spread=spread.double(),
        route=route.weighted(route.weights.double()),
    )
    (term,) = (term for _, term in layer.balance)
    assert_close(term(routing, layer).double(), term(exact, layer), rtol=2**-8, atol=1e-6)


@named
def test_state_changes_in_after_step_alone(name: str) -> None:
    case = TERMS[name]
    layer = layer_with(case.make())
    before = states(layer)
    routings = []
    for mode in (True, False):
        layer.train(mode)
        routings.append(layer(tokens(dtype=torch.float32))[1])
    assert_close(states(layer), before, rtol=0, atol=0)
    layer.after_step(routings)
    changed = [key for key, tensor in states(layer).items() if not torch.equal(tensor, before[key])]
    assert bool(changed) == case.stateful


@named
def test_state_is_saved_and_loaded_with_the_layer(name: str) -> None:
    layer = layer_with(TERMS[name].make()).eval()
    for seed in range(3):
        layer.after_step([layer(tokens(dtype=torch.float32, seed=seed))[1]])
    again = layer_with(TERMS[name].make()).eval()
    again.load_state_dict(layer.state_dict())
    x = tokens(dtype=torch.float32)
    expected = value(layer, x)
    assert_close(value(again, x), expected, rtol=0, atol=0)
    assert_close(value(deepcopy(layer), x), expected, rtol=0, atol=0)


@named
def test_evaluation_is_repeatable(name: str) -> None:
    layer = layer_with(TERMS[name].make()).eval()
    x = tokens(dtype=torch.float32)
    assert_close(value(layer, x), value(layer, x), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*SELECTIONS, *WEIGHTS])
class TestSelectionsAndWeights:
    """What a part owes that stands in the layer's own way instead of beside it."""

    def layer(self, name: str) -> MoE:
        if name in WEIGHTS:
            weights = getattr(balance, name)(E)
            return layer_with(None, select=relu, estimator=weights)
        return layer_with(None, select=SELECTIONS[name]())

    @pytest.mark.parametrize("train", [True, False])
    def test_gradients_are_right_in_double_precision(self, name: str, train: bool) -> None:
        layer = self.layer(name).double().train(train)
        assert check_gradients(layer, tokens(1, S), lambda found: found[0])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
    def test_the_type_is_kept(self, name: str, dtype: torch.dtype) -> None:
        layer = self.layer(name).to(dtype)
        output, routing = layer(tokens(dtype=dtype))
        assert output.dtype == routing.route.weights.dtype == dtype

    def test_it_keeps_its_guarantee(self, name: str) -> None:
        for mode in (True, False):
            layer = self.layer(name).double().train(mode)
            assert guarantee_of(layer.select).batch_independent
            x = tokens(8)
            order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
            output = layer(x)[0]
            assert_close(layer(x[order])[0], output[order])
            assert_close(layer(x[:3])[0], output[:3])

    @pytest.mark.parametrize("shape", [(0,), (2, 0)])
    def test_no_tokens_give_no_output(self, name: str, shape: tuple[int, ...]) -> None:
        layer = self.layer(name)
        output, routing = layer(tokens(*shape, dtype=torch.float32).requires_grad_())
        assert output.shape == (*shape, D)
        output.sum().backward()
        layer.after_step([routing])

    def test_closed_experts_are_not_taken(self, name: str) -> None:
        for mode in (True, False):
            layer = self.layer(name).train(mode)
            assert isinstance(layer.router, Noisy)
            layer.router.closed = _some_closed
            x = tokens(dtype=torch.float32).requires_grad_()
            output, routing = layer(x)
            closed = _some_closed(routing.scores)
            assert not (routing.route.mask() & closed).any()
            output.square().sum().backward()
            assert x.grad is not None
            assert x.grad.isfinite().all()

    def test_state_changes_in_after_step_alone(self, name: str) -> None:
        layer = self.layer(name)
        before, routings = states(layer), []
        for mode in (True, False):
            layer.train(mode)
            routings.append(layer(tokens(dtype=torch.float32))[1])
        assert_close(states(layer), before, rtol=0, atol=0)
        layer.after_step(routings)
        after = states(layer)
        changed = any(not torch.equal(after[key], before[key]) for key in before)
        assert changed == (name == "BiasedTopK")

    def test_state_is_saved_and_loaded(self, name: str) -> None:
        layer, x = self.layer(name), tokens(dtype=torch.float32)
        layer.after_step([layer(x)[1]])
        again = self.layer(name)
        again.load_state_dict(layer.state_dict())
        assert_close(again(x)[0], layer(x)[0], rtol=0, atol=0)
        assert_close(deepcopy(layer)(x)[0], layer(x)[0], rtol=0, atol=0)


@guarantees(batch_independent=True, causal=True)
def nobody(scores: Tensor) -> Route:
    return Route.from_dense(torch.zeros_like(scores))


@named
@pytest.mark.filterwarnings("ignore::pointsman.errors.DegenerateWarning")
def test_a_batch_in_which_all_tokens_are_dropped_is_fine(name: str) -> None:
    layer = layer_with(TERMS[name].make(), select=nobody)
    x = tokens(dtype=torch.float32).requires_grad_()
    loss = value(layer, x)
    assert loss.isfinite()
    loss.backward()
    assert x.grad is None or x.grad.isfinite().all()
