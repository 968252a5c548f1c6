"""Nodes that share their time and memory among models, token by token."""

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.pool.simulate.memory import StepMemory
from pointsman.pool.simulate.mesh import (
    Job,
    Node,
    Profile,
    Request,
    Turn,
    draw_requests,
    first_come,
    least_headroom,
    round_robin,
    run_mesh,
)

EVEN = [0.25] * 4


def requests(rate: float, count: int = 120, seed: int = 0) -> list[Request]:
    return draw_requests(count, rate, EVEN, np.random.default_rng(seed))


def test_a_lone_request_takes_the_time_of_its_iterations() -> None:
    profile = Profile(0.1, 0.001, 0.02, 0.003, 0.0001)
    node = Node(profile=profile)
    assert node.admit(0, Request(0.0, 0, input=100, output=3))
    node.advance(1e-9)
    assert node.now == pytest.approx(0.1 + 0.1)
    node.advance(np.inf)
    decodes = [0.02 + 0.003 + 0.0001 * context for context in (101, 102)]
    assert node.now == pytest.approx(0.2 + sum(decodes))
    assert not node.jobs


def test_decoding_serves_all_prefilled_requests_of_one_model_at_once() -> None:
    node = Node(first_come)
    for number, model in enumerate((0, 0, 1)):
        node.admit(number, Request(0.0, model, 10, 5))
    while any(job.produced == 0 for job in node.jobs):
        node.advance(node.now + 1e-9)
    before = [job.produced for job in node.jobs]
    node.advance(node.now + 1e-9)
    assert [job.produced - n for job, n in zip(node.jobs, before, strict=True)] == [1, 1, 0]


def test_each_order_picks_as_described() -> None:
    urgent = Job(2, Request(1.0, 0, 10, 9, first=0.1), ready=1.0)
    old = Job(0, Request(0.0, 1, 10, 9, first=5.0, each=0.5), produced=2, ready=2.0)
    middle = Job(1, Request(0.5, 2, 10, 9, first=5.0), ready=0.5)
    jobs = [urgent, old, middle]
    assert least_headroom(Turn(jobs, 0)) is urgent
    assert first_come(Turn(jobs, 0)) is middle
    assert [round_robin(Turn(jobs, last)) for last in (0, 1, 2)] == [old, middle, urgent]
    late = Job(3, Request(0.0, 3, 10, 9, first=0.2, each=0.5), produced=3)
    assert late.due == pytest.approx(1.7)  # tokens already yielded push it back


@pytest.mark.parametrize("order", [least_headroom, first_come, round_robin])
def test_with_admission_and_exact_predictions_no_token_is_late(order: object) -> None:
    offered = requests(8.0)
    outcome = run_mesh([Node(order)], offered)  # type: ignore[arg-type]
    assert (outcome.met == (outcome.node >= 0)).all()
    assert 0 < outcome.met.mean() < 1
    anyway = run_mesh([Node(order, admission=False)], offered)  # type: ignore[arg-type]
    assert (anyway.node == 0).all()
    assert not anyway.met.all()


def test_a_request_refused_leaves_the_node_as_it_was() -> None:
    node = Node()
    assert node.admit(0, Request(0.0, 0, 100, 30))
    assert not node.admit(1, Request(0.0, 1, 100, 30, first=0.001))
    assert [job.number for job in node.jobs] == [0]
    assert node.jobs[0].produced == 0


def test_wrong_predictions_break_the_promise_and_a_margin_mends_it() -> None:
    broken = []
    for margin in (1.0, 1.2):
        outcome = run_mesh([Node(slower=1.2, margin=margin)], requests(8.0))
        broken.append(int(((outcome.node >= 0) & ~outcome.met).sum()))
    assert broken[0] > 5
    assert broken[1] == 0


def test_requests_go_where_their_model_already_runs_and_only_where_it_may() -> None:
    offered = requests(2.0, 40)
    nodes = [Node(admission=False) for _ in range(4)]
    homes = [[3], [2], [1], [0]]
    outcome = run_mesh(nodes, offered, homes=homes)
    assert outcome.node.tolist() == [3 - request.model for request in offered]
    together = [Request(0.001 * i, 0, 50, 20) for i in range(5)]
    assert run_mesh([Node(), Node()], together).node.tolist() == [0] * 5
    apart = [Request(0.001 * i, i % 2, 50, 20) for i in range(4)]
    assert run_mesh([Node(), Node()], apart).node.tolist() == [0, 1, 0, 1]


def test_a_node_without_memory_for_a_request_passes_it_on_and_gets_it_back() -> None:
    nodes = [Node(memory=StepMemory(2, 100, step=10)) for _ in range(2)]
    offered = [Request(0.0, 0, 60, 20), Request(0.0, 0, 60, 20), Request(0.0, 0, 60, 20)]
    outcome = run_mesh(nodes, offered)
    assert sorted(outcome.node.tolist()) == [-1, 0, 1]
    assert [sum(node.memory.need) for node in nodes if node.memory] == [0, 0]


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_memory_never_exceeds_its_limit_in_between_either(spare: int) -> None:
    class Watched(StepMemory):
        def _resize(self, model: int, size: float) -> None:
            super()._resize(model, size)
            assert sum(self.granted) <= self.limit

    rng = np.random.default_rng(0)
    memory, held, refused = Watched(4, 1000, step=64, spare=spare), [], 0
    for _ in range(3000):
        if held and rng.random() < 0.5:
            memory.release(*held.pop(rng.integers(len(held))))
        else:
            wanted = int(rng.integers(4)), int(rng.integers(1, 200))
            before = list(memory.need), list(memory.granted)
            if memory.reserve(*wanted):
                held.append(wanted)
            else:
                refused += 1
                assert before == (memory.need, memory.granted)
        assert all(g >= n for g, n in zip(memory.granted, memory.need, strict=True))
    assert refused


def test_spare_steps_avoid_resizes() -> None:
    counts = []
    for spare in (0, 2):
        memory = StepMemory(1, 10_000, step=10, spare=spare)
        for _ in range(50):
            memory.reserve(0, 15)
            memory.release(0, 15)
        counts.append(memory.resizes)
    assert counts == [100, 1]


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="margin"):
        Node(margin=0.5)
    with pytest.raises(InputError, match="limit"):
        StepMemory(2, 0)
    with pytest.raises(InputError, match="released"):
        StepMemory(2, 10).release(0, 1)
