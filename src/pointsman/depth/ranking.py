"""A cascade of rankers: each stage scores what the one before kept, and keeps fewer.

The run that `pointsman.learn.CascadeLosses` trains for. A candidate that is dropped is not scored
again, so dear stages see few candidates.

Legend: n queries, N candidates of one, m of them still there, S stages, q kept, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.cost import Cost, count_flops
from pointsman.errors import InputError
from pointsman.frontier.points import Frontier, Knob, Outcomes
from pointsman.learn.ranking import check_keep
from pointsman.modules import evaluating
from pointsman.route import Route


@dataclass(frozen=True, eq=False)
class Ranked:
    """What a cascade kept, and who was scored by which stage.

    Attributes:
        items: (n, q) int64 candidates that the last stage kept, best first.
        route: over n * N candidates (those of a query together) and S stages: the stages that
            scored each, with weight 1 at the last stage for those that it kept, else 0.
    """

    items: Tensor
    route: Route

    def recall(self, relevant_nN: Tensor) -> Tensor:
        """(n,) share of each query's relevant candidates that were kept; 1 where it has none."""
        found_n = relevant_nN.gather(1, self.items).sum(dim=1)
        wanted_n = relevant_nN.sum(dim=1)
        return torch.where(wanted_n > 0, found_n / wanted_n.clamp_min(1), 1.0)


class RankingCascade(nn.Module):
    """Rankers in order, the cheap ones first.

    Args:
        stages: S modules, features (n, m, D) -> scores (n, m); a candidate's score must not depend
            on the others, or training on all of them would not be what runs.
        keep: q of each stage, not rising.

    Raises:
        InputError: another number of stages than of kept candidates, or these rise.
    """

    def __init__(self, stages: Sequence[nn.Module], keep: Sequence[int]) -> None:
        super().__init__()
        self.keep = check_keep(keep)
        if len(stages) != len(self.keep):
            raise InputError(f"{len(stages)} stages need as many numbers kept, got {list(keep)}")
        self.stages = nn.ModuleList(stages)

    def forward(self, x_nND: Tensor) -> list[Tensor]:
        """Scores (n, N) of all candidates by every stage; for training."""
        return [stage(x_nND) for stage in self.stages]

    def run(self, x_nND: Tensor, keep: Sequence[int] | None = None) -> Ranked:
        """Rank in evaluation mode without gradients; stages score only what is left.

        Args:
            x_nND: features of every candidate; n may be 0.
            keep: q of each stage instead of the cascade's own.

        Raises:
            InputError: features of another shape, more kept than there are, or scores of another
                shape than the candidates.
        """
        kept = self.keep if keep is None else check_keep(keep)
        if x_nND.ndim != 3 or len(kept) != len(self.stages) or kept[0] > x_nND.shape[1]:
            raise InputError(
                f"{len(self.stages)} stages rank features (queries, candidates, width) and keep at "
                f"most all candidates, got shape {tuple(x_nND.shape)} and {list(kept)} kept"
            )
        with evaluating(self), torch.no_grad():
            return self._run(x_nND, kept)

    def _run(self, x_nND: Tensor, kept: Sequence[int]) -> Ranked:
        queries, count = x_nND.shape[:2]
        items_nm = torch.arange(count, device=x_nND.device).expand(queries, count)
        first_n1 = torch.arange(queries, device=x_nND.device)[:, None] * count
        visits, weights = [], []
        for stage, q in zip(self.stages, kept, strict=True):
            index = items_nm[:, :, None].expand(-1, -1, x_nND.shape[2])
            scores_nm = stage(x_nND.gather(1, index))
            if scores_nm.shape != items_nm.shape:
                raise InputError(
                    f"a stage gives one score for each of {tuple(items_nm.shape)} candidates, "
                    f"got {tuple(scores_nm.shape)}"
                )
            best_nq = scores_nm.topk(q, dim=1).indices
            visits.append((first_n1 + items_nm).flatten())
            weights.append(torch.zeros_like(scores_nm).scatter(1, best_nq, 1.0).flatten())
            items_nm = items_nm.gather(1, best_nq)
        weights[:-1] = [torch.zeros_like(weight) for weight in weights[:-1]]
        route = Route.from_triples(
            torch.cat(visits),
            torch.cat([torch.full_like(at, stage) for stage, at in enumerate(visits)]),
            torch.cat(weights),
            num_inputs=queries * count,
            num_branches=len(self.stages),
        )
        return Ranked(items_nm, route)

    def stage_costs(self, example_nND: Tensor) -> Cost:
        """MFLOPs for each candidate that a stage scores, amount (S,).

        Raises:
            InputError: an example without candidates.
        """
        candidates = example_nND.shape[0] * example_nND.shape[1]
        if candidates == 0:
            raise InputError("FLOPs are counted on at least one candidate, got none")
        counted = [float(count_flops(stage, example_nND)) for stage in self.stages]
        return Cost(np.array(counted) / candidates, "MFLOPs")

    def frontier(
        self,
        x_nND: Tensor,
        relevant_nN: Tensor,
        settings: Mapping[Knob, Sequence[int]],
        *,
        name: str = "cascade",
    ) -> Frontier:
        """Recall per query against MFLOPs per query, for several choices of how many to keep.

        The reference is the last stage on all candidates, keeping as many as it does here.

        Args:
            x_nND: features of at least one query.
            relevant_nN: bool.
            settings: knob -> numbers kept, from the safest to the cheapest.
            name: of the frontier.

        Raises:
            InputError: no query, or settings that do not fit.
        """
        if len(x_nND) == 0:
            raise InputError("a frontier needs at least one query, got none")
        costs, count = self.stage_costs(x_nND[:1]), x_nND.shape[1]
        quality, cost = [], []
        for kept in settings.values():
            ranked = self.run(x_nND, kept)
            quality.append(ranked.recall(relevant_nN).numpy(force=True))
            spent = np.asarray(ranked.route.cost(costs).amount)
            cost.append(spent.reshape(len(x_nND), count).sum(axis=1))
        last = RankingCascade([self.stages[-1]], [self.keep[-1]])
        whole = last.run(x_nND).recall(relevant_nN).numpy(force=True)
        spent_last = float(np.asarray(costs.amount)[-1]) * count
        outcomes = Outcomes(
            tuple(settings),
            np.stack(quality),
            np.stack(cost),
            whole,
            np.full(len(x_nND), spent_last),
            costs.unit,
        )
        return Frontier.from_outcomes(name, outcomes)


def plackett_luce_survival(
    scores_SN: Tensor, keep: Sequence[int], *, together: bool = True
) -> Tensor:
    """Chance of each candidate to survive stages that draw what they keep, by enumeration.

    A stage draws q of the candidates it is shown one after the other from the softmax of their
    scores, without putting back. The readable reference behind the bound that training uses.

    Args:
        scores_SN: (S, N) with N at most 7, as all orders are gone through.
        keep: q of each stage.
        together: stages are shown what is left; False: all candidates, and chances are multiplied,
            which is never more.

    Returns:
        (N,)

    Raises:
        InputError: more than 7 candidates.
    """
    count = scores_SN.shape[1]
    if count > 7:
        raise InputError(f"enumeration takes at most 7 candidates, got {count}")
    alive: dict[tuple[int, ...], float] = {tuple(range(count)): 1.0}
    product = torch.ones(count, dtype=torch.float64)
    for scores, q in zip(scores_SN.double().exp().tolist(), check_keep(keep), strict=True):
        after: dict[tuple[int, ...], float] = {}
        for shown, chance in alive.items() if together else [(tuple(range(count)), 1.0)]:
            for drawn in permutations(shown, q):
                left, draw = sum(scores[v] for v in shown), chance
                for v in drawn:
                    draw *= scores[v] / left
                    left -= scores[v]
                kept = tuple(sorted(drawn))
                after[kept] = after.get(kept, 0.0) + draw
        alive = after
        own = torch.zeros(count, dtype=torch.float64)
        for kept, chance in alive.items():
            own[list(kept)] += chance
        product = own if together else product * own
    return product
