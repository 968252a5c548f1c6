from itertools import product

import pytest
import torch

from pointsman.depth.layers.paths import (
    enumerate_paths,
    exchanged_runs,
    longest_gap,
    random_runs,
    shuffled_runs,
    walk_paths,
    whole_path,
)
from pointsman.errors import InputError


def test_all_paths_are_found_once_and_the_shortest_come_first():
    paths = enumerate_paths(4)
    assert set(paths) == set(product(range(3), repeat=4))
    assert len(paths) == len(set(paths)) == 81
    lengths = [sum(path) for path in paths]
    assert lengths == sorted(lengths)
    assert paths[lengths.index(4)] == whole_path(4)


def test_edits_gaps_and_blocks_that_may_not_be_edited_bound_the_paths():
    few = enumerate_paths(5, max_edits=2)
    assert set(few) == {p for p in product(range(3), repeat=5) if sum(c != 1 for c in p) <= 2}
    tight = enumerate_paths(5, actions=2, max_gap=1)
    assert set(tight) == {p for p in product(range(2), repeat=5) if longest_gap(p) <= 1}
    fixed = enumerate_paths(5, actions=2, editable=[1, 3])
    assert {(p[0], p[2], p[4]) for p in fixed} == {(1, 1, 1)}
    assert len(fixed) == 4


def test_too_many_paths_are_refused_before_they_are_made():
    with pytest.raises(InputError, match="use TreeSearch"):
        enumerate_paths(40)
    assert len(enumerate_paths(40, max_edits=1)) == 81
    with pytest.raises(InputError, match="blocks 0 to 3"):
        enumerate_paths(4, editable=[4])
    with pytest.raises(InputError, match="at least the actions"):
        enumerate_paths(4, actions=1)


def test_walking_paths_gives_each_its_own_state_and_shares_what_they_share():
    paths, calls = enumerate_paths(4), []

    def advance(at, state):
        calls.append(at)
        return (*state, at)

    found = dict(walk_paths(paths, advance, ()))
    for place, path in enumerate(paths):
        assert found[place] == tuple(at for at, count in enumerate(path) for _ in range(count))
    # from each of the 3**b states before block b, two runs serve all three counts
    assert len(calls) == sum(2 * 3**b for b in range(4))


def test_random_paths_keep_their_promises():
    generator = torch.Generator().manual_seed(0)
    runs = random_runs(4000, [0.0, 0.5, 1.0, 0.2], generator, repeat=[0.0, 0.25, 0.0, 0.0])
    shares = [(runs == count).double().mean(dim=0) for count in range(3)]
    torch.testing.assert_close(
        shares[0], torch.tensor([0, 0.5, 1, 0.2]).double(), atol=0.03, rtol=0
    )
    assert shares[2].tolist() == pytest.approx([0, 0.25, 0, 0], abs=0.03)
    mixed = shuffled_runs(runs, generator)
    assert torch.equal(mixed.sort(dim=1).values, runs.sort(dim=1).values)
    assert not torch.equal(mixed, runs)
    other = exchanged_runs(runs, generator)
    assert sorted(map(tuple, other.tolist())) == sorted(map(tuple, runs.tolist()))
    with pytest.raises(InputError, match="at most 1 together"):
        random_runs(3, [0.7], generator, repeat=[0.7])
