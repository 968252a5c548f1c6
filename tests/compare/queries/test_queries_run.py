"""A whole comparison on small logs: what is written, what is picked, what is said."""

import json

import numpy as np
import pytest

from pointsman.compare.queries import run
from pointsman.compare.queries.offers import Offer
from pointsman.compare.queries.run import compare_log
from pointsman.compare.request import Request
from pointsman.compare.results import read
from pointsman.errors import InputError
from pointsman.frontier.table import results_table
from pointsman.pool.policy import PoolPolicy
from pointsman.pool.routers import KMeans, PromptLength
from pointsman.pool.strategies import BeforeCall, Chain, RoutedCascade, Single
from pointsman.pool.synthetic import world


@pytest.fixture(autouse=True)
def few_strategies(monkeypatch):
    def offers(log, *, tasks):
        found = [
            Offer(Single(), "alone"),
            Offer(BeforeCall(PromptLength()), "trivial"),
            Offer(BeforeCall(KMeans()), "before"),
        ]
        for signal in log.signals:
            found.append(Offer(Chain(signal), "after"))
            found.append(Offer(RoutedCascade(KMeans(), signal), "both"))
        return found

    monkeypatch.setattr(run, "offers", offers)


def test_a_learnable_log_is_compared_and_everything_is_written(tmp_path):
    log = world("clusters", models=3, seed=0).log(1200, 1)
    found = compare_log(log, Request(), tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"results.json", "report.html", "frontier.png", "frontier.svg", "policy"}
    assert read(tmp_path / "out") == json.loads(json.dumps(found))
    assert found["data"]["kind"] == "queries"
    assert found["pool"]["verdict"]["routable"]
    assert [row["kind"] for row in found["pool"]["strategies"]] == ["alone", "trivial", "before"]
    assert found["pool"]["pgr"] > 0.5
    assert (
        "of the gap between the cheapest model and the reference"
        in (tmp_path / "out" / "report.html").read_text()
    )
    assert "Is routing worth it here?" in (tmp_path / "out" / "report.html").read_text()
    results_table(found)


def test_the_policy_that_is_written_serves_what_was_picked(tmp_path):
    world_ = world("clusters", models=3, seed=0)
    found = compare_log(world_.log(1200, 1), Request(), tmp_path / "out")
    policy = PoolPolicy.load(tmp_path / "out" / "policy")
    assert policy.certificate["certified"] == found["pick"]["certified"]
    fresh = world_.log(400, 2)
    column = {name: at for at, name in enumerate(fresh.models)}
    chosen = [column[policy.decide(str(query), chance=0.5).model] for query in fresh.queries]
    reached = fresh.quality[np.arange(400), chosen].mean()
    reference = fresh.quality[:, column[policy.reference]].mean()
    assert reached >= reference - 0.05
    assert (
        fresh.cost[np.arange(400), chosen].mean() <= fresh.cost[:, column[policy.reference]].mean()
    )


def test_an_unlearnable_log_is_called_so_and_the_baseline_is_recommended(tmp_path):
    found = compare_log(
        world("unlearnable", models=3, seed=4).log(1200, 1), Request(), tmp_path / "o"
    )
    verdict = found["pool"]["verdict"]
    assert not verdict["routable"]
    assert "No strategy is shown to beat mixing models by chance" in verdict["words"]
    assert found["pick"]["way"] in ("dense", "chance")
    assert set(PoolPolicy.load(tmp_path / "o" / "policy").strategies) == {"single"}


def test_signals_bring_cascades_and_both_together(tmp_path):
    found = compare_log(world("signals", models=3, seed=0).log(900, 1), Request(), tmp_path / "out")
    kinds = {row["kind"] for row in found["pool"]["strategies"]}
    assert kinds == {"alone", "trivial", "before", "after", "both"}


def test_groups_and_examples_are_in_the_results(tmp_path):
    log = world("tasks", models=3, seed=0).log(1200, 1)
    found = compare_log(log, Request(), tmp_path / "out", examples=2)
    rows = found["pool"]["groups"]["task"]["rows"]
    assert [row["drop"] for row in rows] == sorted((row["drop"] for row in rows), reverse=True)
    assert all(len(part) <= 2 for part in found["pool"]["examples"].values())
    without = compare_log(log, Request(), tmp_path / "other", examples=0)
    assert without["pool"]["examples"] == {}


def test_the_same_seed_gives_the_same_results(tmp_path):
    log = world("clusters", models=3, seed=0).log(600, 1)
    one, other = (compare_log(log, Request(), tmp_path / name) for name in ("a", "b"))
    for found in (one, other):
        found.pop("made_by")
        for row in found["pool"]["strategies"]:
            row.pop("seconds")
    assert one == other


def test_a_reference_is_kept_or_refused_by_name(tmp_path):
    log = world("clusters", models=3, seed=0).log(600, 1)
    found = compare_log(log, Request(), tmp_path / "out", reference=log.models[1])
    assert found["reference"]["name"] == log.models[1]
    with pytest.raises(InputError, match="there is no model 'gpt-9'"):
        compare_log(log, Request(), tmp_path / "other", reference="gpt-9")
    assert not (tmp_path / "other").exists()


def test_too_few_queries_leave_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="at least 100"):
        compare_log(world("clusters", models=3, seed=0).log(30, 1), Request(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
