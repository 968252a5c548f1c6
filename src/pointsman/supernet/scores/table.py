"""Scores of many networks, and how each ranks them; parameters and FLOPs are always there."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.scores.agreement import Agreement, partial_agreement, rank_agreement
from pointsman.supernet.scores.gradients import grad_norm, gradsign, jacob_cov, snip, synflow
from pointsman.supernet.scores.outputs import epsinas, flops, naswot, parameters
from pointsman.supernet.space import Genotype

Score = Callable[[nn.Module, Tensor, Tensor], float]
TRIVIAL: tuple[Score, ...] = (parameters, flops)
ZERO_COST: tuple[Score, ...] = (gradsign, grad_norm, snip, synflow, jacob_cov, naswot, epsinas)


@dataclass(frozen=True)
class ScoreTable:
    """What scores gave to genotypes.

    Args:
        genotypes: in the order of the values.
        values: by the score's name; NaN where it failed.
        failures: (score, genotype) to the error.
    """

    genotypes: tuple[Genotype, ...]
    values: Mapping[str, Sequence[float]]
    failures: Mapping[tuple[str, Genotype], str]

    def agreement(
        self, truth: Mapping[Genotype, float], *, resamples: int = 0
    ) -> dict[str, Agreement]:
        """Rank correlation of every score with the truth, parameters and FLOPs among them.

        Args:
            truth: of each genotype here, such as its accuracy when trained alone.
            resamples: of the bootstrap interval; 0: none.

        Raises:
            InputError: a genotype without truth.
        """
        true = self._in_order(truth)
        return {name: _agreement(values, true, resamples) for name, values in self.values.items()}

    def beyond_size(self, truth: Mapping[Genotype, float]) -> dict[str, float]:
        """Spearman's correlation of every score with the truth at equal number of parameters.

        Raises:
            InputError: a genotype without truth.
        """
        true, size = self._in_order(truth), self.values["parameters"]
        rest = {name: each for name, each in self.values.items() if name != "parameters"}
        return {name: partial_agreement(each, true, size) for name, each in rest.items()}

    def _in_order(self, truth: Mapping[Genotype, float]) -> list[float]:
        missing = [genotype for genotype in self.genotypes if genotype not in truth]
        if missing:
            raise InputError(
                f"every scored genotype needs its truth, {len(missing)} have none, such as "
                f"{missing[0]}"
            )
        return [truth[genotype] for genotype in self.genotypes]


def _agreement(values: Sequence[float], truth: Sequence[float], resamples: int) -> Agreement:
    finite = sum(math.isfinite(value) for value in values)
    if finite < 2:
        return Agreement(math.nan, math.nan, finite, len(values) - finite)
    return rank_agreement(values, truth, resamples=resamples)


def score_networks(
    make: Callable[[Genotype], nn.Module],
    genotypes: Iterable[Genotype],
    x: Tensor,
    y: Tensor,
    scores: Sequence[Score] = ZERO_COST,
) -> ScoreTable:
    """Score networks at initialisation on one batch.

    Args:
        make: of a genotype, its network, such as `supernet.extract`.
        genotypes: to score.
        x: (N, ...) inputs.
        y: (N,) labels.
        scores: functions of network, inputs and labels; parameters and FLOPs are added.

    Returns:
        The table. A score that raises, or gives no finite number, is NaN for that genotype.
    """
    taken = tuple(genotypes)
    functions = {score.__name__: score for score in (*TRIVIAL, *scores)}
    values: dict[str, list[float]] = {name: [] for name in functions}
    failures: dict[tuple[str, Genotype], str] = {}
    for genotype in taken:
        network = make(genotype)
        for name, score in functions.items():
            try:
                value = float(score(network, x, y))
            except Exception as error:  # whatever a user's network does under one score
                failures[name, genotype], value = f"{type(error).__name__}: {error}", math.nan
            values[name].append(value if math.isfinite(value) else math.nan)
    return ScoreTable(taken, values, failures)
