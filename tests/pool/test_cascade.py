"""Cascades: who is asked, what it costs, how thresholds are learned, scikit-learn's own checks."""

import copy
import math
import pickle
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from pointsman.cost import Cost
from pointsman.errors import InputError, UnitError
from pointsman.pool import Cascade
from pointsman.run.accuracy import accuracy_curve, least_threshold

MFLOPS = Cost(np.array([1.0, 10.0]), "MFLOPs")

# check name -> why it may fail; nothing does.
EXPECTED_FAILURES: dict[str, str] = {}


@parametrize_with_checks(
    [
        Cascade([LogisticRegression(), DecisionTreeClassifier()], prefit=False),
        Cascade([DecisionTreeClassifier()], prefit=False, thresholds=0.7, costs=[Cost(1.0, "ms")]),
    ],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_it_passes_scikit_learns_checks(estimator, check):
    check(estimator)


class Table(ClassifierMixin, BaseEstimator):
    """Says for each input what is written in the table, which the first column of X points into."""

    def __init__(self, proba, classes=(0, 1, 2)):
        self.proba = proba
        self.classes = classes
        self.classes_ = np.asarray(classes)
        self.asked = []

    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        self.asked.append(X[:, 0].astype(int).tolist())
        return np.asarray(self.proba)[X[:, 0].astype(int)]


def random_table(seed, inputs=60, classes=3, sharpness=2.0):
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((inputs, classes))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def rows(inputs=60):
    return np.arange(inputs, dtype=float)[:, None]


def labels(inputs=60, classes=3, seed=9):
    return np.random.default_rng(seed).integers(classes, size=inputs)


def tables(members=2, **options):
    members = [Table(random_table(seed)) for seed in range(members)]
    costs = Cost(10.0 ** np.arange(len(members)), "MFLOPs")
    return Cascade(members, **{"costs": costs, **options}).fit(rows(), labels())


@pytest.fixture(scope="module")
def data():
    X, y = make_classification(
        900, 12, n_informative=8, n_classes=3, n_clusters_per_class=2, flip_y=0.03, random_state=0
    )
    return {
        "train": (X[:300], y[:300]),
        "held": (X[300:600], y[300:600]),
        "test": (X[600:], y[600:]),
    }


@pytest.fixture(scope="module")
def members(data):
    small = LogisticRegression().fit(*data["train"])
    return [small, DecisionTreeClassifier(random_state=0).fit(*data["train"])]


def module(dtype=torch.float32, classes=3, hidden=5):
    torch.manual_seed(0)
    layers = [
        nn.Linear(12, hidden),
        nn.BatchNorm1d(hidden),
        nn.Dropout(),
        nn.Linear(hidden, classes),
    ]
    return nn.Sequential(*layers).to(dtype)


# Who answers


def test_only_inputs_in_doubt_go_on():
    cascade = tables(3, thresholds=[0.7, 0.6])
    for member in cascade.members_:
        member.asked.clear()
    answer = cascade.answer(rows())
    first, second, _ = (member.proba for member in cascade.members_)
    doubt = np.flatnonzero(first.max(axis=1) < 0.7)
    still = doubt[second[doubt].max(axis=1) < 0.6]
    assert 0 < len(still) < len(doubt) < 60
    asked = [member.asked for member in cascade.members_]
    assert asked == [[list(range(60))], [doubt.tolist()], [still.tolist()]]
    assert_array_equal(np.flatnonzero(answer.stage == 2), still)
    expected = np.stack([m.proba for m in cascade.members_])[answer.stage, np.arange(60)]
    assert_allclose(answer.output, expected)


def test_every_member_asked_is_paid_for():
    cascade = tables(3, thresholds=0.7)
    stage = cascade.answer(rows()).stage.numpy()
    assert_allclose(cascade.cost(rows()).amount, np.array([1.0, 11.0, 111.0])[stage])
    assert cascade.cost(rows()).unit == "MFLOPs"
    assert set(stage) == {0, 1, 2}


def test_a_member_left_out_is_neither_asked_nor_paid_for():
    cascade = tables(3, thresholds=[0.7, math.inf])
    cascade.members_[1].asked.clear()
    stage = cascade.answer(rows()).stage.numpy()
    assert cascade.members_[1].asked == []
    assert_allclose(cascade.cost(rows()).amount, np.where(stage == 0, 1.0, 101.0))


def test_predictions_are_the_likeliest_class_of_whoever_answered(data, members):
    cascade = Cascade(members, thresholds=0.8).fit(*data["held"])
    X, y = data["test"]
    stage = cascade.answer(X).stage.numpy()
    expected = np.where(stage == 0, members[0].predict(X), members[1].predict(X))
    assert_array_equal(cascade.predict(X), expected)
    assert_allclose(cascade.predict_proba(X).sum(axis=1), 1)
    assert cascade.score(X, y) == np.mean(expected == y)
    assert set(stage) == {0, 1}


def test_the_extremes_of_the_threshold_are_the_first_and_the_last_member(data, members):
    X, _ = data["test"]
    for threshold, member in ((0.0, members[0]), (math.inf, members[1])):
        cascade = Cascade(members, thresholds=threshold).fit(*data["held"])
        assert_array_equal(cascade.predict_proba(X), member.predict_proba(X))


def test_one_member_always_answers(data, members):
    cascade = Cascade(members[:1]).fit(*data["held"])
    assert cascade.thresholds_.shape == (0,)
    assert_array_equal(cascade.predict(data["test"][0]), members[0].predict(data["test"][0]))
    frontier = cascade.frontier(*data["test"])
    assert {point.cost for point in frontier.points} == {frontier.reference.cost}


def test_no_input_gives_no_answer(data, members):
    cascade = Cascade(members).fit(*data["held"])
    assert cascade.predict_proba(np.empty((0, 12))).shape == (0, 3)
    assert cascade.predict(np.empty((0, 12))).shape == (0,)
    assert cascade.cost(np.empty((0, 12))).amount.shape == (0,)


@pytest.mark.parametrize(
    ("rule", "confidence"),
    [
        ("max_probability", lambda p: p.max(axis=1)),
        ("margin", lambda p: np.sort(p, axis=1)[:, -1] - np.sort(p, axis=1)[:, -2]),
        ("entropy", lambda p: (p * np.log(p)).sum(axis=1)),
        (lambda logits: logits.exp().square().sum(dim=1), lambda p: (p**2).sum(axis=1)),
    ],
)
def test_each_rule_decides_by_its_confidence(rule, confidence):
    sure = confidence(random_table(0))
    threshold = float(np.median(sure))
    cascade = tables(rule=rule, thresholds=threshold)
    assert_array_equal(cascade.answer(rows()).stage.numpy() == 0, sure >= threshold)


def test_a_probability_of_zero_is_no_trouble():
    certain = np.eye(3)[labels()]
    for rule in ("max_probability", "margin", "entropy"):
        cascade = Cascade([Table(certain), Table(random_table(0))], rule=rule, costs=MFLOPS)
        answer = cascade.fit(rows(), labels()).answer(rows())
        assert answer.route.load().tolist() == [60, 0]
        assert_array_equal(answer.output, certain)


# Members


def test_classes_of_members_are_aligned():
    names, other = ["a", "b", "c"], ["c", "a", "b"]
    proba = random_table(0)
    turned = Table(proba[:, [2, 0, 1]], other)
    y = np.array(names)[labels()]
    cascade = Cascade([Table(proba, names), turned], costs=MFLOPS, thresholds=math.inf)
    cascade.fit(rows(), y)
    assert_array_equal(cascade.classes_, names)
    assert_allclose(cascade.predict_proba(rows()), proba)
    assert_array_equal(cascade.predict(rows()), np.array(names)[proba.argmax(axis=1)])


def test_decision_functions_become_probabilities(data):
    X, y = data["train"]
    for wanted in (y, y == 0):
        member = LinearSVC().fit(X, wanted)
        cascade = Cascade([member]).fit(X, wanted)
        scores = torch.as_tensor(member.decision_function(X))
        if scores.ndim == 1:
            scores = torch.stack([torch.zeros_like(scores), scores], dim=1)
        assert_allclose(cascade.predict_proba(X), scores.softmax(dim=1))
        assert_array_equal(cascade.predict(X), member.predict(X))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_members_run_in_evaluation_mode_and_keep_their_own(data, dtype):
    net = module(dtype)
    net[1].eval()
    before = copy.deepcopy(net.state_dict())
    cascade = Cascade([net]).fit(*data["held"])
    X = data["test"][0]
    with torch.no_grad():
        expected = copy.deepcopy(net).eval()(torch.as_tensor(X, dtype=dtype)).double().softmax(1)
    assert_allclose(cascade.predict_proba(X), expected)
    assert [layer.training for layer in net] == [True, False, True, True]
    torch.testing.assert_close(net.state_dict(), before)


def test_torch_members_may_see_images():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 3))
    X = torch.randn(60, 1, 5, 5)
    cascade = Cascade([net, net], thresholds=0.4).fit(X, torch.as_tensor(labels()))
    torch.testing.assert_close(
        torch.as_tensor(cascade.predict_proba(X)), net(X).double().softmax(1).detach()
    )
    assert_allclose(cascade.costs_.amount[0], (2 * 9 * 2 * 9 + 2 * 18 * 3) / 1e6)


def test_callables_are_members_too(data):
    def shares(X):
        return torch.full((len(X), 3), 1 / 3, dtype=torch.float64)

    cascade = Cascade([shares, lambda X: np.tile([0.2, 0.5, 0.3], (len(X), 1))], thresholds=0.4)
    cascade.fit(*data["held"])
    assert_array_equal(cascade.classes_, [0, 1, 2])
    assert_array_equal(cascade.predict(data["test"][0]), np.ones(300))


def test_classes_missing_from_y_are_counted_from_zero(data):
    X, y = data["held"]
    cascade = Cascade([module(classes=5)]).fit(X, y)
    assert_array_equal(cascade.classes_, range(5))
    with pytest.raises(InputError, match="5 probabilities and y holds 3 classes, 'a', 'b', 'c'"):
        Cascade([module(classes=5)]).fit(X, np.array(["a", "b", "c"])[y])


def test_tables_with_named_columns_pass_without_a_warning(data, recwarn):
    X, y = (pd.DataFrame(data["train"][0], columns=list("abcdefghijkl")), data["train"][1])
    member = LogisticRegression().fit(X, y)
    cascade = Cascade([member, member], thresholds=0.9).fit(X, y)
    assert_array_equal(cascade.predict(X), member.predict(X))
    assert not [w for w in recwarn if "feature names" in str(w.message)]


# Costs


def test_costs_of_torch_members_are_counted(data):
    cascade = Cascade([module(), module(hidden=50)]).fit(*data["held"])
    assert cascade.costs_.unit == "MFLOPs"
    assert_allclose(cascade.costs_.amount, np.array([2 * 15 * 5, 2 * 15 * 50]) / 1e6)


def test_costs_are_measured_where_they_cannot_be_counted(data, members):
    cascade = Cascade([module(), members[0]]).fit(*data["held"])
    assert cascade.costs_.unit == "ms"
    assert cascade.costs_.amount.shape == (2,)
    assert (cascade.costs_.amount > 0).all()


@pytest.mark.parametrize("costs", [MFLOPS, [Cost(1.0, "MFLOPs"), Cost(10.0, "MFLOPs")]])
def test_costs_may_be_given(costs):
    assert_array_equal(tables(costs=costs).costs_.amount, [1.0, 10.0])


# Thresholds


def rule_of_the_paper(confidence, right, epsilon, min_count):
    """As the formula says: every confidence seen is tried as a threshold."""
    counted = {t: right[confidence >= t] for t in confidence}
    accuracy = {t: r.mean() for t, r in counted.items() if len(r) >= min_count}
    return min(t for t, a in accuracy.items() if a >= max(accuracy.values()) - epsilon - 1e-12)


@given(
    seed=st.integers(0, 10_000),
    inputs=st.integers(5, 60),
    distinct=st.integers(1, 40),
    epsilon=st.floats(0, 0.99),
    min_count=st.integers(1, 5),
)
@settings(max_examples=80, deadline=None)
def test_learned_thresholds_let_those_pass_that_the_paper_lets_pass(
    seed, inputs, distinct, epsilon, min_count
):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(distinct, size=inputs) / distinct  # with ties
    right = rng.random(inputs) < confidence
    learned = least_threshold(*accuracy_curve(confidence, right, min_count), epsilon)
    expected = rule_of_the_paper(confidence, right, epsilon, min_count)
    assert_array_equal(confidence >= learned, confidence >= expected)
    if expected > confidence.min():
        below = confidence[confidence < expected].max()
        assert learned == pytest.approx((expected + below) / 2)
    else:
        assert learned == -math.inf


def test_a_larger_epsilon_never_raises_a_threshold():
    cascade = tables(3)
    learned = [cascade.at(f"epsilon={e}").thresholds_ for e in np.linspace(0, 1, 21)]
    assert all((low <= high).all() for high, low in pairwise(learned))
    assert len({tuple(thresholds) for thresholds in learned}) >= 3
    assert_array_equal(learned[-1], [-math.inf, -math.inf])


def test_a_lucky_few_do_not_set_the_threshold():
    confidence = np.linspace(1, 0.5, 100)
    right = np.ones(100, dtype=bool)
    right[[1, 30, 60]] = False  # only the very surest is free of error
    assert least_threshold(*accuracy_curve(confidence, right, 1), 0.0) > confidence[1]
    assert least_threshold(*accuracy_curve(confidence, right, 20), 0.0) < confidence[25]


def test_with_too_few_held_out_inputs_the_last_member_answers():
    cascade = tables(min_count=61)
    assert_array_equal(cascade.thresholds_, [math.inf])
    assert_array_equal(cascade.at("epsilon=1").thresholds_, [-math.inf])


def test_thresholds_that_are_given_are_used_as_they_are():
    assert_array_equal(tables(3, thresholds=0.8).thresholds_, [0.8, 0.8])
    assert_array_equal(tables(3, thresholds=[0.8, 0.3]).thresholds_, [0.8, 0.3])


def test_members_are_fitted_on_one_part_and_thresholds_on_the_rest(data):
    X, y = data["train"]
    small, large = LogisticRegression(), DecisionTreeClassifier()
    cascade = Cascade([small, large], prefit=False, min_count=1, held_out=0.3).fit(X, y)
    assert not hasattr(small, "coef_")
    tree = cascade.members_[1]
    assert tree.tree_.n_node_samples[0] == pytest.approx(0.7 * len(X), abs=3)
    # a tree is always right on what it was trained on: errors show that others were held out
    assert cascade.curves_[1][1].min() < 1
    again = clone(cascade).fit(X, y)
    assert_array_equal(again.predict_proba(X), cascade.predict_proba(X))


# The knob


def test_at_gives_a_copy_with_the_same_members():
    cascade = tables()
    before = cascade.thresholds_.copy()
    cheap = cascade.at("epsilon=0.3")
    assert cascade.epsilon == 0.01
    assert_array_equal(cascade.thresholds_, before)
    assert cheap.members_ is cascade.members_
    assert (cheap.epsilon, cheap.thresholds) == (0.3, None)
    assert (cascade.at(0.6).thresholds, cascade.at("threshold=0.6").thresholds) == (0.6, 0.6)
    assert_array_equal(cascade.at(0.6).thresholds_, [0.6])
    assert_array_equal(cascade.at(0.6).at("epsilon=0.01").thresholds_, before)


@pytest.mark.parametrize("options", [{}, {"thresholds": 0.5}, {"rule": "entropy"}])
def test_the_frontier_equals_a_run_at_each_knob(options):
    cascade = tables(3, **options)
    outcomes = cascade.frontier(rows(), labels()).outcomes
    for at, knob in enumerate(outcomes.knobs):
        there = cascade.at(knob)
        assert_array_equal(outcomes.quality[at], there.predict(rows()) == labels())
        assert_allclose(outcomes.cost[at], there.cost(rows()).amount)


@pytest.mark.parametrize("options", [{}, {"thresholds": 0.5}, {"rule": "margin"}])
def test_the_default_knobs_run_from_the_last_member_to_the_first(options):
    cascade = tables(3, **options)
    frontier = cascade.frontier(rows(), labels())
    first, last = frontier.points[0], frontier.points[-1]
    assert (first.cost, first.quality) == (frontier.reference.cost, frontier.reference.quality)
    assert last.cost == 1.0
    costs = [point.cost for point in frontier.points[1:]]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) > 3


def test_the_reference_may_be_any_member():
    frontier = tables(3).frontier(rows(), labels(), [0.5], reference=1, name="mine")
    right = random_table(1).argmax(axis=1) == labels()
    assert_array_equal(frontier.outcomes.reference_quality, right)
    assert_array_equal(frontier.outcomes.reference_cost, np.full(60, 10.0))
    assert frontier.name == "mine"


def test_a_certified_pick_is_taken_over(data, members):
    small, _ = members
    large = LogisticRegression(C=10).fit(*data["train"])  # as good as the small one: all may leave
    cascade = Cascade([small, large], costs=MFLOPS).fit(*data["held"])
    pick = cascade.frontier(*data["test"]).pick(max_drop=0.05, confidence=0.95)
    assert pick.certificate.certified
    cheap = cascade.at(pick.knob)
    assert float(cheap.cost(data["test"][0]).mean()) == pytest.approx(pick.cost)
    assert cheap.score(*data["test"]) == pytest.approx(pick.quality)
    assert pick.saved > 0.5


# Scikit-learn ways


def test_keywords_can_be_read_set_and_searched(data):
    X, y = data["train"]
    cascade = Cascade([LogisticRegression(), DecisionTreeClassifier()], prefit=False)
    assert cascade.set_params(epsilon=0.2).get_params()["epsilon"] == 0.2
    search = GridSearchCV(cascade, {"epsilon": [0.0, 1.0]}, cv=2).fit(X, y)
    assert search.best_params_["epsilon"] in (0.0, 1.0)
    assert clone(cascade).epsilon == 0.2


def test_frozen_members_survive_a_clone(data, members):
    cascade = Cascade([FrozenEstimator(member) for member in members], thresholds=0.8)
    twin = clone(cascade).fit(*data["held"])
    X = data["test"][0]
    assert_array_equal(
        twin.predict(X), Cascade(members, thresholds=0.8).fit(*data["held"]).predict(X)
    )


def test_it_can_be_sent_to_another_process(data, members):
    cascade = Cascade(members).fit(*data["held"])
    X = data["test"][0]
    assert_array_equal(pickle.loads(pickle.dumps(cascade)).predict(X), cascade.predict(X))


# Refusals


def fit(members, X=None, y=None, **options):
    X = rows() if X is None else X
    return Cascade(members, **{"costs": None, **options}).fit(X, labels() if y is None else y)


def with_nan():
    X = rows()
    X[7, 0] = math.nan
    return X


def table(seed=0):
    return Table(random_table(seed))


wrong_members = [
    (lambda: fit([]), "at least one classifier"),
    (lambda: fit(table()), "a list"),
    (lambda: fit([LogisticRegression]), r"member 0 \(LogisticRegression\) is a class"),
    (
        lambda: fit([table(), LogisticRegression()]),
        r"member 1 \(LogisticRegression\) is not fitted",
    ),
    (lambda: fit([3]), r"member 0 \(int\) gives no probabilities"),
    (lambda: fit([Ridge().fit(rows(), labels())]), r"\(Ridge\) gives no probabilities"),
    (lambda: fit([Ridge()], prefit=False), r"\(Ridge\) gives no probabilities"),
    (lambda: fit([nn.Linear(1, 3)], prefit=False), "train it first and give prefit=True"),
    (lambda: fit([lambda X: X], prefit=False), "train it first and give prefit=True"),
    (
        lambda: fit([table(), Table(random_table(1), [0, 1, 3])]),
        r"the same classes: member 0 \(Table\) knows 0, 1, 2, member 1 \(Table\) knows 0, 1, 3",
    ),
    (
        lambda: fit([table(), nn.Linear(1, 4)]),
        r"member 1 \(Linear\) gives 4 probabilities for the 3",
    ),
    (lambda: fit([nn.Linear(2, 3)]), r"member 0 \(Linear\) does not take X of shape \(60, 1\)"),
    (lambda: fit([nn.Flatten(0)]), r"must give logits \(inputs, classes\), got \(60,\)"),
    (
        lambda: fit([lambda X: np.full(len(X), 0.5)]),
        r"for 60 inputs member 0 .* gave shape \(60,\)",
    ),
    (lambda: fit([lambda X: random_table(0)[:7]]), r"gave shape \(7, 3\)"),
    (lambda: fit([lambda X: 3 * random_table(0)]), "sum to one.*for input 0"),
    (lambda: fit([lambda X: np.tile([1.5, -0.5, 0], (60, 1))]), "sum to one"),
    (lambda: fit([lambda X: random_table(0) * math.nan]), "not finite for input 0"),
    (lambda: fit([table()], y=labels() + 1), "among the 3 classes.*got .*3.* at row"),
]
wrong_keywords = [
    (lambda: fit([table()] * 3, thresholds=[0.5]), "3 stages need 2 thresholds"),
    (lambda: fit([table()] * 2, thresholds=90), r"\[0, 1\].*got 90"),
    (lambda: fit([table()] * 2, thresholds=-0.1), r"\[0, 1\].*got -0.1"),
    (lambda: fit([table()] * 2, thresholds=0.5, rule="entropy"), r"\[-inf, 0\].*got 0.5"),
    (lambda: fit([table()] * 2, thresholds=[math.nan]), "NaN"),
    (lambda: fit([table()] * 2, epsilon=1.5), "got 1.5"),
    (lambda: fit([table()] * 2, epsilon=math.nan), "got nan"),
    (lambda: fit([table()] * 2, rule="softmax"), "one of max_probability, margin, entropy"),
    (lambda: fit([table()] * 2, held_out=1.0), "between 0 and 1"),
    (lambda: fit([table()] * 2, min_count=0), "at least 1"),
    (lambda: fit([table()] * 2, costs=Cost([1.0], "ms")), "2 members need 2 costs"),
    (lambda: fit([table()] * 2, costs=Cost([1.0, -1.0], "ms")), "at least 0"),
    (lambda: tables().at("epsilon"), "got 'epsilon'"),
    (lambda: tables().at("epsilon=2"), "got 2"),
    (lambda: tables().at("speed=2"), "got 'speed=2'"),
    (lambda: tables().at(2.0), r"\[0, 1\].*got 2"),
    (lambda: tables().at(math.nan), "got nan"),
    (lambda: tables().frontier(rows(), labels(), [0.1, 0.9]), "descending thresholds"),
    (lambda: tables().frontier(rows(), labels(), ["epsilon=1", "epsilon=0"]), "ascending epsilons"),
    (lambda: tables().frontier(rows(), labels(), []), "at least one setting"),
    (lambda: tables().frontier(rows(), labels(), reference=2), "one of 2 members, got 2"),
]
wrong_data = [
    (lambda: fit([table()], X=with_nan()), "NaN at row 7, column 0"),
    (lambda: tables().predict(with_nan()), "NaN at row 7, column 0"),
    (lambda: tables().predict(rows() * math.inf), "got NaN at row 0"),
    (lambda: tables().predict(rows()[1:] * math.inf), "infinity at row 0"),
    (lambda: tables().predict(np.ones((3, 2))), "X has 2 features, but Cascade is expecting 1"),
    (lambda: tables().frontier(rows(), labels()[:-1]), "inconsistent numbers of samples"),
    (lambda: tables().frontier(rows(), labels() + 1), "among the 3 classes"),
    (
        lambda: fit([LogisticRegression().fit(np.ones((3, 2)) * [[0], [1], [2]], [0, 1, 2])]),
        r"member 0 \(LogisticRegression\) was fitted on 2 features, X has 1",
    ),
    (lambda: fit([table()], X=rows(3), y=[0, 1, 2], prefit=False), "more than one sample"),
]


@pytest.mark.parametrize(("call", "text"), wrong_members + wrong_keywords + wrong_data)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_does_not_fit_is_refused_in_one_line(call, text):
    with pytest.raises(InputError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("costs", "text"),
    [
        ([Cost(1.0, "ms"), Cost(1.0, "MFLOPs")], r"one unit, got \['ms', 'MFLOPs'\]"),
        ([1.0, 2.0], "a cost has a unit"),
    ],
)
def test_costs_need_one_unit(costs, text):
    with pytest.raises(UnitError, match=text):
        tables(costs=costs)


def test_asking_before_fit_says_so(members):
    for call in (Cascade.answer, Cascade.predict):
        with pytest.raises(NotFittedError):
            call(Cascade(members), np.ones((2, 12)))
    with pytest.raises(NotFittedError):
        Cascade(members).at(0.5)
