"""What holds for every bandit; exceptions are listed with their reason."""

import numpy as np
import pytest
from online_worlds import AFTER, MEANS, context, play, saved_and_loaded

from pointsman.errors import InputError
from pointsman.pool.online.automaton import RewardInaction
from pointsman.pool.online.detection import ChangeDetection, LikelihoodRatio, PageHinkley
from pointsman.pool.online.discounted import DiscountedThompson, DiscountedUpperConfidence
from pointsman.pool.online.inverse_gap import ChebyshevInverseGap
from pointsman.pool.online.kinds import BANDITS
from pointsman.pool.online.knapsack import Knapsack
from pointsman.pool.online.linear import LinearThompson, LinearUpperConfidence
from pointsman.pool.online.sliding import SlidingWindowUpperConfidence
from pointsman.pool.online.tsallis import TsallisInf

ARMS = 4
MAKE = {
    "linear ucb": lambda: LinearUpperConfidence(ARMS, 2),
    "linear ucb, forgetting": lambda: LinearUpperConfidence(ARMS, 2, discount=0.99, explore=0.05),
    "linear thompson": lambda: LinearThompson(ARMS, 2, spread=0.3),
    "linear thompson, forgetting": lambda: LinearThompson(ARMS, 2, discount=0.99),
    "ucb": lambda: DiscountedUpperConfidence(ARMS, discount=1.0),
    "discounted ucb": lambda: DiscountedUpperConfidence(ARMS, discount=0.99),
    "sliding-window ucb": lambda: SlidingWindowUpperConfidence(ARMS, window=300),
    "thompson": lambda: DiscountedThompson(ARMS, discount=1.0),
    "discounted thompson": lambda: DiscountedThompson(ARMS, discount=0.99),
    "likelihood ratio": lambda: ChangeDetection(DiscountedUpperConfidence(ARMS, discount=1.0)),
    "page-hinkley": lambda: ChangeDetection(
        DiscountedThompson(ARMS, discount=1.0), PageHinkley(), explore=0.1
    ),
    "likelihood ratio, linear": lambda: ChangeDetection(LinearUpperConfidence(ARMS, 2)),
    "knapsack": lambda: Knapsack(DiscountedThompson(ARMS, discount=1.0), 1e6, 1000),
    "knapsack, linear": lambda: Knapsack(LinearUpperConfidence(ARMS, 2), 1e6, 1000),
    "automaton": lambda: RewardInaction(ARMS),
    "automaton, floor": lambda: RewardInaction(ARMS, floor=0.02),
    "tsallis": lambda: TsallisInf(ARMS),
    "tsallis, rescaled": lambda: TsallisInf(ARMS, rescale=True),
}
CURVE = {
    "inverse gap": lambda: ChebyshevInverseGap(ARMS, -1, 1, terms=3)
}  # its context is one number
EVERY = {**MAKE, **CURVE}
FOLLOWS = (  # what finds its way back after a change; the others stay with what was best
    "linear ucb, forgetting",
    "linear thompson, forgetting",
    "discounted ucb",
    "sliding-window ucb",
    "discounted thompson",
    "likelihood ratio",
    "page-hinkley",
    "likelihood ratio, linear",
    "automaton, floor",
)
STAYS = ("linear thompson", "thompson", "automaton")  # a UCB without forgetting comes back late
TRIES_FOR_EVER = (  # what forgets pays for looking again: its regret is a share of time
    "linear ucb, forgetting",
    "linear thompson, forgetting",
    "discounted ucb",
    "sliding-window ucb",
    "discounted thompson",
    "likelihood ratio",
    "page-hinkley",
    "likelihood ratio, linear",
    "automaton, floor",
)
LATE_IN_ANY_ORDER = tuple(  # detectors and prices follow the order in which rewards arrive
    name
    for name in EVERY
    if not name.startswith(("likelihood", "page", "knapsack", "automaton", "tsallis"))
)


@pytest.fixture(params=EVERY)
def name(request):
    return request.param


def numbers(name, rng):
    """A context of the length that the bandit wants."""
    return rng.uniform(-1, 1, size=1 if name in CURVE else 2)


def taught(name, *, rounds=60, seed=3):
    """A bandit that has seen a few rewards."""
    bandit, rng = EVERY[name](), np.random.default_rng(seed)
    for _ in range(rounds):
        x = numbers(name, rng)
        arm, propensity = bandit.choose(x, None, rng)
        reward = float(rng.random() < MEANS[arm])
        bandit.update(arm, reward, x, cost=0.5, propensity=propensity)
    return bandit


def test_the_battery_tries_every_kind():
    assert {type(make()).__name__ for make in EVERY.values()} == set(BANDITS)


def test_probabilities_sum_to_one_and_are_what_choices_report(name):
    bandit, rng = taught(name), np.random.default_rng(0)
    for _ in range(30):
        x = numbers(name, rng)
        p = bandit.probabilities(x)
        assert p.shape == (ARMS,)
        assert p.min() >= 0
        assert p.sum() == pytest.approx(1, abs=1e-12)
        arm, propensity = bandit.choose(x, None, rng)
        assert propensity == p[arm] > 0


def test_arms_are_drawn_as_often_as_their_probability_says(name):
    bandit, rng = taught(name, rounds=12), np.random.default_rng(1)
    x, draws = numbers(name, rng), 2000
    p = bandit.probabilities(x)
    drawn = np.bincount([bandit.choose(x, None, rng).arm for _ in range(draws)], minlength=ARMS)
    deviation = np.sqrt(p * (1 - p) / draws)
    assert (np.abs(drawn / draws - p) <= 4 * deviation + 1e-12).all()


def test_one_seed_gives_one_course(name):
    first, second = taught(name, seed=5), taught(name, seed=5)
    x = numbers(name, np.random.default_rng(0))
    np.testing.assert_array_equal(first.probabilities(x), second.probabilities(x))
    choices = [b.choose(x, None, np.random.default_rng(9)) for b in (first, second)]
    assert choices[0] == choices[1]


def test_choosing_changes_nothing(name):
    bandit, rng = taught(name), np.random.default_rng(2)
    x = numbers(name, rng)
    before = bandit.probabilities(x)
    for _ in range(20):
        bandit.choose(numbers(name, rng), [0, 2], rng)
    np.testing.assert_array_equal(bandit.probabilities(x), before)


def test_only_eligible_arms_are_chosen(name):
    bandit, rng = taught(name), np.random.default_rng(4)
    for eligible in ([1], [0, 3], np.array([False, True, True, False])):
        x = numbers(name, rng)
        p = bandit.probabilities(x, eligible)
        assert p.sum() == pytest.approx(1, abs=1e-12)
        mask = np.zeros(ARMS, bool)
        mask[eligible] = True
        assert (p[~mask] == 0).all()
        assert all(mask[bandit.choose(x, eligible, rng).arm] for _ in range(20))


@pytest.mark.parametrize("eligible", [[], [4], [-1], np.zeros(4, bool), np.ones(3, bool)])
def test_eligible_arms_that_are_none_are_refused(name, eligible):
    with pytest.raises(InputError, match="arm"):
        EVERY[name]().probabilities([0.1] if name in CURVE else [0.1, 0.2], eligible)


def test_a_bandit_kept_midway_goes_on_as_the_other_does(name):
    one = taught(name)
    two = saved_and_loaded(one)
    for seed in (11, 12):
        courses = []
        for bandit in (one, two):
            rng = np.random.default_rng(seed)
            course = []
            for _ in range(40):
                x = numbers(name, rng)
                arm, propensity = bandit.choose(x, None, rng)
                bandit.update(arm, float(rng.random() < MEANS[arm]), x, cost=0.25)
                course.append((arm, propensity))
            courses.append(course)
        assert courses[0] == courses[1]
        two = saved_and_loaded(two)


@pytest.mark.parametrize("name", LATE_IN_ANY_ORDER)
def test_late_rewards_in_any_order_come_to_the_same(name):
    rng = np.random.default_rng(6)
    events = [
        (int(rng.integers(ARMS)), float(rng.random()), numbers(name, rng), t) for t in range(50)
    ]
    x = numbers(name, rng)
    found = []
    for order in (np.arange(50), rng.permutation(50), np.arange(50)[::-1]):
        bandit = EVERY[name]()
        for place in order:
            arm, reward, at_x, at = events[place]
            bandit.update(arm, reward, at_x, cost=0.1, at=at)
        found.append(bandit.probabilities(x))
    np.testing.assert_allclose(found[1], found[0], atol=1e-9)
    np.testing.assert_allclose(found[2], found[0], atol=1e-9)


def test_rewards_that_come_in_bursts_are_learned_from(name):
    bandit, rng = EVERY[name](), np.random.default_rng(8)
    waiting, late = [], []
    for t in range(600):
        x = numbers(name, rng)
        arm, propensity = bandit.choose(x, None, rng)
        waiting.append((arm, float(rng.random() < MEANS[arm]), x, t, propensity))
        if len(waiting) == 25:
            for at in rng.permutation(25):
                arm_, reward, x_, when, p = waiting[at]
                bandit.update(arm_, reward, x_, cost=0.1, at=when, propensity=p)
            waiting = []
        if t >= 400:
            late.append(arm)
    assert MEANS[late].mean() > MEANS.mean() + 0.05


@pytest.mark.parametrize("name", MAKE)
def test_regret_grows_slower_than_time_or_stays_small(name):
    contextual, rounds = MAKE[name]().contextual, 1200
    regret = np.mean(
        [play(MAKE[name](), rounds, seed=seed, contextual=contextual) for seed in (1, 2, 3)], axis=0
    )
    first, last = regret[: rounds // 4].mean(), regret[-rounds // 4 :].mean()
    idle = 0.25 if contextual else np.mean(MEANS.max() - MEANS)
    assert last < 0.5 * idle
    if name not in TRIES_FOR_EVER:
        assert last < 0.6 * first


@pytest.mark.parametrize("name", [*FOLLOWS, *STAYS])
def test_who_finds_the_way_back_after_a_change(name):
    contextual = False
    late = []
    stays = name in STAYS  # the longer it was right, the longer it stays
    for seed in (1, 2, 3) if stays else (1, 2):
        bandit = MAKE[name]()
        if bandit.contextual:
            contextual = True
        play_on = _constant_context if contextual else play
        play_on(bandit, 2500 if stays else 1500, seed=seed)
        late.append(play_on(bandit, 800, seed=seed + 50, means=AFTER)[-300:].mean())
    lost = AFTER.max() - AFTER[MEANS.argmax()]
    if name in FOLLOWS:
        assert np.mean(late) < 0.35 * lost
    else:
        assert np.mean(late) > 0.5 * lost


def _constant_context(bandit, rounds, *, seed, means=MEANS):
    """`play` without anything in the context: only what each arm brings changes."""
    rng = np.random.default_rng(seed)
    regret = np.zeros(rounds)
    for t in range(rounds):
        x = 0.1 * context(rng)
        arm, _ = bandit.choose(x, None, rng)
        bandit.update(arm, float(rng.random() < means[arm]), x, cost=0.1)
        regret[t] = means.max() - means[arm]
    return regret


def test_a_forgotten_arm_is_tried_again(name):
    bandit = EVERY[name]()
    x = [0.2] if name in CURVE else [0.1, -0.2]
    for t in range(200):
        bandit.update(t % ARMS, 0.3 * (t % ARMS == 1), x, cost=0.1, propensity=0.25)
    before = bandit.probabilities(x)[0]
    bandit.forget(0)
    if name not in CURVE:  # where it is expected to bring nothing, as it did
        assert bandit.probabilities(x)[0] > before
    bandit.forget()
    again = bandit.probabilities(x)
    assert again.max() - again.min() < 0.02


def test_a_reward_that_is_none_is_refused(name):
    x = [0.2] if name in CURVE else [0.1, -0.2]
    with pytest.raises(InputError, match="reward"):
        EVERY[name]().update(0, float("nan"), x, cost=0.1)
    with pytest.raises(InputError, match="arms are numbered"):
        EVERY[name]().update(ARMS, 0.5, x, cost=0.1)


def test_a_penalty_takes_choices_away_or_is_refused(name):
    bandit = taught(name)
    x = [0.2] if name in CURVE else [0.1, -0.2]
    best = int(bandit.probabilities(x).argmax())
    penalty = np.zeros(ARMS)
    penalty[best] = 5.0
    if name.startswith(("automaton", "tsallis")):  # they know no worth
        with pytest.raises(InputError, match="penalty"):
            bandit.probabilities(x, None, penalty)
    else:
        assert bandit.probabilities(x, None, penalty)[best] < 0.1


@pytest.mark.parametrize("detector", [PageHinkley(), LikelihoodRatio()])
def test_a_detector_speaks_after_a_change_and_seldom_before(detector):
    wrong, delays = 0, []
    for seed in range(40):
        rng, watching = np.random.default_rng(seed), detector.fresh()
        wrong += any(watching.observe(float(v)) for v in rng.random(1000) < 0.8)
        watching = detector.fresh()
        for value in rng.random(300) < 0.8:
            watching.observe(float(value))
        after = [watching.observe(float(v)) for v in rng.random(400) < 0.4]
        delays.append(after.index(True) if True in after else np.inf)
    assert wrong <= 4
    assert np.median(delays) < 120
