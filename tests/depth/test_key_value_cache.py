"""The cache of keys and values, held against a plain dictionary of what was stored."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.testing import assert_close

from pointsman.depth.cache import KeyValueCache
from pointsman.errors import InputError

HEADS, WIDTH, CONTEXT = 2, 4, 30


class Reference:
    """Keys and values by (row, position)."""

    def __init__(self):
        self.stored = {}

    def extend(self, keys, values, positions, rows):
        for at, row in enumerate(rows):
            for token, position in enumerate(positions[at].tolist()):
                if position >= 0:
                    self.stored[row, position] = keys[at, :, token], values[at, :, token]

    def attend(self, queries, positions, rows):
        found = torch.zeros_like(queries)
        for at, row in enumerate(rows):
            for token, position in enumerate(positions[at].tolist()):
                seen = [self.stored[key] for key in sorted(self.stored) if key[0] == row]
                places = sorted(p for r, p in self.stored if r == row)
                seen = [kv for kv, p in zip(seen, places, strict=True) if p <= position]
                if position < 0 or not seen:
                    continue
                k, v = (torch.stack(part, dim=1) for part in zip(*seen, strict=True))
                query = queries[at, :, token : token + 1]
                found[at, :, token] = functional.scaled_dot_product_attention(query, k, v)[:, 0]
        return found

    def forget_from(self, bounds):
        self.stored = {key: kv for key, kv in self.stored.items() if key[1] < bounds[key[0]]}


@st.composite
def histories(draw):
    """Steps of a cache of three rows: who stores how many tokens after what gap, who forgets."""
    steps = []
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.integers(0, 4)) == 0:
            steps.append(("forget", draw(st.lists(st.integers(0, 12), min_size=3, max_size=3))))
            continue
        rows = draw(st.permutations([0, 1, 2]))[: draw(st.integers(1, 3))]
        gaps = draw(st.sampled_from([[0, 0, 0], [0, 1, 0], [2, 2, 2]]))
        counts = draw(
            st.one_of(
                st.integers(1, 3).map(lambda count: [count] * 3),
                st.lists(st.integers(0, 3), min_size=3, max_size=3),
            )
        )
        steps.append(("store", rows, gaps, counts))
    return steps


@settings(max_examples=60, deadline=None, derandomize=True)
@given(histories())
def test_any_history_attends_as_a_dictionary_of_tokens_does(history):
    generator = torch.Generator().manual_seed(0)
    cache, reference = KeyValueCache(1, 3, CONTEXT), Reference()
    for step in history:
        if step[0] == "forget":
            cache.forget_from(torch.tensor(step[1]))
            reference.forget_from(step[1])
            continue
        _, rows, gaps, counts = step
        nexts = [max([p for r, p in reference.stored if r == row], default=-1) + 1 for row in rows]
        q = max(counts[: len(rows)])
        if not q:
            continue
        positions = torch.tensor(
            [
                [start + gap + token if token < count else -1 for token in range(q)]
                for start, gap, count in zip(nexts, gaps, counts, strict=False)
            ]
        )
        shape = (len(rows), HEADS, q, WIDTH)
        k, v, query = (
            torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)
        )
        index = torch.tensor(rows)
        cache.extend(0, k, v, positions, index)
        reference.extend(k, v, positions, rows)
        found = cache.attend(0, query, positions, index)
        assert bool(found.isfinite().all()), "what fills a row must not bring NaN"
        real = (positions >= 0)[:, None, :, None]
        assert_close(found * real, reference.attend(query, positions, rows) * real)
    held = [sum(r == row for r, _ in reference.stored) for row in range(3)]
    assert cache.counts[0].tolist() == held
    assert cache.entries() == sum(held)


def test_positions_changed_in_place_are_seen_anew():
    """What follows from positions is remembered: not beyond a change of them."""
    cache, positions = KeyValueCache(2, 1, CONTEXT), torch.zeros(1, 1, dtype=torch.int64)
    k = torch.randn(1, HEADS, 3, WIDTH)
    for token in range(3):
        here = k[:, :, token : token + 1]
        for layer in range(2):
            cache.extend(layer, here, here, positions)
            found = cache.attend(layer, here, positions)
            seen_k = k[:, :, : token + 1]
            assert_close(found, functional.scaled_dot_product_attention(here, seen_k, seen_k))
        positions += 1
    assert cache.counts.tolist() == [[3], [3]]
    seen = cache.visible(0, torch.tensor([[1]]))
    assert seen is not None
    assert seen.flatten().tolist() == [True, True, False]


def test_claimed_tokens_are_visible_before_their_keys_are_there():
    cache, positions = KeyValueCache(1, 2, CONTEXT), torch.tensor([[0, 1, 2], [0, 1, -1]])
    slots = cache.claim(0, positions)
    seen = cache.visible(0, positions)
    assert seen is not None
    assert seen[0, 0].tolist() == torch.ones(3, 3).tril().bool().tolist()
    assert seen[1, 0, :2].tolist() == [[True, False, False], [True, True, False]]
    k = torch.randn(2, HEADS, 3, WIDTH)
    cache.write(slots, k, 2 * k)
    keys, values = cache.read(0)
    assert_close(keys[0], k[0])
    assert_close(values[1, :, :2], 2 * k[1, :, :2])


def test_attending_does_not_see_what_was_forgotten():
    cache, k = KeyValueCache(1, 1, CONTEXT), torch.randn(1, HEADS, 3, WIDTH)
    cache.extend(0, k, k, torch.arange(3)[None])
    cache.forget_from(1)
    alone = cache.attend(0, k[:, :, :1], torch.tensor([[9]]))
    assert_close(alone, k[:, :, :1])


def test_a_row_that_asks_beyond_what_it_holds_sees_what_it_holds():
    cache, k = KeyValueCache(1, 2, CONTEXT), torch.randn(2, HEADS, 3, WIDTH)
    cache.extend(0, k, k, torch.arange(3).expand(2, 3))
    cache.forget_from(torch.tensor([3, 1]))
    found = cache.attend(0, k[:, :, :1], torch.full((2, 1), 9))
    whole = functional.scaled_dot_product_attention(k[:1, :, :1], k[:1], k[:1])
    assert_close(found, torch.cat([whole, k[1:, :, :1]]))


def test_a_cache_longer_than_the_context_and_shapes_that_do_not_fit_are_refused():
    k = torch.zeros(1, HEADS, 3, WIDTH)
    with pytest.raises(InputError, match="4 positions apart"):
        KeyValueCache(1, 1, 4).extend(0, k, k, torch.tensor([[2, 3, 4]]))
    cache = KeyValueCache(1, 2, 4)
    with pytest.raises(InputError, match="for all 2 rows"):
        cache.extend(0, k, k, torch.arange(3)[None])
    with pytest.raises(InputError, match="one position for each"):
        cache.extend(0, k, k, torch.arange(2)[None], torch.tensor([0]))
    with pytest.raises(InputError, match="3 tokens of a row were to be stored"):
        cache.write(cache.claim(0, torch.arange(3).expand(2, 3)), k, k)
    with pytest.raises(InputError, match="at least one layer"):
        KeyValueCache(0, 1, 4)
