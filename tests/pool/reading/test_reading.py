"""Logs from files: what is recognised, and that it is read as it stands."""

import json

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pointsman.pool.reading import looks_like_log, read_log
from pointsman.pool.reading.names import taken_apart

FORMATS = ("csv", "csv.gz", "jsonl", "jsonl.gz", "parquet")
NAN = float("nan")
QUALITY = [[1, 1], [0, 1], [1, 0], [NAN, 1], [0, 1], [1, 1]]
COST = [[0.001, 0.02], [0.002, 0.03], [0.001, 0.02], [NAN, 0.05], [0.001, 0.02], [0.003, 0.06]]


# ── layouts ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_wide_log_is_read_from_every_format(save, wide, suffix):
    log = read_log(save(wide, suffix, name="my evals"))
    assert (log.name, log.models, log.unit) == ("my evals", ("small", "large"), "US$")
    assert list(log.queries) == wide["prompt"]
    assert_array_equal(log.quality, QUALITY)
    assert_array_equal(log.cost, COST)
    assert log.latency is None
    assert (log.signals, log.groups, log.vectors) == ({}, {}, None)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_long_log_says_the_same_as_the_wide_one(save, wide, long, suffix):
    log = read_log(save(long, suffix))
    assert log.models == ("small", "large")
    assert list(log.queries) == wide["prompt"]
    assert_array_equal(log.quality, QUALITY)
    assert_array_equal(log.cost, COST)


def test_the_order_of_the_rows_of_a_long_log_changes_no_cell(save, long):
    table = pd.DataFrame(long)
    log = read_log(save(table, name="in order"))
    other = read_log(save(table.sample(frac=1, random_state=0), name="shuffled"))
    columns = [other.model(name) for name in log.models]
    rows = [list(other.queries).index(query) for query in log.queries]
    assert_array_equal(other.quality[rows][:, columns], log.quality)
    assert_array_equal(other.cost[rows][:, columns], log.cost)


def test_a_column_may_name_its_role_before_or_behind_the_model(save):
    rows = {
        "query": ["a", "b", "c"],
        "score/gpt-4": [0.5, 1, 0],
        "score/meta:llama-3": [0.25, 0, 1],
        "cost/gpt-4": [1, 2, 3],
        "cost/meta:llama-3": [0.1, 0.2, 0.3],
        "time": [5, 6, 7],
    }
    behind = {
        " ".join(reversed(name.split("/"))) if "/" in name else name: column
        for name, column in rows.items()
    }
    for table in (rows, behind):
        log = read_log(save(table))
        assert log.models == ("gpt-4", "meta:llama-3")
        assert_array_equal(log.quality, [[0.5, 0.25], [1, 0], [0, 1]])
        assert_array_equal(log.cost, [[1, 0.1], [2, 0.2], [3, 0.3]])
        assert "not used: 'time'" in log.note


@pytest.mark.parametrize(
    ("column", "base", "role"),
    [
        ("gpt-4", "gpt-4", None),
        ("gpt-4 cost", "gpt-4", "cost"),
        ("gpt-4_total_cost", "gpt-4", "cost"),
        ("gpt-4|total_cost", "gpt-4", "cost"),
        ("org/model.v2/prompt_tokens", "org/model.v2", "input tokens"),
        ("latency_ms:small", "small", "latency ms"),
        ("small Judge Score", "small", "signal verifier"),
        ("small judge cost", "small", "signal cost verifier"),
        ("small_model_response", "small", "ignored"),
        ("is_correct", "", "quality"),
        ("correct.small", "small", "quality"),
        ("accurate-7b", "accurate-7b", None),
    ],
)
def test_a_name_is_taken_apart(column, base, role):
    assert taken_apart(column)[1:3] == (base, role)


def test_verdicts_in_words_are_right_or_wrong_and_empty_words_missing(save):
    content = (
        "question,a,b,c\nq1,true,correct,PASS\nq2,False,Wrong,fail\nq3,n/a,,None\nq4,1,0,1.0\n"
    )
    log = read_log(save(content), prices=save("model,call\na,1\nb,2\nc,3\n", name="prices"))
    assert_array_equal(log.quality, [[1, 1, 1], [0, 0, 0], [1, 0, 1]])
    assert "1 query without any score left out" in log.note


def test_texts_that_look_like_missing_values_or_numbers_stay_texts(save):
    content = (
        "query,model,score,cost\nNA,a,1,1\nNA,b,0,1\n007,a,1,1\n007,b,1,1\n1e3,a,0,1\n1e3,b,0,1\n"
    )
    log = read_log(save(content))
    assert list(log.queries) == ["NA", "007", "1e3"]


def test_companions_are_read_and_echoed(save, wide):
    wide |= {
        "small latency_ms": [100, 200, 300, None, 500, 600],
        "large latency": [1, 2, 3, 4, 5, 6],
        "small confidence": [0.5, 0.6, 0.7, None, 0.9, 1.0],
        "large_confidence": [0.1] * 6,
        "small verifier score": [1, 2, 3, None, 5, 6],
        "small verifier cost": [0.1, 0.1, 0.1, None, 0.1, 0.1],
        "small response": ["yes"] * 6,
    }
    log = read_log(save(wide))
    assert_allclose(log.latency[:, 0], [0.1, 0.2, 0.3, NAN, 0.5, 0.6])
    assert_array_equal(log.latency[:, 1], [1, 2, 3, 4, 5, 6])
    assert set(log.signals) == {"confidence", "verifier"}
    assert_array_equal(log.signals["confidence"][:, 0], [0.5, 0.6, 0.7, NAN, 0.9, 1.0])
    assert_array_equal(log.signals["verifier"], [[v, NAN] for v in (1, 2, 3, NAN, 5, 6)])
    assert set(log.signal_cost) == {"verifier"}
    assert log.signal_cost["verifier"][0, 0] == 0.1
    assert "the signal confidence, the signal verifier with its cost" in log.note
    assert "Column not used: 'small response'" in log.note


def test_a_long_log_brings_signals_latencies_and_groups(save, long):
    n = len(long["query"])
    long |= {"task_name": ["sums"] * n, "user": ["u1"] * n, "judge": [0.5] * n}
    long |= {"judge cost": [0.001] * n, "response_time": [2.0] * n, "agreement": [0.8] * n}
    log = read_log(save(long))
    assert {name: set(column) for name, column in log.groups.items()} == {
        "task": {"sums"},
        "user": {"u1"},
    }
    assert set(log.signals) == {"verifier", "agreement"}
    assert set(log.signal_cost) == {"verifier"}
    assert log.latency[0, 0] == 2.0
    assert np.isnan(log.latency[3, 0])


def test_groups_are_recognised_and_may_be_named(save, wide):
    wide |= {
        "subject": ["sums"] * 3 + [None] * 3,
        "tenant": [7, 8, 9, 7, 8, 9],
        "zone": list("abcabc"),
        "difficulty": [0.1, 0.5, 0.9, 0.1, 0.2, 0.3],
    }
    log = read_log(save(wide))
    assert set(log.groups) == {"task", "tenant"}
    assert list(log.groups["task"]) == ["sums"] * 3 + [""] * 3
    assert list(log.groups["tenant"]) == ["7", "8", "9", "7", "8", "9"]
    named = read_log(save(wide), groups=["zone", "subject"])
    assert set(named.groups) == {"task", "zone"}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_vectors_come_as_lists_or_as_json_in_text(save, wide, suffix):
    given = [[float(n), 0.5, -1.0] for n in range(6)]
    wide["embedding"] = list(map(json.dumps, given)) if suffix == "csv" else given
    log = read_log(save(wide, suffix))
    assert log.vectors.dtype == np.float32
    assert_array_equal(log.vectors, given)
    assert "vectors of 3 numbers from column 'embedding'" in log.note


@pytest.mark.parametrize("key", ["query_id", None])
def test_vectors_will_do_without_texts_and_queries_stay_different(save, wide, long, key):
    del wide["prompt"]
    wide["embedding"] = [[float(n)] for n in range(6)]
    wide |= {} if key is None else {key: list(range(6))}
    log = read_log(save(wide, "parquet"))
    assert "6 queries without text" in log.note
    assert len(set(log.identity())) == 6
    if key is not None:
        places = {query: at for at, query in enumerate(dict.fromkeys(long["query"]))}
        long[key] = [places[query] for query in long.pop("query")]
        long["vector"] = [[float(at)] for at in long[key]]
        numbered = read_log(save(long, "parquet"))
        assert list(numbered.queries) == list(log.queries)
        assert_array_equal(numbered.vectors, log.vectors)


def test_queries_may_be_chats_and_scores_nested(save):
    def line(n, **scores):
        turns = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": f"What is {n}?"}]},
        ]
        cost = {"gpt-4": 0.1, "small": 0.01}
        return json.dumps({"messages": turns, "score": scores, "cost": cost})

    lines = [line(1, **{"gpt-4": 1, "small": 0}), line(2, **{"gpt-4": True}), line(3, small=0.5)]
    log = read_log(save("\n".join(lines), "jsonl"))
    assert list(log.queries) == [f"What is {n}?" for n in (1, 2, 3)]
    assert log.models == ("gpt-4", "small")
    assert_array_equal(log.quality, [[1, 0], [1, NAN], [NAN, 0.5]])


def test_the_layouts_of_two_public_collections_are_recognised(save):
    """RouterBench's wide table and LLMRouter's long lines."""
    log = read_log(
        save(
            {
                "sample_id": ["x.1", "x.2"],
                "prompt": ["one", "two"],
                "eval_name": ["sums", "words"],
                "org/small-chat": [0.0, 1.0],
                "gpt-4": [1.0, 1.0],
                "org/small-chat|model_response": ["a", "b"],
                "gpt-4|model_response": ["a", "b"],
                "org/small-chat|total_cost": [0.1, 0.2],
                "gpt-4|total_cost": [1.0, 2.0],
                "oracle_model_to_route_to": ["gpt-4", "gpt-4"],
            }
        )
    )
    assert log.models == ("org/small-chat", "gpt-4")
    assert_array_equal(log.cost, [[0.1, 1.0], [0.2, 2.0]])
    assert list(log.groups["task"]) == ["sums", "words"]
    lines = [
        {
            "task_name": "sums", "query": query, "ground_truth": "A", "metric": "em",
            "model_name": model, "response": "A", "input_tokens": 10, "output_tokens": 5,
            "token_num": 15, "response_time": 0.5, "performance": 1.0, "embedding_id": 3,
        }
        for query in ("one", "two")
        for model in ("a", "b")
    ]  # fmt: skip
    prices = save({"model": ["a", "b"], "input": [1, 10], "output": [2, 20]}, name="prices")
    long = read_log(save(lines, "jsonl"), prices=prices)
    assert_allclose(long.cost, [[2e-5, 2e-4]] * 2)
    assert long.latency.tolist() == [[0.5, 0.5]] * 2


def test_scores_of_another_range_are_brought_to_0_and_1(save, wide):
    wide["small"] = [7, 10, 0, None, 2, 1]
    wide["large"] = [1, 2, 3, 4, 5, 9.5]
    log = read_log(save(wide), quality_range=(0, 10))
    assert_allclose(log.quality[:, 0], [0.7, 1, 0, NAN, 0.2, 0.1])
    symmetric = read_log(save(wide), quality_range=(-10, 10))
    assert_allclose(symmetric.quality[:, 1], [0.55, 0.6, 0.65, 0.7, 0.75, 0.975])


def test_models_may_be_named(save, wide, long):
    wide["difficulty of it"] = [0.2] * 6
    wide["third"] = [0.5] * 6
    wide["third cost"] = [1.0] * 6
    assert read_log(save(wide), models=["third", "small"]).models == ("third", "small")
    long["model"][0] = "third"
    assert read_log(save(long), models=["large", "small"]).models == ("large", "small")


def test_the_query_column_may_be_named_and_a_single_text_column_is_taken(save, wide):
    wide["Frage"] = wide.pop("prompt")
    assert list(read_log(save(wide)).queries) == wide["Frage"]
    wide["note"] = [f"note {n}" for n in range(6)]
    assert list(read_log(save(wide), query="Frage").queries) == wide["Frage"]


# ── repeats and missing cells ───────────────────────────────────────────────────────────────────


def test_several_scores_of_one_query_and_model_are_averaged_and_it_is_said(save, long):
    for column in long.values():
        column.append(column[0])
    long["score"][-1], long["cost"][-1] = 0, 0.003
    log = read_log(save(long))
    assert log.quality[0, 0] == 0.5
    assert log.cost[0, 0] == pytest.approx(0.002)
    assert "1 score was averaged with another one of the same query and model" in log.note


def test_repeated_queries_of_a_wide_log_stay_rows_and_are_counted(save, wide):
    wide["prompt"][1] = wide["prompt"][0].upper()
    log = read_log(save(wide))
    assert len(log) == 6
    assert "1 query occurs more than once" in log.note


def test_query_numbers_tell_queries_apart_and_row_numbers_do_not(save, long):
    n = len(long["query"])
    numbered = {**long, "id": list(range(n))}
    assert len(read_log(save(numbered))) == 6
    places = {query: at for at, query in enumerate(dict.fromkeys(long["query"]))}
    asked = {**long, "query_id": [places[query] for query in long["query"]]}
    asked["query"] = [f"{query} ({at})" for at, query in enumerate(asked["query"])]
    log = read_log(save(asked))
    assert_array_equal(log.quality, QUALITY)
    assert "told apart by 'query_id'" in log.note
    assert "5 queries have more than one text" in log.note


def test_rows_without_query_or_model_are_left_out_and_counted(save):
    content = "query,model,score,cost\na,x,1,1\na,y,0,2\n,x,1,1\nb,,1,1\nb,x,1,1\nb,y,1,\n"
    log = read_log(save(content))
    assert list(log.queries) == ["a", "b"]
    assert "1 row without a query left out. 1 row without a model left out." in log.note
    assert "1 score has no cost" in log.note


def test_missing_scores_are_counted(save, wide):
    note = read_log(save(wide)).note
    assert "1 of 12 scores are missing (8.3%); 5 queries have all of them." in note


# ── long files ──────────────────────────────────────────────────────────────────────────────────


def many(queries: int, models: int = 3) -> dict[str, list]:
    rng = np.random.default_rng(0)
    return {
        "query": [f"query {q}" for q in range(queries) for _ in range(models)],
        "model": [f"m{m}" for _ in range(queries) for m in range(models)],
        "score": rng.integers(2, size=queries * models).tolist(),
        "cost": [float(m + 1) for _ in range(queries) for m in range(models)],
    }


def test_beyond_a_number_of_queries_a_uniform_sample_is_used_whole_queries_only(save, monkeypatch):
    monkeypatch.setattr("pointsman.pool.reading.files.ROWS_AT_ONCE", 100)
    path = save(many(1000))
    log = read_log(path, rows=200)
    assert len(log) == 200
    assert not np.isnan(log.quality).any()
    assert "1,000 different queries in 3,000 rows: a uniform sample" in log.note
    numbers = np.array([int(query.split()[1]) for query in log.queries])
    assert numbers.mean() == pytest.approx(500, abs=60)
    assert set(read_log(path, rows=200, seed=1).queries) != set(log.queries)
    assert set(read_log(path, rows=200).queries) == set(log.queries)
    whole = read_log(path)
    assert len(whole) == 1000
    assert "sample" not in whole.note


def test_the_sample_does_not_depend_on_the_order_of_the_rows(save):
    table = pd.DataFrame(many(300))
    first = read_log(save(table), rows=50)
    second = read_log(save(table.sample(frac=1, random_state=1), name="shuffled"), rows=50)
    assert set(first.queries) == set(second.queries)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_file_in_pieces_reads_as_one_in_one(save, wide, long, suffix, monkeypatch):
    for table in (wide, long):
        whole = read_log(save(table, suffix))
        monkeypatch.setattr("pointsman.pool.reading.files.ROWS_AT_ONCE", 2)
        pieces = read_log(save(table, suffix))
        assert_array_equal(pieces.quality, whole.quality)
        assert_array_equal(pieces.cost, whole.cost)
        assert list(pieces.queries) == list(whole.queries)


def test_a_sample_keeps_the_vectors_of_its_queries(save):
    table = many(100)
    table["vector"] = [[float(query.split()[1]), 1.0] for query in table["query"]]
    log = read_log(save(table, "parquet"), rows=30)
    assert log.vectors.shape == (30, 2)
    assert [f"query {int(v[0])}" for v in log.vectors] == list(log.queries)


# ── logs and tables ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", FORMATS)
def test_logs_look_like_logs(save, wide, long, suffix):
    assert looks_like_log(save(wide, suffix))
    assert looks_like_log(save(long, suffix))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_of_features_do_not(save, make_table, suffix, tmp_path):
    assert not looks_like_log(save(make_table(), suffix))
    named = make_table(classes=2).assign(label=lambda t: np.where(t.label == 1, "yes", "no"))
    assert not looks_like_log(save(named, suffix))
    shares = pd.DataFrame(np.random.default_rng(0).random((50, 4)), columns=list("abcd"))
    assert not looks_like_log(save(shares.assign(label=["x", "y"] * 25), suffix))
    cars = pd.DataFrame({"model": ["a", "b"] * 30, "doors": [2, 4] * 30, "label": [0, 1] * 30})
    assert not looks_like_log(save(cars, suffix))
    assert not looks_like_log(tmp_path / f"absent.{suffix}")
    assert not looks_like_log(tmp_path / "images.npz")
    assert not looks_like_log("digits")


def test_a_bad_log_still_looks_like_one_so_that_the_refusal_speaks_of_logs(save, wide):
    wide["small"] = [11] * 6
    assert looks_like_log(save(wide))
    assert looks_like_log(save({"prompt": ["a b", "c d"], "comment": ["x", "y"]}))
    assert looks_like_log(save(b"nonsense", "jsonl"))
