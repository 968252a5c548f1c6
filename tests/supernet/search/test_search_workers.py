"""Evaluations elsewhere: the same history whatever the number of workers, whoever dies."""

import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pointsman.errors import InputError
from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.history import History
from pointsman.supernet.search.problem import Problem
from pointsman.supernet.search.run import search
from pointsman.supernet.search.workers import DIED, LocalWorkers, RayWorkers
from pointsman.supernet.space import Choice, Genotype, Space

SPACE = Space([Choice("a", (1, 2, 3)), Choice("b", (1, 2, 3, 4))])


def uneven(log: Path, genotype: Genotype) -> float:
    """Later ones of a batch are done first; one kills its process, one fails."""
    time.sleep(0.01 * (3 - genotype[1]))
    with log.open("a") as file:
        file.write(f"{os.getpid()} {genotype}\n")
    if genotype == (2, 2):
        os._exit(9)
    if genotype == (1, 1):
        raise RuntimeError("no")
    return sum(genotype) / 3


def cost(genotype: Genotype) -> float:
    return 1.0 + genotype[0]


def make(log: Path) -> Problem:
    return Problem(SPACE, partial(uneven, log), cost)


def breaks() -> Problem:
    raise RuntimeError("no such weights")


def adaptive(problem: Problem, seed: int) -> Proposals:
    """Batches that depend on what the last one was found to be, in order."""
    batch = [(0, 0), (0, 1), (0, 2), (0, 3)]
    while True:
        answers = yield batch
        best = max(range(4), key=lambda at: -1.0 if answers[at].failed else answers[at].quality)
        first = (batch[best][0] + 1) % 3
        batch = [(first, b) for b in (3, 1, 0, 2)]


@pytest.fixture
def here() -> list[tuple[Genotype, str]]:
    """What the search finds, where nothing dies."""
    found = []
    for a, order in ((0, (0, 1, 2, 3)), (1, (3, 1, 0, 2)), (2, (3, 1, 0, 2))):
        found += [(a, b) for b in order]
    words = {(1, 1): "RuntimeError: no", (2, 2): DIED}
    return [(genotype, words.get(genotype, "")) for genotype in found]


def test_local_workers_find_the_same_and_survive_a_death(
    tmp_path: Path, here: list[tuple[Genotype, str]]
) -> None:
    problem = make(tmp_path / "log")
    with (
        LocalWorkers(partial(make, tmp_path / "log"), 2) as workers,
        History(SPACE, tmp_path / "s.db") as history,
    ):
        found = search(problem, adaptive, 12, evaluate=history.sharing(workers.evaluate))
    assert [(e.genotype, e.failure) for e in found] == here
    assert found[0].quality == 0.0
    assert found[4].quality == 4 / 3
    lines = (tmp_path / "log").read_text().splitlines()
    assert str(os.getpid()) not in {line.split()[0] for line in lines}
    assert len({line.split()[0] for line in lines}) >= 2
    with pytest.raises(InputError, match="RuntimeError: no such weights"):
        list(LocalWorkers(breaks, 1).evaluate(problem, [(0, 0)]))


def test_ray_workers_find_the_same_and_survive_a_death(
    tmp_path: Path, here: list[tuple[Genotype, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pickle = pytest.importorskip("ray.cloudpickle", reason="Ray is not installed")
    pickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else the tests beside this one go first
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    problem = make(tmp_path / "log")
    with (
        RayWorkers(partial(make, tmp_path / "log"), 2) as workers,
        History(SPACE, tmp_path / "s.db") as history,
    ):
        found = search(problem, adaptive, 12, evaluate=history.sharing(workers.evaluate))
    assert [(e.genotype, e.failure) for e in found] == here


def test_no_worker_is_refused() -> None:
    for kind in (LocalWorkers, RayWorkers):
        with pytest.raises(InputError, match="at least one worker, got 0"):
            kind(breaks, 0)
