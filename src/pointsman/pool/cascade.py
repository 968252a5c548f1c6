"""Cascade: ask the cheapest model first, and the next one only about inputs still in doubt.

Thresholds are learned by the softmax-confidence rule of Berestizshevsky & Even, "Dynamically
Sacrificing Accuracy for Reduced Computation: Cascaded Inference Based on Softmax Confidence"
(2018, arXiv:1805.10982), or given. With c_m(x) the confidence of member m,

    a_m(t) = accuracy of member m on the held-out inputs with c_m(x) >= t
    t_m    = least t with a_m(t) >= max_t' a_m(t') - epsilon

where they depart from the paper:
- a_m(t) counts only from `min_count` inputs on, because the accuracy of a handful of inputs is
  noise and its maximum would be luck;
- t_m lies half-way to the next lower confidence that was seen: the same held-out inputs pass, and
  the rounding of another batch size does not push one of them over the edge;
- where all held-out inputs may be answered, t_m is -inf: an input less sure than any of them is
  answered, too.

Legend: M members, N inputs, C classes.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pointsman.cost import Cost
from pointsman.errors import InputError
from pointsman.frontier.points import Frontier, Knob
from pointsman.pool.knobs import check_order, parse_knob
from pointsman.pool.members import (
    check_members,
    class_columns,
    finite,
    found_costs,
    given_costs,
    probabilities,
    shared_classes,
    split,
)
from pointsman.run import Answer, Stage, run_staged, stage_thresholds, staged_outcomes
from pointsman.run.accuracy import accuracy_curve, check_epsilon, least_threshold
from pointsman.select import margin, max_probability, negative_entropy

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Rule = str | Callable[[Tensor], Tensor]

# Name of a confidence rule -> the function and its range, which bounds meaningful thresholds.
RULES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "max_probability": (max_probability, 0.0, 1.0),
    "margin": (margin, 0.0, 1.0),
    "entropy": (negative_entropy, -math.inf, 0.0),
}
# Fixed before any data is seen, as the test behind a certified pick requires; safest first.
EPSILONS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
THRESHOLDS = (0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
NEVER = "threshold=inf"  # the knob at which the last member answers everything


class Cascade(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifiers from cheap to dear; each input goes as far as it needs.

    A scikit-learn classifier. Only inputs that a member is not sure about go to the next; the last
    member always answers. One knob runs from safe to cheap, see `frontier` and `at`.

    Args:
        members: M classifiers, cheapest first: scikit-learn classifiers, torch modules giving
            logits, or callables from X to probabilities. They must know the same classes; modules
            and callables without `classes_` answer in ascending order of the classes.
        costs: what each member spends per input: one Cost of M amounts, or a list of M costs in one
            unit. None: counted MFLOPs if all members are torch modules, else measured ms inside a
            large batch; a member with a high price per call is dearer on the few inputs left to it.
        epsilon: how much accuracy, among the inputs it answers, a member may give up below its
            best, in [0, 1]. 0 is safest, 1 lets the first member answer everything.
        thresholds: instead of learned ones: one confidence for all, or one for each member before
            the last; +inf leaves a member out. None: learned with `epsilon`.
        rule: how confidence is read off the probabilities: "max_probability" or "margin", both in
            [0, 1], "entropy" (minus the entropy, at most 0), or a callable from
            log-probabilities (n, C) to (n,), higher is surer.
        prefit: the members are fitted already, and `fit` gets held-out data. False: `fit` clones
            and fits them on a part of its data and keeps the rest for the thresholds.
        held_out: share of each class that is kept for the thresholds if not prefit.
        min_count: fewest held-out inputs whose accuracy counts when thresholds are learned. With
            fewer altogether nothing is known, and the last member answers.
        random_state: seed of the split, and of members without one, if not prefit.

    Attributes:
        classes_: (C,) labels.
        members_: the fitted members.
        costs_: Cost of amount (M,) per input. `answer(X).route.cost(costs_)` prices an answer.
        curves_: for each member, confidences descending (L,) and the accuracy from there up (L,).
        thresholds_: (M - 1,) in use.
        n_features_in_: width of X.
    """

    def __init__(
        self,
        members: Sequence[Any],
        *,
        costs: Cost | Sequence[Cost] | None = None,
        epsilon: float = 0.01,
        thresholds: float | Sequence[float] | None = None,
        rule: Rule = "max_probability",
        prefit: bool = True,
        held_out: float = 0.25,
        min_count: int = 20,
        random_state: int = 0,
    ) -> None:
        self.members = members
        self.costs = costs
        self.epsilon = epsilon
        self.thresholds = thresholds
        self.rule = rule
        self.prefit = prefit
        self.held_out = held_out
        self.min_count = min_count
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the thresholds on (X, y), which no prefit member was trained on.

        Args:
            X: (N, D) finite numbers; more dimensions where the members take them.
            y: (N,) labels.

        Raises:
            InputError: members, costs, thresholds or data that break a rule; members that know
                different classes; labels that no member knows.
            UnitError: costs without a unit or of different units.
        """
        members = check_members(self.members, prefit=self.prefit)
        self._check_keywords(len(members))
        X, y = self._labelled(X, y, fitting=True)
        if not self.prefit:
            train, rest = split(y, self.held_out, self.random_state)
            members = [self._seeded(clone(m)).fit(X[train], y[train]) for m in members]
            check_members(members, prefit=True)  # some say only now whether they give probabilities
            X, y = X[rest], y[rest]
        raw = [probabilities(member, X, at) for at, member in enumerate(members)]
        self.members_ = members
        self.classes_ = shared_classes(members, [p.shape[1] for p in raw], y)
        self._columns = [class_columns(member, self.classes_) for member in members]
        labels = self._labels(y)
        self.curves_ = [
            accuracy_curve(self._confidence(p).numpy(), p.argmax(axis=1) == labels, self.min_count)
            for p in map(self._aligned, raw, range(len(raw)))
        ]
        if self.costs is None:
            self.costs_ = found_costs(members, X)
        else:
            self.costs_ = given_costs(self.costs, len(members))
        self.thresholds_ = self._learned(self.epsilon) if self.thresholds is None else self._given()
        return self

    def answer(self, X: Any) -> Answer:
        """Probabilities (N, C) in float64, and the route: whom each input asked, who answered.

        Raises:
            InputError: X does not fit, or a member's answer is no probabilities.
        """
        check_is_fitted(self, "thresholds_")
        X = self._inputs(X)
        if len(X) == 0:
            stages = [Stage(self._nothing)] * len(self.members_)
        else:
            stages = [self._stage(X, at) for at in range(len(self.members_))]
        rows = torch.arange(len(X))
        return run_staged(stages, rows, self.thresholds_.tolist(), self._confidence)

    def predict_proba(self, X: Any) -> Floats:
        """(N, C) probabilities of whichever member answered, in the order of `classes_`."""
        return self.answer(X).output.numpy()

    def predict(self, X: Any) -> Array:
        """(N,) labels."""
        proba = self.predict_proba(X)
        return np.asarray(self.classes_[proba.argmax(axis=1)])

    def cost(self, X: Any) -> Cost:
        """What each input spends, amount (N,): every member that it asks, the unsure ones too."""
        route = self.answer(X).route
        return route.cost(self.costs_)

    def at(self, knob: Knob) -> "Cascade":
        """This cascade at another knob, with the same fitted members; nothing is refitted.

        Args:
            knob: "epsilon=0.02" (learned thresholds), "threshold=0.9" or the number alone (one
                confidence for all members), such as the knob of a pick. "threshold=inf" lets the
                last member answer everything.

        Raises:
            InputError: a knob that is not of these forms or out of its range.
        """
        check_is_fitted(self, "thresholds_")
        name, value = parse_knob(knob)
        other = copy.copy(self)
        other.thresholds_ = self._at(knob)
        if name == "epsilon":
            other.set_params(epsilon=value, thresholds=None)
        else:
            other.set_params(thresholds=value)
        return other

    def frontier(
        self,
        X: Any,
        y: Any,
        knobs: Sequence[Knob] | None = None,
        *,
        reference: int = -1,
        name: str = "cascade",
    ) -> Frontier:
        """Quality (share of right labels) against cost over a grid of knobs, safest first.

        Every member runs once on all of X; the settings are worked out from that.

        Args:
            X: (N, D), for a certified pick neither trained on nor given to `fit`.
            y: (N,) labels.
            knobs: as in `at`, from the safest to the cheapest. None: "threshold=inf", then epsilon
                from 0 to 1; with explicit `thresholds` and a rule in [0, 1], shared thresholds down
                to 0. Both end with the first member answering everything.
            reference: the member that alone is the reference.
            name: of the frontier.

        Raises:
            InputError: data or a knob that does not fit, or knobs from cheap to safe.
        """
        check_is_fitted(self, "thresholds_")
        X, y = self._labelled(X, y, fitting=False)
        knobs = self._knobs() if knobs is None else knobs
        check_order(knobs)
        members = len(self.members_)
        if not -members <= reference < members:
            raise InputError(f"the reference is one of {members} members, got {reference}")
        proba_MNC = np.stack([self._probabilities(X, at) for at in range(members)])
        outcomes = staged_outcomes(
            log(proba_MNC),
            torch.as_tensor(self._labels(y)),
            self.costs_,
            {knob: self._at(knob).tolist() for knob in knobs},
            confidence=self._rule()[0],
            reference=reference,
        )
        return Frontier.from_outcomes(name, outcomes)

    def _knobs(self) -> list[Knob]:
        _, low, high = self._rule()
        if self.thresholds is not None and (low, high) == (0.0, 1.0):
            return [NEVER, *(f"threshold={t:g}" for t in THRESHOLDS)]
        return [NEVER, *(f"epsilon={e:g}" for e in EPSILONS)]

    def _at(self, knob: Knob) -> Floats:
        """The thresholds (M - 1,) at a knob."""
        name, value = parse_knob(knob)
        if name == "epsilon":
            return self._learned(value)
        self._check_thresholds(np.array([value]))
        return np.full(len(self.members_) - 1, value)

    def _learned(self, epsilon: float) -> Floats:
        return np.array([least_threshold(*curve, epsilon) for curve in self.curves_[:-1]])

    def _given(self) -> Floats:
        return stage_thresholds(self.thresholds, len(self.members_))[:-1]  # type: ignore[arg-type]

    def _rule(self) -> tuple[Callable[[Tensor], Tensor], float, float]:
        if callable(self.rule):
            return self.rule, -math.inf, math.inf
        if self.rule not in RULES:
            raise InputError(f"rule is one of {', '.join(RULES)} or a callable, got {self.rule!r}")
        return RULES[self.rule]

    def _confidence(self, proba: Tensor | Floats) -> Tensor:
        return self._rule()[0](log(proba))

    def _stage(self, X: Array, at: int) -> Stage:
        # The state of the run is the numbers of the rows: any kind of X serves, and nothing moves.
        return Stage(lambda rows: torch.as_tensor(self._probabilities(X[rows.numpy()], at)))

    def _nothing(self, rows: Tensor) -> Tensor:
        # scikit-learn members refuse an empty batch, and nobody needs to be asked about it
        return torch.empty(len(rows), len(self.classes_), dtype=torch.float64)

    def _probabilities(self, X: Array, at: int) -> Floats:
        return self._aligned(probabilities(self.members_[at], X, at), at)

    def _aligned(self, proba: Floats, at: int) -> Floats:
        if proba.shape[1] != len(self.classes_):
            raise InputError(
                f"member {at} gave {proba.shape[1]} probabilities for {len(self.classes_)} classes"
            )
        columns = self._columns[at]
        return proba if columns is None else proba[:, columns]

    def _labels(self, y: Array) -> npt.NDArray[np.int64]:
        """(N,) places of the labels in classes_."""
        unknown = ~np.isin(y, self.classes_)
        if unknown.any():
            row = int(unknown.argmax())
            raise InputError(
                f"labels must be among the {len(self.classes_)} classes that the members know, "
                f"got {y[row]!r} at row {row}"
            )
        return np.searchsorted(self.classes_, y).astype(np.int64)

    def _seeded(self, member: Any) -> Any:
        """The member with every seed that is None set, so that a fit can be repeated."""
        unset = [
            key
            for key, value in member.get_params().items()
            if value is None and (key == "random_state" or key.endswith("__random_state"))
        ]
        return member.set_params(**dict.fromkeys(unset, self.random_state))

    def _check_keywords(self, members: int) -> None:
        self._rule()
        check_epsilon(self.epsilon)
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is a share between 0 and 1, got {self.held_out}")
        if self.min_count < 1:
            raise InputError(f"min_count is at least 1, got {self.min_count}")
        if self.thresholds is not None:
            self._check_thresholds(stage_thresholds(self.thresholds, members)[:-1])

    def _check_thresholds(self, thresholds: Floats) -> None:
        _, low, high = self._rule()
        for value in thresholds:
            if math.isnan(value) or (math.isfinite(value) and not low <= value <= high):
                raise InputError(
                    f"a threshold of the rule {self.rule!r} lies in [{low:g}, {high:g}], or is inf "
                    f"for a member that never answers, got {value:g}"
                )

    def _inputs(self, X: Any) -> Array:
        """X as an array; refused unless finite and of the fitted width."""
        return finite(self._checked(_array(X), reset=False, ensure_min_samples=0))

    def _labelled(self, X: Any, y: Any, *, fitting: bool) -> tuple[Array, Array]:
        """X and y as arrays of one length; refused unless finite, with y of classes."""
        X, y = self._checked(_array(X), y=_array(y), reset=fitting)
        return finite(X), y

    def _checked(self, X: Any, **options: Any) -> Any:
        """What scikit-learn's checks give, its errors in one line."""
        try:
            checked = validate_data(self, X, allow_nd=True, ensure_all_finite=False, **options)
            if "y" in options:
                check_classification_targets(checked[1])
        except ValueError as error:
            raise InputError(" ".join(str(error).split())) from None
        return checked


def _array(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def log(proba: Tensor | Floats) -> Tensor:
    """Log-probabilities, which are logits; a probability of 0 becomes a very small one."""
    return torch.as_tensor(proba).clamp_min(np.finfo(np.float64).tiny).log()
