"""What each part of `moe.balance` says in cases that are known, and why terms are per layer."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, distributed, nn
from torch.testing import assert_close

from pointsman.errors import InputError, RouteError
from pointsman.moe import FeedForwardExperts, MoE, Routing
from pointsman.moe.balance import (
    AdaptiveL1,
    BiasedTopK,
    ByMode,
    DirichletPrior,
    ExpertRouterCoupling,
    NormedWeights,
    chances,
    chunk_sparsity,
    dominance,
    entropy,
    grouped_switch,
    importance,
    load,
    locality,
    router_z,
    sequence_switch,
    switch,
)
from pointsman.moe.routers import NoisyRouter
from pointsman.route import Route
from pointsman.select import Guarantee, balanced, guarantee_of, relu, top_k

top_1 = partial(top_k, k=1, renormalize=False)


def routing_of(scores: Tensor, select: partial[Route] = top_1, **fields: Tensor) -> Routing:
    return Routing(scores, select(scores), fields.pop("clean", scores), **fields)  # type: ignore[arg-type]


def collapsed(expert: int, tokens: int = 32, experts: int = 8) -> Routing:
    """Every token is sure of one expert."""
    scores = torch.zeros(tokens, experts)
    scores[:, expert] = 50.0
    return routing_of(scores)


def layer(experts: int = 4, width: int = 6, *, gated: bool = True) -> MoE:
    torch.manual_seed(0)
    return MoE(
        nn.Linear(width, experts, bias=False),
        partial(top_k, k=2),
        FeedForwardExperts(experts, width, 5, gated=gated),
    ).double()


def test_a_term_of_each_layer_sees_a_collapse_that_a_pooled_one_hides() -> None:
    """Eight layers, each with all tokens on an expert of its own."""
    routings = [collapsed(expert) for expert in range(8)]
    pooled = routing_of(torch.cat([routing.scores for routing in routings]))
    assert float(switch(pooled)) == pytest.approx(1.0)
    for routing in routings:
        assert float(switch(routing)) == pytest.approx(8.0)
        assert float(importance(routing)) == pytest.approx(7.0)  # variance over squared mean
        assert float(entropy(routing)) == pytest.approx(0.0, abs=1e-6)
    assert float(importance(pooled)) == pytest.approx(0.0, abs=1e-6)
    assert float(entropy(pooled)) == pytest.approx(-math.log(8))


class TestSwitch:
    def test_it_is_one_when_balanced_and_uniform(self) -> None:
        scores = torch.eye(4).repeat(8, 1) * 1e-6
        assert_close(switch(routing_of(scores)), torch.tensor(1.0))

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 999), st.integers(1, 4))
    def test_it_equals_the_formula(self, seed: int, k: int) -> None:
        scores = torch.randn(12, 4, generator=torch.Generator().manual_seed(seed))
        routing = routing_of(scores, partial(top_k, k=k))
        share = torch.tensor([(routing.route.branches == e).sum() / (12 * k) for e in range(4)])
        assert_close(switch(routing), 4 * (share * scores.softmax(dim=1).mean(dim=0)).sum())

    def test_groups_of_one_expert_are_experts(self) -> None:
        routing = routing_of(torch.randn(20, 4))
        assert_close(grouped_switch(routing, group_of=[0, 1, 2, 3]), switch(routing))
        assert_close(grouped_switch(routing, group_of=[0] * 4), torch.tensor(1.0))

    def test_groups_may_be_even_where_experts_are_not(self) -> None:
        scores = torch.tensor([[50.0, 0, 0, 0], [0, 0, 50.0, 0]]).repeat(4, 1)
        routing = routing_of(scores)
        assert float(switch(routing)) == pytest.approx(2.0)
        assert float(grouped_switch(routing, group_of=[0, 0, 1, 1])) == pytest.approx(1.0)
        assert float(grouped_switch(routing, group_of=[0, 1, 0, 1])) == pytest.approx(2.0)

    @pytest.mark.parametrize("groups", [[0, 1], [0, 0, 1, -1]])
    def test_groups_that_do_not_fit_are_refused(self, groups: list[int]) -> None:
        with pytest.raises(InputError, match="each of 4 experts"):
            grouped_switch(routing_of(torch.randn(3, 4)), group_of=groups)

    def test_sequences_are_balanced_one_by_one(self) -> None:
        scores = torch.cat([collapsed(0, 6).scores, collapsed(1, 6).scores])
        assert float(switch(routing_of(scores))) == pytest.approx(4.0)
        assert float(sequence_switch(routing_of(scores), length=6)) == pytest.approx(8.0)
        assert float(sequence_switch(routing_of(scores), length=12)) == pytest.approx(4.0)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 999), st.integers(1, 3))
    def test_sequences_are_the_mean_of_what_each_gives(self, seed: int, k: int) -> None:
        scores = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
        select = partial(top_k, k=k)
        each = [switch(routing_of(part, select)) for part in scores.split(4)]
        found = sequence_switch(routing_of(scores, select), length=4)
        assert_close(found, torch.stack(each).mean())


class TestVariation:
    def test_importance_is_the_squared_variation_of_gate_values(self) -> None:
        scores = torch.randn(30, 4, dtype=torch.float64)
        routing = routing_of(scores, partial(top_k, k=2))
        amount = routing.route.to_dense().sum(dim=0)
        expected = amount.var(correction=0) / amount.mean() ** 2
        assert_close(importance(routing), expected)

    @pytest.mark.parametrize("k", [1, 2, 4])
    def test_load_is_smooth_through_the_normal_distribution(self, k: int) -> None:
        """Against the definition, expert by expert."""
        torch.manual_seed(k)
        clean, spread = torch.randn(9, 4).double(), torch.rand(9, 4).double() + 0.1
        scores = clean + spread * torch.randn(9, 4)
        routing = routing_of(scores, partial(top_k, k=k), clean=clean, spread=spread)
        expected = torch.ones(9, 4, dtype=torch.float64)
        for expert in range(4) if k < 4 else ():
            others = scores[:, [e for e in range(4) if e != expert]]
            bar = others.topk(k, dim=1).values[:, -1]
            z = (clean[:, expert] - bar) / spread[:, expert]
            expected[:, expert] = torch.as_tensor(stats.norm.cdf(z.numpy()))
        assert_close(chances(routing), expected)
        total = expected.sum(dim=0)
        assert_close(load(routing), total.var(correction=0) / total.mean() ** 2)

    def test_the_smooth_load_is_near_the_load_when_noise_is_small(self) -> None:
        scores = torch.randn(50, 4)
        spread = torch.full_like(scores, 1e-6)
        routing = routing_of(scores, partial(top_k, k=2), spread=spread)
        assert_close(chances(routing).sum(dim=0), routing.route.load().float())

    def test_a_router_without_spread_is_refused(self) -> None:
        with pytest.raises(InputError, match="NoisyRouter"):
            load(routing_of(torch.randn(3, 4)))

    def test_it_reads_what_the_noisy_router_gives(self) -> None:
        torch.manual_seed(0)
        moe = MoE(
            NoisyRouter(4, 5),
            partial(top_k, k=2),
            FeedForwardExperts(5, 4, 3),
            balance=[(1.0, load)],
        )
        for mode in (True, False):
            routing = moe.train(mode)(torch.randn(20, 4))[1]
            assert routing.loss.isfinite()


class TestLogits:
    def test_z_is_the_squared_log_sum_of_clean_scores(self) -> None:
        clean = torch.randn(6, 4)
        routing = routing_of(clean + 1.0, clean=clean)
        assert_close(router_z(routing), clean.logsumexp(dim=1).square().mean())

    def test_entropy_is_zero_when_all_want_the_same_and_least_when_sure_and_even(self) -> None:
        even = routing_of(50 * torch.eye(4).repeat(3, 1))
        assert float(entropy(even)) == pytest.approx(-math.log(4), abs=1e-4)
        assert float(entropy(routing_of(torch.zeros(5, 4)))) == pytest.approx(0.0, abs=1e-6)
        unsure = entropy(routing_of(torch.zeros(5, 4)), sure=0.0)
        assert float(unsure) == pytest.approx(-math.log(4))


class TestBiasedTopK:
    def test_a_bias_of_zero_is_plain_top_k_of_sigmoids(self) -> None:
        scores = torch.randn(20, 5)
        expected = top_k(scores, 2, weigh=torch.sigmoid, renormalize=False)
        assert_close(BiasedTopK(5, 2)(scores).to_dense(), expected.to_dense())

    def test_the_bias_moves_the_choice_and_not_the_weights(self) -> None:
        select, scores = BiasedTopK(3, 1), torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
        select.bias += torch.tensor([5.0, 0.0, 0.0])
        route = select(scores)
        assert route.branches.tolist() == [0]
        assert float(route.weights.detach()) == 0.5
        route.weights.sum().backward()
        assert scores.grad is not None
        assert scores.grad.ne(0).tolist() == [[True, False, False]]

    def test_a_step_moves_every_bias_by_the_sign_of_what_it_lacks(self) -> None:
        select = BiasedTopK(3, 1, rate=0.25)
        first = routing_of(torch.tensor([[9.0, 0, 0], [9, 0, 0], [9, 0, 0]]))
        second = routing_of(torch.tensor([[0.0, 9, 0], [0, 9, 0], [9.0, 0, 0]]))
        select.after_step([first, second])  # loads 4, 2, 0 and mean 2
        assert select.bias.tolist() == [-0.25, 0.0, 0.25]
        select.after_step([])
        assert select.bias.tolist() == [-0.25, 0.0, 0.25]

    def test_the_bias_is_not_cast_to_half(self) -> None:
        select = BiasedTopK(2, 1, rate=0.001)
        select.bias += 1.0
        select.bfloat16()
        select.after_step([routing_of(torch.tensor([[9.0, 0.0]]))])
        assert select.bias.dtype == torch.float32
        assert_close(select.bias, torch.tensor([0.999, 1.001]))
        assert select(torch.randn(3, 2, dtype=torch.bfloat16)).weights.dtype == torch.bfloat16
        assert select.double().bias.dtype == torch.float64

    def test_it_may_stand_in_a_causal_layer(self) -> None:
        experts = FeedForwardExperts(4, 6, 5)
        MoE(nn.Linear(6, 4), BiasedTopK(4, 2), experts, causal=True)

    def test_loads_of_all_processes_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The other process is made up: it sent 9 tokens to the last expert."""
        monkeypatch.setattr(distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(
            distributed, "all_reduce", lambda load: load.add_(torch.tensor([0, 0, 9]))
        )
        select = BiasedTopK(3, 1, rate=0.25)
        select.after_step([routing_of(torch.tensor([[9.0, 0, 0]] * 6))])
        assert select.bias.tolist() == [-0.25, 0.25, -0.25]

    @pytest.mark.parametrize(("k", "rate"), [(0, 0.1), (4, 0.1), (1, -0.1), (1, math.nan)])
    def test_numbers_out_of_range_are_refused(self, k: int, rate: float) -> None:
        with pytest.raises(InputError):
            BiasedTopK(3, k, rate=rate)


class TestAdaptiveL1:
    def test_the_strength_grows_while_too_many_experts_are_taken(self) -> None:
        term = AdaptiveL1(1, start=0.5, growth=2.0)
        dense = routing_of(torch.ones(4, 3), partial(relu))
        sparse = routing_of(-torch.ones(4, 3), partial(relu))
        right = routing_of(torch.eye(3) - 0.5, partial(relu))
        for routings, expected in (([dense], 1.0), ([right], 1.0), ([sparse], 0.5)):
            term.after_step(routings)
            assert float(term.strength) == expected
        term.after_step([dense, sparse, sparse])  # 12 pairs of 12 tokens
        assert float(term.strength) == 0.5

    def test_it_is_the_load_weighted_mean_of_positive_scores(self) -> None:
        scores = torch.tensor([[1.0, -1.0], [2.0, 4.0], [3.0, -1.0], [-1.0, -1.0]])
        routing = routing_of(scores, partial(relu))
        term = AdaptiveL1(0.5, start=0.1)
        share = torch.tensor([3.0, 1.0]) * 2 / (0.5 * 4)
        assert_close(term(routing), 0.1 * (share * torch.tensor([1.5, 1.0])).sum())
        plain = AdaptiveL1(0.5, start=0.1, weighted=False)
        assert_close(plain(routing), torch.tensor(0.1 * 2.5))

    def test_a_tiny_strength_survives_a_cast_to_half(self) -> None:
        term = AdaptiveL1(1).half()
        assert float(term.strength) == pytest.approx(1e-8)

    def test_the_strength_is_back_at_once_after_a_long_time_without_need(self) -> None:
        term = AdaptiveL1(1, start=0.5, growth=2.0)
        term.after_step([routing_of(-torch.ones(4, 3), partial(relu))] * 2)
        term.after_step([routing_of(-torch.ones(4, 3), partial(relu))])
        assert float(term.strength) == 0.5
        term.after_step([routing_of(torch.ones(4, 3), partial(relu))])
        assert float(term.strength) == 1.0

    def test_the_strength_stays_finite(self) -> None:
        term = AdaptiveL1(1)
        term.steps += 10_000
        assert term.strength.isfinite()

    @pytest.mark.parametrize("numbers", [(0, 1, 2), (1, 0, 2), (1, 1, 1)])
    def test_numbers_out_of_range_are_refused(self, numbers: tuple[float, float, float]) -> None:
        with pytest.raises(InputError):
            AdaptiveL1(numbers[0], start=numbers[1], growth=numbers[2])


class TestNormedWeights:
    def test_weights_do_not_change_when_scores_grow(self) -> None:
        scores = torch.randn(20, 6, dtype=torch.float64)
        weights = NormedWeights(6, eps=1e-12).double()
        route = weights(scores, relu(scores))
        again = weights(7 * scores, relu(7 * scores))
        assert_close(again.to_dense(), route.to_dense())
        size = route.to_dense().square().mean(dim=1).sqrt()
        assert_close(size, (~route.dropped()).double())

    def test_an_eps_of_zero_is_refused(self) -> None:
        with pytest.raises(InputError, match="eps"):
            NormedWeights(3, eps=0.0)


class TestDirichletPrior:
    def test_draws_of_the_distribution_cost_next_to_nothing(self) -> None:
        alpha = [0.5, 1.0, 2.0]
        draws = np.random.default_rng(0).dirichlet(alpha, size=20_000)
        scores = torch.as_tensor(np.log(draws + 1e-30))
        assert float(DirichletPrior(alpha)(routing_of(scores))) < 2e-4
        assert float(DirichletPrior(alpha[::-1])(routing_of(scores))) > 1e-2

    def test_it_equals_the_definition(self) -> None:
        scores = torch.randn(40, 3, dtype=torch.float64)
        p = scores.softmax(dim=1).numpy()
        expected = []
        for expert, alpha in enumerate((0.7, 1.0, 2.0)):
            reached = stats.beta(alpha, 3.7 - alpha).cdf(np.sort(p[:, expert]))
            expected.append(np.mean((reached - (np.arange(40) + 0.5) / 40) ** 2))
        found = DirichletPrior([0.7, 1.0, 2.0])(routing_of(scores))
        assert float(found) == pytest.approx(float(np.mean(expected)))

    def test_sure_tokens_keep_a_finite_gradient(self) -> None:
        scores = (100 * torch.randn(20, 4)).requires_grad_()
        DirichletPrior(0.1)(routing_of(scores)).backward()
        assert scores.grad is not None
        assert scores.grad.isfinite().all()

    @pytest.mark.parametrize("alpha", [0.0, -1.0, [], [1.0, math.inf]])
    def test_an_alpha_that_is_none_is_refused(self, alpha: float | list[float]) -> None:
        with pytest.raises(InputError, match="alpha"):
            DirichletPrior(alpha)

    def test_another_number_of_alphas_is_refused(self) -> None:
        with pytest.raises(InputError, match="each of 4 experts"):
            DirichletPrior([1.0, 1.0])(routing_of(torch.randn(3, 4)))


class TestCoupling:
    @pytest.mark.parametrize("gated", [True, False])
    def test_it_equals_the_sum_over_pairs(self, gated: bool) -> None:
        moe = layer(gated=gated).eval()
        routing = moe(torch.randn(3, 6, dtype=torch.float64))[1]
        rows, up = moe.router.get_parameter("weight"), moe.experts.get_parameter("up_EFD")
        norm = torch.stack(
            [torch.stack([(up[j, :5] @ row).norm() for j in range(4)]) for row in rows]
        )
        total = torch.zeros((), dtype=torch.float64)
        for i in range(4):
            for j in range(4):
                if i != j:
                    total = total + (norm[i, j] - 0.5 * norm[i, i]).relu()
                    total = total + (norm[j, i] - 0.5 * norm[i, i]).relu()
        assert_close(ExpertRouterCoupling(0.5)(routing, moe), total / 16)

    def test_a_perturbed_row_stays_nearest_to_itself(self) -> None:
        rows = torch.randn(6, 4, dtype=torch.float64)
        term = ExpertRouterCoupling(generator=torch.Generator().manual_seed(0))
        for _ in range(200):
            moved = rows * term._perturbation(rows)
            assert torch.cdist(moved, rows).argmin(dim=1).tolist() == list(range(6))

    def test_it_is_drawn_anew_in_training_and_never_in_evaluation(self) -> None:
        moe, term = layer(), ExpertRouterCoupling()
        routing = moe(torch.randn(3, 6, dtype=torch.float64))[1]
        assert not torch.equal(term(routing, moe), term(routing, moe))
        moe.eval()
        assert torch.equal(term(routing, moe), term(routing, moe))

    def test_dominance_is_one_when_experts_answer_to_their_own_row_alone(self) -> None:
        moe = layer(4, 4)
        with torch.no_grad():
            moe.router.get_parameter("weight").copy_(torch.eye(4))
            moe.experts.get_parameter("up_EFD").zero_()
            moe.experts.get_parameter("up_EFD")[:, 0] = torch.eye(4, dtype=torch.float64)
        assert dominance(moe) == 1.0
        loss = ExpertRouterCoupling()(moe(torch.eye(4).double())[1], moe.eval())
        assert float(loss.detach()) == 0.0
        with torch.no_grad():
            moe.router.get_parameter("weight").copy_(torch.eye(4).roll(1, 0))
        assert dominance(moe) < 0.9

    def test_halving_the_experts_halves_the_loss_and_keeps_the_dominance(self) -> None:
        moe, term = layer().eval(), ExpertRouterCoupling()
        routing = moe(torch.randn(3, 6, dtype=torch.float64))[1]
        loss, share = term(routing, moe), dominance(moe)
        with torch.no_grad():
            moe.experts.get_parameter("up_EFD").mul_(0.5)
        assert_close(term(routing, moe), loss / 2)
        assert dominance(moe) == share

    def test_rows_of_zero_do_no_harm(self) -> None:
        moe = layer()
        nn.init.zeros_(moe.router.get_parameter("weight"))
        loss = ExpertRouterCoupling()(moe(torch.randn(3, 6, dtype=torch.float64))[1], moe)
        loss.backward()
        grad = moe.router.get_parameter("weight").grad
        assert grad is not None
        assert grad.isfinite().all()

    def test_other_routers_are_refused(self) -> None:
        moe = MoE(nn.Sequential(nn.Linear(6, 4)), top_1, FeedForwardExperts(4, 6, 5))
        with pytest.raises(InputError, match=r"nn\.Linear"):
            dominance(moe)

    @pytest.mark.parametrize("alpha", [-0.1, 1.1])
    def test_an_alpha_out_of_range_is_refused(self, alpha: float) -> None:
        with pytest.raises(InputError, match="alpha"):
            ExpertRouterCoupling(alpha)


class TestLocality:
    def test_equal_neighbours_cost_less_than_unlike_ones(self) -> None:
        pattern = torch.tensor([1.0, -1.0, 1.0, -1.0])
        same = routing_of(pattern.repeat(6, 1), partial(relu))
        signs = torch.tensor([1.0, -1.0]).repeat(3)[:, None]
        unlike = routing_of(signs * pattern, partial(relu))
        assert float(locality(same, length=6)) == pytest.approx(0.0, abs=1e-6)
        assert float(locality(unlike, length=6)) == pytest.approx(100.0)
        # Pairs across the border of a sequence do not count.
        assert float(locality(unlike, length=1)) == 0.0
        halves = routing_of(torch.cat([pattern.repeat(3, 1), -pattern.repeat(3, 1)]), partial(relu))
        assert float(locality(halves, length=3)) == pytest.approx(0.0, abs=1e-6)

    def test_padding_parts_neighbours(self) -> None:
        unlike = routing_of(torch.tensor([[1.0], [-1.0]]), partial(relu))
        apart = replace(unlike, kept=torch.tensor([0, 2]), num_tokens=4)
        assert float(locality(apart, length=4)) == 0.0

    def test_a_chunk_needs_what_any_of_its_tokens_uses(self) -> None:
        scores = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
        routing = routing_of(scores, partial(relu))
        assert float(chunk_sparsity(routing, chunk=2)) == pytest.approx((1 + 2) / 8, abs=1e-3)
        assert float(chunk_sparsity(routing, chunk=4)) == pytest.approx(3 / 4, abs=1e-3)
        assert float(chunk_sparsity(routing, chunk=1)) == pytest.approx(1 / 4, abs=1e-3)

    @pytest.mark.parametrize("length", [0, 3, -1, 2.0, 16])
    def test_lengths_that_do_not_divide_are_refused(self, length: int) -> None:
        routing = routing_of(torch.randn(8, 3), partial(relu))
        for term in (locality, sequence_switch):
            with pytest.raises(InputError, match="divides"):
                term(routing, length=length)
        with pytest.raises(InputError, match="chunk must be"):
            chunk_sparsity(routing, chunk=length)


class TestByMode:
    def test_each_mode_selects_in_its_way_and_says_what_it_guarantees(self) -> None:
        select, scores = ByMode(balanced, top_1), torch.randn(12, 3) + torch.tensor([5.0, 0, 0])
        assert select(scores).load().tolist() == [4, 4, 4]
        assert guarantee_of(select) == Guarantee(batch_independent=False, causal=False)
        select.eval()
        assert select(scores).load()[0] > 8
        assert guarantee_of(select) == Guarantee(batch_independent=True, causal=True)

    def test_a_causal_layer_refuses_what_leaks_in_training(self) -> None:
        with pytest.raises(InputError, match="causal"):
            MoE(nn.Linear(4, 3), ByMode(balanced, top_1), FeedForwardExperts(3, 4, 2), causal=True)

    def test_a_selection_without_guarantee_is_refused(self) -> None:
        with pytest.raises(RouteError, match="guarantee"):
            ByMode(lambda scores: top_1(scores), top_1)
