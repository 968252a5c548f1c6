"""The ways to spend less: what each is made of, and the settings that are worth a look.

A way is a row of stages with their costs, whatever it is made of: the ladder's members, the exits
of one network, the widths of another, the numbers of experts of a third. A setting is one threshold
for each stage (see `pointsman.run`), so that all ways are measured, certified, saved and served by
the same code.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pointsman.compare.data import Array, Kind
from pointsman.cost import Cost, compare_latency, count_flops
from pointsman.frontier import Frontier, Outcomes, Point, safest_first, standard_error
from pointsman.run import Stage, StageCosts, outcomes_of_stages, subset_thresholds
from pointsman.select import max_probability

TITLES = {
    "dense": "Plain networks, one alone",
    "cascade": "Cascade of the plain networks",
    "exits": "Early exits of one network",
    "nested": "Nested widths of one network",
    "moe": "Mixture of experts",
    "fine-moe": "Fine-grained experts, top-k",
    "relu-moe": "Fine-grained experts by ReLU",
}
# Ways whose stages may be asked in turn; of the others, one stage answers everything.
ASKED_IN_TURN = ("cascade", "exits")
LONGEST_CHAIN = 3
THRESHOLDS_A_CHAIN = 24
MOST_SETTINGS = 14
LONGEST_SEQUENCE = 12
ROWS_AT_ONCE = 256
BITS = 8.0  # quality 0 for text: a byte guessed blindly


@dataclass(frozen=True, eq=False)
class Answers:
    """What every stage of a way answered on one part, (S, n) each.

    confidence and quality lie in [0, 1]; loss is the cross entropy in nats, by which networks of
    equal quality are told apart.
    """

    confidence: Tensor
    quality: Tensor
    loss: Tensor


@dataclass(frozen=True, eq=False)
class Way:
    """A way to spend less.

    Attributes:
        name: "cascade", ...
        stage_names: S names, from cheap to dear.
        stages: S stages, sharing one state.
        costs: of each stage, per input.
        settings: knob → thresholds (S,), from the safest to the cheapest.
    """

    name: str
    stage_names: tuple[str, ...]
    stages: tuple[Stage, ...]
    costs: StageCosts
    settings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def outcomes(self, answers: Answers, reference: Array, reference_cost: float) -> Outcomes:
        """Every setting on one part, beside the reference's quality (n,) on the same inputs."""
        found = outcomes_of_stages(answers.confidence, answers.quality, self.costs, self.settings)
        return replace(
            found,
            knobs=tuple(f"{self.name}: {knob}" for knob in self.settings),
            reference_quality=reference,
            reference_cost=np.full(len(reference), reference_cost),
        )

    def with_settings(self, validation: Answers) -> "Way":
        """The way with the settings that are worth a look by their validation answers.

        Candidates are every stage alone and, for ways that ask in turn, every chain of two or three
        stages at every threshold of a grid. Kept are those on the Pareto set of mean cost against
        cautious quality, which is the mean less one standard error of the loss against the chain's
        own last stage: of settings that tie on a small validation set, the one that departs less
        counts as better.
        """
        names = self._candidates(validation)
        found = outcomes_of_stages(validation.confidence, validation.quality, self.costs, names)
        last = [max(s for s, t in enumerate(row) if t < math.inf) for row in names.values()]
        change = found.quality - validation.quality.double().numpy()[last]
        cautious = found.quality.mean(axis=1) - standard_error(change)
        points = tuple(
            Point(knob, float(quality), float(cost))
            for knob, quality, cost in zip(names, cautious, found.cost.mean(axis=1), strict=True)
        )
        front = Frontier(self.name, points, found.unit).pareto().points
        kept = [point.knob for point in reversed(thin(front, MOST_SETTINGS))]
        return replace(self, settings={str(knob): names[str(knob)] for knob in kept})

    def _candidates(self, validation: Answers) -> dict[str, tuple[float, ...]]:
        count = len(self.stages)
        found = {self.stage_names[at]: subset_thresholds([at], [], count) for at in range(count)}
        if self.name not in ASKED_IN_TURN:
            return found
        for length in range(2, LONGEST_CHAIN + 1):
            for chain in combinations(range(count), length):
                for limit in _grid(validation.confidence[list(chain[:-1])]):
                    knob = " > ".join(self.stage_names[at] for at in chain) + f" @ {limit:.4f}"
                    limits = [limit] * (length - 1)
                    found[knob] = subset_thresholds(chain, limits, count)
        if self.name == "cascade":  # a member alone is the way "dense"
            found = {knob: row for knob, row in found.items() if " > " in knob}
        return found


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many of points sorted by cost: the ends, and about even steps in log cost."""
    if len(points) <= most:
        return list(points)
    logs = np.log(np.maximum([point.cost for point in points], 1e-12))
    marks = np.linspace(logs[0], logs[-1], most)[1:-1]
    nearest = sorted({0, len(points) - 1, *(int(np.abs(logs - mark).argmin()) for mark in marks)})
    return [points[at] for at in nearest]


def testing_order(validation: Outcomes) -> list[str]:
    """The settings to test, safest first: those cheaper than the reference that `safest_first`
    keeps, thinned to steps of about equal ratio, because every further test can end the sequence.
    """
    costs = dict(zip(validation.knobs, validation.cost.mean(axis=1), strict=True))
    limit = float(validation.reference_cost.mean()) * (1 - 1e-9)
    cheaper = [knob for knob, cost in costs.items() if cost < limit]
    if not cheaper:
        return [str(validation.knobs[0])]
    order = safest_first(validation.choose(cheaper))
    points = [Point(knob, 0.0, float(costs[knob])) for knob in reversed(order)]
    return [str(point.knob) for point in reversed(thin(points, LONGEST_SEQUENCE))]


def _grid(confidence: Tensor) -> list[float]:
    """Thresholds that each send a different share of inputs on, rounded to four digits."""
    shares = torch.linspace(0.02, 0.98, THRESHOLDS_A_CHAIN, dtype=torch.float64)
    values = torch.quantile(confidence.double().flatten(), shares)
    return sorted({math.floor(float(value) * 1e4) / 1e4 for value in values})


def answer_all(stages: Sequence[Stage], x: Tensor, y: Tensor, kind: Kind) -> Answers:
    """Run every stage on every input, in batches.

    Quality is 1 where the likeliest class is right; for text it is 1 minus the window's mean bits
    per byte over 8, cut to [0, 1].
    """
    batches = []
    with torch.no_grad():
        for inputs, targets in zip(
            torch.split(x, ROWS_AT_ONCE), torch.split(y, ROWS_AT_ONCE), strict=True
        ):
            state, rows = inputs, []
            for stage in stages:
                state = stage.advance(state) if stage.advance is not None else state
                rows.append(_judge(stage.answer(state), targets, kind))
            batches.append(torch.stack(rows, dim=1))  # (3, S, n)
    return Answers(*torch.cat(batches, dim=2))


def _judge(logits: Tensor, targets: Tensor, kind: Kind) -> Tensor:
    """Confidence, quality and loss of a batch, (3, n)."""
    classes_last = logits.transpose(1, 2) if kind == "text" else logits
    loss = cross_entropy(classes_last, targets, reduction="none")
    if kind == "text":
        loss = loss.mean(dim=1)
        quality = (1 - loss / math.log(2) / BITS).clamp(0, 1)
        return torch.stack([torch.zeros_like(quality), quality, loss])
    right = (logits.argmax(dim=1) == targets).float()
    return torch.stack([max_probability(logits), right, loss])


def stage_costs(stages: Sequence[Stage], example: Tensor, unit: str) -> StageCosts:
    """What each stage spends per input (per token for text): counted FLOPs or measured time.

    Args:
        stages: of one way.
        example: a batch of inputs; text (n, L) counts n * L tokens.
        unit: "MFLOPs", or "ms" at the size of the example batch.
    """
    inputs = example.numel() if example.dtype == torch.uint8 else len(example)
    advance, answer, state = [], [], example
    with torch.no_grad():
        for stage in stages:
            move, before = stage.advance, state
            advance.append(0.0 if move is None else _cost(move, before, unit))
            state = before if move is None else move(before)
            answer.append(_cost(stage.answer, state, unit))
    return StageCosts(Cost(np.array(advance) / inputs, unit), Cost(np.array(answer) / inputs, unit))


def _cost(run: object, state: Tensor, unit: str) -> float:
    assert callable(run)
    if unit == "MFLOPs":
        return float(count_flops(run, state))
    return float(compare_latency({"it": lambda: run(state)}, repeats=9)["it"].median)
