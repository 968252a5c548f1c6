"""What sums up a strategy's settings, each with a bootstrap interval over queries.

Definitions are those of `frontier.metrics` and of the papers named there; what is measured here is
made comparable by one range of cost, one pair of ends and the same resampled queries for all.

- `aiq`: mean height of the hull between the cost of the cheapest model and that of the reference.
- `gain`: the same less that of the zero router, which mixes the models by chance.
- `apgr`, `cpt50`, `cpt80`: along the share of calls that the reference gets where there are two
  models, along the share of the range of cost where there are more.
- `deferral_area`: mean quality along the same shares (Gupta et al. 2024, arXiv:2404.10136).
- `perf_gain`, `cost_save`: LLMRouterBench (2026, arXiv:2601.07206): the best quality over the best
  single model's, and the cost saved by the cheapest setting that is no worse than it.
- `oracle_gap`: share of the oracle's quality that the best setting misses.

Legend: B samples of queries (the first is the log itself), S settings, N queries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pointsman.errors import UnreachableError
from pointsman.frontier import Outcomes, apgr, cpt

Array = npt.NDArray[np.float64]

RESAMPLES = 400
SEED = 11
LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """A figure with its bootstrap interval; None where it is not defined on most samples."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """As plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, eq=False)
class Sample:
    """Settings and models as one sample of queries sees them.

    Args:
        quality: (S,) of the settings.
        cost: (S,)
        calls: (S,) share of queries that the reference answered or was asked about.
        single_quality: (M,) of each model alone.
        single_cost: (M,)
        reference: column of the reference.
        oracle: quality of the best model for each query, in hindsight.
    """

    quality: Array
    cost: Array
    calls: Array
    single_quality: Array
    single_cost: Array
    reference: int
    oracle: float

    @property
    def weak(self) -> int:
        """The cheapest model."""
        return int(self.single_cost.argmin())


Measure = Callable[[Sample], float | None]


def aiq(sample: Sample) -> float | None:
    """Mean height of the settings' hull over the range of cost."""
    return _height(sample.cost, sample.quality, *_range(sample))


def gain(sample: Sample) -> float | None:
    """Mean height over the zero router's: what looking at the queries is worth."""
    zero = _height(sample.single_cost, sample.single_quality, *_range(sample))
    own = _height(sample.cost, sample.quality, *_range(sample))
    return None if zero is None or own is None else own - zero


def average_gap(sample: Sample) -> float | None:
    """APGR: average of the gap between the ends that is recovered."""
    weak, strong = _ends(sample)
    if not strong > weak:
        return None
    share, quality = _shares(sample)
    return apgr(share, quality, weak=weak, strong=strong)


def deferral_area(sample: Sample) -> float | None:
    """Area under the deferral curve: mean quality over the share of the reference."""
    weak, strong = _ends(sample)
    recovered = average_gap(sample)
    return None if recovered is None else weak + recovered * (strong - weak)


def call_threshold(target: float) -> Measure:
    """CPT: the least share of the reference that recovers `target` of the gap."""

    def measure(sample: Sample) -> float | None:
        weak, strong = _ends(sample)
        if not strong > weak:
            return None
        share, quality = _shares(sample)
        try:
            return cpt(share, quality, target, weak=weak, strong=strong)
        except UnreachableError:
            return None

    return measure


def perf_gain(sample: Sample) -> float | None:
    """Best quality over all settings against the best single model's."""
    best = float(sample.single_quality.max())
    return None if best <= 0 else float(sample.quality.max()) / best - 1


def cost_save(sample: Sample) -> float | None:
    """Cost saved by the cheapest setting that is no worse than the best single model."""
    best = int(sample.single_quality.argmax())
    enough = sample.quality >= sample.single_quality[best] - 1e-12
    if not enough.any() or sample.single_cost[best] <= 0:
        return None
    return 1 - float(sample.cost[enough].min() / sample.single_cost[best])


def oracle_gap(sample: Sample) -> float | None:
    """Share of the oracle's quality that the best setting misses."""
    return None if sample.oracle <= 0 else 1 - float(sample.quality.max()) / sample.oracle


MEASURES: Mapping[str, Measure] = {
    "aiq": aiq,
    "gain": gain,
    "apgr": average_gap,
    "deferral_area": deferral_area,
    "cpt50": call_threshold(0.5),
    "cpt80": call_threshold(0.8),
    "perf_gain": perf_gain,
    "cost_save": cost_save,
    "oracle_gap": oracle_gap,
}


class Bootstrap:
    """Samples of the same queries for every strategy, so that their figures can be compared.

    Args:
        singles: (M, N) qualities and costs of each model alone, as outcomes.
        reference: the model whose quality is to be kept.
        resamples: how often queries are drawn anew.
        seed: of the draws.
    """

    def __init__(
        self, singles: Outcomes, reference: int, *, resamples: int = RESAMPLES, seed: int = SEED
    ) -> None:
        self.reference = reference
        n = len(singles)
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        self.weights_BN = np.concatenate([np.ones((1, n)), draws]) / n
        self.single_quality_BM = self.weights_BN @ singles.quality.T
        self.single_cost_BM = self.weights_BN @ singles.cost.T
        self.oracle_B = self.weights_BN @ singles.quality.max(axis=0)

    def figures(self, outcomes: Outcomes, calls: Array) -> dict[str, Figure]:
        """Every measure of a strategy's settings.

        Args:
            outcomes: (S, N) on the queries of the singles.
            calls: (S, N) whether the reference was asked.
        """
        quality_BS = self.weights_BN @ outcomes.quality.T
        cost_BS = self.weights_BN @ outcomes.cost.T
        calls_BS = self.weights_BN @ calls.T
        samples = [
            Sample(
                quality_BS[at],
                cost_BS[at],
                calls_BS[at],
                self.single_quality_BM[at],
                self.single_cost_BM[at],
                self.reference,
                float(self.oracle_B[at]),
            )
            for at in range(len(self.weights_BN))
        ]
        return {
            name: _figure([measure(sample) for sample in samples])
            for name, measure in MEASURES.items()
        }


def advantage(outcomes: Outcomes, singles: Outcomes) -> float:
    """What strategies are ranked by on validation: the height that they add to the zero router's.

    Unlike `gain`, a strategy may be mixed with models alone, as a policy does: one that helps on a
    part of the range of cost is not blamed for the rest.
    """
    both = Outcomes.join([outcomes, singles])
    low, high = float(singles.cost.mean(axis=1).min()), float(singles.reference_cost.mean())
    found = [
        _height(each.cost.mean(axis=1), each.quality.mean(axis=1), low, high)
        for each in (both, singles)
    ]
    if found[0] is None or found[1] is None:  # the reference is the cheapest: only quality counts
        return float(both.quality.mean(axis=1).max() - singles.quality.mean(axis=1).max())
    return found[0] - found[1]


def corners(cost: Array, quality: Array) -> npt.NDArray[np.int64]:
    """Places of the corners of the concave, rising hull, by ascending cost."""
    kept: list[int] = []
    for at in np.lexsort((-quality, cost)):
        if kept and quality[at] <= quality[kept[-1]]:
            continue
        while len(kept) > 1 and _below(cost, quality, kept[-2], kept[-1], at):
            kept.pop()
        kept.append(int(at))
    return np.array(kept)


def height_at(
    at: npt.ArrayLike, cost: Array, quality: Array, hull: npt.NDArray[np.int64] | None = None
) -> Array:
    """Quality that mixing settings by chance reaches at costs; the ends stay flat."""
    hull = corners(cost, quality) if hull is None else hull
    height: Array = np.interp(np.asarray(at, dtype=np.float64), cost[hull], quality[hull])
    return height


def _below(cost: Array, quality: Array, left: int, middle: int, right: int) -> bool:
    """Whether the middle point is on or below the line from left to right."""
    rise = (quality[middle] - quality[left]) * (cost[right] - cost[left])
    return bool(rise <= (quality[right] - quality[left]) * (cost[middle] - cost[left]))


def _range(sample: Sample) -> tuple[float, float]:
    return float(sample.single_cost.min()), float(sample.single_cost[sample.reference])


def _height(cost: Array, quality: Array, low: float, high: float) -> float | None:
    """Mean height of the hull from `low` to `high`; 0 where nothing is cheap enough to answer."""
    if not high > low:
        return None
    hull = corners(cost, quality)
    start = min(max(low, float(cost[hull[0]])), high)
    inside = cost[hull][(cost[hull] > start) & (cost[hull] < high)]
    at = np.concatenate([[start], inside, [high]])
    heights = height_at(at, cost, quality, hull)
    return float(np.sum(np.diff(at) * (heights[1:] + heights[:-1]) / 2)) / (high - low)


def _ends(sample: Sample) -> tuple[float, float]:
    weak, strong = sample.weak, sample.reference
    return float(sample.single_quality[weak]), float(sample.single_quality[strong])


def _shares(sample: Sample) -> tuple[Array, Array]:
    """The curve of quality over the share of the reference, within [0, 1]."""
    if len(sample.single_cost) == 2:
        share = sample.calls
    else:
        low, high = _range(sample)
        share = (sample.cost - low) / (high - low) if high > low else np.zeros_like(sample.cost)
    inside = (share >= 0) & (share <= 1)
    return share[inside], sample.quality[inside]


def _figure(values: list[float | None]) -> Figure:
    known = np.array([value for value in values[1:] if value is not None])
    if values[0] is None or 2 * len(known) < len(values) - 1:
        return Figure(values[0])
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Figure(values[0], float(low), float(high))
