import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pointsman.cost import count_flops
from pointsman.depth.decoder import Decoder
from pointsman.depth.recursion import (
    DepthRouter,
    EveryToken,
    ExpertChoice,
    MixtureOfRecursions,
    RandomTokens,
    TokenChoice,
    generate,
    token_costs,
)
from pointsman.depth.recursion.routers import Chosen
from pointsman.errors import InputError

WIDTH, CONTEXT, VOCABULARY = 16, 40, 20


def decoder(seed=0, layers=4):
    torch.manual_seed(seed)
    sizes = {"vocabulary": VOCABULARY, "width": WIDTH, "heads": 2, "context": CONTEXT}
    return Decoder(layers=layers, **sizes).double().eval()


def expert(capacities=(1, 0.6, 0.3), seed=0, spread=30.0):
    """Gates of both signs, so that tokens differ in depth."""
    torch.manual_seed(seed)
    router = ExpertChoice(WIDTH, capacities).double()
    for gate in router.gates:
        torch.nn.init.normal_(gate.weight, std=spread)
    return router


def model(router=None, share_keys=False):
    whole = MixtureOfRecursions(decoder(), range(1, 3), router or expert(), share_keys=share_keys)
    return whole.double().eval()


def ids(n=3, tokens=11, seed=1):
    return torch.randint(VOCABULARY, (n, tokens), generator=torch.Generator().manual_seed(seed))


class Wired(torch.nn.Module):
    """Depths and weight as they are given, by position."""

    everyone_first = True
    recursions = 3

    def __init__(self, depths_nS, weight=1.0):
        super().__init__()
        self.depths, self.weight = depths_nS, weight

    def choose(self, recursion, x, alive, memory):
        active = self.depths > recursion
        return Chosen(active, torch.full(active.shape, self.weight).to(x), x.new_zeros(()))


def reference(mor, ids_1S, depths, weight=1.0):
    """One sequence, token sets taken out and put back by hand, a stack written out."""
    net, x = mor.decoder, mor.decoder.begin(ids_1S)
    places = torch.arange(ids_1S.shape[1])[None]
    x = net.blocks[0](x, places)
    for recursion in range(3):
        kept = depths > recursion
        if not kept.any():
            break
        tokens = x[:, kept]
        after = tokens
        for at in (1, 2):
            after = net.blocks[at](after, places[:, kept])
        x = x.clone()
        x[:, kept] = tokens + weight * (after - tokens)
    return net.finish(net.blocks[3](x, places))


ROUTERS = {
    "every token": lambda: EveryToken(3),
    "expert choice": expert,
    "token choice": lambda: TokenChoice(WIDTH, 3).double(),
    "random": lambda: RandomTokens(WIDTH, (1, 0.6, 0.3)).double(),
}


@pytest.mark.parametrize("make", ROUTERS.values(), ids=ROUTERS)
def test_every_router_keeps_to_the_contract(make):
    router = make()
    assert isinstance(router, DepthRouter)
    for training in (True, False):
        mor = model(router).train(training)
        found = mor(ids())
        depths = found.depths
        assert depths.shape == (3, 11)
        assert set(depths.flatten().tolist()) <= {1, 2, 3}
        mask = found.route.mask()
        assert bool((mask[:, 1:] <= mask[:, :-1]).all()), "who was left out never comes back"
        found.route.validate()
        (found.logits.square().mean() + found.loss).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in mor.parameters())


@torch.no_grad()
def test_at_full_capacity_and_weight_one_it_is_the_plain_recursive_transformer():
    """The exact check of the system, with the stack written out as a deeper decoder."""
    mor = model(EveryToken(3))
    plain = decoder(layers=8)
    source = [0, 1, 2, 1, 2, 1, 2, 3]
    for block, at in zip(plain.blocks, source, strict=True):
        block.load_state_dict(mor.decoder.blocks[at].state_dict())
    for part in ("embedding", "norm", "head"):
        getattr(plain, part).load_state_dict(getattr(mor.decoder, part).state_dict())
    assert_close(mor(ids()).logits, plain(ids()), rtol=0, atol=1e-12)
    same = model(Wired(torch.full((3, 11), 3)))
    assert_close(same(ids()).logits, plain(ids()), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_ragged_depths_give_what_the_written_out_loop_gives(weight):
    depths = torch.randint(0, 4, (4, 11), generator=torch.Generator().manual_seed(3))
    depths[2] = 0
    mor = model(Wired(depths, weight))
    found = mor(ids(4))
    assert found.depths.tolist() == depths.tolist()
    for row in range(4):
        by_hand = reference(mor, ids(4)[row : row + 1], depths[row], weight)
        assert_close(found.logits[row : row + 1], by_hand)


@torch.no_grad()
@pytest.mark.parametrize("share_keys", [False, True], ids=["own keys", "shared keys"])
@pytest.mark.parametrize("pieces", [[1] * 11, [6, 1, 1, 3], [11]])
@pytest.mark.parametrize("name", ["expert choice", "token choice", "every token"])
def test_decoding_over_a_cache_gives_what_the_full_pass_gives(name, pieces, share_keys):
    mor = model(ROUTERS[name](), share_keys)
    cache, start, logits, depths = mor.cache(3), 0, [], []
    for size in pieces:
        found = mor.extend(ids()[:, start : start + size], cache)
        logits.append(found.logits)
        depths.append(found.depths)
        start += size
    whole = mor(ids())
    if name != "every token":
        assert len(set(whole.depths.flatten().tolist())) > 1, "the test needs mixed depths"
    assert torch.cat(depths, dim=1).tolist() == whole.depths.tolist()
    assert_close(torch.cat(logits, dim=1), whole.logits)


@torch.no_grad()
def test_some_rows_may_run_ahead_of_others():
    mor, found = model(), torch.zeros(3, 11, VOCABULARY, dtype=torch.float64)
    cache = mor.cache(3)
    for rows, size in [([0, 1, 2], 2), ([2, 0], 3), ([1], 1), ([2, 1], 4), ([0], 6)]:
        index = torch.tensor(rows)
        places = cache.counts[0, index][:, None] + torch.arange(size)
        found[index[:, None], places] = mor.extend(
            ids()[index[:, None], places], cache, index
        ).logits
    whole = mor(ids()).logits
    for row, length in enumerate(cache.counts[0].tolist()):
        assert_close(found[row, :length], whole[row, :length])


@torch.no_grad()
def test_the_cache_holds_the_active_tokens_alone():
    mor, shared = model(), model(share_keys=True)
    cache, other = mor.cache(3), shared.cache(3)
    found = mor.extend(ids(), cache)
    shared.extend(ids(), other)
    taken = found.route.mask().sum(dim=0)
    assert cache.entries() == 2 * 33 + 2 * int(taken.sum())  # two outer layers, two in the stack
    assert 0 < taken[2] < taken[1] < taken[0] == 33
    assert other.entries() == 4 * 33, "shared keys are stored once"


@torch.no_grad()
def test_shared_keys_are_those_of_the_first_recursion_for_all():
    depths = torch.tensor([[3, 1, 3, 2, 1, 3]])
    mor = model(Wired(depths), share_keys=True)
    tokens = ids(1, 6)
    net, places = mor.decoder, torch.arange(6)[None]
    x = net.blocks[0](net.begin(tokens), places)
    keys = {}
    for recursion in range(3):
        after = x
        for at in (1, 2):
            block, attention = net.blocks[at], net.blocks[at].attention
            q, k, v = attention.mix(block.norm_1(after)).chunk(3, dim=-1)
            k, v = keys.setdefault(at, (k, v))
            after = after + attention.out(_attention(q, k, v))
            after = after + block.feed_forward(block.norm_2(after))
        x = torch.where((depths > recursion)[..., None], after, x)
    assert_close(mor(tokens).logits, net.finish(net.blocks[3](x, places)))


def _attention(q, k, v):
    from pointsman.depth.decoder import rotate

    places = torch.arange(q.shape[1])[None]
    q, k, v = (part.reshape(1, -1, 2, WIDTH // 2).transpose(1, 2) for part in (q, k, v))
    scores = rotate(q, places) @ rotate(k, places).transpose(2, 3) / (WIDTH // 2) ** 0.5
    later = torch.full(scores.shape[-2:], -torch.inf, dtype=q.dtype).triu(1)
    return ((scores + later).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


@torch.no_grad()
def test_in_evaluation_nothing_looks_ahead_and_while_training_expert_choice_does():
    other = ids().clone()
    other[:, 8:] = (other[:, 8:] + 1) % VOCABULARY
    for share_keys in (False, True):
        mor = model(share_keys=share_keys)
        assert_close(mor(ids()).logits[:, :8], mor(other).logits[:, :8])
    mor.train()
    assert not torch.equal(mor(ids()).logits[:, :8], mor(other).logits[:, :8])


@torch.no_grad()
@pytest.mark.parametrize("share_keys", [False, True], ids=["own keys", "shared keys"])
def test_costs_are_what_decoding_token_by_token_counts(share_keys):
    for router in (expert(), TokenChoice(WIDTH, 3).double()):
        mor = model(router, share_keys)
        tokens, cache = ids(1), mor.cache(1)
        counted = [float(count_flops(mor.extend, token, cache)) for token in tokens.split(1, 1)]
        found = mor(tokens)
        costs = token_costs(mor, found)
        assert costs.total.unit == "MFLOPs"
        np.testing.assert_allclose(costs.total.amount[0], counted, rtol=1e-9)
        np.testing.assert_array_equal(costs.stack.amount > 0, found.route.mask().numpy()[None])


@torch.no_grad()
def test_greedy_generation_equals_generation_without_a_cache():
    mor = model()
    tokens, depths = generate(mor, ids(2, 4), 9)
    slow = ids(2, 4)
    for _ in range(9):
        slow = torch.cat([slow, mor(slow).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert tokens.tolist() == slow.tolist()
    assert depths.tolist() == mor(slow).depths[:, :-1].tolist()


def test_gradients_reach_the_gates_and_the_stack_through_gathered_tokens():
    mor = model(expert(spread=1.0)).train()
    found = mor(ids())
    found.logits.logsumexp(-1).sum().backward()
    assert mor.router.gates[2].weight.grad.abs().sum() > 0
    assert mor.decoder.blocks[2].feed_forward[0].weight.grad.abs().sum() > 0
    sharing = model(expert(spread=1.0), share_keys=True).train()
    sharing(ids()).logits.logsumexp(-1).sum().backward()
    assert sharing.decoder.blocks[1].attention.mix.weight.grad.abs().sum() > 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="neighbouring blocks from 0 to 4"):
        MixtureOfRecursions(decoder(), range(2, 5), EveryToken(2))
    with pytest.raises(InputError, match="neighbouring blocks"):
        MixtureOfRecursions(decoder(), range(2, 2), EveryToken(2))
    with pytest.raises(InputError, match="every token must take"):
        MixtureOfRecursions(decoder(), range(1, 3), expert((0.5, 0.2)), share_keys=True)
    with pytest.raises(InputError, match="positions are lost"):
        MixtureOfRecursions(decoder(), range(0, 3), expert((0.5, 0.2)))
    with pytest.raises(InputError, match="got Linear"):
        MixtureOfRecursions(decoder(), range(1, 3), torch.nn.Linear(2, 2))
    mor = model()
    with pytest.raises(InputError, match="eval"):
        mor.train().extend(ids(), mor.cache(3))
    mor.eval()
    with pytest.raises(InputError, match="a cache of 8 layers, got 4"):
        mor.extend(ids(), mor.decoder.cache(3))
    with pytest.raises(InputError, match="40 positions apart"):
        generate(mor, ids(1, 39), 3)
    with pytest.raises(InputError, match="at least 1 token"):
        generate(mor, ids(1, 0), 3)


def test_an_empty_batch_gives_empty_logits():
    found = model()(ids(0))
    assert found.logits.shape == (0, 11, VOCABULARY)
    assert found.depths.shape == (0, 11)
