"""The probe: what it finds is what parts declare, for selections and for routers."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe import Context, FeedForwardExperts, MoE
from pointsman.moe import routers as r
from pointsman.moe.probe import check_guarantee, leaks
from pointsman.route import Route
from pointsman.select import (
    Guarantee,
    balanced,
    categorical,
    expert_choice,
    group_limited,
    guarantee_of,
    guarantees,
    prototypes,
    rectified,
    relu,
    sinkhorn,
    sparse_transport,
    threshold,
    top_k,
    top_p,
    with_capacity,
    within_best_group,
)

N, S, D, E = 2, 4, 6, 4

SELECTIONS: dict[str, Callable[[Tensor], Route]] = {
    "top_k": partial(top_k, k=2),
    "top_k noisy": partial(top_k, k=2, noise=1.0),
    "relu": relu,
    "threshold": partial(threshold, minimum=0.1),
    "top_p": partial(top_p, p=0.6),
    "categorical": partial(categorical, k=2),
    "group_limited": partial(group_limited, k=2, groups=2, groups_kept=1),
    "within_best_group": partial(within_best_group, groups=2, k=1),
    "prototypes": partial(prototypes, groups=2),
    "prototypes, capacity": partial(prototypes, groups=2, capacity=3),
    "with_capacity": partial(with_capacity, k=2, capacity=3),
    "with_capacity by score": partial(with_capacity, k=2, capacity=3, order="score"),
    "rectified": partial(rectified, k=2, capacity=3),
    "expert_choice": partial(expert_choice, capacity=3),
    "balanced": balanced,
    "sinkhorn": sinkhorn,
    "sparse_transport": partial(sparse_transport, capacity=3),
}
ROUTERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(D, E),
    "cosine": lambda: r.CosineRouter(D, E),
    "smoothed": lambda: r.SmoothedRouter(nn.Linear(D, E), D),
    "smoothed, causal": lambda: r.SmoothedRouter(nn.Linear(D, E), D, causal=True),
    "hash": lambda: r.HashRouter(E),
    "noisy": lambda: r.NoisyRouter(D, E),
}


def tokens(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*(shape or (N, S)), D, generator=generator, dtype=torch.float64)


def layer(router: nn.Module, select: Callable[[Tensor], Route]) -> MoE:
    torch.manual_seed(0)
    experts = FeedForwardExperts(E, D, 8)
    return MoE(router, select, experts, max_dropped=1.0).double()


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(D, E)


@pytest.mark.filterwarnings("ignore:the router gets no gradient")
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_leaks_what_it_declares_and_no_more(name: str) -> None:
    select = SELECTIONS[name]
    found = check_guarantee(layer(linear(), select), tokens())
    assert found.guarantee == guarantee_of(select), str(found)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_leaks_what_it_declares_and_no_more(name: str) -> None:
    torch.manual_seed(0)
    module = layer(ROUTERS[name](), partial(top_k, k=2))
    context = Context(ids=torch.arange(N * S).reshape(N, S))
    found = check_guarantee(module, tokens(), context=context)
    assert found.guarantee == module.guarantee, str(found)


def test_expert_choice_is_caught_where_causality_is_asked_for() -> None:
    module = layer(linear(), partial(expert_choice, capacity=3))
    check_guarantee(module, tokens())  # it promises nothing
    with pytest.raises(InputError, match=r"may not depend on later tokens here, got \d+ tokens"):
        check_guarantee(module, tokens(), guarantee=Guarantee(False, True))


def test_a_wrong_declaration_is_caught() -> None:
    def optimal(scores: Tensor) -> Route:
        return balanced(scores)

    wrong = guarantees(batch_independent=True, causal=True)(optimal)
    with pytest.raises(InputError, match=r"declare a weaker guarantee"):
        check_guarantee(layer(linear(), wrong), tokens())

    def positional(scores: Tensor) -> Route:
        return with_capacity(scores, k=2, capacity=2)

    by_position = guarantees(batch_independent=True, causal=True)(positional)
    with pytest.raises(InputError, match=r"other tokens of its batch"):
        check_guarantee(layer(linear(), by_position), tokens())


class FromLater(nn.Module):
    """Every token gets the mean of the two after it, in its own sequence."""

    def forward(self, x_nSD: Tensor) -> Tensor:
        y = torch.zeros_like(x_nSD)
        y[:, :-1] += x_nSD[:, 1:]
        y[:, :-2] += x_nSD[:, 2:]
        return y / 2


class FromOthers(nn.Module):
    """The second sequence reads the first."""

    def forward(self, x_nSD: Tensor) -> tuple[Tensor, None]:
        y = x_nSD.clone()
        y[1:] += x_nSD[:1]
        return y, None


class BySize(nn.Module):
    """The output depends on how many sequences there are."""

    def forward(self, x_nSD: Tensor) -> Tensor:
        return x_nSD * len(x_nSD)


def test_it_says_which_tokens_leak() -> None:
    found = leaks(FromLater(), tokens())
    assert found.later.tolist() == [[True, True, True, False]] * N
    assert not found.sequences.any()
    found = leaks(FromOthers(), tokens())
    assert found.sequences.tolist() == found.others.tolist() == [[False] * S, [True] * S]
    assert not found.later.any()
    assert str(found) == (
        "0 of 8 tokens depend on later tokens, 4 of 8 tokens depend on other sequences, "
        "4 of 8 tokens depend on other tokens"
    )
    assert found.guarantee == Guarantee(False, True)
    found = leaks(BySize(), tokens())
    assert found.sequences.all()
    assert not found.others.any()


def test_padding_is_no_leak_and_is_left_out() -> None:
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    module = layer(linear(), partial(with_capacity, k=2, capacity=2))
    found = check_guarantee(module, tokens(), mask=mask)
    assert found.others.any()
    assert not found.others[~mask].any()
    independent = leaks(layer(linear(), partial(top_k, k=2)), tokens(), mask=mask)
    assert independent.guarantee == Guarantee(True, True)


def test_long_inputs_are_probed_at_places_spread_over_them() -> None:
    found = leaks(FromLater(), tokens(1, 60))
    assert 12 <= int(found.later.sum()) <= 24
    assert found.later[0, 57:59].tolist() == [True, True]


def test_a_layer_with_a_generator_of_its_own_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    module = layer(linear(), partial(top_k, k=2, noise=1.0, generator=generator))
    with pytest.raises(InputError, match="answers differently to the same input"):
        leaks(module, tokens())


def test_single_tokens_and_empty_inputs_have_nothing_to_leak() -> None:
    module = layer(linear(), partial(top_k, k=2))
    for shape in ((1, 1), (0,), (0, 3), (1,)):
        found = leaks(module, torch.zeros(*shape, D, dtype=torch.float64))
        assert found.later.shape == shape
        assert found.guarantee == Guarantee(True, True)


def test_probing_leaves_the_layer_and_the_global_generator_alone() -> None:
    module = layer(linear(), partial(top_k, k=2, noise=1.0))
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    leaks(module, tokens())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())
