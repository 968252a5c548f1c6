"""Poor candidates stopped early, from what their curves show so far.

An evaluation that takes steps, such as epochs of training, reports its quality after each; a rule
looks at the curve and at all earlier ones and says whether to go on. Rules are optuna's pruners
(successive halving, Hyperband, median and others), or a regression of the final quality on the
first part of the curve:

Baker et al., "Accelerating Neural Architecture Search using Performance Prediction" (2017, arXiv
1705.10823). From the qualities y_1 ... y_k of the first k steps, their first and second
differences, and features of the architecture, one regression a step k predicts the final y_T. With
s the standard deviation of its errors on left-out curves, a candidate is stopped where
P(y_T <= best) = Phi((best - predicted) / s) is at least 0.95.

Where we depart: the paper fits on about 100 curves by nu-SVR with hyperparameters searched at
random under cross-validation; so do we, with cross-validated errors instead of leave-one-out.

Legend: N curves, K steps seen, T steps in all, F features.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError, reason
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Genotype

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial

Array = npt.NDArray[np.float64]
Steps = Callable[[Genotype], Iterable[float]]  # quality after each step, as it is reached


class Rule(Protocol):
    """Says when to stop. What it learned depends on the order of evaluations, as given."""

    def stops(self, genotype: Genotype, curve: Sequence[float]) -> bool:
        """Whether to stop here; asked after every step of a genotype."""

    def learn(self, evaluation: Evaluation) -> None:
        """An evaluation has ended, stopped or not."""


def stopping(
    steps: Steps, rule: Rule, known: Iterable[Evaluation] = ()
) -> Callable[[Problem, Iterable[Genotype]], Iterator[Evaluation]]:
    """Evaluate step by step, until a rule says stop: as `search` takes it.

    The quality of a candidate that was stopped is the last that was seen; its curve is shorter.

    Args:
        steps: of a genotype; the last value is its quality. The problem's own is not used.
        rule: says when to stop.
        known: evaluations of an earlier run, in order, from which the rule learns first.
    """
    for each in known:
        rule.learn(each)

    def evaluate(problem: Problem, genotypes: Iterable[Genotype]) -> Iterator[Evaluation]:
        for genotype in genotypes:
            each = _evaluate(problem, genotype, steps, rule)
            rule.learn(each)
            yield each

    return evaluate


def _evaluate(problem: Problem, genotype: Genotype, steps: Steps, rule: Rule) -> Evaluation:
    cost, curve, failure = problem.cost(genotype), list[float](), ""
    try:
        for value in steps(genotype):
            curve.append(float(value))
            if math.isnan(curve[-1]) or rule.stops(genotype, curve):
                break
    except Exception as error:  # whatever a user's network does for one choice
        failure = f"{type(error).__name__}: {reason(error)}"
    if not failure and (not curve or math.isnan(curve[-1])):
        failure = "the quality is not a number" if curve else "no step was reported"
    quality = math.nan if failure else curve[-1]
    return Evaluation(genotype, quality, cost, failure, tuple(curve))


class ByPruner:
    """One of optuna's pruners as a rule.

    Args:
        pruner: such as `optuna.pruners.SuccessiveHalvingPruner()` or `HyperbandPruner(...)`.

    Raises:
        InputError: optuna is not installed.
    """

    def __init__(self, pruner: "BasePruner") -> None:
        try:
            import optuna
        except ImportError as error:
            raise InputError('pruners need optuna: pip install "pointsman[search]"') from error
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:  # a name of its own: Hyperband draws brackets from it
            self.study = optuna.create_study(
                study_name="curves", direction="maximize", pruner=pruner
            )
        finally:
            optuna.logging.set_verbosity(before)
        self._running: dict[Genotype, Trial] = {}
        self._stopped = False  # at the last look

    def stops(self, genotype: Genotype, curve: Sequence[float]) -> bool:
        """As the pruner says."""
        if genotype not in self._running:
            self._running[genotype] = self.study.ask()
        trial = self._running[genotype]
        trial.report(curve[-1], len(curve) - 1)
        self._stopped = trial.should_prune()
        return self._stopped

    def learn(self, evaluation: Evaluation) -> None:
        """Tell the pruner's study, with the whole curve if it was not seen step by step."""
        from optuna.trial import TrialState

        if evaluation.genotype not in self._running:
            for seen in range(len(evaluation.curve)):
                self.stops(evaluation.genotype, evaluation.curve[: seen + 1])
        trial = self._running.pop(evaluation.genotype, None) or self.study.ask()
        if evaluation.failed:
            self.study.tell(trial, state=TrialState.FAIL)
        elif self._stopped:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, evaluation.quality)
        self._stopped = False


class CurveRegression:
    """The final quality from the first K values of a curve and from features, with its spread.

    Args:
        candidates: settings of the regression that are tried under cross-validation.
        folds: of the cross-validation.
        seed: of both.

    Attributes:
        model_: fitted scikit-learn estimator.
        spread_: standard deviation of its errors on curves left out.
        steps_: K.
    """

    def __init__(self, candidates: int = 20, folds: int = 5, seed: int = 0) -> None:
        self.candidates, self.folds, self.seed = candidates, folds, seed

    def fit(self, curves_NK: Array, final_N: Array, features_NF: Array | None = None) -> Self:
        """Learn from curves that ran to their end.

        Args:
            curves_NK: their first K values.
            final_N: their last.
            features_NF: of the candidates, if any.

        Raises:
            InputError: fewer curves than twice the folds.
        """
        from scipy.stats import loguniform, uniform
        from sklearn.compose import TransformedTargetRegressor
        from sklearn.model_selection import KFold, RandomizedSearchCV, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import NuSVR

        if len(curves_NK) < 2 * self.folds:
            raise InputError(
                f"a regression of curves needs at least {2 * self.folds}, got {len(curves_NK)}"
            )
        x, parts = (
            described(curves_NK, features_NF),
            KFold(self.folds, shuffle=True, random_state=self.seed),
        )
        machine = TransformedTargetRegressor(
            make_pipeline(StandardScaler(), NuSVR()), transformer=StandardScaler()
        )
        tried = {
            "regressor__nusvr__C": loguniform(1e-1, 1e3),
            "regressor__nusvr__gamma": loguniform(1e-4, 1e0),
            "regressor__nusvr__nu": uniform(0.2, 0.7),
        }
        search = RandomizedSearchCV(
            machine, tried, n_iter=self.candidates, cv=parts, random_state=self.seed,
            scoring="neg_mean_squared_error",
        ).fit(x, final_N)  # fmt: skip
        self.model_: Any = search.best_estimator_
        errors = cross_val_predict(self.model_, x, final_N, cv=parts) - final_N
        self.spread_ = float(np.sqrt(np.mean(errors**2)))
        self.steps_ = curves_NK.shape[1]
        return self

    def predict(self, curves_NK: Array, features_NF: Array | None = None) -> Array:
        """(N,) final qualities."""
        found: Array = self.model_.predict(described(curves_NK, features_NF))
        return found


def described(curves_NK: Array, features_NF: Array | None = None) -> Array:
    """(N, ·): values, first and second differences, and features beside them."""
    parts = [curves_NK, np.diff(curves_NK), np.diff(curves_NK, n=2)]
    parts += [] if features_NF is None else [features_NF]
    return np.concatenate(parts, axis=1)


class ByPrediction:
    """Stop where the predicted final quality most probably is not above the best so far.

    Args:
        steps: T, of a whole evaluation.
        look: the steps K at which candidates are judged, such as (4, 8).
        features: (F,) of a genotype, or None.
        warm: whole evaluations before the first candidate is stopped; one regression a step is
            fitted on them, once.
        sure: probability of being no better at which a candidate is stopped.
        candidates: settings that each regression tries.
        seed: of the regressions.
    """

    def __init__(
        self,
        steps: int,
        look: Sequence[int],
        features: Callable[[Genotype], Array] | None = None,
        warm: int = 30,
        sure: float = 0.95,
        candidates: int = 20,
        seed: int = 0,
    ) -> None:
        self.steps, self.look, self.features = steps, tuple(look), features
        self.warm, self.sure, self.candidates, self.seed = warm, sure, candidates, seed
        self.best = -math.inf
        self._whole: list[Evaluation] = []
        self._models: dict[int, CurveRegression] = {}

    def stops(self, genotype: Genotype, curve: Sequence[float]) -> bool:
        """As the regression of this step says; at other steps, no."""
        model = self._models.get(len(curve))
        if model is None:
            return False
        row = None if self.features is None else self.features(genotype)[None]
        predicted = float(model.predict(np.array([curve], dtype=np.float64), row)[0])
        return chance_below(self.best, predicted, model.spread_) >= self.sure

    def learn(self, evaluation: Evaluation) -> None:
        """Remember a whole curve; fit once there are enough."""
        if evaluation.failed or len(evaluation.curve) < self.steps:
            return
        self.best = max(self.best, evaluation.quality)
        self._whole.append(evaluation)
        if len(self._whole) == self.warm:
            self._fit()

    def _fit(self) -> None:
        curves_NT = np.array([each.curve for each in self._whole])
        features_NF = None
        if self.features is not None:
            features_NF = np.array([self.features(each.genotype) for each in self._whole])
        for seen in self.look:
            self._models[seen] = CurveRegression(self.candidates, seed=self.seed).fit(
                curves_NT[:, :seen], curves_NT[:, -1], features_NF
            )


def chance_below(best: float, predicted: float, spread: float) -> float:
    """Probability that a quality, predicted with normal errors of this spread, is at most best."""
    if spread == 0 or math.isinf(best):
        return float(predicted <= best)
    return 0.5 * (1 + math.erf((best - predicted) / (spread * math.sqrt(2))))
