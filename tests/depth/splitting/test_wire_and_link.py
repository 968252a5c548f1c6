import socket
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pointsman.depth.splitting.link import Connection, Link
from pointsman.depth.splitting.wire import PartnerError, pack, size, unpack
from pointsman.errors import InputError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool]
SHAPES = st.lists(st.integers(0, 3), max_size=3)
LEAVES = st.one_of(
    st.none(),
    st.builds(
        lambda shape, dtype: (torch.randn(shape) * 3).to(dtype), SHAPES, st.sampled_from(DTYPES)
    ),
)
STATES = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.lists(parts, max_size=3),
        st.lists(parts, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4), parts, max_size=3),
    ),
    max_leaves=5,
)


def there_and_back(state):
    pieces = pack("state", state, number=3)
    body = bytearray().join(pieces)
    assert int.from_bytes(body[:8], "big") == size(pieces) - 8
    return unpack(body[8:])


def same(a, b):
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        [same(a[key], b[key]) for key in a]
    elif isinstance(a, list | tuple):
        assert type(a) is type(b)
        assert len(a) == len(b)
        [same(x, y) for x, y in zip(a, b, strict=True)]
    else:
        assert a is b is None


@settings(max_examples=60, deadline=None)
@given(STATES)
def test_any_state_comes_back_as_it_was(state):
    kind, found, about = there_and_back(state)
    assert (kind, about) == ("state", {"number": 3})
    same(state, found)


def test_values_that_are_no_numbers_and_strided_tensors_survive():
    x = torch.tensor([float("nan"), -float("inf"), -0.0, 5e-324], dtype=torch.float64)
    _, found, _ = there_and_back({"x": x, "y": torch.arange(6).reshape(2, 3).T})
    assert x.view(torch.int64).tolist() == found["x"].view(torch.int64).tolist()
    assert found["y"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("state", [3, "text", {1: torch.zeros(1)}, torch.Size([1]).numel])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(InputError, match="a state that is sent is tensors"):
        pack("state", state)


def test_a_damaged_message_is_refused_not_believed():
    body = bytearray().join(pack("state", [torch.zeros(4), torch.ones(3)]))[8:]
    for damaged in (
        body[:-1],
        body + b"x",
        body[:8] + b"[" + body[9:],
        b"\xff" * 8 + body[8:],
        bytearray(),
        body.replace(b'"shape": [4]', b'"shape": [9]'),
        body.replace(b'"float32"', b'"float99"'),
        body.replace(b'"of": "list"', b'"of": "file"'),
    ):
        with pytest.raises(PartnerError, match="does not fit its description"):
            unpack(bytearray(damaged))


def pair(link=None, patience=5.0):
    a, b = _pair()
    return Connection(a, link or Link(), patience), Connection(b, link or Link(), patience)


def _pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    return a, b


def test_a_message_is_no_faster_than_bandwidth_and_delay_allow():
    """Lower bounds only: a busy machine is slower, never quicker."""
    link = Link(bandwidth=1e6, round_trip=0.04)
    a, b = pair(link)
    pieces = pack("state", torch.zeros(25_000))  # 100 kB
    start = time.perf_counter()
    for _ in range(2):
        a.send(pieces)
    b.receive()
    first = time.perf_counter() - start
    b.receive()
    both = time.perf_counter() - start
    assert first >= 0.1 + 0.02
    assert both >= 0.2 + 0.02
    a.close()
    b.close()


def test_delays_of_messages_on_their_way_overlap():
    a, b = pair(Link(round_trip=0.4))
    start = time.perf_counter()
    for number in range(20):
        a.send(pack("state", None, number=number))
    found = [b.receive() for _ in range(20)]
    assert [message.about["number"] for message in found] == list(range(20))
    assert found[0].moment >= start + 0.2
    assert found[-1].moment - found[0].moment < 19 * 0.2, "one after the other they take 3.8 s"
    a.close()
    b.close()


def test_the_other_side_going_away_is_said_and_said_again():
    a, b = pair()
    a.close()
    for _ in range(2):
        with pytest.raises(PartnerError, match="went away"):
            b.receive()
    with pytest.raises(PartnerError, match="went away"):
        b.send(pack("state"))
    b.close()


def test_silence_and_foreign_bytes_are_told_apart():
    a, b = pair(patience=0.05)
    with pytest.raises(PartnerError, match="said nothing for 0.05 s"):
        b.receive()
    a.close()
    b.close()
    line, other = _pair()
    with Connection(other, Link(), 5.0) as connection:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(PartnerError, match="not one of ours"):
            connection.receive()
        line.close()


@pytest.mark.parametrize("given", [(0, 0), (float("nan"), 0), (1, -1), (1, float("inf"))])
def test_a_link_has_a_bandwidth_and_a_round_trip(given):
    with pytest.raises(InputError, match="a link has a bandwidth"):
        Link(*given)
