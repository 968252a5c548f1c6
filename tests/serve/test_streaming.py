"""Watching streams pass: every cut of the bytes gives the same."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pointsman.serve.streaming import Passing, comment, payload, split


def event(value: object, end: str = "\n\n") -> bytes:
    return f"data: {json.dumps(value)}{end}".encode()


TOKEN = {"choices": [{"index": 0, "delta": {"content": 'say "usage" or [DONE]'}}], "usage": None}
USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
DONE = b"data: [DONE]\n\n"


def fed(data: bytes, cuts: list[int], hide: bool) -> tuple[bytes, bytes, Passing]:
    passing = Passing(hide)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    went = b"".join(passing.feed(data[a:b]) for a, b in pairwise(places))
    return went, passing.end(comment("note")), passing


@given(cuts=st.lists(st.integers(0, 900), max_size=30), end=st.sampled_from(["\n\n", "\r\n\r\n"]))
def test_however_the_bytes_are_cut_the_same_goes_on(cuts: list[int], end: str) -> None:
    done = f"data: [DONE]{end}".encode()
    plain = event(TOKEN, end) * 3 + b": a comment" + end.encode()
    data = plain + event(USAGE, end) + done
    went, rest, passing = fed(data, cuts, hide=True)
    assert (went, rest) == (plain, b": note\n\n" + done)
    assert (passing.pieces, passing.complete) == (3, True)
    assert passing.usage is not None
    assert (passing.usage.prompt, passing.usage.answer) == (5, 7)
    went, rest, _ = fed(data, cuts, hide=False)
    assert went == plain + event(USAGE, end)


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=10))
def test_bytes_that_are_no_events_are_never_lost(data: bytes, cuts: list[int]) -> None:
    went, rest, _ = fed(data, cuts, hide=True)
    if b"usage" not in data and b"DONE" not in data:
        assert went + rest.removeprefix(b": note\n\n") == data


def test_what_follows_the_last_event_comes_with_the_end() -> None:
    went, rest, _ = fed(event(TOKEN) + b"data: {}", [3, 100], hide=True)
    assert went == event(TOKEN)
    assert rest == b": note\n\ndata: {}"


def test_events_are_split_at_empty_lines_of_any_kind() -> None:
    assert split(b"a\n\nb\r\n\r\nc\r\rd") == [b"a\n\n", b"b\r\n\r\n", b"c\r\r", b"d"]
    assert payload(b"event: x\ndata: 1\ndata:2\n\n") == b"1\n2"
    assert payload(b": only a comment\n\n") is None
