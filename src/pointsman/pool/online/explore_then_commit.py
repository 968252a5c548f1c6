"""Any offline algorithm as a bandit: its questions are answered by playing, then it is believed.

Legend: T rounds, N questions.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.online.bandit import Array

Action = TypeVar("Action", bound=Hashable)
Item = TypeVar("Item", bound=Hashable)

Value = Callable[[Action], float]
Offline = Callable[[Value[Action]], Action]
Play = Callable[[Action, int], npt.NDArray[np.float64]]


class Commitment(NamedTuple, Generic[Action]):
    """What came of it.

    Args:
        action: that was played to the end.
        rewards: (T,) as they came.
        explored: rounds that went into answering questions.
        repeats: rounds for each question.
    """

    action: Action
    rewards: Array
    explored: int
    repeats: int


def repeats(rounds: int, questions: int, delta: float) -> int:
    """Rounds for each question: delta^(2/3) T^(2/3) (ln T)^(1/3) / (2 N^(2/3)), rounded up.

    It balances what exploring N m rounds costs against what wrong answers do.

    Args:
        rounds: T.
        questions: N, at most as many as the algorithm asks.
        delta: how much worse the algorithm gets with wrong answers, see `explore_then_commit`.
    """
    played = math.pow(delta * rounds / questions, 2 / 3) * math.pow(math.log(rounds), 1 / 3)
    return math.ceil(played / 2)


def explore_then_commit(
    offline: Offline[Action], play: Play[Action], rounds: int, *, questions: int, delta: float
) -> Commitment[Action]:
    """Run an offline algorithm on mean rewards of what it asks about, then play its answer.

    An algorithm is (alpha, delta)-robust if with values wrong by up to e it still finds an action
    worth alpha times the best less delta e. Then the regret against alpha times the best is at most
    of the order delta^(2/3) N^(1/3) T^(2/3) (ln T)^(1/3), from rewards of whole actions alone.

    Args:
        offline: gets a function from actions to values and gives an action; run as it is.
        play: plays an action a number of times and gives that many rewards in [0, 1].
        rounds: T in all.
        questions: N, upper bound on how often `offline` asks.
        delta: of its robustness, such as 2 k for `greedy` of k items.

    Raises:
        InputError: too few rounds for the questions, or more questions than were announced.

    Source: Nie, Nadew, Zhu, Aggarwal & Quinn, "A Framework for Adapting Offline Algorithms to Solve
    Combinatorial Multi-Armed Bandit Problems with Bandit Feedback" (2023, arXiv 2301.13326), C-ETC.
    A question that is asked again is played again, as its analysis has it.
    """
    if rounds < 2 or questions < 1 or not 0 < delta < math.inf:
        raise InputError(
            f"needs two rounds, a question and a delta above 0, got {rounds}, {questions}, {delta}"
        )
    each = repeats(rounds, questions, delta)
    if each * questions > rounds:
        raise InputError(
            f"{rounds} rounds are too few for {questions} questions of {each} rounds each: "
            "play longer, or ask less"
        )
    met: list[Array] = []

    def value(action: Action) -> float:
        if len(met) == questions:
            raise InputError(f"the algorithm asks more than the {questions} questions announced")
        met.append(np.asarray(play(action, each), dtype=np.float64))
        return float(met[-1].mean())

    action = offline(value)
    explored = each * len(met)
    met.append(np.asarray(play(action, rounds - explored), dtype=np.float64))
    return Commitment(action, np.concatenate(met), explored, each)


def greedy(value: Value[frozenset[Item]], items: Sequence[Item], most: int) -> frozenset[Item]:
    """At most `most` items, each time the one that adds the most value.

    For values that grow with the set and by less the larger it is (monotone submodular) it reaches
    1 - 1/e of the best (Nemhauser, Wolsey & Fisher 1978), is (1 - 1/e, 2 most)-robust, and asks at
    most len(items) * most questions.
    """
    chosen: frozenset[Item] = frozenset()
    for _ in range(min(most, len(items))):
        rest = [item for item in items if item not in chosen]
        worth = [value(chosen | {item}) for item in rest]
        chosen = chosen | {rest[int(np.argmax(worth))]}
    return chosen
