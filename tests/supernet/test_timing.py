"""Networks are timed in turns, by processor time where that is what a call takes."""

import time

import pytest
import torch
from torch import nn

from pointsman.errors import InputError
from pointsman.supernet.timing import clock_of, time_in_turns


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_processor_time_is_taken_on_one_thread_of_the_cpu_only(one_thread):
    assert clock_of([nn.Linear(2, 2)]) == "processor"
    assert clock_of([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")]) == "wall"
    torch.set_num_threads(2)
    assert clock_of([nn.Linear(2, 2)]) == "wall"


@pytest.mark.parametrize("clock", ["processor", "wall"])
def test_calls_take_turns_and_the_first_rounds_are_not_counted(clock):
    called = []
    runs = {name: lambda name=name: called.append(name) for name in "ab"}
    found = time_in_turns(runs, clock, warmup=2, repeats=3)
    assert called == ["a", "b"] * 5
    assert {name: latency.repeats for name, latency in found.items()} == {"a": 3, "b": 3}
    with pytest.raises(InputError, match="repeats=0"):
        time_in_turns(runs, clock, repeats=0)


def test_waiting_is_no_processor_time(monkeypatch):
    passed, spent = iter(range(1000)), iter([0.0, 0.25] * 5)
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(passed)))
    monkeypatch.setattr(time, "process_time", lambda: next(spent))
    found = time_in_turns({"it": lambda: None}, "processor", warmup=2, repeats=3)["it"]
    assert float(found.median) == 250.0
