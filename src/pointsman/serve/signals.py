"""What is known about an answer before it is given: how the gateway obtains the policy's signals.

An answer that is judged is read whole first, so its stream starts late; `Step.final` answers are
streamed as they come. Signals are computed as in `pointsman.pool.deferral.signals`, which is what
an evaluation log should hold too.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pointsman.pool.deferral import signals as readers
from pointsman.serve.calling import Asking, Called, ask
from pointsman.serve.config import Signal
from pointsman.serve.prices import Usage, estimate, most, usage_from
from pointsman.serve.refusal import RefusalError
from pointsman.serve.request import parse
from pointsman.serve.streaming import DONE, parsed, payload, split
from pointsman.serve.upstream import Upstream
from pointsman.serve.wire import Headers


@dataclass(frozen=True)
class Answer:
    """An answer that was read whole.

    Args:
        upstream: that gave it.
        status: of HTTP.
        headers: of the upstream.
        body: as it came.
        choice: its first choice, of a stream put together again.
        usage: as told, or estimated.
        failures: before it, in words.
    """

    upstream: Upstream
    status: int
    headers: Headers
    body: bytes
    choice: Mapping[str, Any]
    usage: Usage
    failures: Sequence[str] = ()

    @property
    def cost(self) -> float:
        """US$."""
        return self.usage.cost(self.upstream.model) if self.status < 400 else 0.0

    @property
    def text(self) -> str:
        """What it says."""
        content = (self.choice.get("message") or {}).get("content")
        return content if isinstance(content, str) else ""


def changes_for(signal: Signal) -> dict[str, Any]:
    """Values that a request whose answer is judged must have upstream."""
    if signal.kind == "logprobs":
        margin = {"top_logprobs": 2} if signal.statistic == "margin" else {}
        return {"logprobs": True, **margin}
    return {"temperature": signal.temperature} if signal.kind == "samples" else {}


def read_answer(called: Called, asking: Asking) -> Answer:
    """An answer that was asked for whole; its slot is given back."""
    called.close()
    choice, usage, pieces = _contents(called.first, asking.request.stream)
    usage = usage or estimate(asking.request, pieces)
    reply = called.reply
    return Answer(
        called.upstream, reply.status, reply.headers, called.first, choice, usage, called.failures
    )


async def judge(
    signal: Signal,
    answer: Answer,
    asking: Asking,
    upstreams: Mapping[str, Upstream],
) -> tuple[float | None, Answer]:
    """The signal of an answer, None where it cannot be obtained, and the answer to give.

    With samples the answer to give is the first of those that say what most say. What judging costs
    goes on the bill.
    """
    try:
        if signal.kind == "logprobs":
            return _confidence(signal, answer.choice), answer
        if signal.kind == "samples":
            return await _agreement(signal, answer, asking)
        return await _verdict(signal, answer, asking, upstreams), answer
    except (AttributeError, TypeError, KeyError, ValueError):
        return None, answer  # an answer of an odd shape tells nothing


def without_logprobs(body: bytes, stream: bool) -> bytes:
    """The answer as it would have been had nobody asked for log-probabilities."""
    if b'"logprobs"' not in body:
        return body
    if not stream:
        return _stripped(body)
    events = []
    for event in split(body):
        data = payload(event)
        if data is not None and data != DONE and b'"logprobs"' in data:
            event = b"data: " + _stripped(data) + b"\n\n"
        events.append(event)
    return b"".join(events)


def _confidence(signal: Signal, choice: Mapping[str, Any]) -> float | None:
    if signal.statistic == "margin":
        return readers.margin(readers.token_margins(choice))
    quantile = 0.0 if signal.statistic == "least" else None
    return readers.confidence(readers.token_log_probabilities(choice), quantile=quantile)


async def _agreement(signal: Signal, answer: Answer, asking: Asking) -> tuple[float | None, Answer]:
    async def another() -> Answer | None:
        try:
            found = read_answer(await ask([answer.upstream], asking), asking)
        except RefusalError:
            return None
        asking.bill.add(found.cost)
        return found if found.status < 400 else None

    many = signal.samples - 1
    try:
        await asking.bill.reserve(many * most(asking.request, answer.upstream.model))
    except RefusalError:
        return None, answer
    others = await asyncio.gather(*(another() for _ in range(many)))
    answers = [answer, *(other for other in others if other is not None)]
    if len(answers) < 2:
        return None, answer
    share, place = readers.agreement([each.text for each in answers])
    return share, answers[place]


async def _verdict(
    signal: Signal,
    answer: Answer,
    asking: Asking,
    upstreams: Mapping[str, Upstream],
) -> float | None:
    assert signal.model is not None
    prompt = signal.prompt.replace("{question}", asking.request.query)
    message = {"role": "user", "content": prompt.replace("{answer}", answer.text)}
    body = json.dumps({"model": signal.model, "messages": [message], "temperature": 0}).encode()
    question = replace(asking, request=parse(body), changes={})
    try:
        found = read_answer(await ask([upstreams[signal.model]], question), question)
    except RefusalError:
        return None
    asking.bill.add(found.cost)
    return readers.verdict(found.text) if found.status < 400 else None


def _contents(body: bytes, stream: bool) -> tuple[Mapping[str, Any], Usage | None, int]:
    """The first choice, the usage, and how many pieces there were."""
    if not stream:
        value = parsed(body)
        return _first(value.get("choices")), usage_from(value.get("usage")), len(body) // 4
    said: list[str] = []
    tokens: list[Any] = []
    usage, pieces = None, 0
    for event in split(body):
        data = payload(event)
        if data is None or data == DONE:
            continue
        value = parsed(data)
        pieces += 1
        usage = usage_from(value.get("usage")) or usage
        choice = _first(value.get("choices"))
        if choice.get("index", 0) == 0:
            content = (choice.get("delta") or {}).get("content")
            said += [content] if isinstance(content, str) else []
            tokens += (choice.get("logprobs") or {}).get("content") or []
    message = {"role": "assistant", "content": "".join(said)}
    return {"message": message, "logprobs": {"content": tokens}}, usage, pieces


def _first(choices: Any) -> Mapping[str, Any]:
    found = isinstance(choices, list) and choices and isinstance(choices[0], dict)
    return choices[0] if found else {}


def _stripped(data: bytes) -> bytes:
    value = parsed(data)
    choices = value.get("choices")
    if not isinstance(choices, list):
        return data
    for choice in choices:
        if isinstance(choice, dict) and "logprobs" in choice:
            choice["logprobs"] = None
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
