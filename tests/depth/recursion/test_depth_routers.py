import pytest
import torch
from torch.testing import assert_close

from pointsman.depth.recursion import EveryToken, ExpertChoice, RandomTokens, TokenChoice
from pointsman.errors import InputError
from pointsman.route import Route

WIDTH = 8


def states(n=4, tokens=12, seed=0):
    return torch.randn(n, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def walk(router, x):
    """Active sets of all recursions, (R, n, S), and the sum of the losses."""
    alive, memory, found, loss = torch.ones(x.shape[:2], dtype=torch.bool), None, [], 0.0
    for recursion in range(router.recursions):
        chosen = router.choose(recursion, x, alive, memory)
        alive, memory, loss = chosen.active, chosen.memory, loss + chosen.loss
        found.append(alive)
    return torch.stack(found), loss


@pytest.mark.parametrize("kind", [ExpertChoice, RandomTokens])
def test_while_training_each_sequence_fills_its_capacities_exactly(kind):
    active, _ = walk(kind(WIDTH, (1, 0.5, 0.25)).train(), states())
    assert active.sum(dim=2).tolist() == [[12] * 4, [6] * 4, [3] * 4]
    assert bool((active[1:] <= active[:-1]).all())


def test_the_largest_gates_are_taken_and_pressed_above_a_half():
    torch.manual_seed(0)
    router, x = ExpertChoice(WIDTH, (1, 0.5), pressure=1.0).train(), states()
    chosen = router.choose(1, x, torch.ones(4, 12, dtype=torch.bool), None)
    weights = chosen.weights
    least = weights.masked_fill(~chosen.active, 2).amin(dim=1)
    assert bool((least >= weights.masked_fill(chosen.active, -1).amax(dim=1)).all())
    optimiser = torch.optim.Adam(router.parameters(), 0.1)
    for _ in range(200):
        optimiser.zero_grad()
        router.choose(1, x, torch.ones(4, 12, dtype=torch.bool), None).loss.backward()
        optimiser.step()
    trained = router.choose(1, x, torch.ones(4, 12, dtype=torch.bool), None).active
    causal = router.eval().choose(1, x, torch.ones(4, 12, dtype=torch.bool), None).active
    assert float((trained == causal).float().mean()) > 0.9


def test_in_evaluation_the_threshold_is_the_knob():
    torch.manual_seed(0)
    router, x, shares = ExpertChoice(WIDTH, (1, 0.5, 0.25)).eval(), states(), []
    for threshold in (0.0, 0.4, 0.5, 0.6, 1.0):
        router.threshold = threshold
        shares.append(float(walk(router, x)[0].float().mean()))
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (1, pytest.approx(1 / 3))


def test_capacities_warm_up_from_everyone_to_their_own():
    router = ExpertChoice(WIDTH, (1, 0.5)).train()
    taken = []
    for progress in (0, 0.5, 1, 2):
        router.warm_up(progress)
        taken.append(int(walk(router, states(1))[0][1].sum()))
    assert taken == [12, 9, 6, 6]


def test_a_token_chooses_its_depth_once_and_for_itself():
    torch.manual_seed(0)
    router, x = TokenChoice(WIDTH, 3).eval(), states()
    active, loss = walk(router, x)
    depths = active.sum(dim=0)
    assert bool(active[0].all())
    assert float(loss) == 0
    assert depths.tolist() == (router.gate(x).argmax(dim=-1) + 1).tolist()
    alone = torch.cat([walk(router, x[:, at : at + 1])[0] for at in range(12)], dim=2)
    assert torch.equal(alone, active)


@torch.no_grad()
def test_the_balancing_loss_is_one_at_the_wanted_shares_and_more_when_collapsed():
    router = TokenChoice(1, 2, shares=(3, 1), balance=1.0).train()
    x = torch.tensor([1.0] * 6 + [-1.0] * 2)[None, :, None]
    router.gate.bias.zero_()
    router.gate.weight.copy_(torch.tensor([[20.0], [-20.0]]))
    assert float(walk(router, x)[1]) == pytest.approx(1.0)
    router.gate.weight.copy_(torch.tensor([[-20.0], [20.0]]))
    assert float(walk(router, x)[1]) > 2
    router.gate.weight.zero_()
    router.gate.bias.copy_(torch.tensor([-20.0, 20.0]))
    assert float(walk(router, x)[1]) == pytest.approx(4.0)


def test_the_bias_brings_back_a_collapsed_choice():
    torch.manual_seed(0)
    router, x = TokenChoice(WIDTH, 3, balance=0.0, rate=0.005).train(), states(8, 32)
    with torch.no_grad():
        router.gate.bias.copy_(torch.tensor([2.0, 0.0, -2.0]))

    def shares():
        depths = walk(router, x)[0].sum(dim=0).flatten()
        mask = torch.arange(3) < depths[:, None]
        router.after_step(Route.from_dense(mask.float(), mask))
        return torch.bincount(depths - 1, minlength=3) / 256

    assert float(shares()[0]) > 0.8
    found = torch.stack([shares() for _ in range(400)])
    assert_close(found[-100:].mean(dim=0), torch.full((3,), 1 / 3), atol=0.05, rtol=0)
    assert set(router.state_dict()) >= {"bias", "wanted"}


def test_random_tokens_keep_the_capacities_in_the_mean():
    active, _ = walk(RandomTokens(WIDTH, (1, 0.5, 0.25)).eval(), states(64, 64))
    shares = active.float().mean(dim=(1, 2))
    assert_close(shares, torch.tensor([1, 0.5, 0.25]), atol=0.03, rtol=0)


@pytest.mark.parametrize("capacities", [(), (0.5, 0.6), (1.2, 1), (1, 0), (float("nan"),)])
def test_capacities_that_do_not_fall_within_one_are_refused(capacities):
    with pytest.raises(InputError, match="never rise"):
        ExpertChoice(WIDTH, capacities)


def test_other_nonsense_is_refused():
    with pytest.raises(InputError, match="at least one recursion, got 0"):
        EveryToken(0)
    with pytest.raises(InputError, match="2 depths need"):
        TokenChoice(WIDTH, 2, shares=(1, 2, 3))
