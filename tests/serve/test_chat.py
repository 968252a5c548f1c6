"""Chat completions through the gateway: what passes, what is answered, what it costs."""

import json

import pytest
from rig import FakePolicy, rig, run
from stub_upstream import Behaviour


def test_an_answer_passes_untouched_and_says_who_gave_it_and_what_it_cost() -> None:
    async def scenario() -> None:
        async with rig() as r:
            body = (
                b'{ "model":"pointsman",\n "odd":{"kept":[1, 2.50, "\\u00e9"]}, "messages":'
                b'[{"role":"user","content":"one two three"}] }'
            )
            got = await r.call("POST", "/v1/chat/completions", body)
            assert got.status == 200
            assert got.json["x_unknown"] == {"kept": True}
            assert got.json["choices"][0]["message"]["content"].startswith("the answer to this")
            headers = got.headers
            assert headers["x-pointsman-model"] == "middle"
            assert headers["x-pointsman-point"] == "certified"
            assert headers["x-pointsman-why"] == "fake"
            assert headers["x-pointsman-predicted-quality"] == "0.7000"
            assert headers["x-stub"] == "yes"
            cost = (3 * 1.0 + 12 * 2.0) / 1e6
            assert float(headers["x-pointsman-cost-usd"]) == pytest.approx(cost)
            assert r.stub.bodies[-1] == body.replace(b"pointsman", b"middle")
            row = await r.gateway.store.served(headers["x-pointsman-request-id"])
            assert row is not None
            assert row["model"] == "middle"
            assert row["cost"] == pytest.approx(cost)
            assert row["query"] is None
            assert await r.gateway.store.spent(0) == (pytest.approx(cost), 0.0)

    run(scenario)


def test_a_stream_passes_its_usage_is_hidden_and_its_cost_comes_as_a_comment() -> None:
    async def scenario() -> None:
        async with rig() as r:
            got = await r.chat("one two three", stream=True)
            assert got.status == 200
            assert got.headers["content-type"].startswith("text/event-stream")
            assert got.events[-1] == "[DONE]"
            assert '"usage"' not in got.body.decode()
            assert got.text == "the answer to this is clear once we look at it again"
            assert b": x-pointsman-cost-usd 0.000027000\n\ndata: [DONE]\n\n" in got.body
            assert json.loads(r.stub.bodies[-1])["stream_options"] == {"include_usage": True}
            settled, reserved = await r.gateway.store.spent(0)
            assert (settled, reserved) == (pytest.approx(27e-6), 0.0)

    run(scenario)


def test_usage_that_a_client_asks_for_stays_in_its_stream() -> None:
    async def scenario() -> None:
        async with rig() as r:
            got = await r.chat(stream=True, stream_options={"include_usage": True})
            assert json.loads(got.events[-2])["usage"]["completion_tokens"] == 12

    run(scenario)


def test_points_and_models_are_named_by_the_model_of_a_request() -> None:
    async def scenario() -> None:
        async with rig() as r:
            for asked, served in (
                ("pointsman:cheap", "small"),
                ("pointsman:best", "large"),
                ("small", "small"),
            ):
                got = await r.chat(model=asked)
                assert got.headers["x-pointsman-model"] == served
            listed = (await r.call("GET", "/v1/models")).json["data"]
            assert [each["id"] for each in listed] == [
                "pointsman",
                "pointsman:cheap",
                "pointsman:certified",
                "pointsman:best",
                "pointsman:reference",
                "small",
                "middle",
                "large",
            ]
            for name in ("pointsman:", "pointsman:none", "gpt-9"):
                got = await r.chat(model=name)
                assert (got.status, got.error["code"]) == (404, "model_not_found")

    run(scenario)


def test_images_and_tools_go_to_models_that_take_them() -> None:
    async def scenario() -> None:
        models = {"large": {"vision": True}, "middle": {"tools": False, "context": 50}}
        async with rig(models=models) as r:
            image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
            got = await r.chat([{"type": "text", "text": "what is it"}, image])
            assert got.headers["x-pointsman-model"] == "large"
            assert got.headers["x-pointsman-why"] == "middle cannot take this request"
            assert r.policy.asked[-1]["query"] == "what is it"
            row = await r.gateway.store.served(got.headers["x-pointsman-request-id"])
            assert row is not None
            assert row["propensity"] is None
            tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
            got = await r.chat(tools=[tool])
            assert got.headers["x-pointsman-model"] == "large"
            assert got.json["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"
            got = await r.chat("word " * 100)
            assert got.headers["x-pointsman-model"] == "large"
            audio = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
            got = await r.chat([audio])
            assert got.status == 400
            assert "takes audio" in got.error["message"]

    run(scenario)


def test_an_error_of_the_requests_own_comes_back_as_the_upstream_wrote_it() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.stub.script["middle"].append(Behaviour(status=422))
            got = await r.chat(stream=True)
            assert got.status == 422
            assert got.json["odd"] == [1, 2.50, "é"]
            assert r.stub.served["middle"] == 1
            assert await r.gateway.store.spent(0) == (0.0, 0.0)

    run(scenario)


SIGNAL = {"confidence": {"kind": "logprobs"}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_sure_answer_of_a_cascade_is_given_without_the_log_probabilities(stream: bool) -> None:
    async def scenario() -> None:
        async with rig(FakePolicy(signal="confidence"), signals=SIGNAL) as r:
            got = await r.chat("q", model="pointsman:cheap", stream=stream)
            assert got.headers["x-pointsman-model"] == "small"
            assert got.headers["x-pointsman-why"] == "sure enough"
            assert b'"logprob"' not in got.body
            assert float(got.headers["x-pointsman-cost-usd"]) == pytest.approx(25e-6)
            assert json.loads(r.stub.bodies[-1])["logprobs"] is True
            if stream:
                assert got.text.startswith("the answer")
                assert got.events[-1] == "[DONE]"
                assert '"usage"' not in got.body.decode()

    run(scenario)


def test_an_unsure_answer_of_a_cascade_goes_on_and_both_calls_are_paid() -> None:
    async def scenario() -> None:
        async with rig(FakePolicy(signal="confidence"), signals=SIGNAL) as r:
            r.stub.script["small"].append(Behaviour(logprob=-3.0))
            got = await r.chat("q", model="pointsman:cheap")
            assert got.headers["x-pointsman-model"] == "large"
            assert float(got.headers["x-pointsman-cost-usd"]) == pytest.approx(50e-6)
            row = await r.gateway.store.served(got.headers["x-pointsman-request-id"])
            assert row is not None
            assert (row["model"], row["propensity"]) == ("small", 1.0)
            assert await r.gateway.store.spent(0) == (pytest.approx(50e-6), 0.0)

    run(scenario)


def test_an_earlier_answer_is_given_where_the_next_model_fails() -> None:
    async def scenario() -> None:
        async with rig(FakePolicy(signal="confidence"), signals=SIGNAL) as r:
            r.stub.script["small"].append(Behaviour(logprob=-3.0))
            for name in ("large", "middle"):
                r.stub.script[name].extend([Behaviour(status=500)] * 2)
            got = await r.chat("q", model="pointsman:cheap", stream=True)
            assert got.status == 200
            assert got.headers["x-pointsman-model"] == "small"
            assert "earlier answer" in got.headers["x-pointsman-why"]

    run(scenario)


def test_agreement_of_samples_is_a_signal_and_the_answer_of_most_is_given() -> None:
    async def scenario() -> None:
        signals = {"agreement": {"kind": "samples", "samples": 3, "temperature": 0.9}}
        async with rig(FakePolicy(signal="agreement"), signals=signals) as r:
            for text in ("Paris", "London", "london."):
                r.stub.script["small"].append(Behaviour(text=text))
            got = await r.chat("q", model="pointsman:cheap")
            assert r.policy.last is not None
            assert r.policy.last.seen == [pytest.approx(2 / 3)]
            assert got.json["choices"][0]["message"]["content"].casefold().startswith("london")
            assert r.stub.served["small"] == 3
            assert json.loads(r.stub.bodies[-1])["temperature"] == 0.9
            assert float(got.headers["x-pointsman-cost-usd"]) == pytest.approx(3 * 3e-6)

    run(scenario)


def test_a_verifiers_word_is_a_signal_and_is_paid() -> None:
    async def scenario() -> None:
        signals = {"score": {"kind": "verifier", "model": "judge"}}
        async with rig(
            FakePolicy(signal="score"), signals=signals, models={"judge": {"price_output": 5.0}}
        ) as r:
            r.stub.script["judge"].append(Behaviour(text="I say 0.9"))
            got = await r.chat("why?", model="pointsman:cheap")
            assert r.policy.last is not None
            assert r.policy.last.seen == [pytest.approx(0.9)]
            assert got.headers["x-pointsman-model"] == "small"
            asked = json.loads(r.stub.bodies[-1])
            assert "why?" in asked["messages"][0]["content"]
            assert "the answer to this" in asked["messages"][0]["content"]
            assert float(got.headers["x-pointsman-cost-usd"]) == pytest.approx(25e-6 + 5e-6)

    run(scenario)


def test_feedback_is_written_to_the_served_log() -> None:
    async def scenario() -> None:
        async with rig() as r:
            name = (await r.chat()).headers["x-pointsman-request-id"]
            got = await r.call("POST", "/v1/feedback", {"id": name, "quality": 0.75})
            assert (got.status, got.json) == (200, {"id": name, "quality": 0.75})
            row = await r.gateway.store.served(name)
            assert row is not None
            assert row["quality"] == 0.75
            for wrong in ({"id": name, "quality": 2}, {"id": 3, "quality": 1}, [], {"id": name}):
                assert (await r.call("POST", "/v1/feedback", wrong)).status == 400
            missing = {"id": "req-none", "quality": 1}
            assert (await r.call("POST", "/v1/feedback", missing)).status == 404

    run(scenario)


def test_an_upstream_that_does_not_stream_is_passed_on_as_it_answers() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.stub.script["middle"].append(Behaviour(body='{"plain": true}'))
            got = await r.chat(stream=True)
            assert (got.status, got.body) == (200, b'{"plain": true}')
            assert got.headers["content-type"] == "application/json"

    run(scenario)


def test_a_fault_of_the_gateway_is_told_in_openais_shape_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with rig() as r:
            monkeypatch.setattr(FakePolicy, "decide", lambda *a, **k: 1 / 0)
            got = await r.chat()
            assert (got.status, got.error["code"]) == (500, "internal")
            assert "ZeroDivision" not in got.body.decode()
            assert r.gateway.requests == 0
            assert 'status="500"' in (await r.call("GET", "/metrics")).body.decode()
            assert (await r.call("GET", "/v1/chat/completions")).status == 405

    run(scenario)
