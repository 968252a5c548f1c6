"""Predicted paths, equal groups, and a quick memory that never holds more than its slots."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.errors import InputError
from pointsman.moe.parallel import (
    Memory,
    PathPredictor,
    allot,
    fetched_ahead,
    fit_predictor,
    on_demand,
    regroup,
    touched,
)
from pointsman.moe.parallel.cluster import Flags
from pointsman.moe.parallel.memory import _Shelf


def steps(seed: int, count: int = 30, layers: int = 3, experts: int = 5) -> Flags:
    return np.random.default_rng(seed).random((count, layers, experts)) < 0.3


def test_a_predictor_learns_what_hangs_on_the_token_and_on_the_one_before() -> None:
    torch.manual_seed(0)
    ids_nS = torch.randint(6, (24, 8))
    before_nS = torch.cat([torch.zeros(24, 1, dtype=torch.int64), ids_nS[:, :-1]], dim=1)
    expert_nSL = torch.stack([ids_nS % 4, before_nS % 4], dim=2)
    routed = torch.nn.functional.one_hot(expert_nSL, 4).bool()
    predictor = PathPredictor(6, 2, 4, width=16)
    fit_predictor(predictor, ids_nS, routed, seed=0, updates=60, rate=3e-2)
    found = predictor.predict(ids_nS, 1)
    assert found.sum() == ids_nS.numel() * 2
    assert (found & routed).sum() / found.sum() > 0.97
    with pytest.raises(InputError, match="routes must have shape"):
        fit_predictor(predictor, ids_nS, routed[:, :, :1], seed=0)


def test_predictions_do_not_hang_on_later_tokens() -> None:
    torch.manual_seed(0)
    predictor, ids = PathPredictor(6, 2, 4), torch.randint(6, (2, 9))
    torch.testing.assert_close(predictor(ids)[:, :5], predictor(ids[:, :5]))
    assert predictor(ids[:0]).shape == (0, 9, 2, 4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6))
def test_groups_are_of_equal_size(seed: int, half: int) -> None:
    paths = steps(seed, 2 * half)
    second = regroup(paths)
    assert second.sum() == half
    assert touched(paths, second) <= 2 * paths.any(axis=0).sum()


def test_two_kinds_of_tokens_are_told_apart() -> None:
    kinds = np.zeros((2, 3, 8), dtype=np.bool_)
    kinds[0, :, :4], kinds[1, :, 4:] = True, True
    order = np.random.default_rng(0).permutation(np.repeat([0, 1], 6))
    second = regroup(kinds[order])
    assert (second == order).all() or (second == 1 - order).all()


def test_small_cases_come_near_the_best_split() -> None:
    ratios = []
    for seed in range(10):
        paths = steps(seed, 6, 2, 6)
        splits = [np.isin(np.arange(6), own) for own in combinations(range(6), 3)]
        ratios.append(touched(paths, regroup(paths)) / min(touched(paths, s) for s in splits))
    assert max(ratios) < 1.35
    assert np.mean(ratios) < 1.12


def best_on_demand(requests: tuple[int, ...], slots: int, kept: frozenset[int]) -> int:
    """Most hits by trying every choice of what to drop."""
    if not requests:
        return 0
    first, rest = requests[0], requests[1:]
    if first in kept:
        return 1 + best_on_demand(rest, slots, kept)
    if len(kept) < slots:
        return best_on_demand(rest, slots, kept | {first})
    return max(best_on_demand(rest, slots, kept - {old} | {first}) for old in kept)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=9), st.integers(1, 3))
def test_looking_ahead_is_the_best_on_demand(requests: list[int], slots: int) -> None:
    needed = np.zeros((len(requests), 1, 4), dtype=np.bool_)
    needed[np.arange(len(requests)), 0, requests] = True
    memory = Memory(slots)
    found = on_demand(needed, memory, look_ahead=True)
    assert found.hits == best_on_demand(tuple(requests), slots, frozenset())
    assert on_demand(needed, memory).hits <= found.hits
    assert found.loads + found.hits == found.requests == len(requests)


def test_the_least_recently_used_goes_first() -> None:
    needed = np.zeros((5, 1, 3), dtype=np.bool_)
    needed[np.arange(5), 0, [0, 1, 0, 2, 0]] = True
    found = on_demand(needed, Memory(2, load=10.0))
    assert (found.hits, found.seconds) == (2, 3 * 10 + 5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(0, 3))
def test_fetching_keeps_to_its_slots_and_runs_everything(
    seed: int, slots: int, load: float
) -> None:
    needed, predicted = steps(seed), steps(seed + 1)
    shelf = _Shelf(Memory(slots, load=load))
    for needed_LE, predicted_LE in zip(needed, predicted, strict=True):
        shelf.expect(predicted_LE)
        for layer, row in enumerate(needed_LE):
            shelf.run(layer, [(layer, int(expert)) for expert in np.flatnonzero(row)])
            assert len(shelf.arrival) <= slots
    found = fetched_ahead(needed, predicted, Memory(slots, load=load))
    assert found.requests == needed.sum()
    assert found.seconds == shelf.clock >= needed.sum()
    assert found.seconds <= needed.sum() + (found.loads + 1) * load + 1e-6


def test_room_for_all_and_free_loading_leave_nothing_to_wait_for() -> None:
    needed = steps(0)
    free = Memory(15, load=0.0)
    assert fetched_ahead(needed, needed, free).hit_rate == 1
    assert fetched_ahead(needed, needed, free).seconds == needed.sum()
    nothing = np.zeros_like(needed)
    cold = fetched_ahead(needed, nothing, Memory(15))
    assert cold.loads == needed.any(axis=0).sum()  # each once, when it is missed first
    assert fetched_ahead(nothing, nothing, free).hit_rate == 1


def test_slots_follow_the_predictions() -> None:
    predicted = np.zeros((3, 8), dtype=np.bool_)
    predicted[0, :6], predicted[1, :3] = True, True
    assert allot(predicted, 6).tolist() == [4, 2, 0]
    assert allot(predicted, 7).tolist() == [5, 2, 0]
    assert allot(predicted, 100).tolist() == [6, 3, 0]
    assert allot(predicted & False, 4).tolist() == [0, 0, 0]


def test_misuse_is_refused() -> None:
    with pytest.raises(InputError, match="an even number of tokens"):
        regroup(steps(0, 3))
    with pytest.raises(InputError, match="needs a slot"):
        Memory(0)
    with pytest.raises(InputError, match="predictions must have the shape"):
        fetched_ahead(steps(0), steps(0, 2), Memory(2))
    with pytest.raises(InputError, match="sizes of at least 1"):
        PathPredictor(6, 0, 4)
