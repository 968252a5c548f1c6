"""Abuses: what is tried against the gateway over raw sockets, and what happens."""

import asyncio
import json

import pytest
from rig import Rig, rig, run
from stub_upstream import Behaviour

from pointsman.serve.keys import hash_key, new_key
from pointsman.serve.store import Key

BODY = json.dumps({"model": "pointsman", "messages": [{"role": "user", "content": "hi"}]}).encode()
LINES = "host: localhost\r\ncontent-type: application/json\r\n"


def post(more: str, body: bytes = BODY) -> bytes:
    return f"POST /v1/chat/completions HTTP/1.1\r\n{LINES}{more}\r\n".encode() + body


def sized(body: bytes = BODY) -> bytes:
    return post(f"content-length: {len(body)}\r\nconnection: close\r\n", body)


def in_openais_shape(body: bytes) -> bool:
    return set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_bodies_over_the_limit_are_refused_before_they_are_read() -> None:
    async def scenario() -> None:
        async with rig(server={"body_limit": 1000}) as r:
            got = await r.raw(post("content-length: 1000000000\r\n", b""))
            assert (got.status, got.error["code"]) == (413, "body_too_large")
            chunks = b"400\r\n" + b"x" * 1024 + b"\r\n"
            got = await r.raw(post("transfer-encoding: chunked\r\n", chunks))
            assert got.status == 413
            assert r.stub.served.total() == 0

    run(scenario)


@pytest.mark.parametrize("pieces", [1, 50])
def test_headers_over_the_limit_are_refused(pieces: int) -> None:
    async def scenario() -> None:
        async with rig(server={"header_limit": 4096}) as r:
            line = f"x-long: {'a' * (6000 // pieces)}\r\n"
            got = await r.raw(post(line * pieces + f"content-length: {len(BODY)}\r\n"))
            assert got.status == 431
            assert in_openais_shape(got.body)
            reader, writer = await asyncio.open_connection("127.0.0.1", r.port)
            writer.write(b"GET /health HTTP/1.1\r\nx: ")
            for _ in range(50):
                writer.write(b"a" * 100)
            await writer.drain()
            assert b" 431 " in await reader.read(100)
            writer.close()

    run(scenario)


SMUGGLED = [
    "content-length: 5\r\ntransfer-encoding: chunked\r\n",
    f"content-length: {len(BODY)}\r\ncontent-length: 5\r\n",
    f"content-length: {len(BODY)}, 5\r\n",
    "content-length: +5\r\n",
    "content-length: -1\r\n",
    "content-length: 0x10\r\n",
    "transfer-encoding: chunked, identity\r\n",
    "transfer-encoding : chunked\r\n",
    "transfer-encoding:\x0bchunked\r\n",
    "x: a\r\n content-length: 5\r\n",
    "x: a\nhost: evil\r\n",
    "x\x00y: a\r\n",
    "x: a\x00b\r\n",
    ": empty\r\n",
]


@pytest.mark.parametrize("lines", SMUGGLED, ids=[repr(lines)[:40] for lines in SMUGGLED])
def test_requests_that_two_servers_could_read_differently_are_refused(lines: str) -> None:
    async def scenario() -> None:
        async with rig() as r:
            got = await r.raw(post(lines + "connection: close\r\n"), seconds=15)
            assert got.status in (400, 408, 411, 501, 0), got
            assert r.stub.served.total() == 0

    run(scenario)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW /pot HTCPCP/1.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
        b"GET http://169.254.169.254/a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"GET /%00%ff/../etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade"
        b"\r\nsec-websocket-key: x\r\nsec-websocket-version: 13\r\n\r\n"
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    ],
    ids=["version", "method", "tls", "absolute", "connect", "path", "websocket"],
)
def test_odd_requests_get_an_error_and_the_server_goes_on(data: bytes) -> None:
    async def scenario() -> None:
        async with rig(server={"header_seconds": 1.0}) as r:
            got = await r.raw(data)
            assert got.status < 500
            assert (await r.chat()).status == 200

    run(scenario)


def test_a_second_request_hidden_in_a_body_is_never_served() -> None:
    async def scenario() -> None:
        async with rig() as r:
            hidden = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
            got = await r.raw(sized(BODY) + hidden)
            assert got.status == 200
            assert got.body.count(b"HTTP/1.1") == 0

    run(scenario)


def test_slow_headers_and_slow_bodies_are_cut_off() -> None:
    async def scenario() -> None:
        async with rig(server={"header_seconds": 0.2, "body_seconds": 0.2}) as r:
            assert (await r.raw(b"")).status == 408
            assert (await r.raw(b"POST /v1/chat/comp")).status == 408
            got = await r.raw(post("content-length: 500\r\n", b"{"))
            assert (got.status, got.headers["connection"]) == (408, "close")
            reader, writer = await asyncio.open_connection("127.0.0.1", r.port)
            writer.write(sized(BODY).replace(b"connection: close\r\n", b""))
            await reader.readuntil(b"}}")
            writer.write(b"POST /v1/chat")  # the second request of a connection is timed as well
            assert b" 408 " in await asyncio.wait_for(reader.read(), 5)
            writer.close()

    run(scenario)


def test_a_client_that_never_reads_is_left_and_its_upstream_freed() -> None:
    async def scenario() -> None:
        async with rig(server={"write_seconds": 0.3}) as r:
            r.stub.default = Behaviour(text="x" * 20_000_000)
            _, writer = await asyncio.open_connection("127.0.0.1", r.port, limit=1000)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            body = json.dumps(json.loads(BODY) | {"stream": True}).encode()
            writer.write(sized(body))
            for _ in range(1500):
                await asyncio.sleep(0.01)
                if r.stub.served.total() and r.gateway.requests == 0:
                    break
            assert r.gateway.requests == 0
            assert r.gateway.generation.upstreams["middle"].slots.running == 0
            writer.transport.abort()

    run(scenario)


def test_no_field_of_a_request_chooses_where_the_gateway_calls() -> None:
    async def scenario() -> None:
        async with rig() as r:
            trap = asyncio.Event()

            async def caught(reader: object, writer: asyncio.StreamWriter) -> None:
                trap.set()
                writer.close()

            server = await asyncio.start_server(caught, "127.0.0.1", 0)
            evil = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            fields = ("base_url", "api_base", "url", "upstream", "endpoint", "proxy", "api_key")
            headers = {"x-forwarded-host": evil, "x-base-url": evil, "forwarded": f"host={evil}"}
            image = {"type": "image_url", "image_url": {"url": f"{evil}/picture.png"}}
            got = await r.chat("hi", headers, **dict.fromkeys(fields, evil), metadata={"url": evil})
            assert got.status == 200
            for model in (evil, "../../etc", "pointsman:" + evil, "http://169.254.169.254/"):
                assert (await r.chat(model=model)).status == 404
            assert (await r.chat([image])).status == 400
            assert not trap.is_set()
            server.close()

    run(scenario)


def test_a_redirect_of_an_upstream_is_not_followed() -> None:
    async def scenario() -> None:
        async with rig(model={"retries": 0}) as r:
            r.stub.default = Behaviour(status=302)
            got = await r.chat(model="small")
            assert got.status == 502
            assert r.stub.served["small"] == 1

    run(scenario)


def test_headers_of_the_client_do_not_reach_the_upstream() -> None:
    async def scenario() -> None:
        async with rig() as r:
            secret = {"authorization": "Bearer mine", "cookie": "a=b", "openai-beta": "x"}
            assert (await r.chat("hi", secret)).status == 200
            sent = r.stub.headers[-1]
            assert sent["openai-beta"] == "x"
            assert not {"authorization", "cookie", "connection"} & set(sent)

    run(scenario)


def test_web_pages_cannot_make_their_readers_browser_spend_money() -> None:
    async def scenario() -> None:
        async with rig() as r:
            got = await r.chat(headers={"host": "evil.example"})
            assert (got.status, got.error["type"]) == (403, "permission_error")
            for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
                assert (await r.chat(headers={"content-type": kind})).status == 415
            for host in ("localhost:8080", "127.0.0.1", "[::1]:9", "LOCALHOST"):
                assert (await r.chat(headers={"host": host})).status == 200
            assert r.stub.served.total() == 4

    run(scenario)


async def keyed(r: Rig, **values: object) -> dict[str, str]:
    """A new key, as the header of its requests."""
    secret = new_key()
    await r.gateway.store.add_key(Key(0, f"key {secret[-6:]}", **values), hash_key(secret))  # type: ignore[arg-type]
    return {"authorization": f"Bearer {secret}"}


def test_keys_are_needed_and_guessing_is_slowed() -> None:
    async def scenario() -> None:
        async with rig(server={"keys": True, "guesses_per_minute": 5}) as r:
            good = await keyed(r)
            assert (await r.chat(headers=good)).status == 200
            assert (await r.chat(headers={**good, "host": "anywhere"})).status == 200
            for wrong in ({}, {"authorization": "Basic x"}, {"authorization": "Bearer "}):
                got = await r.chat(headers=wrong)
                assert (got.status, got.error["code"]) == (401, "invalid_api_key")
            for path in ("/v1/models", "/metrics", "/status"):
                assert (await r.call("GET", path)).status == 401
            for i in range(5):
                assert (await r.chat(headers={"authorization": f"Bearer pm-{i}"})).status == 401
            got = await r.chat(headers={"authorization": "Bearer pm-6"})
            assert got.status == 429
            assert int(got.headers["retry-after"]) >= 1
            assert (await r.call("GET", "/health")).status == 200
            twice = f"authorization: Bearer a\r\n{'authorization: ' + good['authorization']}\r\n"
            got = await r.raw(post(twice + f"content-length: {len(BODY)}\r\nconnection: close\r\n"))
            assert got.status in (400, 429)

    run(scenario)


def test_a_keys_rate_budget_points_and_floor_hold() -> None:
    async def scenario() -> None:
        async with rig(server={"keys": True}, model={"max_output": 100}) as r:
            slow = await keyed(r, rate_per_minute=2.0)
            got = [(await r.chat(headers=slow)).status for _ in range(3)]
            assert got == [200, 200, 429]
            poor = await keyed(r, budget=0.0003)
            answers = [await r.chat("one two three", poor) for _ in range(8)]
            refused = [each for each in answers if each.status == 429]
            assert refused
            assert refused[0].error["code"] == "insufficient_quota"
            assert answers[0].status == 200
            bound = await keyed(r, points=("cheap", "small"), floor=None)
            assert (await r.chat(headers=bound)).headers["x-pointsman-model"] == "small"
            for model in ("pointsman:best", "large"):
                got403 = await r.chat(headers=bound, model=model)
                assert (got403.status, got403.error["code"]) == (403, "model_not_allowed")
            listed = (await r.call("GET", "/v1/models", None, bound)).json["data"]
            assert [each["id"] for each in listed] == ["pointsman", "pointsman:cheap", "small"]
            high = await keyed(r, floor="best")
            got200 = await r.chat(headers=high, model="pointsman:cheap")
            assert got200.headers["x-pointsman-model"] == "large"

    run(scenario)


def test_feedback_on_another_keys_request_is_refused() -> None:
    async def scenario() -> None:
        async with rig(server={"keys": True}) as r:
            one, other = await keyed(r), await keyed(r)
            name = (await r.chat(headers=one)).headers["x-pointsman-request-id"]
            said = {"id": name, "quality": 0}
            assert (await r.call("POST", "/v1/feedback", said, other)).status == 404
            assert (await r.call("POST", "/v1/feedback", said, one)).status == 200

    run(scenario)
