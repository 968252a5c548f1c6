"""The conservative explorer: the best network so far, with one class of its choices changed.

Zhou et al., "Auto-GNN: Neural Architecture Search of Graph Neural Networks" (2019, arXiv
1909.03184). Choices of one kind in all layers are a class ("width", "attention"). Each class has a
controller that is shown the best network with its own class hidden and draws new options for it;
the class to change is the one whose controller is least sure (highest entropy); controllers learn
by REINFORCE with a moving average of the rewards as baseline; a better network replaces the best.

Departures: a controller is a linear map of the best network's one-hot options, where the paper has
a recurrent network, as searches of hundreds of evaluations leave little to learn from. Entropies
are shares of the largest possible, so that classes with many options are not ahead at the start. A
share of every draw and of the choices of classes is uniform, so that no class and no option
starves. The explorer proposes nothing twice, and where no class holds anything new, two of them
change together, then three; then networks are drawn by chance.

Legend: F options of all choices.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pointsman.errors import InputError
from pointsman.supernet.search.drawing import Drawing
from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Genotype, Space

Array = np.ndarray[Any, np.dtype[np.float64]]

RATE, DECAY = 0.3, 0.8
UNIFORM = 0.2  # share of the draws that is uniform
MOST = 3  # classes that change together, before networks are drawn by chance
TRIES = 50  # draws of a class before it counts as one with nothing new


def last_part(name: str) -> str:
    """The class of a choice by its name: what follows the last dot, "width" of "layers.0.width"."""
    return name.rpartition(".")[2]


def conservative(
    problem: Problem,
    seed: int,
    *,
    first: int = 1,
    rate: float = RATE,
    uniform: float = UNIFORM,
    kind: Callable[[str], str] = last_part,
) -> Proposals:
    """Draws a few networks, then changes one class of the best at a time.

    Only quality counts, within the budget of the problem; the cost is no goal.

    Args:
        problem: what is searched.
        seed: of everything that is drawn.
        first: networks drawn by chance at the start, at least one.
        rate: of the controllers' learning.
        uniform: share of draws, of classes and of options, that is uniform; above 0.
        kind: the class of a choice, by its name.

    Raises:
        InputError: nothing to start from, or no uniform share.
    """
    if first < 1 or not 0 < uniform <= 1:
        raise InputError(
            f"the explorer starts from at least one network and draws a share in (0, 1] uniformly, "
            f"got {first} and {uniform}"
        )
    rng = np.random.default_rng(seed)
    drawing = Drawing(problem, rng)
    controllers = _controllers(problem.space, kind, uniform)
    drawn = yield drawing.draw(first)
    best = _better([each for each in drawn if not each.failed])
    seen: list[float] = [each.quality for each in drawn if not each.failed]
    baseline = float(np.mean(seen)) if seen else 0.0
    while True:
        proposed = None if best is None else _change(best.genotype, controllers, drawing, rng)
        if proposed is None:
            others = drawing.draw(1)
            if not others:
                return
            proposed = (), others[0]
        changed, genotype = proposed
        drawing.take([genotype])
        answer = (yield [genotype])[0]
        quality = min(seen, default=0.0) if answer.failed else answer.quality
        seen.append(quality)
        advantage = (quality - baseline) / (float(np.std(seen)) or 1.0)
        for controller in changed:
            assert best is not None
            controller.learn(best.genotype, genotype, rate * advantage)
        baseline = DECAY * baseline + (1 - DECAY) * quality
        best = _better([each for each in (best, answer) if each is not None and not each.failed])


def _better(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The first of the best."""
    return max(evaluations, key=lambda each: each.quality, default=None)


class _Controller:
    """A policy for the choices of one class, given the options of the others.

    Args:
        space: of the genotypes.
        places: of the choices of the class.
        uniform: share of its draws that is uniform.
    """

    def __init__(self, space: Space, places: Sequence[int], uniform: float) -> None:
        self.space, self.places, self.uniform = space, tuple(places), uniform
        self.slopes = {
            place: np.zeros((len(space.choices[place].options), int(space.starts[-1]) + 1))
            for place in places
        }

    def shown(self, genotype: Genotype) -> Array:
        """(F + 1,) options of the other classes, and a constant; unit length."""
        shown_F = np.append(self.space.features([genotype])[0], 1.0)
        for place in self.places:
            shown_F[self.space.starts[place] : self.space.starts[place + 1]] = 0
        return np.asarray(shown_F / np.linalg.norm(shown_F))

    def chances(self, genotype: Genotype, place: int) -> Array:
        """Of the options of one choice."""
        logits = self.slopes[place] @ self.shown(genotype)
        raised = np.exp(logits - logits.max())
        return np.asarray((1 - self.uniform) * raised / raised.sum() + self.uniform / len(raised))

    def unsure(self, genotype: Genotype) -> float:
        """Mean entropy over the class's choices, as a share of the largest."""
        shares = []
        for place in self.places:
            chance = self.chances(genotype, place)
            shares.append(-(chance * np.log(chance)).sum() / max(np.log(len(chance)), 1e-9))
        return float(np.mean(shares))

    def draw(
        self, genotype: Genotype, times: int, rng: np.random.Generator
    ) -> dict[int, list[int]]:
        """New options by place, so many times."""
        chances = {place: self.chances(genotype, place) for place in self.places}
        return {n: rng.choice(len(p), times, p=p).tolist() for n, p in chances.items()}

    def learn(self, shown: Genotype, drawn: Genotype, step: float) -> None:
        """One step along the gradient of the log-probability of what was drawn."""
        for place in self.places:
            slope = -self.chances(shown, place)
            slope[drawn[place]] += 1
            self.slopes[place] += step * np.outer(slope, self.shown(shown))


def _controllers(space: Space, kind: Callable[[str], str], uniform: float) -> list[_Controller]:
    """One for each class that holds a choice between options."""
    classes: dict[str, list[int]] = {}
    for place, choice in enumerate(space.choices):
        if len(choice.options) > 1:
            classes.setdefault(kind(choice.name), []).append(place)
    return [_Controller(space, places, uniform) for places in classes.values()]


def _change(
    best: Genotype,
    controllers: Sequence[_Controller],
    drawing: Drawing,
    rng: np.random.Generator,
) -> tuple[tuple[_Controller, ...], Genotype] | None:
    """The controllers of as few classes as hold something new, and the network they drew."""
    for number in range(1, min(MOST, len(controllers)) + 1):
        groups = list(combinations(controllers, number))
        groups = [groups[at] for at in rng.permutation(len(groups))]
        if rng.random() >= controllers[0].uniform:
            groups.sort(key=lambda group: -sum(each.unsure(best) for each in group))
        for group in groups:
            columns: dict[int, list[int]] = {}
            for controller in group:
                columns.update(controller.draw(best, TRIES, rng))
            for at in range(TRIES):
                child = [columns[n][at] if n in columns else old for n, old in enumerate(best)]
                genotype = drawing.problem.space.canonical(child)
                if drawing.new(genotype):
                    return group, genotype
    return None
