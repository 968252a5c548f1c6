"""Cascades of rankers: only survivors are scored and paid for; survival beats its bound."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.cost import count_flops
from pointsman.depth.ranking import RankingCascade, plackett_luce_survival
from pointsman.errors import InputError


class Column(nn.Module):
    """Scores by one feature, and remembers how many candidates it saw."""

    def __init__(self, at):
        super().__init__()
        self.at, self.seen = at, []

    def forward(self, x):
        self.seen.append(tuple(x.shape[:2]))
        return x[:, :, self.at]


def features(queries=4, count=8, width=3, seed=0):
    return torch.randn(queries, count, width, generator=torch.Generator().manual_seed(seed))


def linear_cascade(keep=(4, 2)):
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(3, 1), nn.Flatten(1))
    large = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1), nn.Flatten(1))
    return RankingCascade([small, large], keep)


def test_later_stages_score_only_what_was_kept():
    cascade, x = RankingCascade([Column(0), Column(1), Column(2)], [5, 3, 1]), features()
    ranked = cascade.run(x)
    assert [stage.seen for stage in cascade.stages] == [[(4, 8)], [(4, 5)], [(4, 3)]]
    for query in range(4):
        left = list(range(8))
        for at, q in ((0, 5), (1, 3), (2, 1)):
            left = sorted(left, key=lambda v: -float(x[query, v, at]))[:q]
        assert ranked.items[query].tolist() == left


def test_the_route_says_who_was_scored_and_kept():
    cascade, x = linear_cascade(), features()
    ranked = cascade.run(x)
    route = ranked.route.validate()
    assert route.load().tolist() == [4 * 8, 4 * 4]
    kept = (route.answered_by() == 1).reshape(4, 8)
    assert torch.equal(kept, torch.zeros(4, 8, dtype=torch.bool).scatter(1, ranked.items, True))


def test_costs_are_those_of_the_candidates_scored():
    cascade, x = linear_cascade(), features()
    costs = cascade.stage_costs(x)
    assert costs.to("FLOPs").amount.tolist() == pytest.approx([2 * 3, 2 * (15 + 5)])
    spent = cascade.run(x).route.cost(costs).sum()
    assert float(spent) == pytest.approx(float(count_flops(cascade.run, x)))


def test_keeping_everything_ranks_by_the_last_stage():
    cascade, x = linear_cascade(), features()
    with torch.no_grad():
        wanted = cascade(x)[1].argsort(dim=1, descending=True)
    assert torch.equal(cascade.run(x, [8, 8]).items, wanted)


def test_recall_is_the_share_of_the_relevant_that_was_kept():
    cascade, x = RankingCascade([Column(0)], [2]), torch.tensor([[[3.0], [2.0], [1.0]]] * 3)
    relevant = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])
    assert_close(cascade.run(x).recall(relevant), torch.tensor([0.5, 1.0, 1.0]))


def test_the_frontier_has_recall_against_the_cost_of_a_query():
    cascade, x = linear_cascade(), features(30)
    with torch.no_grad():
        best = cascade(x)[1].topk(2, dim=1).indices
    relevant = torch.zeros(30, 8, dtype=torch.bool).scatter(1, best, True)
    frontier = cascade.frontier(x, relevant, {"all": (8, 2), "half": (4, 2), "two": (2, 2)})
    quality, cost = zip(*((p.quality, p.cost) for p in frontier.points), strict=True)
    assert quality[0] == 1.0
    assert all(a >= b for a, b in pairwise(quality))
    per = cascade.stage_costs(x).amount
    assert cost == pytest.approx([8 * per[0] + k * per[1] for k in (8, 4, 2)])
    assert frontier.reference.cost == pytest.approx(8 * per[1])
    with pytest.raises(InputError, match="at least one query"):
        cascade.frontier(x[:0], relevant[:0], {"all": (8, 2)})


def test_survival_is_at_least_the_product_of_the_stages_chances():
    generator = torch.Generator().manual_seed(0)
    slack = []
    for _ in range(5):
        scores = 1.5 * torch.randn(2, 5, generator=generator)
        exact = plackett_luce_survival(scores, [3, 1])
        bound = plackett_luce_survival(scores, [3, 1], together=False)
        assert_close(exact.sum(), torch.tensor(1.0).double())
        slack.append(exact - bound)
    assert min(float(s.min()) for s in slack) > 0


def test_enumeration_agrees_with_a_case_by_hand():
    # two candidates of three are kept, weights 2, 1, 1: the first is left out with 1/4 * 1/3 * 2
    scores = torch.tensor([[2.0, 1.0, 1.0]]).log()
    found = plackett_luce_survival(scores, [2])
    assert float(found[0]) == pytest.approx(1 - 2 * (1 / 4 * 1 / 3))


def test_no_query_passes_and_odd_input_is_refused():
    cascade = linear_cascade()
    assert cascade.run(features(0)).items.shape == (0, 2)
    with pytest.raises(InputError, match="at most all candidates"):
        cascade.run(features(count=3))
    with pytest.raises(InputError, match="at most all candidates"):
        cascade.run(features(), [4])
    with pytest.raises(InputError, match="fewer and fewer"):
        cascade.run(features(), [2, 4])
    with pytest.raises(InputError, match="as many numbers kept"):
        RankingCascade([Column(0)], [2, 1])
    with pytest.raises(InputError, match="one score for each"):
        RankingCascade([nn.Linear(3, 1)], [2]).run(features())
    with pytest.raises(InputError, match="at least one candidate"):
        cascade.stage_costs(features(0))
    with pytest.raises(InputError, match="at most 7"):
        plackett_luce_survival(torch.zeros(1, 8), [2])
