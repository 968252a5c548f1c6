"""What is particular to each router, by hand-computed values, limits and refusals."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe import Context, MoE, routers
from pointsman.moe.experts import FeedForwardExperts, LinearExperts, LoRAExperts
from pointsman.moe.routers import Router, Scored
from pointsman.moe.routers.common import Grid, log_softmax, scored_by, unit
from pointsman.moe.systems import routed
from pointsman.route import Route
from pointsman.select import top_k

D, E = 6, 4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tokens(count: int = 8) -> Tensor:
    return torch.randn(count, D, dtype=torch.float64)


def about(n: int, places: int, **fields: Tensor) -> Context:
    return Context(**fields).of_tokens(torch.Size((n, places)), None, torch.device("cpu"))


def of(router: Router, x_TD: Tensor, context: Context | None = None) -> Tensor:
    return scored_by(router.double(), x_TD, context).scores


# ---------------------------------------------------------------- what is shared


def test_directions_have_length_one_and_zero_stays_zero() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-18, 0.0]], requires_grad=True)
    found = unit(x)
    assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    found[1].sum().backward()
    assert_close(x.grad, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    # 300 squared is beyond half precision.
    assert_close(unit(torch.full((1, 4), 300.0).half()), torch.full((1, 4), 0.5).half())


def test_log_softmax_of_a_closed_row_is_closed_and_has_no_gradient() -> None:
    scores = torch.tensor([[0.0, 0.0], [-torch.inf, -torch.inf], [1.0, -torch.inf]])
    scores.requires_grad_()
    found = log_softmax(scores)
    half, closed = torch.tensor(0.5).log(), -torch.inf
    assert_close(found, torch.tensor([[half, half], [closed, closed], [0.0, closed]]))
    found[found.isfinite()].sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_a_grid_lays_tokens_out_by_sequence_and_place() -> None:
    context = Context(sequence=torch.tensor([0, 0, 2]), position=torch.tensor([1, 2, 0]))
    grid = Grid(context, "reader")
    rows = torch.arange(1.0, 7.0).reshape(3, 2)
    laid = grid.lay_out(rows)
    assert laid.shape == (3, 3, 2)
    assert laid[0, 1].tolist() == [1, 2]
    assert laid[2, 0].tolist() == [5, 6]
    assert grid.filled().sum() == 3
    assert_close(grid.take(laid), rows)


# ---------------------------------------------------------------- linear, noisy, cosine


def test_linear_scores_are_a_product_of_normalised_features_if_asked() -> None:
    router, x = routers.LinearRouter(D, E, bias=True, normalize=True), tokens()
    expected = functional.layer_norm(x, (D,)) @ router.double().weight.T + router.bias
    assert_close(of(router, x), expected)
    assert_close(of(router, 1000 * x + 7), expected, rtol=1e-3, atol=1e-3)
    assert routers.LinearRouter(D, E).bias is None
    assert not routers.LinearRouter(D, E, std=0.0).weight.any()


def test_noise_has_the_spread_it_says_and_only_in_training() -> None:
    router = routers.NoisyRouter(D, E).double()
    assert not router.weight.any()
    assert not router.noise_weight.any()
    nn.init.normal_(router.noise_weight)
    x = tokens(1).expand(20_000, D)
    found = router.train()(x)
    assert found.spread is not None
    assert found.clean is not None
    noise = (found.scores - found.clean) / found.spread
    assert_close(noise.std(dim=0), torch.ones(E).double(), rtol=0.05, atol=0)
    assert_close(found.spread[0], functional.softplus(x[0] @ router.noise_weight.T))
    assert_close(router.eval()(x).scores, found.clean)


def test_cosine_scores_ignore_lengths_and_keep_to_the_temperature() -> None:
    router, x = routers.CosineRouter(D, E, temperature=0.5), tokens()
    expected = (
        functional.cosine_similarity(x[:, None], router.double().prototypes[None], dim=2) / 0.5
    )
    assert_close(of(router, x), expected)
    assert_close(of(router, 9 * x), expected)
    assert router.log_temperature.requires_grad
    fixed = routers.CosineRouter(D, E, learn_temperature=False)
    assert [n for n, w in fixed.named_parameters() if w.requires_grad] == ["prototypes"]


def test_centred_cosine_is_a_product_of_layer_norms() -> None:
    router, x = routers.CosineRouter(D, E, temperature=D**-0.5, center=True).double(), tokens()
    norm = partial(functional.layer_norm, normalized_shape=(D,), eps=0.0)
    assert_close(of(router, x), norm(x) @ norm(router.prototypes).T / D**0.5)


# ---------------------------------------------------------------- k-means


def routing(x_TD: Tensor, branches: list[int]) -> SimpleNamespace:
    """What a layer returns, as far as k-means reads it."""
    route = Route.from_indices(torch.tensor(branches)[:, None], num_branches=E)
    return SimpleNamespace(tokens=x_TD, route=route)


def step(router: routers.KMeansRouter, *routings: SimpleNamespace) -> None:
    router.after_step(routings)  # type: ignore[arg-type]


def test_centroids_follow_the_mean_direction_of_their_tokens() -> None:
    router = routers.KMeansRouter(D, E, momentum=0.75).double()
    before, x = router.centroids.clone(), 100 * tokens(4)
    step(router, routing(x, [0, 2, 2, 2]))
    directions = functional.normalize(x)
    assert_close(router.centroids[0], 0.75 * before[0] + 0.25 * directions[0])
    assert_close(router.centroids[2], 0.75 * before[2] + 0.25 * directions[1:].mean(dim=0))
    assert_close(router.centroids[[1, 3]], before[[1, 3]])
    assert router.idle.tolist() == [0, 1, 0, 1]


def test_micro_batches_count_as_one_step() -> None:
    together, apart = (routers.KMeansRouter(D, E).double() for _ in range(2))
    apart.load_state_dict(together.state_dict())
    x = tokens(5)
    step(together, routing(x, [0, 1, 1, 0, 3]))
    step(apart, routing(x[:2], [0, 1]), routing(x[2:], [1, 0, 3]))
    assert_close(apart.state_dict(), together.state_dict())
    step(apart)  # no micro-batch at all is no step
    assert_close(apart.state_dict(), together.state_dict())


def test_an_expert_long_without_tokens_moves_to_the_worst_served() -> None:
    router = routers.KMeansRouter(D, E, revive_after=2).double()
    router.centroids.copy_(torch.eye(D)[:E])
    x = torch.eye(D, dtype=torch.float64)[[0, 1, 2, 5]]  # the last is near nobody
    for _ in range(2):
        step(router, routing(x, [0, 1, 2, 0]))
    assert_close(router.centroids[3], x[3])
    assert router.idle.tolist() == [0, 0, 0, 0]


def test_starting_from_tokens_takes_far_ones_and_no_token_twice() -> None:
    x = torch.eye(D, dtype=torch.float64)[:3].repeat(2, 1) + 0.01 * tokens(6)
    router = routers.KMeansRouter(D, 3).double()
    router.start_from(x)
    assert {int(c.argmax()) for c in router.centroids} == {0, 1, 2}
    same = routers.KMeansRouter(D, 3).double()
    same.start_from(torch.ones(5, D, dtype=torch.float64))  # all alike is no obstacle
    with pytest.raises(InputError, match="at least 3 tokens of width 6, got \\(2, 6\\)"):
        router.start_from(x[:2])


def test_k_means_needs_the_tokens_of_its_own_layer() -> None:
    router = routers.KMeansRouter(D, E).double()
    other = SimpleNamespace(tokens=None, route=routing(tokens(1), [0]).route)
    with pytest.raises(InputError, match="give after_step the routings of its own layer"):
        step(router, other)


# ---------------------------------------------------------------- hyper, recurrent, attention


def test_a_made_router_becomes_a_linear_one() -> None:
    router, x = routers.HyperRouter(D, E, embedding=3, hidden=7).double(), tokens()
    fixed = router.fixed()
    assert isinstance(fixed, routers.LinearRouter)
    assert_close(of(fixed, x), of(router, x))
    assert [name for name, _ in router.named_parameters()] == ["embedding"]
    assert router.embedding.shape == (3,)


def test_made_scores_start_at_about_unit_variance() -> None:
    variances = [routers.HyperRouter(64, 16)(torch.randn(100, 64)).var().item() for _ in range(10)]
    assert 0.5 < sum(variances) / 10 < 2


def test_a_state_goes_from_layer_to_layer_and_padding_keeps_its_place() -> None:
    layers = routed.rmoe(D, 5, E, layers=2, state=3).double()
    first, second = layers
    assert isinstance(first, MoE)
    x = tokens(6).reshape(2, 3, D)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    y, passed = first(x, mask=mask)
    assert passed.state is not None
    assert passed.state.shape == (2, 3, 3)
    assert not passed.state[~mask].any()
    _, found = second(y, mask=mask, context=Context(state=passed.state))
    cell = layers[0].router.cell
    flat_state = cell(layers[1].router.enter(y[mask]), passed.state[mask])
    assert_close(found.scores, layers[1].router.leave(flat_state))
    assert len({id(layer.router.cell) for layer in layers}) == 1


def test_a_state_of_another_width_is_refused() -> None:
    router = routers.RecurrentRouter(D, E, nn.GRUCell(3, 3)).double()
    with pytest.raises(
        InputError, match="context.state of width 3 for every token, got \\(8, 2\\)"
    ):
        router(tokens(), Context(state=torch.zeros(8, 2)))
    with pytest.raises(InputError, match="a cell as wide as its state, got 2 and 3"):
        routers.RecurrentRouter(D, E, nn.GRUCell(2, 3))


def test_attention_between_experts_by_loops() -> None:
    router, x = routers.AttentionRouter(D, E).double(), tokens(3)
    q, k, v = (x @ router.weight.T).chunk(3, dim=1)
    expected = torch.zeros(3, E, dtype=torch.float64)
    for t in range(3):
        for e in range(E):
            expected[t, e] = (q[t, e] * k[t]).softmax(dim=0) @ v[t]
    assert_close(of(router, x), expected)


# ---------------------------------------------------------------- smoothed


def test_smoothing_by_loops() -> None:
    inner = routers.LinearRouter(D, E)
    for causal in (False, True):
        router = routers.SmoothedRouter(inner, D, temperature=0.7, causal=causal).double()
        assert router.similarity is not None
        nn.init.normal_(router.similarity)
        x = tokens(6)
        p = (x @ inner.weight.T).softmax(dim=1)
        expected = torch.zeros_like(p)
        for i in range(6):
            seen = [j for j in range(6) if j // 3 == i // 3 and (j <= i or not causal)]
            weights = ((x[i] @ router.similarity) @ x[seen].T / 0.7).softmax(dim=0)
            expected[i] = weights @ p[seen]
        assert_close(of(router, x, about(2, 3)).exp(), expected)
        assert_close(of(router, x, about(2, 3)).softmax(dim=1), expected)


def test_attention_is_cut_to_the_past_and_made_to_sum_to_one() -> None:
    inner, x = routers.LinearRouter(D, E), tokens(4)
    attention = torch.rand(1, 4, 4, dtype=torch.float64)
    router = routers.SmoothedRouter(inner, causal=True)
    p = of(inner, x).softmax(dim=1)
    weights = attention[0].tril() / attention[0].tril().sum(dim=1, keepdim=True)
    assert_close(of(router, x, about(1, 4, attention=attention)).exp(), weights @ p)


def test_attention_that_is_missing_or_too_small_is_refused() -> None:
    router, x = routers.SmoothedRouter(routers.LinearRouter(D, E)), tokens(4)
    with pytest.raises(InputError, match="context=Context\\(attention=...\\)"):
        of(router, x, about(1, 4))
    small = torch.ones(1, 3, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="at least \\(1, 4, 4\\), got \\(1, 3, 3\\)"):
        of(router, x, about(1, 4, attention=small))


def test_a_closed_expert_stays_closed_and_a_tiny_probability_stays_open() -> None:
    eligible = torch.tensor([[True, False], [True, True]])
    ids = torch.tensor([[0, 1]])
    inner = routers.MaskedRouter(routers.LinearRouter(D, 2), eligible)
    found = of(routers.SmoothedRouter(inner, D), tokens(2), about(1, 2, ids=ids))
    assert found[0, 1] == -torch.inf
    assert found[1].isfinite().all()
    far = nn.Linear(D, 2)
    nn.init.constant_(far.bias[1:], -1e9)
    assert of(routers.SmoothedRouter(far, D), tokens(2), about(1, 2)).isfinite().all()


def test_a_router_that_mixes_tokens_needs_to_know_the_sequences() -> None:
    with pytest.raises(InputError, match="SmoothedRouter reads `sequence` of each token"):
        of(routers.SmoothedRouter(routers.LinearRouter(D, E), D), tokens(), Context())


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("gate", ["own", "shared", "nothing"])
def test_a_task_gate_by_loops(gate: str) -> None:
    router = routers.TaskRouter(D, E, 3, gate=gate, bias_std=1.0).double()  # type: ignore[arg-type]
    x, task = tokens(6), torch.tensor([0, 1, 2, 2, 1, 0])
    found = of(router, x, Context(task=task))
    for t in range(6):
        g = int(task[t])
        expected = router.bias[g]
        if router.weight is not None:
            expected = expected + router.weight[g if gate == "own" else 0] @ x[t]
        assert_close(found[t], expected)


@pytest.mark.parametrize("gate", ["own", "shared", "nothing"])
def test_a_new_task_starts_like_related_ones_and_changes_no_other(gate: str) -> None:
    router = routers.TaskRouter(D, E, 3, gate=gate).double()  # type: ignore[arg-type]
    grown, x = router.with_task_like([2]), tokens(3)
    old = Context(task=torch.tensor([0, 1, 2]))
    assert_close(of(grown, x, old), of(router, x, old))
    new = of(grown, x, Context(task=torch.tensor([3, 3, 3])))
    assert_close(new, of(router, x, Context(task=torch.tensor([2, 2, 2]))))
    for wrong in ([], [3], [-1]):
        with pytest.raises(InputError, match="some of the tasks 0 to 2"):
            router.with_task_like(wrong)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (torch.tensor([0, 3]), "`task` from 0 to 2, got 3"),
        (torch.tensor([-1, 0]), "`task` from 0 to 2, got -1"),
        (torch.tensor([0.0, 1.0]), "one integer `task` of each token, got torch.float32"),
        (torch.zeros(2, 2, dtype=torch.int64), "of shape \\(2, 2\\)"),
    ],
)
def test_wrong_tasks_are_refused(ids: Tensor, text: str) -> None:
    for router in (
        routers.TaskRouter(D, E, 3),
        routers.ConditionalRouter(torch.eye(3), E),
    ):
        with pytest.raises(InputError, match=text):
            of(router, tokens(2), Context(task=ids))


def test_conditional_scores_depend_on_attributes_alone() -> None:
    attributes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    router = routers.ConditionalRouter(attributes, E, noise=0.5).double()
    task = torch.tensor([0, 1, 2, 0])
    found = of(router.eval(), tokens(4), Context(task=task))
    assert_close(found[0], found[2])
    assert_close(found, router.of_tasks()[task])
    noisy = of(router.train(), tokens(4), Context(task=task))
    assert_close(noisy[0], noisy[3])  # one draw for each task
    assert (noisy != found).all()
    assert not router.attributes.requires_grad
    with pytest.raises(InputError, match="must be floating point, got torch.int64"):
        routers.ConditionalRouter(torch.eye(2).long(), E)


# ---------------------------------------------------------------- Kolmogorov-Arnold


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.floats(-2, 2), st.floats(0.1, 3))
def test_splines_are_those_of_scipy(grid: int, order: int, low: float, length: float) -> None:
    from scipy.interpolate import BSpline

    layer = routers.KANLayer(1, 1, grid=grid, order=order, low=low, high=low + length).double()
    layer.knots.copy_(torch.arange(-order, grid + order + 1) * (length / grid) + low)
    x = torch.linspace(low - length, low + 2 * length, 40, dtype=torch.float64)
    found, knots = layer.basis(x), layer.knots.numpy()
    for place in range(grid + order):
        element = BSpline.basis_element(knots[place : place + order + 2], extrapolate=False)
        expected = torch.as_tensor(element(x.numpy())).nan_to_num()
        inside = ((x[:, None] - layer.knots).abs() > 1e-9).all(
            dim=1
        )  # at a knot either side counts
        assert_close(found[inside, place], expected[inside], rtol=1e-6, atol=1e-9)


def test_a_layer_of_splines_is_a_sum_over_edges() -> None:
    layer = routers.KANLayer(2, 3, grid=4, order=2).double()
    x = torch.rand(5, 2, dtype=torch.float64)
    expected = functional.silu(x) @ layer.base.T
    expected = expected + torch.einsum("tig,oig->to", layer.basis(x), layer.coefficients)
    assert_close(layer(x), expected)


def test_sizes_of_splines_are_checked() -> None:
    with pytest.raises(InputError, match="grid of at least 1, got 0"):
        routers.KANLayer(1, 1, grid=0)
    with pytest.raises(InputError, match="an order of at least 0 and a grid from low to high"):
        routers.KANLayer(1, 1, low=1.0, high=1.0)


# ---------------------------------------------------------------- by id


def test_masked_experts_are_closed_in_scores_and_clean_scores() -> None:
    eligible = torch.tensor([[True, False, False, True], [False, True, False, False]])
    router = routers.MaskedRouter(routers.NoisyRouter(D, E), eligible).double().train()
    found = router(tokens(3), Context(ids=torch.tensor([0, 1, 0])))
    assert found.clean is not None
    for table in (found.scores, found.clean):
        assert_close(table > -torch.inf, eligible[[0, 1, 0]])
    assert found.spread is not None


def test_tables_that_leave_an_id_without_expert_are_refused() -> None:
    inner = routers.LinearRouter(D, E)
    with pytest.raises(InputError, match="every id needs an expert, id 1 may have none"):
        routers.MaskedRouter(inner, torch.tensor([[True] * E, [False] * E]))
    with pytest.raises(
        InputError, match="a bool table of shape \\(ids, experts\\), got torch.float32"
    ):
        routers.MaskedRouter(inner, torch.ones(2, E))
    router = routers.MaskedRouter(inner, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="a table for 3 experts, the router scores 4"):
        router(torch.zeros(1, D), Context(ids=torch.tensor([0])))
    with pytest.raises(InputError, match="MaskedRouter reads `ids` of each token"):
        router(torch.zeros(1, D), Context())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.floats(0, 1), st.integers(0, 99), st.data())
def test_frequency_masks(
    words: int, experts: int, head: float, seed: int, data: st.DataObject
) -> None:
    visible = data.draw(st.integers(1, experts))
    counts = torch.tensor(data.draw(st.lists(st.integers(0, 50), min_size=words, max_size=words)))
    table = routers.frequency_mask(counts, experts, visible=visible, head=head, seed=seed)
    assert table.shape == (words, experts)
    seen = table.sum(dim=1)
    assert set(seen.tolist()) <= {1, visible}
    # A word that sees more is never rarer than one that sees less.
    if visible > 1 and (seen == 1).any() and (seen > 1).any():
        assert counts[seen > 1].min() >= counts[seen == 1].max()
    # No expert expects more than the best placed plus one whole word.
    load = (counts[:, None] * table / seen[:, None]).sum(dim=0)
    assert load.max() <= load.min() + counts.max() + 1e-3
    again = routers.frequency_mask(counts, experts, visible=visible, head=head, seed=seed)
    assert torch.equal(table, again)


def test_frequency_mask_refuses_what_it_cannot_draw() -> None:
    counts = torch.ones(5)
    with pytest.raises(InputError, match="visible of at most 4 and head from 0 to 1, got 5"):
        routers.frequency_mask(counts, 4, visible=5)
    with pytest.raises(InputError, match="at least 0 for each id"):
        routers.frequency_mask(-counts, 4, visible=2)


def test_hashing_gives_k_experts_the_weight_of_one_over_k() -> None:
    ids = torch.arange(30)
    router = routers.HashRouter(E, k=2, seed=3)
    context, x = Context(ids=ids), torch.zeros(30, D)
    scores = router(x, context)
    assert ((scores > -torch.inf).sum(dim=1) == 2).all()
    route = top_k(scores, k=2)
    assert_close(route.weights, torch.full((60,), 0.5))
    assert_close(router(x, context), scores)
    assert not torch.equal(routers.HashRouter(E, k=2, seed=4)(x, context), scores)
    with pytest.raises(InputError, match="k of at most 4, got 5"):
        routers.HashRouter(E, k=5)


# ---------------------------------------------------------------- made of routers


def test_two_levels_are_a_joint_probability() -> None:
    groups, experts, x = routers.LinearRouter(D, 3), routers.LinearRouter(D, 6), tokens()
    joint = of(routers.TwoLevelRouter(groups, experts), x).softmax(dim=1)
    p = of(groups, x).softmax(dim=1)
    q = of(experts, x).reshape(8, 3, 2).softmax(dim=2)
    assert_close(joint, (p[:, :, None] * q).flatten(1))


def test_one_choice_shared_by_all_groups_is_a_product_of_two_axes() -> None:
    groups, experts, x = routers.LinearRouter(D, 3), routers.LinearRouter(D, 2), tokens()
    two_level = of(routers.TwoLevelRouter(groups, experts, shared=True), x)
    product = of(routers.ProductRouter(groups, experts), x)
    assert_close(two_level.softmax(dim=1), product.softmax(dim=1))
    assert_close(product[:, 5], of(groups, x)[:, 2] + of(experts, x)[:, 1])
    with pytest.raises(InputError, match="got 2 in 3 groups: for one choice shared"):
        of(routers.TwoLevelRouter(groups, experts), x)


def test_a_sum_weighs_scores_and_adds_noise_in_squares() -> None:
    plain, noisy, x = routers.LinearRouter(D, E), routers.NoisyRouter(D, E), tokens()
    nn.init.normal_(noisy.weight)
    both = routers.SummedRouter((2.0, plain), (3.0, noisy), (4.0, routers.NoisyRouter(D, E)))
    found = both.double().train()(x)
    assert isinstance(found, Scored)
    assert found.clean is not None
    assert found.spread is not None
    assert_close(found.clean, 2 * of(plain, x) + 3 * (x @ noisy.weight.T))
    softplus = torch.full((8, E), 2.0, dtype=torch.float64).log()  # of 0
    assert_close(found.spread, 5 * softplus)
    assert_close(both.eval()(x).scores, found.clean)


def test_parts_that_do_not_fit_are_refused() -> None:
    learner, plain = routers.KMeansRouter(D, E), routers.LinearRouter(D, E)
    for made in (
        lambda: routers.TwoLevelRouter(plain, routers.MaskedRouter(learner, torch.ones(1, E) > 0)),
        lambda: routers.ProductRouter(learner, plain),
    ):
        with pytest.raises(InputError, match="may not learn from its tokens after the step"):
            made()
    with pytest.raises(InputError, match="at least one \\(weight, router\\), got none"):
        routers.SummedRouter()
    unlike = routers.SummedRouter((1.0, plain), (1.0, routers.LinearRouter(D, 3)))
    with pytest.raises(InputError, match="parts of one shape"):
        of(unlike, tokens())
    cell = nn.GRUCell(3, 3)
    stateful = [(1.0, routers.RecurrentRouter(D, E, cell)) for _ in range(2)]
    with pytest.raises(InputError, match="passes one state on, 2 of its parts gave one"):
        of(routers.SummedRouter(*stateful), tokens())


@pytest.mark.parametrize(
    "make",
    [
        lambda: routers.LinearRouter(0, E),
        lambda: routers.NoisyRouter(D, 0),
        lambda: routers.CosineRouter(D, E, dim=-1),
        lambda: routers.KMeansRouter(D, True),
        lambda: routers.HyperRouter(D, E, hidden=0),
        lambda: routers.AttentionRouter(D, 1.5),  # type: ignore[arg-type]
        lambda: routers.KANRouter(D, E, hidden=0),
        lambda: routers.SmoothedRouter(nn.Linear(D, E), 0),
        lambda: routers.HashRouter(E, k=0),
    ],
)
def test_sizes_below_one_are_refused(make: Callable[[], Router]) -> None:
    with pytest.raises(InputError, match="needs .* of at least 1, got"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: routers.CosineRouter(D, E, temperature=0.0),
        lambda: routers.KMeansRouter(D, E, temperature=float("nan")),
        lambda: routers.KMeansRouter(D, E, momentum=1.0),
        lambda: routers.SmoothedRouter(nn.Linear(D, E), D, temperature=-1.0),
    ],
)
def test_numbers_out_of_range_are_refused(make: Callable[[], Router]) -> None:
    with pytest.raises(InputError, match="temperature above 0"):
        make()


# ---------------------------------------------------------------- systems


def layers() -> dict[str, MoE]:
    base = nn.Linear(D, D)
    attributes = torch.eye(3)
    gates, names = torch.randn(E, D), torch.randn(E, 5)
    return {
        "online k-means": routed.online_k_means(D, 5, E),
        "rmoe": routed.rmoe(D, 5, E, layers=1, state=3)[0],  # type: ignore[dict-item]
        "hyperrouter": routed.hyperrouter(D, 5, E),
        "attention router": routed.attention_router(D, 5, E),
        "kamoe": routed.kamoe(D, 5, E),
        "similarity-aware": routed.similarity_aware(D, 5, E, causal=True),
        "attention-aware": routed.similarity_aware(D, 5, E, attention=True),
        "maskmoe": routed.maskmoe(D, 5, torch.ones(9, E, dtype=torch.bool)),
        "task-aware": routed.task_aware(D, 5, E, 3),
        "conditional": routed.conditional(attributes, D, D, E),
        "phatgoose gate": routed.phatgoose_gate(base, LoRAExperts(1, D, rank=2)),
        "glider": routed.glider(base, LoRAExperts(E, D, rank=2), gates, names, torch.randn(3, 5)),
    }


@pytest.mark.parametrize("name", layers())
def test_systems_are_layers_that_train(name: str) -> None:
    torch.manual_seed(0)
    layer = layers()[name].double().train()
    assert type(layer) is MoE
    x = torch.randn(2, 4, D, dtype=torch.float64)
    context = Context(
        ids=torch.randint(9, (2, 4)),
        task=torch.randint(3, (2, 4)),
        attention=torch.rand(2, 4, 4, dtype=torch.float64),
    )
    y, found = layer(x, context=context)
    (y.square().sum() + found.loss).backward()
    layer.after_step([found])
    assert y.shape == x.shape
    grads = [w.grad for w in layer.parameters() if w.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


def test_the_gate_of_kamoe_is_a_sigmoid_over_all_experts() -> None:
    layer, x = routed.kamoe(D, 5, E).double().eval(), tokens()
    y, found = layer(x)
    gates = layer.router(x).sigmoid()
    assert isinstance(layer.experts, FeedForwardExperts)
    rows = [layer.experts(x, torch.tensor([0] * (e + 1) + [8] * (E - e))) for e in range(E)]
    assert_close(y, sum(gates[:, e, None] * rows[e] for e in range(E)))
    assert found.route.branches_per_input().tolist() == [E] * 8


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_experts_merge_into_one_map_a_task(k: int, bias: bool) -> None:
    layer = routed.conditional(torch.eye(3), D, 5, E, k).double().eval()
    layer.experts = LinearExperts(E, D, 5, bias=bias).double()
    x, task = tokens(9), torch.arange(9) % 3
    y, _ = layer(x, context=Context(task=task))
    merged = routed.merged_by_task(layer)
    assert_close(torch.stack([merged[g](row) for g, row in zip(task, x, strict=True)]), y)


def test_only_linear_experts_by_task_merge() -> None:
    with pytest.raises(InputError, match="got FeedForwardExperts under TaskRouter"):
        routed.merged_by_task(routed.task_aware(D, 5, E, 3))


def test_glider_checks_its_pool() -> None:
    pool, gates = LoRAExperts(E, D, rank=2), torch.randn(E, D)
    with pytest.raises(InputError, match="got 4 and 3 for 4"):
        routed.glider(nn.Linear(D, D), pool, gates, torch.randn(3, 5), torch.randn(2, 5))
    with pytest.raises(InputError, match="at least one layer, got 0"):
        routed.rmoe(D, 5, E, layers=0)


def test_a_gate_of_zero_lets_half_of_an_expert_through() -> None:
    expert, base, x = LoRAExperts(1, D, rank=2), nn.Linear(D, D), tokens()
    nn.init.normal_(expert.b_EOR)
    layer = routed.phatgoose_gate(base, expert).double()
    added = expert(x, torch.tensor([0, 8]))
    assert_close(layer(x)[0], base(x) + added / 2)
    assert isinstance(layer.router, routers.LinearRouter)
    nn.init.normal_(layer.router.weight)
    assert_close(layer(x)[0], base(x) + (x @ layer.router.weight.T).sigmoid() * added)
