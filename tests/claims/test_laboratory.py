"""The laboratory: mixtures with a known best routing, and a small language model over text."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.claims import language, worlds
from pointsman.moe import Context, FeedForwardExperts, MoE, Routing
from pointsman.moe.balance import switch
from pointsman.moe.routers.base import Router
from pointsman.route import Route
from pointsman.select import Guarantee, top_k


class Best(nn.Module):
    """Routes each token to the nearest centre and applies that cluster's own map."""

    def __init__(self, mixture: worlds.Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x_TD: Tensor) -> Tensor:
        nearest = torch.cdist(x_TD, self.mixture.centres_CD).argmin(dim=1)
        return torch.stack(
            [x @ self.mixture.maps_CDO[int(c)] for x, c in zip(x_TD, nearest, strict=True)]
        )


def test_a_mixture_is_solved_by_its_best_routing_and_not_by_one_linear_map() -> None:
    mixture = worlds.mixture(0)
    draw = mixture.draw(2000, seed=1)
    assert draw.x.shape == draw.y.shape == (2000, 16)
    assert 0.7 < float(draw.y.var()) < 1.4
    assert worlds.relative_error(Best(mixture), mixture, seed=0, count=300) < 0.01
    linear = nn.Linear(16, 16)
    worlds.regress(linear, mixture, seed=0, updates=150, rate=1e-2)
    assert worlds.relative_error(linear, mixture, seed=0) > 0.05


def test_draws_depend_on_their_seed_alone() -> None:
    one, other = worlds.mixture(3), worlds.mixture(3)
    torch.manual_seed(5)
    for a, b in zip(
        vars(one.draw(40, seed=2)).values(), vars(other.draw(40, seed=2)).values(), strict=True
    ):
        assert torch.equal(a, b)
    assert not torch.equal(one.draw(40, seed=2).x, one.draw(40, seed=3).x)


def test_rare_clusters_are_rare() -> None:
    mixture = worlds.mixture(0, clusters=4, zipf=1.0)
    load = torch.bincount(mixture.draw(20_000, seed=0).cluster, minlength=4) / 20_000
    assert_close(load, torch.tensor([12.0, 6, 4, 3]) / 25, atol=0.02, rtol=0)


def moe(width: int, **options: object) -> MoE:
    return MoE(
        nn.Linear(width, 4, bias=False),
        partial(top_k, k=2),
        FeedForwardExperts(4, width, 8),
        **options,  # type: ignore[arg-type]
    )


def test_training_adds_the_routing_loss_and_tells_the_layer_of_each_step() -> None:
    steps: list[int] = []

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = moe(16, balance=[(1.0, switch)])

        def forward(self, x_TD: Tensor) -> tuple[Tensor, Routing]:
            return self.layer(x_TD)  # type: ignore[no-any-return]

        def after_step(self, routings: list[Routing]) -> None:
            steps.append(len(routings))

    mixture, module = worlds.mixture(0), Told()
    losses = worlds.regress(module, mixture, seed=0, updates=3)
    assert steps == [1, 1, 1]
    assert losses[0] > 1.9  # an error of about one, and a balancing loss of about one
    assert not module.training


@pytest.mark.parametrize("loss", [None, lambda m, draw: (m(draw.x)[0] - draw.y).square().mean()])
def test_training_twice_gives_the_same_and_leaves_the_global_generator_alone(
    loss: object,
) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        module = moe(16)
        state = torch.get_rng_state()
        worlds.regress(module, worlds.mixture(0), seed=0, updates=4, loss=loss)  # type: ignore[arg-type]
        assert torch.equal(state, torch.get_rng_state())
        found.append(module.router.weight.detach().clone())  # type: ignore[operator, union-attr]
    assert torch.equal(*found)


def test_routing_accuracy_takes_the_best_matching_and_the_first_choice() -> None:
    cluster = torch.tensor([0, 0, 1, 1, 2, 2])
    branches = torch.tensor([[2, 0], [2, 0], [0, 1], [0, 1], [1, 0], [-1, -1]])
    route = Route.from_indices(branches, num_branches=3)
    assert worlds.routing_accuracy(route, cluster) == pytest.approx(5 / 6)
    collapsed = Route.from_indices(torch.zeros(6, 1, dtype=torch.int64), num_branches=3)
    assert worlds.routing_accuracy(collapsed, cluster) == pytest.approx(2 / 6)


def test_max_violation_is_zero_when_balanced() -> None:
    assert worlds.max_violation(torch.tensor([5, 5, 5])) == 0
    assert worlds.max_violation(torch.tensor([12, 0, 0])) == pytest.approx(2)


def test_the_corpus_is_the_same_on_every_run_and_shares_no_file() -> None:
    one = language.corpus(20_000)
    language.corpus.cache_clear()
    other = language.corpus(20_000)
    assert torch.equal(one.train, other.train)
    assert (len(one.train), len(one.validation)) == (20_000, 5_000)
    assert one.train.dtype == torch.uint8
    assert int(one.train.max()) < language.BYTES
    assert not torch.equal(one.train[:5_000], one.validation)


class Reading(Router):
    """Scores that need everything a language model can tell."""

    guarantee = Guarantee(batch_independent=True, causal=True)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 4)
        self.seen: list[Context] = []

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        self.seen.append(context)
        return self.linear(x_TD)  # type: ignore[no-any-return]


def test_routers_of_a_language_model_are_told_of_bytes_and_attention() -> None:
    def make(layer: int, width: int) -> nn.Module:
        return MoE(Reading(width), partial(top_k, k=2), FeedForwardExperts(4, width, 8))

    model = language.LanguageModel(make, width=8, context=6)
    ids = torch.randint(0, 128, (3, 6), dtype=torch.uint8)
    logits, routings = model(ids)
    assert logits.shape == (3, 6, 128)
    assert len(routings) == 2
    for block in model.blocks:
        (seen,) = block.feed_forward.router.seen  # type: ignore[union-attr]
        assert torch.equal(seen.ids, ids.flatten().long())
        assert_close(seen.attention.sum(2), torch.ones(3, 6))
        assert not seen.attention.triu(1).any()


def test_a_place_sees_only_what_came_before() -> None:
    model = language.LanguageModel(lambda _, width: moe(width), width=8, context=6)
    ids = torch.randint(0, 128, (3, 6))
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 128
    before, after = model(ids)[0], model(changed)[0]
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_a_language_model_learns_with_dense_and_with_routed_layers() -> None:
    corpus = language.corpus(20_000)

    def make(layer: int, width: int) -> nn.Module:
        return nn.Linear(width, width) if layer == 0 else moe(width, balance=[(0.01, switch)])

    model = language.LanguageModel(make, width=16, context=16)
    start = language.nats(model, corpus, batches=2)
    language.train(model, corpus, seed=0, updates=40, batch=8)
    assert start > 4.5
    assert language.nats(model, corpus, batches=2) < start - 1
    found = language.routings(model, corpus, batches=2)
    assert [len(layers) for layers in found] == [1, 1]
    assert found[0][0].route.num_inputs == 32 * 16


def test_each_layer_is_told_of_its_own_routings() -> None:
    told: list[tuple[int, int]] = []

    class Twice(nn.Module):
        """Routes a second time, as a chain of experts does."""

        def __init__(self, layer: int, width: int) -> None:
            super().__init__()
            self.layer, self.inner = layer, moe(width)

        def forward(self, x: Tensor) -> tuple[Tensor, list[Routing]]:
            y, first = self.inner(x)
            y, second = self.inner(y)
            return y, [first, second]

        def after_step(self, routings: list[Routing]) -> None:
            told.append((self.layer, len(routings)))

    model = language.LanguageModel(Twice, width=8, context=8)
    extra: list[int] = []

    def more(routings: list[Routing]) -> Tensor:
        extra.append(len(routings))
        return routings[0].scores.sum() * 0

    language.train(model, language.corpus(20_000), seed=0, updates=2, batch=2, extra=more)
    assert told == [(0, 2), (1, 2)] * 2
    assert extra == [4, 4]
