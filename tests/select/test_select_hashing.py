import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from select_strategies import rows
from torch.testing import assert_close

from pointsman.errors import RouteError
from pointsman.select import hashed

MASK = 2**64 - 1


def mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def by_hand(number, num_branches, k, seed):
    """The same in Python's own whole numbers, picking from a list of free branches."""
    state = mix((number & MASK) ^ mix(seed & MASK))
    free = list(range(num_branches))
    chosen = []
    for _ in range(k):
        state = mix((state + 0x9E3779B97F4A7C15) & MASK)
        chosen.append(free.pop((state % 2**63) % len(free)))
    return chosen


ids = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6)


@settings(max_examples=80, deadline=None)
@given(ids, st.integers(1, 9), st.data(), st.integers(-(2**70), 2**70))
def test_branches_equal_those_of_plain_python(ids, num_branches, data, seed):
    k = data.draw(st.integers(1, num_branches))
    route = hashed(torch.tensor(ids, dtype=torch.int64), num_branches, k=k, seed=seed).validate()
    assert rows(route) == [by_hand(i, num_branches, k, seed) for i in ids]
    assert_close(route.weights, torch.full((len(ids) * k,), 1 / k))


def test_branches_stay_the_same_in_every_version():
    """Saved models hang on these numbers."""
    ids = torch.tensor([0, 1, -1, 12345])
    expected = [[47, 1, 55], [50, 5, 54], [26, 42, 55], [56, 24, 37]]
    assert rows(hashed(ids, 64, k=3)) == expected


def test_equal_ids_of_any_type_go_to_equal_branches():
    ids = torch.tensor([3, 200, 3, 7, 200])
    routes = [hashed(ids.to(t), 16, k=2) for t in (torch.int64, torch.int32, torch.uint8)]
    assert rows(routes[0]) == rows(routes[1]) == rows(routes[2])
    assert rows(routes[0])[0] == rows(routes[0])[2]
    assert rows(routes[0])[1] == rows(routes[0])[4]


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_branches_and_orders_of_them_are_equally_frequent(seed):
    count = 60_000
    route = hashed(torch.arange(count), 3, k=2, seed=seed)
    first, second = route.branches.view(-1, 2).unbind(1)
    orders = torch.bincount(first * 3 + second, minlength=9).view(3, 3)
    expected = count / 6
    off = orders[~torch.eye(3, dtype=torch.bool)].double()
    # chi-squared with 5 degrees of freedom stays below 25 in all but one of 10,000 cases
    assert float(((off - expected) ** 2 / expected).sum()) < 25
    assert (orders.diagonal() == 0).all()


def test_another_seed_is_another_hash():
    ids = torch.arange(1000)
    a, b = (hashed(ids, 8, seed=s).branches for s in (0, 1))
    assert 0.05 < float((a == b).double().mean()) < 0.2


@pytest.mark.parametrize("ids", [torch.ones(3), torch.ones(3, 1).long(), torch.ones(3).bool()])
def test_ids_must_be_a_list_of_whole_numbers(ids):
    with pytest.raises(RouteError, match=r"ids must be integers of shape \(inputs,\)"):
        hashed(ids, 4)
