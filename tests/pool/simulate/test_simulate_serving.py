"""Servers that batch, bursts of requests, and routers that learn when to use which server."""

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.pool.simulate.best_effort import DoubleQ, Fixed, OneStep, earned
from pointsman.pool.simulate.serving import Requests, Seen, Server, bursts, serve


def requests(arrival: list[float], size: list[float]) -> Requests:
    return Requests(np.array(arrival), np.zeros(len(arrival), dtype=np.int64), np.array(size))


def test_a_batch_slows_down_as_computed_by_hand() -> None:
    # alone until 1, half done; then both at 1/3 a second: the first takes 1.5 s more, of the second
    # half is left, which alone takes another second
    served = serve([Server(2.0, slowdown=0.5)], requests([0.0, 1.0], [1.0, 1.0]), Fixed(0))
    np.testing.assert_allclose(served.seconds, [2.5, 2.5])


def test_beyond_the_largest_batch_requests_wait_in_order() -> None:
    stream = requests([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    served = serve([Server(1.0, slowdown=0.0, batch=1)], stream, Fixed(0))
    np.testing.assert_allclose(served.seconds, [1.0, 2.0, 3.0])


def test_work_is_conserved_whatever_the_order() -> None:
    stream = bursts(300, (3.0,), np.random.default_rng(0))
    one = serve([Server(1.0, slowdown=1.0, batch=1)], stream, Fixed(0)).seconds + stream.arrival
    # n together, each at a pace of 1 / n: the server is as busy as with one at a time
    many = serve([Server(1.0, slowdown=1.0, batch=999)], stream, Fixed(0)).seconds + stream.arrival
    assert one.max() == pytest.approx(many.max())
    assert not np.allclose(one, many)


def test_bursts_have_the_rates_asked_for_and_more_spread_than_a_poisson_process() -> None:
    calm = bursts(4000, (5.0,), np.random.default_rng(1))
    assert 4000 / calm.arrival[-1] == pytest.approx(5.0, rel=0.1)
    assert calm.size.mean() == pytest.approx(1.0, rel=0.05)
    wild = bursts(4000, (1.0, 10.0), np.random.default_rng(1))
    for stream, least, most in ((calm, 0.8, 1.2), (wild, 1.5, 99)):
        gap = np.diff(stream.arrival)
        assert (gap > 0).all()
        assert least < gap.std() / gap.mean() < most


def test_the_router_sees_loads_and_the_windowed_rate() -> None:
    seen = []

    class Spy(Fixed):
        def choose(self, now: Seen) -> int:
            seen.append(now)
            return len(seen) % 2

    serve([Server(10.0), Server(0.1)], requests([0.0, 1.0, 1.5, 4.0], [1.0] * 4), Spy(0))
    assert [s.load for s in seen] == [(0, 0), (0, 0), (1, 0), (1, 0)]
    assert [s.rate for s in seen] == [0.5, 1.0, 1.5, 0.5]


def test_only_what_is_in_time_earns_the_quality_of_task_and_server() -> None:
    stream = requests([0.0, 0.0], [1.0, 1.0])
    served = serve([Server(1.0, slowdown=0.0, batch=1)], stream, Fixed(0))
    assert earned([[0.7]], stream, served, deadline=1.5).tolist() == [0.7, 0.0]


def test_one_step_ahead_takes_the_best_model_that_is_in_time() -> None:
    router = OneStep([Server(0.1), Server(1.0)], [[0.5, 1.0], [1.0, 0.2]], deadline=1.2)
    assert router.choose(Seen(0, (0, 0), 1.0)) == 1
    assert router.choose(Seen(0, (0, 4), 1.0)) == 0
    assert router.choose(Seen(1, (0, 0), 1.0)) == 0
    assert router.choose(Seen(0, (900, 20), 1.0)) == 1  # neither: the quicker of the two


def test_double_q_learning_finds_the_server_of_each_task() -> None:
    servers = [Server(0.1), Server(0.1)]
    quality = [[1.0, 0.2], [0.2, 1.0]]
    rng = np.random.default_rng(2)
    streams = [bursts(400, (2.0,), rng, tasks=2) for _ in range(3)]
    router = DoubleQ(servers, quality, 1.0, discount=0.5).fit(streams)
    for task in (0, 1):
        assert router.choose(Seen(task, (0, 0), 2.0)) == task
    test = bursts(200, (2.0,), rng, tasks=2)
    first = serve(servers, test, router)
    again = serve(servers, test, router)
    np.testing.assert_array_equal(first.seconds, again.seconds)  # it no longer explores
    assert earned(quality, test, first, 1.0).mean() > 0.9


def test_double_q_learning_leaves_a_full_server_alone() -> None:
    servers = [Server(0.05), Server(1.0, batch=1)]
    rng = np.random.default_rng(3)
    streams = [bursts(1500, (3.0,), rng, tasks=1) for _ in range(3)]
    router = DoubleQ(servers, [[0.5, 1.0]], 1.6).fit(streams)
    assert router.choose(Seen(0, (0, 0), 3.0)) == 1
    assert router.choose(Seen(0, (0, 3), 3.0)) == 0


def test_learning_is_the_same_each_time_and_hangs_on_the_seed() -> None:
    streams = [bursts(300, (5.0,), np.random.default_rng(4))]
    servers, quality = [Server(0.1), Server(1.0)], np.tile([0.5, 1.0], (3, 1))
    weights = [DoubleQ(servers, quality, 2.0, seed=s).fit(streams).weights_ for s in (0, 0, 1)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_a_step_follows_the_rule_of_double_q_learning() -> None:
    router = DoubleQ([Server(1.0), Server(1.0)], [[1.0, 0.5]], 2.0, discount=0.5)
    rng = np.random.default_rng(5)
    router.weights_[:] = before = rng.normal(size=router.weights_.shape)
    router._step = 0.1
    now, later = Seen(0, (1, 0), 1.0), Seen(0, (0, 2), 3.0)
    router._seen = [router.features(now), router.features(later)]
    router._taken = [1]
    router._learn(0, 0.7)
    (learner,) = {int(i) for i in np.argwhere(router.weights_ != before)[:, 0]}
    following = before[:, :, router.features(later)].sum(axis=2)
    target = 0.7 + 0.5 * following[1 - learner, following[learner].argmax()]
    old = before[learner, 1, router.features(now)].sum()
    new = router.weights_[learner, 1, router.features(now)].sum()
    assert new - old == pytest.approx(0.1 * (target - old))


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="batch"):
        Server(1.0, batch=0)
    with pytest.raises(InputError, match="rates"):
        bursts(3, (0.0,), np.random.default_rng(0))
    with pytest.raises(InputError, match="chose 5"):
        serve([Server(1.0)], requests([0.0], [1.0]), Fixed(5))
    with pytest.raises(InputError, match="discount"):
        DoubleQ([Server(1.0)], [[1.0]], 1.0, discount=1.0)
