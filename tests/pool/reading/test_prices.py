"""Price files, and the costs that follow from them."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pointsman.errors import InputError
from pointsman.pool.reading import Price, read_log, read_prices

SAME = [
    ("toml", '"gpt-4" = {input = 10, output = 30}\nsmall = 0.5\nlocal = {call = 0.001}\n'),
    (
        "toml",
        '[models.gpt-4]\nbase_url = "http://localhost:1/v1"\nprice_input = 10.0\n'
        'price_output = 30\n[models.small]\nprice = 0.5\n[models.local]\ncall = 0.001\n'
        '[models.free]\nbase_url = "http://localhost:2/v1"\n',
    ),
    (
        "json",
        '{"gpt-4": {"input_cost_per_token": 1e-5, "output_cost_per_token": 3e-5, "mode": "chat"},'
        ' "small": 0.5, "local": {"call": 0.001}}',
    ),
    (
        "json",
        '[{"model": "gpt-4", "input": 10, "output": 30}, {"model": "small", "price": 0.5},'
        ' {"model": "local", "call": 0.001}]',
    ),
    ("csv", "model,input,output,price,call\ngpt-4,10,30,,\nsmall,,,0.5,\nlocal,,,,0.001\n"),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "content"), SAME)
def test_prices_are_read_from_every_form(save, suffix, content):
    prices = read_prices(save(content, suffix, name="prices"))
    assert prices.keys() == {"gpt-4", "small", "local"}
    assert_allclose([prices["gpt-4"].input, prices["gpt-4"].output], [10, 30])
    assert prices["small"] == Price(input=0.5, output=0.5)
    assert prices["local"] == Price(call=0.001)


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("yaml", "a: 1", "prices come in a .toml, .json or .csv file"),
        ("toml", "a = = 1", "cannot be read as .toml"),
        ("json", "{", "cannot be read as .json"),
        ("json", "[]", "prices are given by model"),
        ("csv", "input,output\n1,2\n", "prices are given by model"),
        ("toml", "[a]\ninput = 1\n", "'a' needs input and output .* it has 'input'"),
        ("csv", "model,input,output\na,1,\n", "'a' needs input and output"),
        ("toml", "a = -1", "is a number that is not negative, 'a' has price = -1"),
        ("toml", "a = true", "'a' has price = True"),
        ("toml", 'a = "cheap"', "'a' has price = 'cheap'"),
        ("json", '{"a": NaN}', "'a' has price = nan"),
        ("csv", b"model,price\n\xff,1\n", "cannot be read as .csv"),
    ],
)
def test_a_price_file_that_breaks_a_rule_is_refused_in_one_line(save, suffix, content, message):
    with pytest.raises(InputError, match=message) as refused:
        read_prices(save(content, suffix, name="prices"))
    assert "\n" not in str(refused.value)


def test_an_absent_price_file_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.toml: there is no such file"):
        read_prices(tmp_path / "absent.toml")


QUERIES = ["x" * 40, "y" * 42]
BASE = {"query": QUERIES, "a": [1, 0], "b": [1, 1]}
PRICES = {"a": {"input": 1, "output": 2}, "b": {"input": 10, "output": 30}}
INPUT = {"a input tokens": [10, 20], "b input tokens": [11, 21]}
OUTPUT = {"a output tokens": [100, 200], "b output tokens": [300, 400]}
TOTAL = {"a tokens": [110, 220], "b tokens": [311, 421]}


@pytest.mark.parametrize(
    ("columns", "expected", "words"),
    [
        (INPUT | OUTPUT, [[210, 9110], [420, 12210]], "counted tokens times the prices of"),
        (OUTPUT | TOTAL, [[210, 9110], [420, 12210]], "counted tokens times the prices of"),
        (OUTPUT, [[210, 9100], [411, 12110]], "counted output tokens and tokens estimated at 4"),
        (TOTAL, [[210, 9130], [429, 12410]], "of which tokens estimated at 4 characters each"),
        (INPUT, [[10, 110], [20, 210]], "counted input tokens; answers are not counted"),
        ({}, [[10, 100], [11, 110]], "the query's tokens estimated at 4 characters each; answers"),
    ],
)
def test_costs_follow_from_prices_and_whatever_tokens_are_counted(save, columns, expected, words):
    prices = save(json.dumps(PRICES), "json", name="prices")
    log = read_log(save({**BASE, **columns}), prices=prices)
    assert_allclose(log.cost * 1e6, expected)
    assert words in log.note


def test_a_price_may_tell_the_length_of_an_answer_and_a_fee(save):
    prices = {"a": {"call": 1, "input": 1, "output": 2, "output_tokens": 50}, "b": {"call": 5}}
    log = read_log(save(BASE), prices=save(json.dumps(prices), "json", name="prices"))
    assert_allclose(log.cost, [[1 + 110e-6, 5], [1 + 111e-6, 5]])
    assert "answers of 50 tokens" in log.note
    assert "'b' the prices per call" in log.note


def test_costs_in_the_log_stand_and_prices_fill_the_gaps(save):
    table = {**BASE, "b": [1, None], "a cost": [0.5, None], "b cost": [None, None]}
    prices = save({"model": ["A", "b"], "call": [7, 9]}, name="prices")
    log = read_log(save(table), prices=prices)
    np.testing.assert_array_equal(log.cost, [[0.5, 9], [7, np.nan]])
    assert "in the log, and where it has none the prices per call" in log.note


def test_long_logs_are_priced_by_their_tokens(save):
    table = {
        "query": [QUERIES[0], QUERIES[0], QUERIES[1]],
        "model": ["a", "b", "a"],
        "correct": [True, False, True],
        "prompt_tokens": [10, 10, None],
        "completion_tokens": [100, 200, 300],
    }
    log = read_log(save(table), prices=save(json.dumps(PRICES), "json", name="prices"))
    assert_allclose(log.cost * 1e6, [[210, 6100], [np.nan, np.nan]])
    assert "1 score has no cost" in log.note
