"""A new policy tried on what was served before it goes live.

Legend: N rows, M models.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pointsman.errors import InputError, UnreachableError
from pointsman.pool.online.bandit import Array
from pointsman.pool.online.estimates import (
    DEFAULT,
    Checks,
    Estimate,
    doubly_robust,
    effective_rows,
    inverse_propensity,
    self_normalized,
    weights,
)
from pointsman.pool.online.served import Row, Served, columns
from pointsman.pool.routers.router import Prediction

if TYPE_CHECKING:
    from pointsman.pool.policy import PoolPolicy

CHUNK = 1000  # queries that are encoded at once
MISFIT = 4.0  # standard errors by which the mean weight may miss what it should be
NEAR = 0.02  # and a difference that is let pass in any case


@dataclass(frozen=True)
class Replay:
    """What a policy would have reached on the queries of a served log.

    Args:
        point: of the policy.
        unit: of the costs.
        rows: that could be used.
        feedbacks: rows among them with a quality.
        left_out: why other rows could not be used, to how many.
        served_quality: mean of the feedbacks, as it was.
        served_cost: mean cost, as it was.
        quality: method to estimate.
        cost: method to estimate.
        gain: estimated quality less what was served, on the same rows; None where it is refused.
        effective: rows of the policy's own log that tell as much of its quality.
        uncovered: share of its choices of which the log cannot speak.
        shares: model to (share of the rows served, share that the policy would send).
        refused: why there is no estimate, in words; empty where there are some.
    """

    point: str
    unit: str
    rows: int
    feedbacks: int
    left_out: Mapping[str, int]
    served_quality: float
    served_cost: float
    quality: Mapping[str, Estimate]
    cost: Mapping[str, Estimate]
    gain: Estimate | None
    effective: float
    uncovered: float
    shares: Mapping[str, tuple[float, float]]
    refused: str

    def words(self) -> str:
        """The outcome in a few sentences, with what it assumes."""
        said = (
            f"{self.rows:,} served requests, {self.feedbacks:,} of them with feedback: quality was "
            f"{_shown(self.served_quality)} at {_shown(self.served_cost)} {self.unit} a request. "
        )
        if self.refused:
            return f"{said}Point {self.point!r} cannot be judged from them: {self.refused}."
        best = self.quality["doubly robust"]
        said += (
            f"Point {self.point!r} would have reached a quality of {best.value:.4f} "
            f"({best.confidence * 100:g}% interval {best.low:.4f} to {best.high:.4f}, "
            f"{best.effective:,.0f} effective rows)"
        )
        if "doubly robust" in self.cost:
            said += f" at {self.cost['doubly robust'].value:.4g} {self.unit}"
        said += ". "
        if self.gain is not None:
            said += f"Against what was served that is {_judged(self.gain)}. "
        return said + (
            "This takes propensities as logged, and feedback not to depend on how good an answer "
            "was, other than through query and model."
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def replay(
    policy: "PoolPolicy",
    served: Iterable[Row],
    *,
    point: str = "certified",
    checks: Checks = DEFAULT,
) -> Replay:
    """Estimate quality and cost of a policy's point from a log that another policy made.

    The policy decides every query again, over the chance of its mixture: t_im is the probability
    that model m answers query i. Where it would ask a model and then look at the answer before it
    goes on, the log cannot tell what comes next: such choices count as uncovered, as do models that
    had no chance in the log. Estimates are those of `estimates`; the policy's own predictions serve
    the doubly robust ones, which is sound because they were not fitted on these rows.

    A row in which the first answer was judged before it was given (`how` is "cascade") says what
    nobody asks for here, a model's answer given outright: it has a weight of 0. It may not be left
    out, since whether it stopped or went on depends on the answer. Rows that do not say how they
    came about count as given outright.

    Args:
        policy: to be tried.
        served: rows as the gateway logs them: id, query, task, model, how, propensity,
            propensities, cost, quality; others are left aside.
        point: of the policy.
        checks: when to refuse, and the intervals of quality; those of cost are bootstrapped.

    Raises:
        InputError: no row that can be used, or a cell that is none.

    Returns:
        With `refused` in words, and no estimates, where log and policy overlap too little or the
        propensities logged cannot be right.
    """
    log = columns(served, policy.models)
    target, judged, prediction = decided_again(policy, log, point)
    rows = np.arange(len(log))
    wanted = np.where(log.outright, np.minimum(target[rows, log.chosen], 1.0), 0.0)
    weight = weights(wanted, log.propensity)
    chance = np.where(np.isnan(log.propensities), 1.0, log.propensities)
    blind = judged + np.where(chance > 0, 0.0, target).sum(axis=1)
    known = ~np.isnan(log.quality)
    shares = {
        model: (float((log.chosen == m).mean()), float(target[:, m].mean()))
        for m, model in enumerate(policy.models)
    }
    found = Replay(
        point=point,
        unit=policy.unit,
        rows=len(log),
        feedbacks=int(known.sum()),
        left_out=log.left_out,
        served_quality=_mean(log.quality),
        served_cost=_mean(log.cost),
        quality={},
        cost={},
        gain=None,
        effective=effective_rows(weight[known]),
        uncovered=float(blind.mean()),
        shares=shares,
        refused=_misfit(weight, blind),
    )
    if found.refused:
        return found
    try:
        quality, gain = _estimates(
            log.quality, weight, blind, target, log.chosen, prediction.quality, checks
        )
    except (UnreachableError, InputError) as error:
        return replace(found, refused=str(error).removeprefix("no estimate: "))
    spent = log.cost[~np.isnan(log.cost)]
    bootstrap = replace(
        checks, interval="bootstrap", lowest=0.0, highest=float(spent.max()) if spent.size else 1.0
    )
    try:
        cost, _ = _estimates(
            log.cost, weight, blind, target, log.chosen, prediction.cost, bootstrap
        )
    except (UnreachableError, InputError):  # the log has no costs: quality can be told all the same
        cost = {}
    return replace(found, quality=quality, cost=cost, gain=gain)


def decided_again(policy: "PoolPolicy", log: Served, point: str) -> tuple[Array, Array, Prediction]:
    """What a policy would do with every query, without asking anybody.

    Returns:
        (N, M) probability that the answer of a model is given outright, (N,) probability that it
        would look at an answer first, and the predictions of the strategy with the largest share.

    Raises:
        InputError: no such point, or an encoder that needs more than the text of a query.
    """
    mix = policy.point(point).mix
    main = max(mix, key=lambda share: share.share).strategy
    target, judged = np.zeros((len(log), len(policy.models))), np.zeros(len(log))
    quality, cost = np.empty_like(target), np.empty_like(target)
    for start in range(0, len(log), CHUNK):
        part = slice(start, min(start + CHUNK, len(log)))
        tasks = log.tasks[part] if any(log.tasks) else None
        features = policy.encoder.encode(log.queries[part], tasks)
        predicted = {
            name: policy.strategies[name].predict(features) for name in {s.strategy for s in mix}
        }
        quality[part], cost[part] = predicted[main]
        for share in mix:
            strategy, seen = policy.strategies[share.strategy], predicted[share.strategy]
            for row in range(part.stop - part.start):
                one = Prediction(seen.quality[row : row + 1], seen.cost[row : row + 1])
                step = strategy.step(one, share.setting)
                if step.final:
                    target[start + row, step.model] += share.share
                else:
                    judged[start + row] += share.share
    return target, judged, Prediction(quality, cost)


def _estimates(
    reward: Array,
    weight: Array,
    blind: Array,
    target: Array,
    chosen: Any,
    predicted: Array,
    checks: Checks,
) -> tuple[dict[str, Estimate], Estimate]:
    """Every method on the rows whose reward is known, and the gain over what was served."""
    known = ~np.isnan(reward)
    if known.sum() < 2:
        raise UnreachableError(
            f"no estimate: {int(known.sum())} rows have feedback: send feedback, or wait"
        )
    r, w, t = reward[known], weight[known], target[known]
    q = np.clip(np.where(np.isnan(predicted), 0.0, predicted), checks.lowest, checks.highest)[known]
    # what the policy would do beside its target is worth its prediction, the best guess there is
    rest = np.maximum(1.0 - t.sum(axis=1), 0.0)
    expected = (t * q).sum(axis=1) + rest * q.mean(axis=1)
    own = q[np.arange(len(q)), chosen[known]]
    uncovered = min(float(blind[known].mean()), 1.0)

    def made(method: Callable[..., Estimate], *columns: Array) -> Estimate:
        return method(*columns, uncovered=uncovered, checks=checks)

    found = {"doubly robust": made(doubly_robust, r, w, expected, own)}
    if checks.interval == "bootstrap":
        found["self-normalised"] = made(self_normalized, r, w)
    found["inverse propensity"] = made(inverse_propensity, r, w)
    # the mean of (expected + w (r - own)) - r, as one mean so that its interval is that of a pair
    wide = replace(checks, interval="bootstrap")
    gain = doubly_robust(r, w, expected - r, own, uncovered=uncovered, checks=wide)
    return found, gain


def _misfit(weight: Array, blind: Array) -> str:
    """Why the propensities cannot be right, in words; their weights have a mean that is known."""
    wanted = 1.0 - float(blind.mean())
    found = float(weight.mean())
    error = float(weight.std()) / math.sqrt(len(weight))
    if abs(found - wanted) <= MISFIT * error + NEAR or effective_rows(weight) < 2:
        return ""
    return (
        f"the weights have a mean of {found:.3f} and should have {wanted:.3f}, so the propensities "
        "logged are not those with which models were chosen, or models had no chance that the log "
        "does not tell of"
    )


def _judged(gain: Estimate) -> str:
    """A gain in words."""
    size = f"{gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
    if gain.low > 0:
        return f"better by {size}"
    if gain.high < 0:
        return f"worse by {size}"
    return f"no difference that these rows can tell, {size}"


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _shown(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.4g}"
