from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe import FeedForwardExperts, MoE
from pointsman.moe.competition import (
    CompetingRouter,
    CompetitionSchedule,
    diversity,
    every_answer,
    foresight,
)
from pointsman.select import top_k

E, D, K, T = 4, 5, 2, 12


def layer(**options: Any) -> MoE:
    torch.manual_seed(0)
    experts = FeedForwardExperts(E, D, 6)
    router = CompetingRouter(nn.Linear(D, E, bias=False), experts)
    balance = ((1.0, foresight), (0.5, diversity))
    return MoE(router, partial(top_k, k=K), experts, balance=balance, **options).double()


def tokens(seed: int = 1, count: int = T) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, D, generator=generator, dtype=torch.float64)


def expert_by_expert(experts: nn.Module, x: Tensor) -> Tensor:
    """(T, E, D) answers, one expert and one token after the other."""
    rows = [
        torch.stack(
            [experts(row[None], torch.tensor([0] * (e + 1) + [1] * (E - e)))[0] for row in x]
        )
        for e in range(E)
    ]
    return torch.stack(rows, dim=1)


def test_every_answer_is_each_experts_own() -> None:
    module, x = layer(), tokens()
    assert_close(every_answer(module.experts, x), expert_by_expert(module.experts, x))
    assert every_answer(module.experts, x[:0]).shape == (0, E, D)


def test_a_competition_is_won_by_the_strongest_answers_at_their_share() -> None:
    module, x = layer(), tokens()
    module.router.competing = True
    y, routing = module(x)
    answers = expert_by_expert(module.experts, x)
    strength = functional.softplus(answers).mean(2)
    best, chosen = strength.topk(K, dim=1)
    weights = best / best.sum(1, keepdim=True)
    assert torch.equal(routing.route.branches.reshape(T, K), chosen)
    assert_close(routing.route.weights.reshape(T, K), weights)
    picked = answers[torch.arange(T)[:, None], chosen]
    assert_close(y, (weights.unsqueeze(2) * picked).sum(1))
    assert_close(routing.clean, module.router.router(x))
    wanted, given = strength.softmax(1), routing.clean.softmax(1)
    square = (wanted - given) ** 2
    assert_close(routing.losses["foresight"], square.mean() + 0.1 * square.gather(1, chosen).mean())
    cosine = functional.cosine_similarity(picked[:, 0], picked[:, 1], dim=1).mean()
    assert_close(routing.losses["diversity"], cosine)


def test_the_losses_teach_who_they_are_meant_for() -> None:
    module, x = layer(), tokens().requires_grad_()
    module.router.competing = True
    _, routing = module(x)
    gate, bank = list(module.router.parameters()), list(module.experts.parameters())
    learned = torch.autograd.grad(
        routing.losses["foresight"], [*gate, *bank], retain_graph=True, allow_unused=True
    )
    assert learned[0] is not None
    assert learned[0].abs().max() > 0
    assert all(grad is None for grad in learned[1:])
    taught = torch.autograd.grad(routing.losses["diversity"], [*gate, *bank, x], allow_unused=True)
    assert taught[0] is None
    assert taught[-1] is None
    assert any(grad is not None and grad.abs().max() > 0 for grad in taught[1:-1])


@pytest.mark.parametrize("mode", ["a router step", "evaluation"])
def test_otherwise_the_cheap_router_decides_alone(mode: str) -> None:
    module, x = layer(), tokens()
    module.router.competing = mode == "evaluation"
    module.train(mode != "evaluation")
    y, routing = module(x)
    plain = MoE(module.router.router, partial(top_k, k=K), module.experts)
    assert_close(y, plain(x)[0])
    assert routing.loss == 0
    assert routing.tokens is None


def test_a_competition_passes_gradcheck_and_takes_no_tokens() -> None:
    module, x = layer(), tokens(count=4).requires_grad_()
    module.router.competing = True

    assert torch.autograd.gradcheck(lambda x: module(x)[0], (x,))
    y, routing = module(tokens(count=0))
    assert y.shape == (0, D)
    assert routing.loss.isfinite()


def test_padding_does_not_compete() -> None:
    module, x = layer(), tokens()
    module.router.competing = True
    mask = torch.arange(T) % 3 > 0
    x[~mask] = torch.nan
    y, routing = module(x, mask=mask)
    alone, lone = module(x[mask])
    assert_close(y[mask], alone)
    assert_close(routing.loss, lone.loss)


def test_diversity_is_zero_with_one_winner_and_counts_all_pairs_with_three() -> None:
    module, x = layer(), tokens()
    module.router.competing = True
    assert module(x, select=partial(top_k, k=1))[1].losses["diversity"] == 0
    _, routing = module(x, select=partial(top_k, k=3))
    rows = functional.normalize(expert_by_expert(module.experts, x), dim=2)
    chosen = routing.route.branches.reshape(T, 3)
    picked = rows[torch.arange(T)[:, None], chosen]
    gram = picked @ picked.transpose(1, 2)
    pairs = (gram[:, 0, 1] + gram[:, 0, 2] + gram[:, 1, 2]) / 3
    assert_close(routing.losses["diversity"], pairs.mean())


def test_the_experts_are_saved_and_counted_once_and_copies_keep_their_own() -> None:
    module = layer()
    assert not any("router.experts" in name or "_experts" in name for name in module.state_dict())
    assert len(list(module.parameters())) == 1 + len(list(module.experts.parameters()))
    twin = deepcopy(module)
    with torch.no_grad():
        for weight in twin.experts.parameters():
            weight.mul_(2.0)
    x = tokens()
    assert_close(
        twin.router.affinity(x), functional.softplus(every_answer(twin.experts, x)).mean(2)
    )
    assert not torch.allclose(twin.router.affinity(x), module.router.affinity(x))


def test_the_type_of_the_router_may_be_another() -> None:
    module = layer(router_dtype=torch.float64).to(torch.float32)
    module.router.router.double()
    module.router.competing = True
    y, routing = module(tokens().float())
    assert (y.dtype, routing.scores.dtype) == (torch.float32, torch.float64)


def test_a_schedule_keeps_its_share_and_its_limit_and_forgets_nobody() -> None:
    routers = [layer().router for _ in range(6)]
    generator = torch.Generator().manual_seed(0)
    schedule = CompetitionSchedule(
        routers,  # type: ignore[arg-type]
        share=0.2,
        at_most=2,
        warm_up=10,
        generator=generator,
    )
    counts, each = [], torch.zeros(6)
    for _ in range(510):
        counts.append(schedule.step())
        flags = torch.tensor([bool(router.competing) for router in routers])
        assert int(flags.sum()) == counts[-1]
        each += flags
    assert counts[:10] == [0] * 10
    assert max(counts) == 2
    assert (each > 60).all()
    assert 400 < sum(counts) < 700


def test_numbers_out_of_range_are_refused() -> None:
    for options in ({"share": 1.5}, {"at_most": 0}, {"warm_up": -1}):
        with pytest.raises(InputError, match="a schedule needs a share from 0 to 1"):
            CompetitionSchedule([], **options)  # type: ignore[arg-type]
