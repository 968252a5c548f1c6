"""Reading requests: what routes them, and that nothing else of them changes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.pool.turns import last_turn
from pointsman.serve.refusal import RefusalError
from pointsman.serve.request import parse

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3),
    max_leaves=8,
)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@given(
    more=st.dictionaries(st.text().filter(lambda k: k not in {"model", "messages"}), VALUES),
    indent=st.sampled_from([None, 1]),
    ascii=st.booleans(),
    first=st.booleans(),
)
def test_replacing_values_changes_nothing_else(
    more: dict[str, Any], indent: int | None, ascii: bool, first: bool
) -> None:
    own: dict[str, Any] = {"model": "a", "messages": [user("hé")]}
    whole = {**own, **more} if first else {**more, **own}
    if any(key in whole for key in ("stream", "stream_options", "logprobs", "tools")):
        return
    text = json.dumps(whole, indent=indent, ensure_ascii=ascii)
    try:
        body = text.encode()
    except UnicodeEncodeError:
        return
    request = parse(body)
    assert request.with_values({}) == body
    changed = request.with_values({"model": 'b"', "new": [1]})
    assert json.loads(changed) == {**whole, "model": 'b"', "new": [1]}
    replaced = text.replace('"model": "a"', '"model": "b\\""').encode()
    assert request.with_values({"model": 'b"'}) == replaced


def test_the_last_turn_of_the_user_is_what_routes() -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    turns = [
        {"role": "system", "content": "be brief"},
        user("first"),
        {"role": "assistant", "content": "answer"},
        user("second"),
        user([{"type": "text", "text": "third"}, image, {"type": "text", "text": "fourth"}]),
    ]
    assert last_turn(turns) == "second\nthird\nfourth"
    tools = [
        *turns,
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42"},
    ]
    assert last_turn(tools) == "second\nthird\nfourth"
    assert last_turn(turns[:1]) == ""


def test_needs_are_read_from_parts_tools_and_lengths() -> None:
    body = {
        "model": "pointsman",
        "messages": [
            user([{"type": "input_audio", "input_audio": {}}, {"type": "image_url"}]),
            user("x" * 400),
        ],
        "tools": [{"type": "function"}],
        "max_tokens": 50,
    }
    needs = parse(json.dumps(body).encode()).needs
    assert (needs.vision, needs.audio, needs.tools) == (True, True, True)
    assert 2150 < needs.tokens < 2200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\xff", "must be JSON in UTF-8"),
        (b'{"model":"a","model":"b"}', "'model' comes twice"),
        (b'{"model":"a"} x', "more text after its end"),
        (b'{"model":3,"messages":[{}]}', "model must be a text"),
        (b'{"model":"a","messages":{}}', "messages must be a list"),
        (b'{"model":"a","messages":[3]}', "every message must be an object"),
        (b'{"model":"a","messages":[{}],"stream":"yes"}', "stream must be true or false"),
        (b'{"model":"a","messages":[{}],"x":NaN}', "NaN is no JSON number"),
    ],
)
def test_what_is_wrong_is_said(body: bytes, words: str) -> None:
    with pytest.raises(RefusalError, match=words) as caught:
        parse(body)
    assert caught.value.status == 400
    assert json.loads(caught.value.body())["error"]["type"] == "invalid_request_error"
