"""An OpenAI-compatible upstream that answers as it is told to, for tests and benchmarks.

Plain ASGI, so that it costs little beside the gateway that is measured against it. What it does
with a request comes from, in this order: the request's own "stub" object (unknown fields pass
through a gateway), the next entry of `Stub.script[model]`, and the defaults of the stub.

    python tests/serve/stub_upstream.py --port 9001 --tokens 40 --delay 0.01
"""

import argparse
import asyncio
import json
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, fields, replace
from typing import Any

WORDS = ("the", "answer", "to", "this", "is", "clear", "once", "we", "look", "at", "it", "again")


@dataclass(frozen=True)
class Behaviour:
    """What is done with one request.

    Args:
        tokens: in the answer.
        text: the answer, instead of `tokens` words.
        delay: seconds between tokens of a stream.
        wait: seconds before the first byte.
        status: 200, or the status of an error.
        retry_after: value of that header in an error.
        hang_up: close the connection "before" the body, or after so many tokens of a stream.
        stall: stop after so many tokens of a stream and never go on.
        logprob: of each token, given where the request asks for log-probabilities.
        usage: whether a stream tells its usage when asked to.
        cached: prompt tokens said to have come from a cache.
        body: sent as it is instead of an answer.
    """

    tokens: int = 12
    text: str | None = None
    delay: float = 0.0
    wait: float = 0.0
    status: int = 200
    retry_after: str | None = None
    hang_up: str | int | None = None
    stall: int | None = None
    logprob: float = -0.1
    usage: bool = True
    cached: int = 0
    body: str | None = None

    def words(self) -> list[str]:
        if self.text is not None:
            return [self.text]
        return [
            WORDS[i % len(WORDS)] + (" " if i + 1 < self.tokens else "") for i in range(self.tokens)
        ]


NAMES = {f.name for f in fields(Behaviour)}


@dataclass
class Stub:
    """The application, and what it saw.

    Args:
        default: what is done without instructions.
        script: model to behaviours, used up from the left.
    """

    default: Behaviour = field(default_factory=Behaviour)
    script: dict[str, deque[Behaviour]] = field(default_factory=lambda: defaultdict(deque))
    served: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    abandoned: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)
    most_running: Counter[str] = field(default_factory=Counter)
    bodies: deque[bytes] = field(default_factory=lambda: deque(maxlen=100))
    headers: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=100))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        path = scope["path"]
        if path.endswith("/chat/completions"):
            await self._chat(scope, receive, send)
        elif path.endswith("/models"):
            await _answer(send, 200, {"object": "list", "data": []})
        elif path == "/counts":
            counts = {
                name: dict(getattr(self, name))
                for name in ("served", "finished", "abandoned", "running", "most_running")
            }
            await _answer(send, 200, counts)
        else:
            await _answer(send, 404, {"error": {"message": "no such path"}})

    async def _chat(self, scope: Any, receive: Any, send: Any) -> None:
        body = await _read(receive)
        self.bodies.append(body)
        self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        asked = json.loads(body)
        model = str(asked["model"])
        behaviour = self._behaviour(model, asked.get("stub"))
        self.served[model] += 1
        self.running[model] += 1
        self.most_running[model] = max(self.most_running[model], self.running[model])
        try:
            work = asyncio.create_task(self._respond(behaviour, asked, send))
            gone = asyncio.create_task(_until_gone(receive))
            done, waiting = await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            if work in done:
                work.result()
                self.finished[model] += 1
            else:
                self.abandoned[model] += 1
        finally:
            self.running[model] -= 1

    def _behaviour(self, model: str, given: Any) -> Behaviour:
        if isinstance(given, dict):
            return replace(self.default, **{k: v for k, v in given.items() if k in NAMES})
        queue = self.script.get(model)
        return queue.popleft() if queue else self.default

    async def _respond(self, how: Behaviour, asked: dict[str, Any], send: Any) -> None:
        if how.wait:
            await asyncio.sleep(how.wait)
        if how.hang_up == "before":
            await _start(send, 200, b"application/json", None)
            raise HangUpError
        if how.status != 200:
            headers = [(b"retry-after", how.retry_after.encode())] if how.retry_after else []
            error = {"message": f"stub says {how.status}", "type": "stub", "code": None}
            await _answer(send, how.status, {"error": error, "odd": [1, 2.50, "é"]}, headers)
        elif how.body is not None:
            await _start(send, 200, b"application/json", len(how.body.encode()))
            await send({"type": "http.response.body", "body": how.body.encode()})
        elif asked.get("stream"):
            await self._stream(how, asked, send)
        else:
            await _answer(send, 200, _completion(how, asked), [(b"x-stub", b"yes")])

    async def _stream(self, how: Behaviour, asked: dict[str, Any], send: Any) -> None:
        await _start(send, 200, b"text/event-stream; charset=utf-8", None)
        options = asked.get("stream_options") or {}
        for i, event in enumerate(_events(how, asked)):
            if how.hang_up is not None and i > int(how.hang_up):
                raise HangUpError
            if how.stall is not None and i > how.stall:
                await asyncio.Event().wait()
            await _send_event(send, event)
            if how.delay:
                await asyncio.sleep(how.delay)
        if options.get("include_usage") and how.usage:
            await _send_event(send, _frame(asked) | {"choices": [], "usage": _usage(how, asked)})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


class HangUpError(Exception):
    """Raised to make the server drop the connection."""


def _tool_call(asked: dict[str, Any]) -> dict[str, Any] | None:
    tools = asked.get("tools")
    if not tools or asked.get("tool_choice") == "none":
        return None
    name = tools[0]["function"]["name"]
    return {
        "id": "call_1",
        "type": "function",
        "function": {"name": name, "arguments": '{"place": "Oslo"}'},
    }


def _completion(how: Behaviour, asked: dict[str, Any]) -> dict[str, Any]:
    call = _tool_call(asked)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(how.words())}
    if call is not None:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": "stop" if call is None else "tool_calls",
    }
    if asked.get("logprobs"):
        choice["logprobs"] = {"content": [_logprob(word, how) for word in how.words()]}
    return {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": 1,
        "model": asked["model"],
        "choices": [choice],
        "usage": _usage(how, asked),
        "x_unknown": {"kept": True},
    }


def _events(how: Behaviour, asked: dict[str, Any]) -> list[dict[str, Any]]:
    call = _tool_call(asked)
    events: list[dict[str, Any]] = []
    if call is not None:
        first = {**call, "index": 0, "function": {**call["function"], "arguments": ""}}
        events.append({"role": "assistant", "tool_calls": [first]})
        pieces = ('{"place": ', '"Oslo"}')
        events += [{"tool_calls": [{"index": 0, "function": {"arguments": p}}]} for p in pieces]
    else:
        events.append({"role": "assistant", "content": ""})
        events.extend({"content": word} for word in how.words())
    chunks = [_frame(asked) | {"choices": [_delta(delta, how, asked)]} for delta in events]
    end = {"index": 0, "delta": {}, "finish_reason": "stop" if call is None else "tool_calls"}
    return [*chunks, _frame(asked) | {"choices": [end]}]


def _delta(delta: dict[str, Any], how: Behaviour, asked: dict[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
    if asked.get("logprobs"):
        said = delta.get("content")
        choice["logprobs"] = {"content": [_logprob(said, how)] if said else []}
    return choice


def _frame(asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-stub",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": asked["model"],
    }


def _logprob(word: str, how: Behaviour) -> dict[str, Any]:
    other = {"token": "no", "logprob": how.logprob - 1.0}
    same = {"token": word, "logprob": how.logprob}
    return {**same, "top_logprobs": [same, other]}


def _usage(how: Behaviour, asked: dict[str, Any]) -> dict[str, Any]:
    prompt = sum(len(str(message.get("content")).split()) for message in asked["messages"])
    said = len(how.words())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": how.cached},
    }


async def _read(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Any, status: int, kind: bytes, length: int | None, more: Any = ()) -> None:
    headers = [(b"content-type", kind), *more]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _answer(send: Any, status: int, value: Any, headers: Any = ()) -> None:
    body = json.dumps(value).encode()
    await _start(send, status, b"application/json", len(body), headers)
    await send({"type": "http.response.body", "body": body})


async def _send_event(send: Any, value: Any) -> None:
    body = b"data: " + json.dumps(value).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


def main() -> None:
    """Run the stub as a process of its own."""
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--wait", type=float, default=0.0)
    given = parser.parse_args()
    stub = Stub(Behaviour(tokens=given.tokens, delay=given.delay, wait=given.wait))
    start = time.perf_counter()
    uvicorn.run(stub, port=given.port, log_level="critical", access_log=False)
    print(f"served {dict(stub.served)} in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
