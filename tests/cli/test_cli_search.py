"""`pointsman search`: from a function to a certified subnet, resumed, shared, refused."""

import json
import multiprocessing
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pointsman.cli.made import make
from pointsman.supernet.making import make_elastic
from pointsman.supernet.saved import load_subnet

MODEL = '''
import os, time
from pathlib import Path
import torch
from torch import nn
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.search.problem import Problem
from pointsman.supernet.space import Choice, Space
from pointsman.supernet.supernet import Supernet

LOG = Path(__file__).with_name("log")


class Logged(nn.Identity):
    """Writes down that its option was run."""


def block(units):
    return nn.Sequential(nn.Linear(6, units), nn.ReLU(), nn.Linear(units, 6))


def net():
    torch.manual_seed(0)
    first = OneOf("first", {"none": nn.Identity(), "small": block(4), "large": block(16)})
    second = OneOf("second", {"none": nn.Identity(), "small": block(4), "large": block(16)})
    return Supernet(nn.Sequential(first, second, nn.Linear(6, 3)))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def broken():
    supernet = net()
    supernet.body[0].operations[1] = nn.Linear(5, 6)
    return supernet


def quality(genotype):
    time.sleep(0.02)
    with LOG.open("a") as file:
        file.write(f"{genotype}\\n")
    return float(sum(genotype))


def cost(genotype):
    return 1.0 + genotype[0]


def problem():
    return Problem(Space([Choice("a", (1, 2, 3, 4)), Choice("b", (5, 6, 7, 8))]), quality, cost)


def one():
    return Problem(Space([Choice("only", (1,))]), quality, cost, budget=0.5)


def number():
    return 7


def fails():
    raise RuntimeError("no weights here")
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_table: Callable[..., Any]) -> Path:
    """With model.py and data.csv in it; neither chart nor page are drawn."""
    monkeypatch.setattr("pointsman.compare.results.chart.save", lambda *_: None)
    monkeypatch.setattr("pointsman.compare.results.report.write", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    make_table().to_csv(tmp_path / "data.csv", index=False)
    monkeypatch.delitem(sys.modules, "_searched_model", raising=False)
    return tmp_path


def trials(study: Path) -> int:
    connection = sqlite3.connect(study)
    count: int = connection.execute("SELECT count(*) FROM trials").fetchone()[0]
    connection.close()
    return count


def test_a_supernet_becomes_a_front_and_a_saved_subnet(
    folder: Path, pointsman: Callable[..., Any], refused: Callable[..., str]
) -> None:
    words = ["search", "model.py:net", "--data", "data.csv", "--out", "run"]
    ran = pointsman(*words, "--evaluations", 4)
    assert ran.code == 0, ran.err
    assert "is there: --resume continues it" in refused(*words)
    ran = pointsman(*words, "--evaluations", 9, "--resume", "--max-drop", 0.5)
    assert ran.code == 0, ran.err
    assert trials(folder / "run" / "study.db") == 9
    found = json.loads((folder / "run" / "results.json").read_text())
    assert found["search"]["evaluations"] == 9
    assert found["data"]["inputs"].keys() == {"train", "validation", "calibration", "test"}
    costs = [point["cost"] for point in found["ways"][0]["points"]]
    assert costs == sorted(costs)
    alone, body = load_subnet(folder / "run" / "policy", make("model.py:net"))
    assert body["about"]["made_by"] == "model.py:net"
    assert alone(torch.zeros(2, 6)).shape == (2, 3)
    assert "another data" in refused(
        "search", "model.py:net", "--data", "known-routes", "--out", "run", "--resume"
    )


def test_a_plain_network_becomes_elastic_and_is_fine_tuned_once(
    folder: Path, pointsman: Callable[..., Any], refused: Callable[..., str]
) -> None:
    words = ["search", "model.py:plain", "--data", "data.csv", "--evaluations", 4, "--out", "run"]
    ran = pointsman(*words, "--updates", 300, "--rate", 0.01, "--max-drop", 0.5)
    assert ran.code == 0, ran.err
    assert "fine-tuning" in ran.err
    found = json.loads((folder / "run" / "results.json").read_text())
    assert found["reference"]["name"] == "the whole network"
    assert found["reference"]["quality"] > 0.6, "it is better than the network given"
    again = pointsman(*words, "--updates", 300, "--rate", 0.01, "--max-drop", 0.5, "--resume")
    assert again.code == 0, again.err
    assert "fine-tuning" not in again.err
    assert json.loads((folder / "run" / "results.json").read_text())["ways"] == found["ways"]
    supernet = make_elastic(make("model.py:plain"), torch.zeros(2, 6))
    alone, body = load_subnet(folder / "run" / "policy", supernet)
    assert alone[0].out_features == body["choices"]["0.width"]
    assert "fine-tuned with another updates, rate" in refused(*words, "--resume")


def test_a_network_may_be_cut_as_it_is_and_then_is_the_reference(
    folder: Path, pointsman: Callable[..., Any]
) -> None:
    ran = pointsman("search", "model.py:plain", "--data", "data.csv", "--updates", 0, "--out", "a")
    assert ran.code == 0, ran.err
    found = json.loads((folder / "a" / "results.json").read_text())
    assert found["reference"]["name"] == "the network given"


def test_workers_change_nothing_and_a_choice_that_breaks_is_named(
    folder: Path, pointsman: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = multiprocessing.get_context("fork")  # fresh processes are tested with the workers
    monkeypatch.setattr("pointsman.supernet.search.workers._context", lambda: fork)
    histories = []
    for workers in (1, 2):
        ran = pointsman(
            "search", "model.py:broken", "--data", "data.csv", "--evaluations", 9,
            "--workers", workers, "--out", f"run{workers}",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        assert "3 evaluations failed, the first with: RuntimeError" in ran.err
        assert "first small: every evaluation with it failed" in ran.err
        found = json.loads((folder / f"run{workers}" / "results.json").read_text())
        histories.append(found["search"]["history"])
    assert histories[0] == histories[1]


def start(folder: Path, *words: str) -> multiprocessing.context.ForkProcess:
    def work() -> None:
        from pointsman.cli.main import cli

        os.chdir(folder)
        cli(["search", "model.py:problem", *words], standalone_mode=False)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def test_killed_half_way_it_is_resumed_without_loss_or_repetition(
    folder: Path, pointsman: Callable[..., Any]
) -> None:
    log = folder / "log"
    child = start(folder, "--evaluations", "16")
    until = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 6:
        assert time.monotonic() < until
        time.sleep(0.005)
    child.kill()
    child.join()
    study = folder / "pointsman-problem" / "study.db"
    done, kept = log.read_text().splitlines(), trials(study)
    assert len(done) - 1 <= kept <= len(done)
    ran = pointsman("search", "model.py:problem", "--evaluations", 16, "--resume")
    assert ran.code == 0, ran.err
    assert f"({kept} were there)" in ran.err
    assert trials(study) == 16
    after = log.read_text().splitlines()
    assert set(after[:kept]).isdisjoint(after[len(done) :])
    assert len(set(after)) == 16
    front = json.loads((folder / "pointsman-problem" / "front.json").read_text())
    assert front[-1] == {
        "quality": 6.0, "cost": 4.0, "unit": "MFLOPs", "options": {"a": 4, "b": 8},
    }  # fmt: skip
    assert "6.0000  4 MFLOPs  a 4, b 8" in ran.out


def test_a_name_between_colons_is_shown_as_it_is(
    folder: Path, pointsman: Callable[..., Any]
) -> None:
    text = (folder / "model.py").read_text().replace("cost, budget=0.5)", "cost)")
    (folder / "model.py").write_text(text)
    ran = pointsman("search", "model.py:one")
    assert ran.code == 0, ran.err
    assert "model.py:one: 1 subnet, 1 to evaluate" in ran.err


def test_two_searches_share_one_study(folder: Path) -> None:
    children = [start(folder, "--study", "both.db", "--out", f"run{at}") for at in (1, 2)]
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert trials(folder / "both.db") == 16
    assert len(set((folder / "log").read_text().splitlines())) == 16
    fronts = [(folder / f"run{at}" / "front.json").read_text() for at in (1, 2)]
    assert fronts[0] == fronts[1]


def test_a_budget_may_be_a_share_and_one_that_nothing_meets_names_the_cheapest(
    folder: Path, pointsman: Callable[..., Any], refused: Callable[..., str]
) -> None:
    words = ["search", "model.py:net", "--data", "data.csv"]
    assert pointsman(*words, "--budget", "50%", "--out", "half", "--cost", "parameters").code == 0
    found = json.loads((folder / "half" / "results.json").read_text())
    assert found["search"]["budget"] == pytest.approx(found["reference"]["cost"] / 2)
    said = refused(*words, "--budget", "1%", "--out", "none")
    assert "the cheapest costs" in said
    assert "a share of the whole network" in refused(*words, "--budget", "cheap", "--out", "none")
    assert "the cheapest costs 1 MFLOPs: give" in refused("search", "model.py:one")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.py"], "module:function or file.py:function"),
        (["gone.py:net"], "there is no such file"),
        (["nowhere.at.all:net"], "cannot be imported: ModuleNotFoundError"),
        (["model.py:nothing"], "there is no function 'nothing'"),
        (["model.py:fails"], "failed: RuntimeError: no weights here"),
        (["model.py:number"], "gives a int"),
        (["model.py:net"], "give --data"),
        (["model.py:plain", "--updates", "-1"], "--updates is 0 or more"),
        (["model.py:plain", "--rate", "nan"], "--rate above 0"),
        (["model.py:problem", "--data", "digits"], "leave out --data"),
        (["model.py:problem", "--workers", "0"], "take numbers from 1"),
        (["model.py:problem", "--study", "mysql://x"], "a postgresql:// URL"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    words: list[str], said: str, folder: Path, refused: Callable[..., str]
) -> None:
    assert said in refused("search", *words)


def test_a_damaged_study_is_refused_and_kept(folder: Path, refused: Callable[..., str]) -> None:
    study = folder / "pointsman-problem" / "study.db"
    study.parent.mkdir()
    study.write_bytes(b"SQLite format 3\x00" + bytes(100))
    before = study.read_bytes()
    said = refused("search", "model.py:problem", "--resume")
    assert "the study is damaged" in said
    assert study.read_bytes() == before
