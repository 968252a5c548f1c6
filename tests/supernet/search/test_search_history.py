"""A history of evaluations: kept, shared, resumed, and refused where it is not the right one."""

import math
import multiprocessing
import multiprocessing.context
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest

from pointsman.errors import InputError
from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.history import History
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.search.run import search
from pointsman.supernet.search.studies import FilePresence
from pointsman.supernet.space import Choice, Genotype, Space

PATIENCE = 120.0  # seconds, on a machine that is busy
SPACE = Space(
    [
        Choice("depth", (1, 2, 3)),
        Choice("kind", ("a", "b", "c", "d")),
        Choice("deep", (0.5, 1.0), when=("depth", (3,))),
    ]
)


def quality(genotype: Genotype) -> float:
    return 0.1 * sum(genotype) + 1 / 3


def cost(genotype: Genotype) -> float:
    return 1.0 + genotype[0] + genotype[1] / 7


PROBLEM = Problem(SPACE, quality, cost)


def in_order(problem: Problem, seed: int) -> Proposals:
    """Every genotype, four at a time, from one that the seed says."""
    every = list(problem.space.enumerate())
    every = every[seed:] + every[:seed]
    for start in range(0, len(every), 4):
        yield every[start : start + 4]


def run(store: Path | str, problem: Problem = PROBLEM, count: int = 16) -> list[Evaluation]:
    with History(problem.space, store) as history:
        return search(
            problem, in_order, count, known=history.evaluations(), evaluate=history.sharing()
        )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Evaluation]]:
    """A study of all genotypes as it lies in its file, and what the search found."""
    store = tmp_path_factory.mktemp("written") / "study.db"
    found = run(store)
    return store.read_bytes(), found


@pytest.fixture
def whole(written: tuple[bytes, list[Evaluation]], tmp_path: Path) -> Path:
    """A copy of that file."""
    store = tmp_path / "study.db"
    store.write_bytes(written[0])
    return store


def test_what_was_evaluated_is_read_back_as_it_was(
    whole: Path, written: tuple[bytes, list[Evaluation]]
) -> None:
    assert written[1] == search(PROBLEM, in_order, 16)
    with History(SPACE, whole) as history:
        assert history.evaluations() == written[1]


def test_a_resumed_search_evaluates_nothing_again(tmp_path: Path) -> None:
    asked: list[Genotype] = []
    counted = Problem(SPACE, lambda g: asked.append(g) or quality(g), cost)  # type: ignore[func-returns-value]
    first = run(tmp_path / "study.db", counted, count=6)
    whole = run(tmp_path / "study.db", counted, count=16)
    assert whole[:6] == first
    assert Counter(asked) == Counter(each.genotype for each in whole)


def test_failures_are_kept_with_their_reason_and_not_tried_again(tmp_path: Path) -> None:
    asked = []

    def breaks(genotype: Genotype) -> float:
        asked.append(genotype)
        if genotype[1] == 1:
            raise RuntimeError("shapes do not fit")
        return math.nan if genotype[1] == 2 else 1.0

    problem = Problem(SPACE, breaks, cost)
    found = run(tmp_path / "study.db", problem)
    again = run(tmp_path / "study.db", problem)
    assert len(asked) == 16
    assert [e.failure for e in again] == [e.failure for e in found]
    assert {e.failure for e in again if e.genotype[1] == 1} == {"RuntimeError: shapes do not fit"}
    assert all(e.failed == (e.genotype[1] in (1, 2)) for e in again)


def test_optuna_reads_the_options_and_the_front_from_the_study(whole: Path) -> None:
    study = optuna.load_study(study_name="pointsman", storage=f"sqlite:///{whole}")
    assert len(study.trials) == 16
    by_genotype = {tuple(t.user_attrs["genotype"]): t for t in study.trials}
    assert by_genotype[(2, 3, 1)].params == {"depth": 3, "kind": "d", "deep": 1.0}
    assert by_genotype[(0, 1, 0)].params == {"depth": 1, "kind": "b"}
    assert study.metric_names == ["quality", "cost in MFLOPs"]
    assert (0, 0, 0) in [tuple(t.user_attrs["genotype"]) for t in study.best_trials]


def test_a_curve_is_kept(tmp_path: Path) -> None:
    def curved(problem: Problem, genotypes: Iterator[Genotype]) -> Iterator[Evaluation]:
        return (Evaluation(g, 0.5, 1.0, curve=(0.1, 0.5)) for g in genotypes)

    with History(SPACE, tmp_path / "study.db") as history:
        list(history.evaluate(PROBLEM, [(0, 0, 0)], curved))  # type: ignore[arg-type]
        assert history.evaluations() == [Evaluation((0, 0, 0), 0.5, 1.0, curve=(0.1, 0.5))]


def test_a_study_of_another_space_unit_or_model_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "study.db"
    History(SPACE, store, about={"weights": "1234"}).close()
    with pytest.raises(InputError, match="another space"):
        History(Space([Choice("depth", (1, 2))]), store, about={"weights": "1234"})
    with pytest.raises(InputError, match="another unit"):
        History(SPACE, store, unit="ms", about={"weights": "1234"})
    with pytest.raises(InputError, match="another weights"):
        History(SPACE, store, about={"weights": "5678"})
    with pytest.raises(InputError, match="another weights"):
        History(SPACE, store)
    History(SPACE, store, about={"weights": "1234"}).close()


def test_two_studies_live_in_one_file(tmp_path: Path) -> None:
    with History(SPACE, tmp_path / "s.db") as one, History(SPACE, tmp_path / "s.db", name="2") as b:
        list(one.evaluate(PROBLEM, [(0, 0, 0)]))
        assert [e.genotype for e in b.evaluate(PROBLEM, [(0, 0, 0)])] == [(0, 0, 0)]
        assert len(one.evaluations()) == len(b.evaluations()) == 1


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_study_is_refused_and_left_as_it_is(whole: Path, share: float) -> None:
    content = whole.read_bytes()
    damaged = content[: int(share * len(content))]
    whole.write_bytes(damaged)
    with pytest.raises(InputError, match=r"study\.db: .*the file was left as it is"):
        History(SPACE, whole)
    assert whole.read_bytes() == damaged
    assert sorted(p.name for p in whole.parent.iterdir()) in (
        ["study.db"],
        ["study.db", "study.db.lock"],
    )


def test_pages_overwritten_with_noise_are_refused(whole: Path) -> None:
    content = bytearray(whole.read_bytes())
    content[4096:12288] = os.urandom(8192)
    whole.write_bytes(content)
    with pytest.raises(InputError, match="the study is damaged"):
        History(SPACE, whole)


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "text.db").write_text("not a database")
    with pytest.raises(InputError, match="no SQLite file"):
        History(SPACE, tmp_path / "text.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(InputError, match="something else than studies"):
        History(SPACE, tmp_path / "other.db")
    with pytest.raises(InputError, match="there is no folder"):
        History(SPACE, tmp_path / "missing" / "study.db")
    with pytest.raises(InputError, match="SQLite file or a postgresql"):
        History(SPACE, "mysql://somewhere/study")
    optuna.create_study(storage=f"sqlite:///{tmp_path}/plain.db", study_name="pointsman")
    with pytest.raises(InputError, match="not a search's"):
        History(SPACE, tmp_path / "plain.db")


def test_an_interrupted_evaluation_gives_its_claim_back(tmp_path: Path) -> None:
    def stops(genotype: Genotype) -> float:
        raise KeyboardInterrupt

    with History(SPACE, tmp_path / "study.db") as history:
        with pytest.raises(KeyboardInterrupt):
            list(history.evaluate(Problem(SPACE, stops, cost), [(0, 0, 0)]))
        with History(SPACE, tmp_path / "study.db") as other:
            assert [e.quality for e in other.evaluate(PROBLEM, [(0, 0, 0)])] == [1 / 3]
    assert not (tmp_path / "study.db.workers").exists()


def work(store: Path | str, log: Path, out: Path) -> None:
    """A process of its own: a search whose evaluations are logged as they happen."""

    def slow(genotype: Genotype) -> float:
        time.sleep(0.02)
        with log.open("a") as file:
            file.write(repr(genotype) + "\n")
        return quality(genotype)

    out.write_text(repr(run(store, Problem(SPACE, slow, cost))))


def start(store: Path | str, log: Path, out: Path) -> multiprocessing.context.ForkProcess:
    child = multiprocessing.get_context("fork").Process(target=work, args=(store, log, out))
    child.start()
    return child


def end(child: multiprocessing.context.ForkProcess, out: Path) -> list[Evaluation]:
    child.join(PATIENCE)
    assert child.exitcode == 0
    found: list[Evaluation] = eval(out.read_text())
    return found


def wait_for(log: Path, lines: int) -> None:
    until = time.monotonic() + PATIENCE
    while not log.exists() or len(log.read_text().splitlines()) < lines:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_killed_half_way_it_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    store, log = tmp_path / "study.db", tmp_path / "log"
    child = start(store, log, tmp_path / "out")
    wait_for(log, 6)
    child.kill()
    child.join()
    done = log.read_text().splitlines()
    with History(SPACE, store) as history:
        kept = {repr(each.genotype) for each in history.evaluations()}
    assert kept >= set(done[:-1])  # at most the one at which it was killed is not there
    again = start(store, log, tmp_path / "out")
    assert end(again, tmp_path / "out") == search(PROBLEM, in_order, 16)
    counts = Counter(log.read_text().splitlines())
    assert len(counts) == 16
    assert all(count == 1 for name, count in counts.items() if name in kept)
    assert not (tmp_path / "study.db.workers").exists()


def test_two_processes_share_a_study_and_come_to_the_history_of_one(tmp_path: Path) -> None:
    store, log = tmp_path / "study.db", tmp_path / "log"
    outs = [tmp_path / "one", tmp_path / "other"]
    children = [start(store, log, out) for out in outs]
    found = [end(child, out) for child, out in zip(children, outs, strict=True)]
    assert found[0] == found[1] == search(PROBLEM, in_order, 16)
    assert sorted(Counter(log.read_text().splitlines()).values()) == [1] * 16


def test_processes_share_a_postgresql_study(postgres_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    one = start(postgres_url, log, tmp_path / "one")
    other = start(postgres_url, log, tmp_path / "other")
    wait_for(log, 4)
    one.kill()
    one.join()
    assert end(other, tmp_path / "other") == search(PROBLEM, in_order, 16)
    counts = Counter(log.read_text().splitlines())
    assert len(counts) == 16
    assert sum(counts.values()) <= 17  # the one at which it was killed may be there twice
    with pytest.raises(InputError, match="another unit"):
        History(SPACE, postgres_url, unit="ms")


def test_an_unreachable_database_is_one_error_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(InputError, match="cannot be reached") as told:
        History(SPACE, f"postgresql://user:secret@/nowhere?host={tmp_path}")
    assert "secret" not in str(told.value)


def test_who_leaves_last_removes_the_folder_and_leaving_at_once_is_no_error(tmp_path: Path) -> None:
    rounds, meet, one = 30, threading.Barrier(4), threading.Lock()

    def come_and_go(owner: int) -> None:
        for turn in range(rounds):
            presence = FilePresence(tmp_path / "study.db")
            meet.wait(20)
            with one:  # as where a study is opened
                presence.enter(owner + 10 * turn)
            meet.wait(20)
            presence.leave()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert not (tmp_path / "study.db.workers").exists()
