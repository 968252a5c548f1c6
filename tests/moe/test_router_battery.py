"""One battery over every exported router: what all of them owe, and whether each keeps the
guarantee it declares. A declaration must be neither too weak nor too strong."""

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe import Context, MoE, routers
from pointsman.moe.routers import Router, Scored
from pointsman.moe.routers.common import scored_by
from pointsman.select import top_k

N, S, D, E = 2, 3, 6, 4  # sequences, places, width, experts
V, G, P = 9, 3, 5  # ids, tasks, width of a state
SHAPE = torch.Size((N, S))


class Experts(nn.Module):
    """Each scales its rows by its own vector: enough for gradients, cheap to run."""

    def __init__(self, num_experts: int = E) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.scale = nn.Parameter(torch.randn(num_experts, D))

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        return rows * self.scale.repeat_interleave(offsets.diff(), dim=0)


@dataclass(frozen=True)
class Case:
    """A router, and which of the common rules apply to it.

    Args:
        make: number of experts to router.
        learns: has weights that gradients reach.
        stepped: learns in `after_step`.
        noisy: draws noise in training.
    """

    make: Callable[[int], Router]
    learns: bool = True
    stepped: bool = False
    noisy: bool = False

    def made(self, experts: int = E, seed: int = 0) -> Router:
        torch.manual_seed(seed)
        router = self.make(experts).double()
        # Zero weights, as some start with, would hide what they do.
        with torch.no_grad():
            for weight in router.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        return router.eval()


def linear(experts: int) -> Router:
    return routers.LinearRouter(D, experts)


def eligible(experts: int) -> Tensor:
    counts = torch.arange(V, 0, -1).double()
    return routers.frequency_mask(counts, experts, visible=min(2, experts), head=0.6)


def halves(experts: int) -> tuple[int, int]:
    return (2, experts // 2) if experts % 2 == 0 else (1, experts)


def two_level(experts: int, shared: bool) -> Router:
    groups, inside = halves(experts)
    within = linear(inside if shared else experts)
    return routers.TwoLevelRouter(linear(groups), within, shared=shared)


CASES = {
    "attention": Case(lambda e: routers.AttentionRouter(D, e)),
    "conditional": Case(
        lambda e: routers.ConditionalRouter(torch.eye(G), e, learn_attributes=True), noisy=True
    ),
    "conditional gelu": Case(
        lambda e: routers.ConditionalRouter(torch.eye(G), e, noise=0.0, activation=True)
    ),
    "cosine": Case(lambda e: routers.CosineRouter(D, e)),
    "cosine projected": Case(lambda e: routers.CosineRouter(D, e, dim=3)),
    "cosine centred": Case(lambda e: routers.CosineRouter(D, e, center=True)),
    "hash": Case(lambda e: routers.HashRouter(e), learns=False),
    "hyper": Case(lambda e: routers.HyperRouter(D, e, hidden=8)),
    "kan": Case(lambda e: routers.KANRouter(D, e)),
    "kan dense": Case(
        lambda e: routers.KANRouter(
            D, e, inner=nn.Sequential(nn.Linear(D, e), nn.ELU(), nn.Linear(e, e))
        )
    ),
    "kmeans": Case(lambda e: routers.KMeansRouter(D, e), learns=False, stepped=True),
    "kmeans revived": Case(
        lambda e: routers.KMeansRouter(D, e, revive_after=1, through_tokens=True),
        learns=False,
        stepped=True,
    ),
    "linear": Case(linear),
    "linear normalised": Case(lambda e: routers.LinearRouter(D, e, bias=True, normalize=True)),
    "masked": Case(lambda e: routers.MaskedRouter(linear(e), eligible(e))),
    "masked noisy": Case(
        lambda e: routers.MaskedRouter(routers.NoisyRouter(D, e), eligible(e)), noisy=True
    ),
    "masked kmeans": Case(
        lambda e: routers.MaskedRouter(routers.KMeansRouter(D, e), eligible(e)),
        learns=False,
        stepped=True,
    ),
    "noisy": Case(lambda e: routers.NoisyRouter(D, e), noisy=True),
    "product": Case(lambda e: routers.ProductRouter(*(linear(half) for half in halves(e)))),
    "recurrent": Case(lambda e: routers.RecurrentRouter(D, e, nn.GRUCell(P, P))),
    "recurrent tanh": Case(lambda e: routers.RecurrentRouter(D, e, nn.RNNCell(P, P))),
    "smoothed": Case(lambda e: routers.SmoothedRouter(linear(e), D)),
    "smoothed causal": Case(lambda e: routers.SmoothedRouter(linear(e), D, causal=True)),
    "smoothed attention": Case(lambda e: routers.SmoothedRouter(linear(e))),
    "smoothed attention causal": Case(lambda e: routers.SmoothedRouter(linear(e), causal=True)),
    "smoothed twice": Case(
        lambda e: routers.SmoothedRouter(routers.SmoothedRouter(linear(e), D), causal=True)
    ),
    "smoothed masked": Case(
        lambda e: routers.SmoothedRouter(routers.MaskedRouter(linear(e), eligible(e)), D)
    ),
    "smoothed kmeans": Case(
        lambda e: routers.SmoothedRouter(routers.KMeansRouter(D, e, through_tokens=True), D),
        stepped=True,
    ),
    "summed": Case(
        lambda e: routers.SummedRouter((1.0, linear(e)), (0.5, routers.NoisyRouter(D, e))),
        noisy=True,
    ),
    "summed smoothed": Case(
        lambda e: routers.SummedRouter((1.0, linear(e)), (2.0, routers.SmoothedRouter(linear(e))))
    ),
    "task own": Case(lambda e: routers.TaskRouter(D, e, G)),
    "task shared": Case(lambda e: routers.TaskRouter(D, e, G, gate="shared")),
    "task nothing": Case(lambda e: routers.TaskRouter(D, e, G, gate="nothing")),
    "two level": Case(lambda e: two_level(e, shared=False)),
    "two level shared": Case(lambda e: two_level(e, shared=True)),
    "two level masked": Case(
        lambda e: routers.TwoLevelRouter(
            linear(halves(e)[0]), routers.MaskedRouter(linear(e), eligible(e))
        )
    ),
}


def over(keep: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    """Runs a test over the cases that a rule applies to."""
    kept = {name: case for name, case in CASES.items() if keep(case)}
    return pytest.mark.parametrize("case", kept.values(), ids=kept.keys())


every = over()


def features(seed: int = 0, shape: torch.Size = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, D, dtype=torch.float64, generator=generator)


def context(seed: int = 0, shape: torch.Size = SHAPE) -> Context:
    """Everything a router may read, in the shape of a layer's input."""
    generator = torch.Generator().manual_seed(100 + seed)
    attention = torch.rand(*shape, shape[-1], dtype=torch.float64, generator=generator)
    return Context(
        ids=torch.randint(V, shape, generator=generator),
        task=torch.randint(G, shape, generator=generator),
        state=torch.randn(*shape, P, dtype=torch.float64, generator=generator),
        attention=attention / attention.sum(dim=-1, keepdim=True),
    )


def flat(x: Tensor, about: Context) -> tuple[Tensor, Context]:
    """What the layer gives a router."""
    return x.flatten(0, -2), about.of_tokens(x.shape[:-1], None, x.device)


def scores(router: Router, x: Tensor, about: Context) -> Tensor:
    """Scores (T, E); a router that draws starts from the same seed each time."""
    torch.manual_seed(5)
    return scored_by(router, *flat(x, about)).scores


def layer(router: Router, experts: int = E) -> MoE:
    bank = Experts(experts).double()
    return MoE(router, partial(top_k, k=min(2, experts), renormalize=False), bank)


def buffers(router: Router) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in router.named_buffers()}


def test_every_exported_router_is_in_the_battery() -> None:
    exported = {getattr(routers, name) for name in routers.__all__}
    kinds = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, Router)}
    assert kinds - {Router} == {type(case.made()) for case in CASES.values()}
    others = {kind.__name__ for kind in exported - kinds}
    assert others == {"Scored", "KANLayer", "frequency_mask"}


# ---------------------------------------------------------------- declared guarantees


def disturbed(rows: Tensor, kind: int) -> tuple[Tensor, Context]:
    """Features and context that differ at these places among the flattened tokens (bool)."""
    there = rows.reshape(SHAPE)
    x, about = features(), context()
    other_x, other = features(1 + kind) * 10.0**kind, context(1 + kind)

    def pick(new: Tensor | None, old: Tensor | None) -> Tensor:
        assert new is not None
        assert old is not None
        wide = there.reshape(*SHAPE, *[1] * (old.ndim - 2))
        return torch.where(wide, new, old)

    assert other.attention is not None
    assert about.attention is not None
    # What a disturbed place attends to, and how much others attend to it.
    pairs = there[:, :, None] | there[:, None, :]
    return torch.where(there[:, :, None], other_x, x), Context(
        ids=pick(other.ids, about.ids),
        task=pick(other.task, about.task),
        state=pick(other.state, about.state),
        attention=torch.where(pairs, other.attention, about.attention),
    )


def leaks(router: Router, rows_of: Callable[[int], list[int]]) -> bool:
    """Whether the scores of some token t changed with the tokens rows_of(t)."""
    before = scores(router, features(), context())
    for t in range(N * S):
        rows = torch.zeros(N * S, dtype=torch.bool)
        rows[rows_of(t)] = True
        for kind in range(2):
            after = scores(router, *disturbed(rows, kind))
            if not torch.allclose(before[t], after[t], rtol=0, atol=1e-12):
                return True
    return False


def modes(case: Case) -> list[Router]:
    return [case.made().train(mode) for mode in (False, True)]


@every
def test_batch_independence_is_exactly_as_declared(case: Case) -> None:
    for router in modes(case):
        leaked = leaks(router, lambda t: [row for row in range(N * S) if row != t])
        assert leaked != router.guarantee.batch_independent


@every
def test_causality_is_exactly_as_declared(case: Case) -> None:
    for router in modes(case):
        leaked = leaks(router, lambda t: list(range(t + 1, N * S)))
        assert leaked != router.guarantee.causal


@every
def test_sequences_are_never_mixed(case: Case) -> None:
    for router in modes(case):
        assert not leaks(router, lambda t: [r for r in range(N * S) if r // S != t // S])


@over(lambda case: case.made().guarantee.causal)
def test_a_causal_router_scores_a_beginning_as_in_the_whole(case: Case) -> None:
    router = case.made()
    x, about = features(), context()
    assert about.attention is not None
    whole = scores(router, x, about).reshape(N, S, E)
    for length in range(1, S):
        cut = Context(
            *(field[:, :length] for field in (about.ids, about.task, about.state)),  # type: ignore[index]
            attention=about.attention[:, :length, :length],
        )
        part = scores(router, x[:, :length], cut).reshape(N, length, E)
        assert_close(part, whole[:, :length])


@every
def test_a_causal_layer_takes_causal_routers_only(case: Case) -> None:
    router = case.made()
    select = partial(top_k, k=2)
    if router.guarantee.causal:
        assert MoE(router, select, Experts(), causal=True).guarantee.causal
    else:
        with pytest.raises(InputError, match="a causal layer may not route a token by later ones"):
            MoE(router, select, Experts(), causal=True)


# ---------------------------------------------------------------- common rules


@every
def test_shape_and_type_are_kept(case: Case) -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for dtype, router in product(dtypes, modes(case)):
        about = context()
        assert about.state is not None
        about = replace(about, state=about.state.to(dtype))
        x_TD, flat_about = flat(features().to(dtype), about)
        found = scored_by(router.to(dtype), x_TD, flat_about)
        for table in (found.scores, found.clean, found.spread):
            assert table is None or (table.shape == (N * S, E) and table.dtype == dtype)
        assert found.state is None or (found.state.shape, found.state.dtype) == ((N * S, P), dtype)
        assert not found.scores.isnan().any()
        assert not (found.scores == torch.inf).any()


@every
def test_every_token_has_an_expert(case: Case) -> None:
    found = scores(case.made(), features(), context())
    assert (found > -torch.inf).any(dim=1).all()


@every
def test_features_of_zero_give_finite_scores_and_gradients(case: Case) -> None:
    router = case.made()
    x = torch.zeros(N, S, D, dtype=torch.float64, requires_grad=True)
    found = scores(router, x, context())
    total = found.masked_fill(found == -torch.inf, 0).sum()
    if total.requires_grad:
        total.backward()
        assert x.grad is None or x.grad.isfinite().all()
        for weight in router.parameters():
            assert weight.grad is None or weight.grad.isfinite().all()


@every
def test_permuting_tokens_with_their_context_permutes_scores(case: Case) -> None:
    router = case.made()
    x_TD, about = flat(features(), context())
    order = torch.randperm(N * S, generator=torch.Generator().manual_seed(3))
    per_token = ("ids", "task", "state", "sequence", "position")
    mixed = replace(about, **{name: getattr(about, name)[order] for name in per_token})
    straight = scored_by(router, x_TD, about).scores
    assert_close(scored_by(router, x_TD[order], mixed).scores, straight[order])


@every
def test_padding_changes_nothing(case: Case) -> None:
    moe = layer(case.made())
    x, about = features(), context()
    assert about.ids is not None
    assert about.attention is not None
    mask = torch.tensor([[True, True, False], [False, True, True]])
    # Places of padding may hold anything, ids that are none included.
    x = torch.where(mask[:, :, None], x, torch.nan)
    about = replace(about, ids=about.ids.masked_fill(~mask, -100))
    y, routing = moe(x, mask=mask, context=about)
    assert (y[~mask] == 0).all()
    first = 0
    for row, own in enumerate(mask):
        alone = Context(
            *(field[row, own][None] for field in (about.ids, about.task, about.state)),  # type: ignore[index]
            attention=about.attention[row][own][:, own][None],
        )
        there, expected = moe(x[row, own][None], context=alone)
        assert_close(y[row, own], there[0])
        count = int(own.sum())
        assert_close(routing.scores[first : first + count], expected.scores)
        first += count


@every
def test_everything_masked_and_no_tokens_at_all_are_empty_results(case: Case) -> None:
    for training in (False, True):
        moe = layer(case.made()).train(training)
        nothing = torch.zeros(SHAPE, dtype=torch.bool)
        y, masked = moe(features(), mask=nothing, context=context())
        assert (y == 0).all()
        for shape in (torch.Size((0, S)), torch.Size((N, 0)), torch.Size((0,))):
            rest = {} if len(shape) == 1 else {"attention": torch.zeros(*shape, shape[-1]).double()}
            about = Context(
                ids=torch.zeros(shape, dtype=torch.int64),
                task=torch.zeros(shape, dtype=torch.int64),
                state=torch.zeros(*shape, P, dtype=torch.float64),
                **rest or {"attention": torch.zeros(0, 0, 0, dtype=torch.float64)},
            )
            y, routing = moe(features(shape=shape), context=about)
            assert y.shape == (*shape, D)
            assert routing.scores.shape == (0, E)
        moe.after_step([masked, routing])


@every
def test_one_token_can_be_decoded_at_a_time(case: Case) -> None:
    about = context(shape=torch.Size((1, 1)))
    y, routing = layer(case.made())(features(shape=torch.Size((1, 1))), context=about)
    assert y.shape == (1, 1, D)
    assert routing.scores.isfinite().any()


@every
def test_one_expert_gets_every_token(case: Case) -> None:
    moe = layer(case.made(experts=1), experts=1)
    y, routing = moe(features(), context=context())
    assert routing.scores.shape == (N * S, 1)
    assert int(routing.route.load()) == N * S
    assert y.isfinite().all()


@over(lambda case: case.learns)
def test_gradients_are_right_in_double_precision(case: Case) -> None:
    for router in modes(case):
        dropout = [module for module in router.modules() if isinstance(module, nn.Dropout)]
        if router.training and not case.noisy and not dropout:
            continue  # the same function as in evaluation
        for module in dropout:
            module.p = 0.0
        weights = {n: w for n, w in router.named_parameters() if w.requires_grad}
        x_TD, about = flat(features(), context())

        def run(
            x: Tensor,
            *given: Tensor,
            router: Router = router,
            about: Context = about,
            names: tuple[str, ...] = tuple(weights),
        ) -> Tensor:
            torch.manual_seed(5)
            called = torch.func.functional_call(
                router, dict(zip(names, given, strict=True)), (x, about)
            )
            found = called.scores if isinstance(called, Scored) else called
            open_ = found > -torch.inf
            return found.masked_fill(~open_, 0.0)

        tensors = [w.detach().clone().requires_grad_() for w in weights.values()]
        assert torch.autograd.gradcheck(run, (x_TD.requires_grad_(), *tensors), fast_mode=True)


@over(lambda case: case.learns)
def test_every_weight_learns_inside_the_layer(case: Case) -> None:
    router = case.made().train()
    y, routing = layer(router)(features(), context=context())
    (y.square().sum() + routing.route.weights.square().sum()).backward()
    for name, weight in router.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name
            # One probability a row is a constant, so a gate over it has nothing to learn.
            assert weight.grad.any(), name


@every
def test_evaluation_leaves_buffers_and_training_waits_for_the_step(case: Case) -> None:
    router = case.made()
    moe = layer(router)
    before = buffers(router)
    moe.eval()
    routings = [moe(features(seed), context=context(seed))[1] for seed in range(2)]
    moe.after_step(routings)
    assert_close(buffers(router), before, rtol=0, atol=0)
    moe.train()
    routings = [moe(features(seed), context=context(seed))[1] for seed in range(2)]
    assert_close(buffers(router), before, rtol=0, atol=0)
    assert all((routing.tokens is not None) == router.keeps_tokens for routing in routings)
    moe.after_step(routings)
    changed = any(not torch.equal(b, before[n]) for n, b in router.named_buffers())
    assert changed == case.stepped


@every
def test_a_saved_router_scores_the_same(case: Case) -> None:
    router, other = case.made(), case.made(seed=1)
    if case.learns or case.stepped:
        assert not torch.equal(
            scores(router, features(), context()), scores(other, features(), context())
        )
    other.load_state_dict(router.state_dict())
    assert_close(scores(other, features(), context()), scores(router, features(), context()))


@every
def test_a_copy_is_the_same_and_its_own(case: Case) -> None:
    router = case.made()
    before = scores(router, features(), context())
    copied = deepcopy(router)
    assert_close(scores(copied, features(), context()), before, rtol=0, atol=0)
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            if tensor.dtype.is_floating_point:
                tensor.normal_()
    assert_close(scores(router, features(), context()), before, rtol=0, atol=0)


@every
def test_a_call_changes_neither_its_input_nor_the_next_call(case: Case) -> None:
    for router in modes(case):
        x, about = features(), context()
        first, second = scores(router, x, about), scores(router, x, about)
        assert_close(first, second, rtol=0, atol=0)
        assert_close(x, features(), rtol=0, atol=0)


def refusal(router: Router) -> str:
    """What a router says that is given features alone; nothing where they are enough."""
    bare = Context().of_tokens(SHAPE, None, torch.device("cpu"))
    try:
        scored_by(router, features().flatten(0, 1), bare)
    except InputError as error:
        return str(error)
    return ""


READERS = {
    "ids": (routers.HashRouter, routers.MaskedRouter),
    "task": (routers.TaskRouter, routers.ConditionalRouter),
    "attention": (routers.SmoothedRouter,),
}


@every
def test_what_a_router_reads_and_is_not_given_is_named(case: Case) -> None:
    said, router = refusal(case.made()), case.made()
    fields = [
        field
        for field, kinds in READERS.items()
        for part in router.modules()
        if isinstance(part, kinds) and getattr(part, "similarity", None) is None
    ]
    assert bool(said) == bool(fields)
    if fields:
        assert re.search(rf"^\w+Router reads `({'|'.join(fields)})` of each token", said)
        assert "context=Context(" in said


@every
def test_autocast_to_half_precision_runs(case: Case) -> None:
    router = case.made().float()
    about = context()
    assert about.state is not None
    assert about.attention is not None
    about = replace(about, state=about.state.float(), attention=about.attention.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scores(router, features().float(), about)
    expected = scores(router, features().float(), about)
    open_ = expected > -torch.inf
    assert torch.equal(found > -torch.inf, open_)
    assert_close(found[open_].float(), expected[open_], rtol=0.1, atol=0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_routers_work_on_cuda_as_on_cpu() -> None:
    for case in CASES.values():
        router, x, about = case.made(), features(), context()
        here = scores(router, x, about)
        fields = {n: getattr(about, n).cuda() for n in ("ids", "task", "state", "attention")}
        there = scores(router.cuda(), x.cuda(), Context(**fields))
        assert there.is_cuda
        assert_close(there.cpu(), here)
