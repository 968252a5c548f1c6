"""Replaying a policy on a served log whose truth is known."""

import asyncio
import json

import numpy as np
import pytest
from click.testing import CliRunner

from pointsman.cli.main import cli
from pointsman.errors import InputError
from pointsman.pool.online import Checks, read_jsonl, replay
from pointsman.serve.store import open_store

MODELS, QUERIES = 3, 700


@pytest.fixture(scope="module")
def log(pool):
    return pool.log(QUERIES, seed=3)


@pytest.fixture(scope="module")
def truth(pool, policy, log):
    """Expected quality and cost of the policy's best point on the very queries."""
    expected = pool.truth(log)
    chosen = [policy.decide(q, point="best", chance=0.5).probabilities for q in log.queries]
    share = np.array([[one[m] for m in log.models] for one in chosen])
    return float((share * expected.quality).sum(axis=1).mean()), share


def served(log, *, seed, feedback=1.0, even=1.0):
    """Rows of a gateway that sent `even` of the queries anywhere and the others to model 0."""
    rng = np.random.default_rng(seed)
    p = np.full(len(log.models), even / len(log.models))
    p[0] += 1 - even
    rows = []
    for at in range(len(log)):
        m = int(rng.choice(len(p), p=p))
        rows.append(
            {
                "id": f"r{at}",
                "time": 1.0 * at,
                "query": str(log.queries[at]),
                "task": None,
                "point": "certified",
                "model": log.models[m],
                "propensity": float(p[m]),
                "propensities": json.dumps(dict(zip(log.models, p.tolist(), strict=True))),
                "cost": float(log.cost[at, m]),
                "quality": float(log.quality[at, m]) if rng.random() < feedback else None,
            }
        )
    return rows


def test_every_method_finds_what_the_policy_would_have_reached(policy, log, truth):
    found = replay(policy, served(log, seed=0), point="best")
    assert not found.refused
    for estimate in found.quality.values():
        assert estimate.low <= truth[0] <= estimate.high
        assert estimate.high - estimate.low < 0.3
    assert (
        set(found.quality)
        == set(found.cost)
        == {
            "doubly robust",
            "self-normalised",
            "inverse propensity",
        }
    )
    np.testing.assert_allclose(
        [after for _, after in found.shares.values()], truth[1].mean(axis=0), atol=1e-9
    )
    spent = (truth[1] * log.cost).sum(axis=1).mean()
    assert found.cost["doubly robust"].low <= spent <= found.cost["doubly robust"].high


def test_intervals_cover_the_truth_as_often_as_they_say(policy, log, truth):
    checks = Checks(confidence=0.9)
    covered = [
        found.quality["doubly robust"].low <= truth[0] <= found.quality["doubly robust"].high
        for found in (
            replay(policy, served(log, seed=seed), point="best", checks=checks) for seed in range(8)
        )
    ]
    assert np.mean(covered) >= 0.7


def test_a_better_policy_is_called_better(policy, log, truth):
    found = replay(policy, served(log, seed=1, even=0.6), point="best")
    assert found.gain is not None
    assert found.gain.value == pytest.approx(
        found.quality["doubly robust"].value - found.served_quality
    )
    assert found.gain.low > 0
    assert "better by" in found.words()
    assert "propensities as logged" in found.words()


def test_sparse_feedback_widens_the_intervals(policy, log):
    whole, part = (
        replay(policy, served(log, seed=2, feedback=share), point="best") for share in (1.0, 0.3)
    )
    assert part.feedbacks < whole.feedbacks / 2
    a, b = whole.quality["doubly robust"], part.quality["doubly robust"]
    assert b.high - b.low > a.high - a.low


def test_a_log_without_exploration_is_refused_in_words(policy, log):
    found = replay(policy, served(log, seed=3, even=0.0), point="reference")
    assert found.quality == {}
    assert "cannot be judged" in found.words()
    json.dumps(found.to_dict())


def test_models_that_had_no_chance_are_refused_as_such(policy, log, truth):
    least = int(truth[1].mean(axis=0).argmin())
    gone = next(m for m in range(MODELS) if m != least and truth[1][:, m].mean() > 0.1)
    rows = []
    for row in served(log, seed=12):
        if row["model"] != log.models[gone]:
            p = {m: 0.0 if m == log.models[gone] else 0.5 for m in log.models}
            rows.append({**row, "propensity": 0.5, "propensities": p})
    found = replay(policy, rows, point="best")
    assert "had no chance" in found.refused
    assert found.uncovered == pytest.approx(truth[1][:, gone].mean(), abs=0.1)


def test_too_few_effective_rows_are_refused(policy, log):
    found = replay(policy, served(log, seed=4, even=0.1), point="reference")
    assert "tell as much as" in found.refused


def test_wrong_propensities_are_noticed(policy, log):
    rows = [{**row, "propensity": 0.9} for row in served(log, seed=5)]
    found = replay(policy, rows, point="best")
    assert "propensities" in found.refused


def test_without_feedback_nothing_is_estimated(policy, log):
    found = replay(policy, served(log, seed=6, feedback=0.0), point="best")
    assert "0 rows have feedback" in found.refused
    assert "quality was unknown" in found.words()


def test_the_guaranteed_interval_is_wider(policy, log):
    rows = served(log, seed=7)
    usual = replay(policy, rows, point="best").quality["doubly robust"]
    sure = replay(
        policy, rows, point="best", checks=Checks(interval="bernstein", largest_weight=MODELS)
    ).quality["doubly robust"]
    assert sure.value == pytest.approx(usual.value)
    assert sure.low < usual.low < usual.high < sure.high


def test_rows_of_cascades_count_without_weight_and_do_not_mislead(policy, log, truth):
    rng = np.random.default_rng(3)
    rows = []
    for row in served(log, seed=12):
        p = {name: 0.6 * share for name, share in json.loads(row["propensities"]).items()}
        row = {**row, "how": "policy", "propensity": p[row["model"]], "propensities": p}
        if rng.random() < 0.4:  # a cascade from the same model, whose last answer was right
            row |= {"how": "cascade", "propensity": 0.4, "quality": 1.0, "cost": 9.0}
        rows.append(row)
    found = replay(policy, rows, point="best")
    assert found.rows == QUERIES
    assert not found.refused
    for estimate in (found.quality["doubly robust"], found.quality["inverse propensity"]):
        assert estimate.low <= truth[0] <= estimate.high
    blind = replay(policy, [{**row, "how": None} for row in rows], point="best")
    assert blind.refused or blind.quality["inverse propensity"].low > truth[0]


def test_rows_of_which_nothing_can_be_said_are_counted(policy, log):
    rows = served(log, seed=8)
    rows[0]["query"] = None
    rows[1]["model"] = "gone"
    rows[2]["propensity"] = None
    found = replay(policy, rows, point="best")
    assert found.rows == QUERIES - 3
    assert sorted(found.left_out.values()) == [1, 1, 1]
    for row in rows:
        row["query"] = None
    with pytest.raises(InputError, match="texts logged"):
        replay(policy, rows)
    with pytest.raises(InputError, match="it is empty"):
        replay(policy, [])


@pytest.mark.parametrize(
    ("name", "cell"),
    [("propensity", 0.0), ("propensity", 1.5), ("quality", 2), ("cost", -1), ("cost", "much")],
)
def test_cells_that_are_none_are_refused_with_the_request(policy, log, name, cell):
    rows = served(log.take(np.arange(60)), seed=9)
    rows[7][name] = cell
    with pytest.raises(InputError, match=f"'r7': {name}"):
        replay(policy, rows)


def test_an_unknown_point_is_refused(policy, log):
    with pytest.raises(InputError, match="no point"):
        replay(policy, served(log.take(np.arange(60)), seed=9), point="dear")


@pytest.fixture
def files(policy, log, tmp_path):
    kept = policy.save(tmp_path)
    path = tmp_path / "served.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in served(log, seed=10)))
    return kept, path


def run(*words):
    said = ["replay", *map(str, words)]
    return CliRunner().invoke(cli, said, env={"COLUMNS": "120"})


def test_the_command_prints_tables_and_words(files):
    result = run(*files, "--point", "best")
    assert result.exit_code == 0
    for said in ("doubly robust", "as served", "by this policy", "would have reached"):
        assert said in " ".join(result.output.split())


def test_the_command_gives_json(files):
    found = json.loads(run(*files, "--point", "best", "--json", "--confidence", "0.8").output)
    assert found["quality"]["doubly robust"]["confidence"] == 0.8
    assert found["rows"] == QUERIES


def test_the_command_exits_with_one_where_there_is_no_estimate(files, log):
    kept, path = files
    path.write_text("".join(json.dumps(row) + "\n" for row in served(log, seed=3, even=0.0)))
    result = run(kept, path, "--point", "reference", "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["refused"]


@pytest.mark.parametrize("text", ["{not json}", "[1, 2]", "{}\nnull"])
def test_lines_that_are_no_objects_are_refused_by_number(tmp_path, text):
    path = tmp_path / "served.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"line \d"):
        list(read_jsonl(path))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_jsonl(tmp_path / "absent.jsonl"))


def test_the_command_reads_the_gateways_store(files, log, tmp_path):
    kept, _ = files
    url = f"sqlite:///{tmp_path / 'gateway.db'}"
    rows = served(log.take(np.arange(400)), seed=11)

    async def write():
        store = await open_store(url)
        for row in rows:
            await store.serve_log(
                {**row, "key": 0, "propensities": json.loads(row["propensities"])}
            )
            await store.feedback(row["id"], row["quality"])
        await store.close()

    asyncio.run(write())
    found = json.loads(run(kept, url, "--point", "best", "--json").output)
    assert found["rows"] == found["feedbacks"] == 400
    assert found["refused"] == ""
    result = run(kept, tmp_path / "gateway.db")
    assert result.exit_code == 2
    assert "sqlite:///" in result.stderr
