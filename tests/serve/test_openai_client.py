"""OpenAI's own Python client, unchanged, against the gateway."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from rig import Rig, rig, run
from stub_upstream import Behaviour

openai = pytest.importorskip("openai", reason="the openai package is not installed")

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]


def synchronous(r: Rig, call: Callable[[Any], Any]) -> Any:
    """Call with the blocking client, in a thread."""
    client = openai.OpenAI(base_url=f"{r.url}/v1", api_key="unused", max_retries=0)
    return asyncio.to_thread(call, client)


def test_the_blocking_client_asks_streams_and_uses_tools() -> None:
    def use(client: Any) -> None:
        whole = client.chat.completions.create(model="pointsman", messages=ASK)
        assert whole.choices[0].message.content.startswith("the answer")
        assert whole.usage.completion_tokens == 12
        raw = client.chat.completions.with_raw_response.create(model="pointsman", messages=ASK)
        assert raw.headers["x-pointsman-model"] == "middle"
        stream = client.chat.completions.create(model="pointsman", messages=ASK, stream=True)
        said = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(said) == whole.choices[0].message.content
        counted = client.chat.completions.create(
            model="pointsman", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        assert list(counted)[-1].usage.completion_tokens == 12
        called = client.chat.completions.create(model="pointsman", messages=ASK, tools=[TOOL])
        assert called.choices[0].message.tool_calls[0].function.name == "weather"
        turns = [
            *ASK,
            called.choices[0].message,
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ]
        after = client.chat.completions.create(
            model="pointsman", messages=turns, tools=[TOOL], tool_choice="none"
        )
        assert after.choices[0].message.content.startswith("the answer")
        names = [model.id for model in client.models.list()]
        assert "pointsman:cheap" in names
        assert client.models.retrieve("pointsman:cheap").owned_by == "pointsman"

    async def scenario() -> None:
        async with rig() as r:
            await synchronous(r, use)
            assert r.policy.asked[-1]["query"] == ASK[0]["content"]

    run(scenario)


def test_the_blocking_client_understands_errors() -> None:
    def use(client: Any) -> None:
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'"):
            client.chat.completions.create(model="gpt-9", messages=ASK)
        with pytest.raises(openai.BadRequestError, match="messages must be a list"):
            client.chat.completions.create(model="pointsman", messages=[])
        stream = client.chat.completions.create(model="small", messages=ASK, stream=True)
        with pytest.raises(openai.APIError, match="small broke off"):
            list(stream)

    async def scenario() -> None:
        async with rig() as r:
            r.stub.script["small"].append(Behaviour(hang_up=3))
            await synchronous(r, use)

    run(scenario)


def test_the_asynchronous_client_streams_text_and_tools_side_by_side() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.stub.default = Behaviour(delay=0.002)
            client = openai.AsyncOpenAI(base_url=f"{r.url}/v1", api_key="unused", max_retries=0)

            async def text() -> str:
                stream = await client.chat.completions.create(
                    model="pointsman", messages=ASK, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            async def tool() -> str:
                arguments = ""
                async with client.chat.completions.stream(
                    model="pointsman:best", messages=ASK, tools=[TOOL]
                ) as stream:
                    async for _ in stream:
                        pass
                    found = await stream.get_final_completion()
                for call in found.choices[0].message.tool_calls or ():
                    arguments += call.function.arguments
                return arguments

            said = await asyncio.gather(*(text() for _ in range(8)), *(tool() for _ in range(4)))
            assert set(said[:8]) == {"the answer to this is clear once we look at it again"}
            assert set(said[8:]) == {'{"place": "Oslo"}'}
            await client.close()

    run(scenario)
