"""When upstreams fail, stall, or are busy, and when clients leave."""

import asyncio
import json

import pytest
from rig import Rig, rig, run
from stub_upstream import Behaviour


def test_a_failing_model_is_tried_again_and_then_the_next_as_good_answers() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.stub.script["middle"].append(Behaviour(status=503))
            got = await r.chat()
            assert got.headers["x-pointsman-model"] == "middle"
            assert r.stub.served["middle"] == 2
            r.stub.script["middle"].extend([Behaviour(status=500), Behaviour(hang_up="before")])
            got = await r.chat()
            assert got.status == 200
            assert got.headers["x-pointsman-model"] == "large"
            assert got.headers["x-pointsman-why"] == "middle did not answer"
            row = await r.gateway.store.served(got.headers["x-pointsman-request-id"])
            assert row is not None
            assert (row["model"], row["propensity"]) == ("large", None)

    run(scenario)


def test_a_hang_up_before_an_answer_is_charged_for_its_prompt() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.stub.script["middle"].extend([Behaviour(hang_up="before")] * 2)
            got = await r.chat("word " * 99 + "end!")  # 499 characters: 125 tokens, and 4 a message
            prompt = 129
            cost = 2 * prompt * 1e-6 + (100 * 1.0 + 12 * 2.0) * 1e-6
            assert float(got.headers["x-pointsman-cost-usd"]) == pytest.approx(cost)

    run(scenario)


def test_nobody_answers_and_the_client_is_told_in_openais_shape() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.stub.default = Behaviour(status=500)
            got = await r.chat()
            assert got.status == 502
            assert set(got.error) == {"message", "type", "param", "code"}
            assert got.error["code"] == "upstream_failed"
            assert "middle: status 500" in got.error["message"]
            assert await r.gateway.store.spent(0) == (0.0, 0.0)
            r.stub.default = Behaviour(status=429, retry_after="7")
            for upstream in r.gateway.generation.upstreams.values():
                upstream.breaker.succeeded()
            got = await r.chat()
            assert got.status in (429, 503)

    run(scenario)


def test_rate_limits_of_an_upstream_are_respected_and_passed_on() -> None:
    async def scenario() -> None:
        async with rig(model={"retries": 0}) as r:
            r.stub.default = Behaviour(status=429, retry_after="7")
            got = await r.chat(model="small")
            assert got.status == 429
            assert got.error["code"] == "rate_limit_exceeded"
            assert got.headers["retry-after"] == "8"
            assert r.gateway.generation.upstreams["small"].breaker.state == "open"
            got = await r.chat(model="small")
            assert got.status == 503
            assert r.stub.served["small"] == 1

    run(scenario)


def test_a_wrong_key_at_the_upstream_goes_to_the_next_model_at_once() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.stub.script["middle"].append(Behaviour(status=401))
            assert (await r.chat()).headers["x-pointsman-model"] == "large"
            assert r.stub.served["middle"] == 1

    run(scenario)


def test_the_breaker_opens_after_failures_and_spares_the_model() -> None:
    async def scenario() -> None:
        model = {"retries": 0, "breaker_failures": 2, "breaker_seconds": 60.0}
        async with rig(model=model) as r:
            r.stub.script["middle"].extend([Behaviour(status=500)] * 2)
            for _ in range(4):
                assert (await r.chat()).headers["x-pointsman-model"] == "large"
            assert r.stub.served["middle"] == 2
            assert r.gateway.generation.upstreams["middle"].breaker.state == "open"

    run(scenario)


def test_slow_upstreams_run_into_their_time_limits() -> None:
    async def scenario() -> None:
        model = {"retries": 0, "first_seconds": 0.2, "idle_seconds": 0.2}
        async with rig(model=model) as r:
            r.stub.script["middle"].append(Behaviour(wait=30))
            got = await r.chat()
            assert got.headers["x-pointsman-model"] == "large"
            r.stub.script["middle"].append(Behaviour(stall=4))
            got = await r.chat(stream=True)
            assert got.status == 200
            assert json.loads(got.events[-1])["error"]["code"] == "upstream_failed"
            assert "[DONE]" not in got.events
            settled, reserved = await r.gateway.store.spent(0)
            assert reserved == 0
            assert settled > 0

    run(scenario)


def test_a_stream_that_breaks_off_ends_with_an_error_and_is_paid_by_what_was_seen() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.stub.script["middle"].append(Behaviour(tokens=50, hang_up=9))
            got = await r.chat("x" * 384, stream=True)  # 96 + 4 tokens
            assert json.loads(got.events[-1])["error"]["type"] == "server_error"
            settled, reserved = await r.gateway.store.spent(0)
            assert (settled, reserved) == (pytest.approx((100 + 10 * 2.0) * 1e-6), 0.0)

    run(scenario)


def test_a_stream_that_hangs_up_before_its_first_piece_falls_back() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.stub.script["middle"].extend([Behaviour(hang_up="before")] * 2)
            got = await r.chat(stream=True)
            assert got.headers["x-pointsman-model"] == "large"
            assert got.events[-1] == "[DONE]"

    run(scenario)


async def _leave_after(r: Rig, pieces: int) -> None:
    """Begin a stream, and close the connection after so many pieces of it."""
    body = {
        "model": "pointsman",
        "stream": True,
        "messages": [{"role": "user", "content": "x" * 384}],
    }
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", r.port)
    head = f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + data)
    await _until(lambda: r.stub.served["middle"] == 1)
    seen = b""
    while seen.count(b"data:") < pieces:
        seen += await reader.read(1000)
    writer.close()


async def _until(true: object) -> None:
    assert callable(true)
    for _ in range(400):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be")


def test_a_client_that_leaves_stops_the_upstream_and_pays_for_what_was_seen() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.stub.default = Behaviour(tokens=10_000, delay=0.005)
            await _leave_after(r, 5)
            await _until(lambda: r.stub.abandoned["middle"] == 1 and r.gateway.requests == 0)
            settled, reserved = await r.gateway.store.spent(0)
            assert reserved == 0
            assert (100 + 2 * 4) * 1e-6 <= settled <= (100 + 2 * 200) * 1e-6
            assert r.gateway.generation.upstreams["middle"].slots.running == 0

    run(scenario)


def test_a_client_that_leaves_before_the_answer_begins_frees_everything() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.stub.default = Behaviour(wait=30)
            await _leave_after(r, 0)
            await _until(lambda: r.gateway.requests == 0 and r.stub.abandoned["middle"] == 1)
            assert await r.gateway.store.spent(0) == (pytest.approx(100e-6), 0)  # its prompt
            assert r.gateway.generation.upstreams["middle"].slots.running == 0

    run(scenario)


def test_at_most_so_many_requests_run_at_a_model_and_the_rest_wait_in_order() -> None:
    async def scenario() -> None:
        async with rig(model={"max_concurrency": 2, "queue": 10}) as r:
            r.stub.default = Behaviour(wait=0.05)
            got = await asyncio.gather(*(r.chat(model="small") for _ in range(8)))
            assert {each.status for each in got} == {200}
            assert r.stub.most_running["small"] == 2

    run(scenario)


def test_a_full_queue_sheds_load_to_the_next_model_and_then_to_the_client() -> None:
    async def scenario() -> None:
        model = {"max_concurrency": 1, "queue": 1, "queue_seconds": 30.0}
        async with rig(model=model) as r:
            r.stub.default = Behaviour(wait=0.3)
            got = await asyncio.gather(*(r.chat() for _ in range(8)))
            assert sorted(each.status for each in got) == [200] * 6 + [503] * 2
            shed = next(each for each in got if each.status == 503)
            assert shed.error["code"] == "overloaded"
            assert int(shed.headers["retry-after"]) >= 1
            models = [e.headers["x-pointsman-model"] for e in got if e.status == 200]
            assert {models.count(name) for name in ("small", "middle", "large")} == {2}

    run(scenario)


def test_no_more_requests_than_the_server_takes() -> None:
    async def scenario() -> None:
        async with rig(server={"max_requests": 2}) as r:
            r.stub.default = Behaviour(wait=0.2)
            got = await asyncio.gather(*(r.chat() for _ in range(5)))
            assert sorted(each.status for each in got) == [200, 200, 503, 503, 503]
            assert (await r.chat()).status == 200

    run(scenario)
