"""The four parts of a log."""

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.pool.log import Log
from pointsman.pool.reading import split_log
from pointsman.pool.reading.split import PARTS, SHARES
from pointsman.pool.synthetic import world


def test_the_parts_hold_every_row_once_in_the_shares_wanted():
    log = world("linear", models=3).log(4000)
    parts = split_log(log, seed=1)
    assert tuple(parts) == PARTS
    assert sum(map(len, parts.values())) == len(log)
    assert sorted(np.concatenate([part.queries for part in parts.values()])) == sorted(log.queries)
    rest = len(log)
    for name, (share, some, more) in SHARES.items():
        assert len(parts[name]) == pytest.approx(min(share * rest, some + more * rest), abs=5)
        rest -= len(parts[name])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_queries_never_straddle(seed):
    log = world("clusters", models=3).log(600, repeated=0.6)
    parts = split_log(log, seed)
    seen: set[str] = set()
    for part in parts.values():
        texts = {query.upper() for query in part.queries}
        assert len(texts) < len(part)
        assert not texts & seen
        seen |= texts


def test_only_the_training_part_has_missing_cells():
    w = world("linear", models=3)
    log = w.log(2000, missing=0.2, repeated=0.2)
    parts = split_log(log, 0)
    for name in PARTS[1:]:
        assert parts[name].complete().all()
        assert len(parts[name]) > 50
    assert not parts["train"].complete().all()
    assert parts["train"].complete().sum() > 100
    whole = log.take(log.complete())
    identical = set(whole.queries) & set(log.queries[~log.complete()])
    assert identical  # some repeat both with and without missing cells: those train
    assert identical <= set(parts["train"].queries)


def test_a_missing_cost_keeps_a_row_out_of_the_promise_as_well():
    log = world("linear", models=2).log(400)
    cost = np.array(log.cost)
    cost[::3, 1] = np.nan
    parts = split_log(Log(log.queries, log.models, log.quality, cost), 0)
    assert all(parts[name].complete().all() for name in PARTS[1:])


def test_equal_seeds_split_equally_and_others_differently():
    log = world("linear", models=2).log(300)
    first, again, other = (split_log(log, seed)["test"].queries for seed in (5, 5, 6))
    assert list(first) == list(again)
    assert set(first) != set(other)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (world("linear").log(99), "at least 100 different queries .* found 99: bring more"),
        (
            world("linear").log(150, repeated=0.5),
            r"at least 100 different queries .* found \d+ in 150 rows",
        ),
        (
            world("linear").log(120, missing=0.9),
            "at least 100 queries must be scored and priced for every model, none was: 'model-",
        ),
        (world("linear", models=3).log(300, missing=0.4), r"only \d+ were: 'model-\d' has the few"),
    ],
)
def test_too_few_queries_are_refused_in_one_line(log, message):
    with pytest.raises(InputError, match=message) as refused:
        split_log(log, 0)
    assert "\n" not in str(refused.value)
