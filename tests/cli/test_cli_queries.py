"""`pointsman compare` and `predict` on evaluation logs, from the command line."""

import csv
import io

import pandas as pd
import pytest

from pointsman.compare.queries import run
from pointsman.compare.queries.offers import Offer
from pointsman.pool.routers import KMeans
from pointsman.pool.strategies import BeforeCall, Single
from pointsman.pool.synthetic import world


@pytest.fixture(autouse=True)
def few_strategies(monkeypatch):
    offered = [(Single, "alone"), (lambda: BeforeCall(KMeans()), "before")]
    monkeypatch.setattr(run, "offers", lambda log, *, tasks: [Offer(s(), k) for s, k in offered])


@pytest.fixture
def log_file(tmp_path):
    log = world("clusters", models=2, seed=0).log(400, 1)
    columns = {"prompt": log.queries}
    for at, name in enumerate(log.models):
        columns |= {name: log.quality[:, at], f"{name} cost": log.cost[:, at]}
    pd.DataFrame(columns).to_csv(tmp_path / "log.csv", index=False)
    return tmp_path / "log.csv"


def test_a_log_is_recognised_compared_and_its_policy_routes_new_queries(
    pointsman, log_file, tmp_path
):
    out = tmp_path / "out"
    ran = pointsman("compare", log_file, "--out", out)
    assert ran.code == 0, ran
    assert "400 queries from column 'prompt'" in ran.err
    assert "Models alone" in ran.out
    assert "Over chance" in ran.out
    assert "k-means clusters" in ran.out
    assert "mixing models by chance" in " ".join(ran.out.split())
    shown = pointsman("show", out)
    assert shown.out.splitlines()[0] == ran.out.splitlines()[0]
    routed = pointsman("predict", out / "policy", log_file, "--point", "best")
    rows = list(csv.DictReader(io.StringIO(routed.out)))
    assert len(rows) == 400
    assert {row["model"] for row in rows} <= {"model-0", "model-1"}
    assert list(rows[0]) == ["model", "expected_quality", "expected_cost_US$", "why"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "prompt"], "--target names a label column"),
        (["--resume"], "fitting takes minutes and is not kept"),
        (["--query", "nope"], "nope"),
        (["--reference", "gpt-9"], "there is no model 'gpt-9'"),
        (["--quality-range", "ten"], "--quality-range takes two numbers such as 0,10"),
        (["--encoder", "nowhere"], "--encoder is words, vectors, a folder"),
        (["--encoder", "http://127.0.0.1:1/v1/embeddings"], "as URL#MODEL"),
        (["--examples", "-1"], "--examples takes a number from 0"),
        (["--models", "model-0"], "at least two"),
    ],
)
def test_options_that_a_log_has_not_are_refused_in_one_line(
    refused, log_file, tmp_path, options, said
):
    assert said in refused("compare", log_file, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_point_that_a_policy_has_not_is_refused(pointsman, refused, log_file, tmp_path):
    pointsman("compare", log_file, "--out", tmp_path / "out")
    said = refused("predict", tmp_path / "out" / "policy", log_file, "--point", "dear")
    assert "there is no point 'dear'" in said


def test_a_file_without_queries_is_refused_by_predict(pointsman, refused, log_file, tmp_path):
    pointsman("compare", log_file, "--out", tmp_path / "out")
    pd.DataFrame({"a": [1, 2]}).to_csv(tmp_path / "other.csv", index=False)
    said = refused("predict", tmp_path / "out" / "policy", tmp_path / "other.csv")
    assert "a column with queries is needed" in said
