"""Whatever is sent, the gateway answers with an error of OpenAI's shape and never with a fault."""

import asyncio
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig import Answered, Rig, rig

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    PLAIN, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3)
)
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio", "file", "odd"]) | VALUES},
    optional={"text": st.text(max_size=20) | VALUES, "image_url": VALUES},
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | VALUES},
    optional={"content": st.text() | st.lists(PART, max_size=3) | VALUES, "tool_calls": VALUES},
)
MODELS = ["pointsman", "pointsman:cheap", "pointsman:", "small", "pointsman:cost=nan", "x"]
ODD = {
    "model": st.sampled_from(MODELS) | VALUES,
    "messages": st.lists(MESSAGE, max_size=3) | VALUES,
    "stream": st.booleans() | VALUES,
    "stream_options": st.just({"include_usage": True}) | VALUES,
    "max_tokens": st.integers() | VALUES,
    "max_completion_tokens": VALUES,
    "n": VALUES,
    "tools": VALUES,
    "logprobs": VALUES,
    "stub": st.just({"status": 422}) | st.just({"tokens": 2}) | VALUES,
}
SOUND = {"model": "pointsman", "messages": [{"role": "user", "content": "hello"}]}


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A sound request with up to three fields that may be anything."""
    changed = draw(st.lists(st.sampled_from(sorted(ODD)), min_size=1, max_size=3, unique=True))
    return {**SOUND, **{name: draw(ODD[name]) for name in changed}}


HEADER_VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "x-pointsman-task",
            "x-pointsman-vector",
            "authorization",
            "content-type",
            "openai-beta",
            "accept",
            "host",
        ]
    ),
    HEADER_VALUE,
    max_size=3,
)
PATHS = st.sampled_from(
    ["/v1/chat/completions", "/v1/feedback", "/v1/models", "/v1/models/x", "/health", "/metrics"]
) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map("/".__add__)


def check(got: Answered, told: Any) -> None:
    """An answer of some model, or an error of the client's making, in OpenAI's shape."""
    assert got.status in range(200, 500) or (got.status == 502), (got, told)
    if got.status >= 400 and got.body and "odd" not in got.body.decode("utf-8", "replace"):
        assert {"message", "type"} <= set(got.error), got


class Served:
    """One gateway for all examples of a test."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.context = rig(model={"retries": 0, "first_seconds": 2.0, "breaker_failures": 10**9})

    def __enter__(self) -> "Served":
        self.rig: Rig = self.runner.run(self.context.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self.runner.run(self.context.__aexit__(None, None, None))
        self.runner.close()


COMMON = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_no_request_for_a_completion_makes_the_gateway_fail() -> None:
    with Served() as served:

        @COMMON
        @given(body=requests(), headers=st.just({}) | HEADERS)
        def fuzz(body: Any, headers: dict[str, str]) -> None:
            data = json.dumps(body).encode()
            got = served.runner.run(served.rig.call("POST", "/v1/chat/completions", data, headers))
            check(got, (body, headers))

        fuzz()
        assert served.rig.gateway.requests == 0


def test_no_bytes_and_no_path_make_the_gateway_fail() -> None:
    with Served() as served:

        @COMMON
        @given(
            method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"]),
            path=PATHS,
            body=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()),
        )
        def fuzz(method: str, path: str, body: bytes) -> None:
            check(served.runner.run(served.rig.call(method, path, body)), (method, path, body))

        fuzz()


def test_deep_nesting_huge_numbers_and_lone_surrogates_are_refused_or_served() -> None:
    start = b'{"model":"pointsman","messages":[{"role":"user","content":"a"}],"x":'
    bodies = [
        start + b"[" * 100_000 + b"]" * 100_000 + b"}",
        start + b"1" * 10_000 + b"}",
        start + b"NaN}",
        start + b"-Infinity}",
        start + b'"\\ud800"}',
        start.replace(b'"a"', b'"\\ud800 \\u0000"') + b"1}",
        start + b'1,"model":"large"}',
        b"\xef\xbb\xbf" + start + b"1}",
        (start + b"1}").decode().encode("utf-16"),
        b"",
        b"{}",
        b"[]",
        b'{"model":',
        b'{"model" "x"}',
    ]
    with Served() as served:
        for body in bodies:
            got = served.runner.run(served.rig.call("POST", "/v1/chat/completions", body))
            assert got.status in (200, 400), (body[:80], got)
