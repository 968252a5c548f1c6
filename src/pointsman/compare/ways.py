"""The ways to spend less: what each is made of, and the settings that are worth a look.

A way is a row of stages with their costs, whatever it is made of: the ladder's members, the exits
of one network, the widths of another, the numbers of experts of a third. A setting is one threshold
for each stage (see `pointsman.run`) on what a stopping rule says, so that all ways are measured,
certified, saved and served by the same code.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pointsman.compare.data import Array, Kind
from pointsman.compare.judging import judge
from pointsman.compare.rules import PATIENCE, USUAL, rules_for
from pointsman.cost import Cost, compare_latency, count_flops
from pointsman.frontier import Frontier, Outcomes, Point, safest_first, standard_error
from pointsman.run import Stage, StageCosts, State, outcomes_of_stages, subset_thresholds

TITLES = {
    "dense": "Plain networks, one alone",
    "cascade": "Cascade of the plain networks",
    "exits": "Early exits of one network",
    "skips": "Layers skipped by routers",
    "nested": "Subnets of one elastic network",
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


@dataclass(frozen=True, eq=False)
class Answers:
    """What every stage of a way answered on one part, (S, n) each.

    sureness by rule and quality lie in [0, 1]; loss is the cross entropy in nats, by which networks
    of equal quality are told apart; spent is what each input cost where a stage's cost depends on
    the input, and NaN where it does not.
    """

    sureness: Mapping[str, Tensor]
    quality: Tensor
    loss: Tensor
    spent: Tensor


@runtime_checkable
class Spending(Protocol):
    """The answer of a stage whose cost depends on the input."""

    def spend(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and MFLOPs per input (n,); per token of it for text."""
        ...


@dataclass(frozen=True)
class Setting:
    """Thresholds (S,) on what a rule says; the rule does not matter where one stage answers all."""

    thresholds: tuple[float, ...]
    rule: str = USUAL


@dataclass(frozen=True, eq=False)
class Way:
    """A way to spend less.

    Attributes:
        name: "cascade", ...
        stage_names: S names, from cheap to dear.
        stages: S stages, sharing one state.
        costs: of each stage, per input.
        settings: by knob, from the safest to the cheapest.
    """

    name: str
    stage_names: tuple[str, ...]
    stages: tuple[Stage, ...]
    costs: StageCosts
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def outcomes(self, answers: Answers, reference: Array, reference_cost: float) -> Outcomes:
        """Every setting on one part, beside the reference's quality (n,) on the same inputs."""
        return replace(
            self._outcomes(answers, self.settings),
            knobs=tuple(f"{self.name}: {knob}" for knob in self.settings),
            reference_quality=reference,
            reference_cost=np.full(len(reference), reference_cost),
        )

    def _outcomes(self, answers: Answers, settings: Mapping[str, Setting]) -> Outcomes:
        """Settings of any rules, in their order, beside the last stage."""
        parts = []
        for rule in dict.fromkeys(setting.rule for setting in settings.values()):
            limits = {knob: s.thresholds for knob, s in settings.items() if s.rule == rule}
            sure = answers.sureness[rule]
            parts.append(outcomes_of_stages(sure, answers.quality, self.costs, limits))
        found = Outcomes.join(parts).choose(list(settings))
        if self.costs.advance.unit != "MFLOPs" or bool(answers.spent.isnan().all()):
            return found
        alone = [setting.thresholds.index(-math.inf) for setting in settings.values()]
        return replace(found, cost=answers.spent[alone].double().numpy())

    def with_settings(self, validation: Answers) -> "Way":
        """The way with the settings that are worth a look by their validation answers.

        Candidates are every stage alone and, for ways that ask in turn, every chain of two or three
        stages at every threshold of a grid on every stopping rule. Kept are those on the Pareto set
        of mean cost against cautious quality, which is the mean less one standard error of the loss
        against the chain's own last stage: of settings that tie on a small validation set, the one
        that departs less counts as better.
        """
        rules = list(validation.sureness) if self.name in ASKED_IN_TURN else [USUAL]
        front = [found for rule in rules for found in self._front(validation, rule)]
        named = {str(point.knob): setting for point, setting in front}
        best = Frontier(self.name, tuple(point for point, _ in front), self.costs.advance.unit)
        kept = [point.knob for point in reversed(thin(best.pareto().points, MOST_SETTINGS))]
        return replace(self, settings={str(knob): named[str(knob)] for knob in kept})

    def _front(self, validation: Answers, rule: str) -> list[tuple[Point, Setting]]:
        """The Pareto set of one rule's candidates, of mean cost against cautious quality."""
        named = self._candidates(validation.sureness[rule], rule)
        found = self._outcomes(validation, named)
        last = [
            max(s for s, t in enumerate(setting.thresholds) if t < math.inf)
            for setting in named.values()
        ]
        change = found.quality - validation.quality.double().numpy()[last]
        cautious = found.quality.mean(axis=1) - standard_error(change)
        points = tuple(
            Point(knob, float(quality), float(cost))
            for knob, quality, cost in zip(named, cautious, found.cost.mean(axis=1), strict=True)
        )
        front = Frontier(self.name, points, found.unit).pareto().points
        return [(point, named[str(point.knob)]) for point in front]

    def _candidates(self, sureness: Tensor, rule: str) -> dict[str, Setting]:
        """Every stage alone (once, under the usual rule), and every chain of up to three."""
        count, mark = len(self.stages), "" if rule == USUAL else f"{rule} "
        found = {}
        if rule == USUAL and self.name != "cascade":  # a member alone is the way "dense"
            for at in range(count):
                found[self.stage_names[at]] = Setting(subset_thresholds([at], [], count))
        if self.name not in ASKED_IN_TURN:
            return found
        # what patience remembers was said by all stages: it is tried where all are asked
        lengths = [count] if rule == PATIENCE else range(2, min(LONGEST_CHAIN, count) + 1)
        for length in lengths:
            for chain in combinations(range(count), length):
                names = " > ".join(self.stage_names[at] for at in chain)
                names = "all in turn" if rule == PATIENCE else names
                for limit in _grid(sureness[list(chain[:-1])]):
                    limits = subset_thresholds(chain, [limit] * (length - 1), count)
                    found[f"{names} @ {mark}{limit:.4f}"] = Setting(limits, rule)
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
    """Run every stage on every input, in batches, and judge what it answers."""
    rules = rules_for(kind)
    judged, spent = [], []
    with torch.no_grad():
        for inputs, targets in zip(
            torch.split(x, ROWS_AT_ONCE), torch.split(y, ROWS_AT_ONCE), strict=True
        ):
            state, rows, costs = inputs, [], []
            memory: dict[str, State] = {}
            for at, stage in enumerate(stages):
                state = stage.advance(state) if stage.advance is not None else state
                logits, cost = answer_and_spend(stage.answer, state)
                sure = []
                for name, rule in rules.items():
                    row, memory[name] = rule.sureness(logits, at, memory.get(name))
                    sure.append(row)
                rows.append(torch.stack([*sure, *judge(logits, targets, kind)]))
                costs.append(cost)
            judged.append(torch.stack(rows, dim=1))  # (rules + 2, S, n)
            spent.append(torch.stack(costs))
    *sureness, quality, loss = torch.cat(judged, dim=2)
    by_rule = dict(zip(rules, sureness, strict=True))
    return Answers(by_rule, quality, loss, torch.cat(spent, dim=1))


def answer_and_spend(answer: Callable[[Tensor], Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and what each input spent, (n,) float64: NaN where the stage has one cost for all."""
    if isinstance(answer, Spending):
        return answer.spend(state)
    return answer(state), torch.full((len(state),), math.nan, dtype=torch.float64)


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
