import pytest
import torch
from torch.testing import assert_close

from pointsman.depth.cache import KeyValueCache
from pointsman.depth.decoder import Decoder
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return Decoder(vocabulary=20, width=16, layers=3, heads=2, context=40).double().eval()


def test_a_decoder_is_a_trunk_whose_blocks_give_its_logits(decoder):
    assert isinstance(decoder, Trunk)
    ids = torch.randint(20, (2, 7))
    state = decoder.begin(ids)
    for at in range(3):
        state = decoder.block(at, state)
    assert_close(decoder.finish(state), decoder(ids), rtol=0, atol=0)


def test_logits_do_not_look_ahead(decoder):
    ids = torch.randint(20, (1, 9))
    other = ids.clone()
    other[0, 5:] = (other[0, 5:] + 1) % 20
    assert_close(decoder(ids)[:, :5], decoder(other)[:, :5])


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 1, 3, 1]])
def test_with_a_cache_pieces_give_what_the_whole_gives(decoder, pieces):
    ids = torch.randint(20, (3, 9))
    cache, found, start = decoder.cache(3), [], 0
    for size in pieces:
        positions = torch.arange(start, start + size).expand(3, size)
        x = decoder.begin(ids[:, start : start + size])
        for at in range(3):
            x = decoder.block(at, x, positions, cache)
        found.append(decoder.finish(x))
        start += size
    assert_close(torch.cat(found, dim=1), decoder(ids))
    assert cache.entries() == 3 * 3 * 9


@torch.no_grad()
def test_rows_of_different_lengths_share_a_cache(decoder):
    """Rows 0 and 2 run ahead of row 1, in any order, and all agree with a run of their own."""
    ids = torch.randint(20, (3, 8))
    cache = decoder.cache(3)
    found = torch.zeros(3, 8, 20, dtype=torch.float64)
    for rows, start, stop in [
        ([0, 1, 2], 0, 2),
        ([2, 0], 2, 5),
        ([1], 2, 3),
        ([0, 1, 2], None, None),
        ([2], 6, 8),
    ]:
        index = torch.tensor(rows)
        if start is None:
            positions = cache.counts[0, index][:, None]
        else:
            positions = torch.arange(start, stop).expand(len(rows), -1)
        x = decoder.begin(ids[index[:, None], positions])
        for at in range(3):
            x = decoder.block(at, x, positions, cache, index)
        found[index[:, None], positions] = decoder.finish(x)
    whole = decoder(ids)
    for row, length in enumerate(cache.counts[0].tolist()):
        assert_close(found[row, :length], whole[row, :length])
    assert cache.counts[0].tolist() == [6, 4, 8]


@torch.no_grad()
def test_forgetting_a_draft_leaves_what_was_there_before(decoder):
    ids = torch.randint(20, (1, 8))
    cache = decoder.cache(1)

    def run(start, stop, tokens):
        positions = torch.arange(start, stop)[None]
        x = decoder.begin(tokens)
        for at in range(3):
            x = decoder.block(at, x, positions, cache)
        return decoder.finish(x)

    run(0, 5, ids[:, :5])
    run(5, 8, torch.zeros(1, 3))
    cache.forget_from(5)
    assert_close(run(5, 8, ids[:, 5:]), decoder(ids)[:, 5:])


def test_what_does_not_fit_is_refused(decoder):
    with pytest.raises(InputError, match="up to 40 tokens"):
        decoder(torch.zeros(1, 41, dtype=torch.int64))
    cache = KeyValueCache(1, 1, 4)
    k = torch.zeros(1, 2, 3, 4)
    cache.extend(0, k, k, torch.arange(3)[None])
    with pytest.raises(InputError, match="4 positions apart"):
        cache.extend(0, k, k, torch.arange(3, 6)[None])
    with pytest.raises(InputError, match="nothing is stored at layer 0"):
        KeyValueCache(1, 1, 4).attend(0, k, torch.arange(3)[None])
    with pytest.raises(InputError, match="heads divide the width"):
        Decoder(vocabulary=2, width=6, layers=1, heads=4, context=8)
