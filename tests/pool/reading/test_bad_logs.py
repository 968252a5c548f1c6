"""Logs that cannot be used: each is refused in one line that says why and what to do."""

import json

import numpy as np
import pandas as pd
import pytest

from pointsman.errors import InputError
from pointsman.pool.reading import read_log, split_log

N = 6
TEXT = [f"what is {n}?" for n in range(N)]
WIDE = {"query": TEXT, "a": [0, 1] * 3, "b": [1] * N, "a cost": [1.0] * N, "b cost": [2.0] * N}
LONG = {
    "query": [text for text in TEXT for _ in "ab"],
    "model": list("ab") * N,
    "score": [0, 1] * N,
    "cost": [1.0, 2.0] * N,
}


def changed(table, **columns):
    """A table with columns added, changed or, with None, left out; "_" in names is a space."""
    table = {**table, **{name.replace("_", " "): column for name, column in columns.items()}}
    return {name: column for name, column in table.items() if column is not None}


@pytest.fixture
def refused(save):
    """The one line in which a log is refused."""

    def read(content, suffix="csv", **options):
        path = save(content, suffix)
        with pytest.raises(InputError) as error:
            read_log(path, **options)
        line = str(error.value)
        assert "\n" not in line
        assert line.startswith(f"{path}: ") or line.startswith("--")
        return line.removeprefix(f"{path}: ")

    return read


CASES = {
    "no model columns": (
        {"query": TEXT, "remark": list("uvwxyz")},
        "no column holds the scores of a model: a wide log has one column of numbers",
    ),
    "only one model, wide": (
        changed(WIDE, b=None, b_cost=None),
        "at least two models are needed to route between, found only 'a'",
    ),
    "only one model, long": (
        changed(LONG, model=["a"] * 2 * N),
        "at least two models are needed to route between, column 'model' has only 'a'",
    ),
    "one quality outside the range": (
        changed(WIDE, b=[1, 1, 1, 1.5, 1, 1]),
        "a quality lies in [0, 1], but column 'b' has 1.5 in data row 4: give the range",
    ),
    "all qualities outside the range": (
        changed(WIDE, a=[3, 5, 7, 9, 2, 2], b=[8, 9, 9, 7, 9, 10]),
        "hold numbers from 2 to 10: if these are qualities, give their range, such as "
        "--quality-range 0,10",
    ),
    "a score outside the range, long": (
        changed(LONG, score=[0, 1] * (N - 1) + [-0.5, 1]),
        "a quality lies in [0, 1], but column 'score' has -0.5 in data row 11",
    ),
    "an infinite quality": (
        changed(WIDE, a=[0, 1, float("inf"), 1, 0, 1]),
        "column 'a' has inf in data row 3",
    ),
    "all missing for one model, wide": (
        changed(WIDE, b=[None] * N),
        "model 'b' has no quality in any query: leave its column out",
    ),
    "all missing for one model, long": (
        changed(LONG, score=[0, None] * N),
        "model 'b' has no quality in any query",
    ),
    "all missing for all": (
        changed(LONG, score=[None] * 2 * N),
        "no query has a score of any model",
    ),
    "a negative cost": (
        changed(WIDE, b_cost=[2, 2, -0.1, 2, 2, 2]),
        "a cost is finite and not negative, but column 'b cost' has -0.1 in data row 3",
    ),
    "a negative latency": (
        changed(LONG, latency=[1, -1] * N),
        "a latency is finite and not negative, but column 'latency' has -1 in data row 2",
    ),
    "no costs and no prices": (
        changed(WIDE, a_cost=None, b_cost=None),
        "this log has no costs: give the prices of 'a', 'b' with --prices FILE",
    ),
    "no cost of one model": (
        changed(WIDE, b_cost=None, b_latency=[1] * N),
        "every model needs costs, 'b' has none in the log and no price",
    ),
    "all costs 0": (
        changed(LONG, cost=[0, 0] * N),
        "every cost is 0, so there is nothing to save",
    ),
    "text among the scores": (
        changed(LONG, score=[0, 1] * (N - 1) + ["good", 1]),
        "column 'score' must hold numbers, true or false, data row 11 has 'good'",
    ),
    "text among the scores of a wide log": (
        changed(WIDE, b=[1, 1, 1, "timeout", 1, 0]),
        "column 'b' must hold numbers, true or false, data row 4 has 'timeout'",
    ),
    "text among the costs": (
        changed(LONG, cost=[1, 2] * (N - 1) + ["two cents", 2]),
        "column 'cost' must hold numbers",
    ),
    "a long log without scores": (
        changed(LONG, score=None),
        "a long log (column 'model' names the models) needs a column with the score of each "
        "answer, called score, quality, correct, is correct or so; the columns are 'query', "
        "'model', 'cost': rename the one that holds it",
    ),
    "a number that may be a model, beside models with costs": (
        changed(WIDE, helpful=[0, 1] * 3),
        "column 'helpful' could be a model or not: it holds numbers, but has neither a cost nor a "
        "price, as 'a' has: name the models with --models, or leave it out",
    ),
    "a number that may be a model, beside models in the range": (
        changed(WIDE, a_cost=None, b_cost=None, stars=[3, 4, 5, 4, 3, 5]),
        "column 'stars' could be a model or not: its numbers are not within [0, 1], while those of "
        "'a' are: name the models with --models",
    ),
    "no query column": (
        changed(WIDE, query=None),
        "a log needs the text of its queries, and no column holds it: the columns are 'a', 'b', "
        "'a cost', 'b cost'; name one with --query COLUMN",
    ),
    "an empty query column": (
        changed(WIDE, query=[None] * N),
        "a log needs queries: column 'query' is empty in all 6 rows",
    ),
    "a blank query column": (
        changed(LONG, query=["  "] * 2 * N),
        "a log needs queries: column 'query' is empty in all 12 rows",
    ),
    "an empty model column": (
        changed(LONG, model=[""] * 2 * N),
        "a log needs queries: column 'model' is empty in all 12 rows",
    ),
    "too many models": (
        changed(LONG, query=[f"q{n}" for n in range(201)], model=[f"m{n}" for n in range(201)],
                score=[1] * 201, cost=[1] * 201),
        "column 'model' has 201 different values, beginning with 'm0', 'm1', 'm2' and 198 more; "
        "at most 200 models can be compared",
    ),
    "two columns of one name": (
        "query,a,b,a\nq,1,1,1\n",
        "column names must differ, 'a' is there twice: rename one of them",
    ),
    "an empty file": ("", "this file is empty: it has neither columns nor rows"),
    "blank lines only": ("\n\n", "this file is empty"),
    "a header only": (
        "query,model,score,cost\n",
        "a log needs queries: it has a header and no rows",
    ),
    "another encoding": (
        "query,a,b\nwie groß?,1,0\n".encode("latin-1"),
        "a log is read as UTF-8, which this is not",
    ),
    "another encoding, two bytes a character": (
        "query,a,b\nq,1,0\n".encode("utf-16"),
        "a log is read as UTF-8, which this is not",
    ),
    "rows of different length": (
        "query,a,b,a cost,b cost\nq,1,1,1,1\nr,1,1,1,1,1,1\n",
        "this is not a table with a header line and as many cells in every row",
    ),
    "other separators": ("query;a;b\nq;1;1\nr;0;1\n", "no column holds the scores of a model"),
    "vectors of different length": (
        changed(WIDE, embedding=["[1, 2]"] * 5 + ["[1]"]),
        "must be a list of finite numbers, all of one length (the first has 2), data row 6 has 1",
    ),
    "vectors that are none": (
        changed(WIDE, embedding=["[1, 2]"] * 5 + ["one"]),
        "data row 6 has one",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), CASES.values(), ids=CASES)
def test_a_bad_log_is_refused_in_one_line(refused, content, message):
    assert message in refused(content)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": "frage"}, "--query names 'frage', which is no column: the columns are 'query'"),
        ({"groups": ["team"]}, "--group names 'team', which is no column"),
        ({"models": ["a", "c"]}, "--models names 'c', which is no column"),
        ({"models": ["a"]}, "at least two models are needed"),
        ({"rows": 0}, "--rows takes a number of at least 1, got 0"),
        ({"quality_range": (1, 1)}, "--quality-range takes the lowest and the highest score"),
        ({"quality_range": (0.0, float("inf"))}, "--quality-range takes the lowest"),
        ({"quality_range": (0.5, 1)}, "a quality lies in [0.5, 1], but column 'a' has 0 in data"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(refused, options, message):
    assert message in refused(WIDE, **options)


def test_a_model_that_does_not_occur_in_a_long_log_is_named(refused):
    line = refused(LONG, models=["a", "z"])
    assert "--models names 'z', which column 'model' does not have: it has 'a', 'b'" in line


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("jsonl", '{"query": "q"}\n{"query": \n', "line 2 is not JSON"),
        ("jsonl", '{"query": "q"}\n[1, 2]\n', "line 2 is a list"),
        ("jsonl", "", "this file is empty"),
        ("jsonl.gz", b"no gzip", "cannot be read as .jsonl"),
        ("csv.gz", b"\x1f\x8b\x08broken", "cannot be read as .csv"),
        ("parquet", b"PAR1 but no more", "cannot be read as .parquet"),
        ("xlsx", b"PK", "a log is a .csv, .csv.gz, .jsonl, .jsonl.gz or .parquet file"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_line(refused, suffix, content, message):
    assert message in refused(content, suffix)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.csv: there is no such file"):
        read_log(tmp_path / "absent.csv")


def test_a_price_list_decides_which_numbers_are_models(save, refused):
    table = changed(WIDE, a_cost=None, b_cost=None, helpful=[0, 1] * 3)
    prices = save(json.dumps({"a": 1, "b": 10, "other": 3}), "json", name="prices")
    assert "column 'helpful' could be a model or not" in refused(table, prices=prices)
    assert read_log(save(table), models=["a", "b"], prices=prices).models == ("a", "b")
    without = changed(table, helpful=None, c=[1] * N)
    line = refused(without, prices=prices, models=["a", "c"])
    assert "'c' has none in the log and no price in" in line


def test_a_long_log_needs_something_that_tells_queries_apart(refused):
    table = changed(LONG, query=None, task=["sums"] * 2 * N)
    assert "needs a column that says which answers belong to one query" in refused(table)


def test_a_bad_value_is_found_beyond_the_first_piece_and_the_sample(save, monkeypatch):
    monkeypatch.setattr("pointsman.pool.reading.files.ROWS_AT_ONCE", 50)
    table = pd.concat([pd.DataFrame(WIDE)] * 50, ignore_index=True)
    table["query"] = [f"query {n}" for n in range(len(table))]
    table.loc[277, "a"] = 7.0
    with pytest.raises(InputError, match="column 'a' has 7 in data row 278"):
        read_log(save(table), rows=10)


def test_thirty_rows_are_read_and_refused_when_they_are_to_be_split(save):
    rng = np.random.default_rng(0)
    queries = [f"query {n}" for n in range(30)]
    table = {"query": queries, "a": rng.integers(2, size=30), "b": [1] * 30}
    table |= {"a cost": [1.0] * 30, "b cost": [2.0] * 30}
    log = read_log(save(table))
    with pytest.raises(InputError, match="log: compare needs at least 100 different queries.* 30"):
        split_log(log, 0)
