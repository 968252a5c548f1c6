"""Hidden tokens: the two losses are one, caching changes nothing but the count."""

from itertools import pairwise, product
from math import comb, log

import pytest
import torch
from torch.testing import assert_close

from pointsman.cost import Cost
from pointsman.errors import InputError
from pointsman.steps.absorbing import (
    TokenTransformer,
    Unmasking,
    all_hidden,
    clean_loss,
    even_times,
    expected_evaluations,
    hide_by_order,
    hide_by_rate,
)
from pointsman.steps.policies.caching import WhenChanged
from pointsman.steps.policies.plain import Always
from pointsman.steps.sampling import Evaluation, sample


def network(timed=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TokenTransformer(
            vocabulary=5, length=8, width=8, layers=1, heads=2, timed=timed
        ).eval()
    for weight in net.parameters():
        weight.data *= 2  # away from equal probabilities
    return net


def pair(policy, net, *, n=6, length=8, steps=24):
    generator = torch.Generator().manual_seed(3)
    return sample(
        [net.evaluation("network", length)],
        policy,
        Unmasking(5),
        all_hidden(n, length, 5),
        even_times(steps),
        generator=generator,
    )


def test_caching_gives_the_same_text_with_fewer_evaluations():
    full, cached = pair(Always(), network()), pair(WhenChanged(), network())
    assert torch.equal(full.x, cached.x)
    assert int(full.x.max()) < 5
    assert full.evaluations.tolist() == [24] * 6
    assert int(cached.evaluations.max()) <= 9  # at most one for each of 8 places, and the first
    assert float(cached.cost.mean()) < 0.4 * float(full.cost.mean())


def test_the_number_of_evaluations_is_the_formula():
    def blank(x, t, condition):
        return torch.zeros(*x.shape, 2)

    for length, steps in ((16, 64), (20, 8)):
        found = sample(
            [Evaluation("blank", blank, Cost(1.0, "calls"))],
            WhenChanged(),
            Unmasking(2),
            all_hidden(3000, length, 2),
            even_times(steps),
            generator=torch.Generator().manual_seed(0),
        )
        measured = found.evaluations.double().mean()
        assert float(measured) == pytest.approx(expected_evaluations(length, steps), rel=0.01)
        assert bool((found.x < 2).all())


def test_a_timed_network_is_told_the_time_and_a_plain_one_does_not_read_it():
    tokens = all_hidden(2, 8, 5)
    assert torch.equal(network()(tokens, 0.2), network()(tokens, 0.9))
    timed = network(timed=True)
    assert not torch.allclose(timed(tokens, 0.2), timed(tokens, 0.9))
    with pytest.raises(InputError, match="give t"):
        timed(tokens)


def toy():
    """A random joint law of three tokens out of two, and its exact conditionals as a network."""
    law = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    law = law / law.sum()

    def predict(tokens):
        out = torch.zeros(*tokens.shape, 2, dtype=torch.float64)
        for row, seen in enumerate(tokens.tolist()):
            for place, value in product(range(3), range(2)):
                fits = [
                    float(law[x])
                    for x in product(range(2), repeat=3)
                    if x[place] == value
                    and all(
                        s in (2, c) or p == place
                        for p, (s, c) in enumerate(zip(seen, x, strict=True))
                    )
                ]
                out[row, place, value] = log(sum(fits))
        return out.log_softmax(dim=-1)

    return law, predict


def test_the_ratio_of_the_process_is_a_conditional_times_a_number_of_time():
    law, predict = toy()
    rate = 0.3

    def p_t(seen):
        total = 0.0
        for x in product(range(2), repeat=3):
            shown = [s != 2 for s in seen]
            if all(s == c for s, c, show in zip(seen, x, shown, strict=True) if show):
                total += float(law[x]) * (1 - rate) ** sum(shown) * rate ** (3 - sum(shown))
        return total

    for seen in product(range(3), repeat=3):
        conditionals = predict(torch.tensor([seen])).exp()[0]
        for place in (p for p in range(3) if seen[p] == 2):
            for value in range(2):
                revealed = (*seen[:place], value, *seen[place + 1 :])
                ratio = p_t(revealed) / p_t(seen)
                wanted = (1 - rate) / rate * float(conditionals[place, value])
                assert ratio == pytest.approx(wanted)


def test_both_losses_are_the_negative_log_likelihood_under_exact_conditionals():
    law, predict = toy()
    tokens = torch.tensor(list(product(range(2), repeat=3)))
    law_n = law.flatten()
    subsets = [torch.tensor(mask) for mask in product([False, True], repeat=3) if any(mask)]
    exact = torch.zeros(8, dtype=torch.float64)
    for mask in subsets:  # all sets of hidden places, weighed 1 / k within their size
        k = int(mask.sum())
        for row in range(8):
            one, weight = tokens[row : row + 1], torch.tensor([1.0 / (k * comb(3, k))])
            exact[row] += 3 * clean_loss(predict, one, mask[None], weight.double(), 2)
    # exact conditionals: the mean over orders is -log p of each sequence
    assert_close(exact, -law_n.log())
    generator = torch.Generator().manual_seed(0)
    rows = torch.multinomial(law_n, 4000, replacement=True, generator=generator)
    entropy = float(-(law_n * law_n.log()).sum()) / 3
    for hide in (hide_by_rate, hide_by_order):
        hidden, weight = hide(4000, 3, generator)
        found = clean_loss(predict, tokens[rows], hidden, weight.double(), 2)
        assert float(found) == pytest.approx(entropy, rel=0.05)


def test_hiding_by_order_hides_every_count_alike_and_by_rate_spreads_the_rates():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = hide_by_order(8000, 4, generator)
    counts = torch.bincount(hidden.sum(dim=1), minlength=5)
    assert counts[0] == 0
    assert_close(counts[1:] / 8000, torch.full((4,), 0.25), rtol=0, atol=0.02)
    assert_close(weight, 4 / hidden.sum(dim=1))
    hidden, weight = hide_by_rate(100, 4000, generator)
    assert_close(hidden.float().mean(dim=1), 1 / weight, rtol=0, atol=0.04)
    assert float((1 / weight).sort().values.diff().max()) < 0.02


def test_revealed_tokens_stay_and_the_last_step_reveals_all():
    path = sample(
        [network().evaluation("network", 8)],
        WhenChanged(),
        Unmasking(5),
        all_hidden(4, 8, 5),
        even_times(10),
        generator=torch.Generator().manual_seed(1),
        keep_path=True,
    ).path
    for before, after in pairwise(path):
        shown = before < 5
        assert torch.equal(after[shown], before[shown])
    assert int((path[-1] == 5).sum()) == 0
    with pytest.raises(InputError, match="at least one step"):
        even_times(0)
