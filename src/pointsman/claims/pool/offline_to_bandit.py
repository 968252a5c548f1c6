"""C-ETC: an offline algorithm for a combinatorial problem learns from rewards of whole actions.

Nie, Nadew, Zhu, Aggarwal & Quinn, "A Framework for Adapting Offline Algorithms to Solve
Combinatorial Multi-Armed Bandit Problems with Bandit Feedback" (2023, arXiv 2301.13326).

The algorithm runs as it is; each time it asks for the value of a set, the set is played m times and
the mean is the answer. Then its result is played to the end: `explore_then_commit` around `greedy`.

What was settled:
- Ten items, three may be chosen; an item covers each of 40 elements with probability 0.15 and the
  reward is 1 with the share that is covered: monotone and submodular. Six such problems a seed.
- Regret is counted against what greedy finds with exact values, which is more than (1 - 1/e) times
  the best set, so that it can be positive; and as alpha-regret it would only be lower.
- Adversarial full-bandit greedy (Streeter & Golovin 2008) is the baseline: Hedge for each of the
  three places, told of the rounds that explore it. Its share of exploring rounds, T^(-1/3) times
  0.5, 1, 2, 4, 8 or 16, and its rate, the usual one times 1, 4, 16, 64 or 256, were chosen on
  seeds 100 and 101 after 32,000 rounds: 1 and 16. C-ETC has nothing to choose.
- UCB over all 120 sets is shown beside them; it is only possible because the problem is this small.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Worth = Callable[[frozenset[int]], float]

ITEMS, CHOSEN, ELEMENTS, COVERED = 10, 3, 40, 0.15
ROUNDS = (2000, 8000, 32_000)
PROBLEMS = 6
EXPLORED, RATE = 1.0, 16.0  # of the baseline, times T^(-1/3) and times Hedge's usual rate


def quick() -> None:
    """Exact values give the offline result, exploring is as planned, greedy keeps its bound."""
    from itertools import combinations

    import numpy as np

    from pointsman.errors import InputError
    from pointsman.pool.online.explore_then_commit import explore_then_commit, greedy, repeats

    rng = np.random.default_rng(0)
    worth = _problem(rng)
    offline = greedy(worth, range(ITEMS), CHOSEN)
    best = max(worth(frozenset(s)) for s in combinations(range(ITEMS), CHOSEN))
    must(worth(offline) >= (1 - np.exp(-1)) * best, "greedy reaches 1 - 1/e of the best")
    asked = ITEMS * CHOSEN
    found = explore_then_commit(
        lambda value: greedy(value, range(ITEMS), CHOSEN),
        lambda action, times: np.full(times, worth(action)),
        5000,
        questions=asked,
        delta=2 * CHOSEN,
    )
    must(found.action == offline, "without noise it finds what the offline algorithm does")
    must(len(found.rewards) == 5000, "every round is played")
    must(found.repeats == repeats(5000, asked, 2 * CHOSEN), "each question as often as planned")
    must(found.explored == found.repeats * (asked - 3), "27 sets are asked about")
    try:
        explore_then_commit(
            lambda value: frozenset(), lambda a, n: np.zeros(n), 100, questions=asked, delta=6
        )
        refused = False
    except InputError:
        refused = True
    must(refused, "too few rounds are refused")


def full(seed: int) -> Figures:
    """Mean regret over the problems after three numbers of rounds, and the last set's value."""
    import numpy as np

    regret = {
        (name, T): 0.0 for name in ("C-ETC", "online greedy", "UCB over sets") for T in ROUNDS
    }
    share = dict.fromkeys(ROUNDS, 0.0)
    for problem in range(PROBLEMS):
        worth = _problem(np.random.default_rng([seed, problem]))
        reached = worth(_offline(worth))
        for rounds in ROUNDS:
            rng = np.random.default_rng([seed, problem, rounds])
            values, last = _committed(worth, rounds, rng)
            regret["C-ETC", rounds] += float((reached - values).sum()) / PROBLEMS
            share[rounds] += last / reached / PROBLEMS
            for name, play in (("online greedy", _online_greedy), ("UCB over sets", _all_sets)):
                met = play(worth, rounds, rng)
                regret[name, rounds] += float((reached - met).sum()) / PROBLEMS
    figures = {f"{name}: regret after {T:,}": value for (name, T), value in regret.items()}
    figures |= {f"C-ETC: value after {T:,}": value for T, value in share.items()}
    for name in ("C-ETC", "online greedy"):
        grown = regret[name, ROUNDS[-1]] / regret[name, ROUNDS[0]]
        figures[f"{name}: exponent"] = float(np.log(grown) / np.log(ROUNDS[-1] / ROUNDS[0]))
    return figures


def _problem(rng: "np.random.Generator") -> "Worth":
    """The share of elements that a set of items covers."""
    covers = rng.random((ITEMS, ELEMENTS)) < COVERED

    def worth(action: frozenset[int]) -> float:
        return float(covers[sorted(action)].any(axis=0).mean()) if action else 0.0

    return worth


def _offline(worth: "Worth") -> frozenset[int]:
    from pointsman.pool.online.explore_then_commit import greedy

    return greedy(worth, range(ITEMS), CHOSEN)


def _committed(
    worth: "Worth", rounds: int, rng: "np.random.Generator"
) -> tuple["npt.NDArray[np.float64]", float]:
    """(T,) expected reward of what C-ETC played, and that of the last set."""
    import numpy as np

    from pointsman.pool.online.explore_then_commit import explore_then_commit, greedy

    expected: list[npt.NDArray[np.float64]] = []

    def play(action: frozenset[int], times: int) -> "npt.NDArray[np.float64]":
        expected.append(np.full(times, worth(action)))
        return (rng.random(times) < worth(action)).astype(float)

    found = explore_then_commit(
        lambda value: greedy(value, range(ITEMS), CHOSEN),
        play,
        rounds,
        questions=ITEMS * CHOSEN,
        delta=2 * CHOSEN,
    )
    return np.concatenate(expected), worth(found.action)


def _online_greedy(
    worth: "Worth", rounds: int, rng: "np.random.Generator"
) -> "npt.NDArray[np.float64]":
    """(T,) of Streeter & Golovin's: Hedge for each place, told of rounds that explore it."""
    import numpy as np

    share = min(1.0, EXPLORED * rounds ** (-1 / 3))
    rate = RATE * np.sqrt(2 * np.log(ITEMS) / max(1.0, rounds * share / CHOSEN / ITEMS))
    gains, expected = np.zeros((CHOSEN, ITEMS)), np.zeros(rounds)
    draws = rng.random((rounds, CHOSEN + 2))
    for t in range(rounds):
        weight = np.exp(rate * (gains - gains.max(axis=1, keepdims=True)))
        edges = np.cumsum(weight, axis=1)
        drawn = (draws[t, :CHOSEN, None] * edges[:, -1:] > edges).sum(axis=1)
        if draws[t, CHOSEN] < share:
            place, item = divmod(int(draws[t, CHOSEN + 1] * CHOSEN * ITEMS), ITEMS)
            action = frozenset([*drawn[:place].tolist(), item])
            expected[t] = worth(action)
            gains[place, item] += float(rng.random() < expected[t])
        else:
            expected[t] = worth(frozenset(drawn.tolist()))
    return expected


def _all_sets(worth: "Worth", rounds: int, rng: "np.random.Generator") -> "npt.NDArray[np.float64]":
    """(T,) of UCB with every set of three as an arm."""
    from itertools import combinations

    import numpy as np

    from pointsman.pool.online.discounted import DiscountedUpperConfidence

    values = np.array([worth(frozenset(s)) for s in combinations(range(ITEMS), CHOSEN)])
    bandit, expected = DiscountedUpperConfidence(len(values), discount=1.0), np.zeros(rounds)
    for t in range(rounds):
        arm, _ = bandit.choose(None, None, rng)
        expected[t] = values[arm]
        bandit.update(arm, float(rng.random() < values[arm]))
    return expected


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    last = f"{ROUNDS[-1]:,}"
    return (
        0.55 <= mean(measurements, "C-ETC: exponent") <= 0.75
        and mean(measurements, f"C-ETC: value after {last}") >= 0.95
        and mean(measurements, f"C-ETC: regret after {last}")
        < mean(measurements, f"online greedy: regret after {last}")
    )


CLAIM = Claim(
    slug="offline-to-bandit",
    paper="A Framework for Adapting Offline Algorithms to Solve Combinatorial Multi-Armed Bandit "
    "Problems with Bandit Feedback",
    year=2023,
    arxiv="2301.13326",
    level="pool",
    claim="Any offline algorithm that bears small errors becomes a bandit algorithm with regret of "
    "the order T^(2/3), from rewards of whole actions alone, and beats the adversarial one.",
    baseline="Greedy with an adversarial expert for each place (Streeter & Golovin 2008), its "
    "share of exploring rounds and its rate chosen for it; UCB over all 120 sets is shown beside.",
    criterion="In the mean over seeds of six problems each: the regret against the offline result "
    "grows from 2,000 to 32,000 rounds with an exponent from 0.55 to 0.75, the set played at the "
    "end is worth at least 0.95 of the offline result after 32,000, and regret is then below that "
    "of adversarial online greedy.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.pool.online.explore_then_commit",
    composition="offline greedy as it is · questions answered by playing · commitment",
    key={
        "regret after 32,000": "C-ETC: regret after 32,000",
        "online greedy": "online greedy: regret after 32,000",
        "exponent": "C-ETC: exponent",
    },
)
