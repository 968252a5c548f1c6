"""Episodes on a simulated pool, their text in the tag language, and what a policy learns there."""

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.pool.log import Log
from pointsman.pool.programs import same_answer
from pointsman.pool.reasoning.rewards import episode_reward, exact_match
from pointsman.pool.reasoning.sequential import SequentialRouter
from pointsman.pool.reasoning.simulated import NONE, SimulatedPool
from pointsman.pool.reasoning.tags import Breach, Episode, parse_episode


def specialists(n=400, seed=0):
    """Two models, each right about one kind of query only; the second costs more."""
    kind = np.random.default_rng(seed).integers(2, size=n)
    quality = np.stack([kind == 0, kind == 1], axis=1).astype(float)
    log = Log(
        queries=np.array([f"<q> {i} of kind {k}" for i, k in enumerate(kind)], dtype=object),
        models=("a", "b"),
        quality=quality,
        cost=np.tile([1.0, 4.0], (n, 1)),
    )
    return log, np.eye(2)[kind]


def pool(**keywords):
    return SimulatedPool(*specialists(), **keywords)


def play(episodes, *actions):
    for action in actions:
        episodes.take(np.full(len(episodes.alive), action))
    return episodes


def first_of_kind(p, kind):
    return int(np.flatnonzero(p.vectors[:, kind])[0])


def test_a_question_is_right_if_all_of_its_parts_are_and_costs_all_calls():
    p = pool(notice=0.0)
    zero, one = first_of_kind(p, 0), first_of_kind(p, 1)
    questions = np.array([[zero, NONE], [zero, one], [zero, zero], [one, one]])
    episodes = play(p.start(questions, np.random.default_rng(0)), 0)
    assert episodes.cost.tolist() == [1, 1, 1, 1]
    play(episodes, 1, 2)
    assert not episodes.alive.any()
    assert not episodes.breach.any()
    assert episodes.right.tolist() == [1, 1, 0, 0]
    assert episodes.cost.tolist() == [5, 5, 5, 5]
    assert episodes.calls.tolist() == [[1, 1]] * 4


def test_an_answer_before_all_parts_are_closed_is_wrong():
    p = pool()
    episodes = play(p.start(p.questions(50, np.random.default_rng(0)), np.random.default_rng(0)), 2)
    assert episodes.right.tolist() == [0] * 50
    assert episodes.cost.tolist() == [0] * 50


def test_a_wrong_reply_that_is_noticed_may_be_asked_again():
    p = pool(notice=1.0)
    one = first_of_kind(p, 1)
    episodes = p.start(np.array([[one, NONE]]), np.random.default_rng(0))
    before = episodes.observe()
    play(episodes, 0)
    assert episodes.observe()[0, :2].tolist() == before[0, :2].tolist()  # the part is still open
    assert episodes.observe()[0, 5:7].tolist() == [1, 0]  # and who was wrong about it is known
    play(episodes, 0)
    assert episodes.observe()[0, :2].tolist() == before[0, :2].tolist()  # the same again: no help
    play(episodes, 1, 2)
    assert episodes.right.tolist() == [1]
    assert episodes.cost.tolist() == [6]


def test_a_model_that_was_wrong_says_the_same_again():
    p = pool(notice=0.5)
    questions = np.tile([first_of_kind(p, 1), NONE], (60, 1))
    episodes = play(p.start(questions, np.random.default_rng(0)), 0)
    open_still = episodes.observe()[:, :2].any(axis=1)
    assert 10 < open_still.sum() < 50
    play(episodes, 0, 0)  # what was noticed once is not overlooked the next time
    np.testing.assert_array_equal(episodes.observe()[:, :2].any(axis=1), open_still)


def test_who_never_answers_breaks_the_format():
    p = pool(turns=2)
    episodes = play(p.start(np.array([[0, 1]]), np.random.default_rng(0)), 0, 0, 0)
    assert episodes.breach.tolist() == [True]
    assert episodes.calls.sum() == 2
    assert not episodes.alive.any()
    text = episodes.text(0)
    assert isinstance(parse_episode(text, p.log.models), Breach)


def test_the_written_episode_parses_to_what_was_done_and_earns_the_same():
    p = pool(turns=3)
    rng = np.random.default_rng(4)
    episodes = p.start(p.questions(300, rng), rng)
    while episodes.alive.any():
        episodes.take(rng.integers(3, size=300))
    read = [parse_episode(episodes.text(i), p.log.models) for i in range(300)]
    breach = [isinstance(found, Breach) for found in read]
    right = [
        isinstance(found, Episode) and exact_match(found.answer, [episodes.gold(i)])
        for i, found in enumerate(read)
    ]
    calls = [len(found.searches) for found in read if isinstance(found, Episode)]
    assert 0 < sum(breach) < 300
    assert 0 < sum(right) < 300
    assert breach == episodes.breach.tolist()
    assert calls == episodes.calls.sum(axis=1)[~episodes.breach].tolist()
    np.testing.assert_allclose(
        episode_reward(breach, right, 0.5, weight=0.4),
        episode_reward(episodes.breach, episodes.right, 0.5, weight=0.4),
    )
    assert same_answer("gold 1; gold 2") != same_answer("gold 1; other 2")


def test_what_does_not_fit_is_refused():
    log, vectors = specialists()
    with pytest.raises(InputError, match=r"vectors must be \(400, D\)"):
        SimulatedPool(log, vectors[:5])
    missing = log.quality.copy()
    missing[3, 0] = np.nan
    with pytest.raises(InputError, match="every model answered"):
        SimulatedPool(Log(log.queries, log.models, missing, log.cost), vectors)
    with pytest.raises(InputError, match="notice is a chance"):
        SimulatedPool(log, vectors, notice=2)
    with pytest.raises(InputError, match=r"share in \[0, 1\]"):
        SequentialRouter(weight=2).fit(pool())
    small = SequentialRouter(updates=1, batch=8).fit(pool())
    with pytest.raises(InputError, match="fit on a pool of the same models"):
        small.act(SimulatedPool(log, np.ones((400, 5))), np.array([[0, 1]]))


def test_it_learns_to_ask_each_specialist_and_then_to_answer():
    p = pool()
    router = SequentialRouter(updates=80, batch=128, hidden=16).fit(p)
    rng = np.random.default_rng(1)
    episodes = router.act(p, p.questions(200, rng))
    assert episodes.right.mean() > 0.95
    assert episodes.breach.mean() < 0.02
    assert router.rewards_[-1] > router.rewards_[0] + 0.5


def test_the_same_seed_learns_the_same():
    p = pool()
    first, second = (SequentialRouter(updates=5, batch=32, seed=3).fit(p) for _ in range(2))
    assert first.rewards_ == second.rewards_
