"""`POST /v1/chat/completions`: parse, decide, call, relay, account.

What an answer cost is settled before its last byte goes out. A client that leaves breaks off the
call to the upstream too, and pays for what was seen of the answer: its prompt as estimated, and one
token for each piece of the stream.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass, field

from pointsman.pool.strategies.strategy import Step
from pointsman.serve.bill import Bill
from pointsman.serve.calling import Asking, Called, ask
from pointsman.serve.client import Client, ClientGoneError, Receive, Scope, Send
from pointsman.serve.deciding import Plan
from pointsman.serve.gateway import Exchange, Gateway, Generation
from pointsman.serve.prices import Usage, estimate, usage_from
from pointsman.serve.refusal import RefusalError, fault, overloaded
from pointsman.serve.request import ChatRequest, parse
from pointsman.serve.signals import Answer, changes_for, judge, read_answer, without_logprobs
from pointsman.serve.store import StoreError
from pointsman.serve.store.records import Row
from pointsman.serve.streaming import Passing, comment, failure, parsed
from pointsman.serve.upstream import Upstream, forwarded
from pointsman.serve.wire import Headers, WireError

# Of an upstream's answer these headers stay behind: they are about its connection, or ours to say.
HELD_BACK = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"server",
        b"set-cookie",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


class ChatCompletions:
    """The endpoint, as an ASGI application.

    Args:
        gateway: whose requests these are.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        client = Client(scope, receive, send)
        exchange = Exchange(f"req-{secrets.token_hex(12)}")
        try:
            with self.gateway.admitted() as generation:
                await self._serve(client, exchange, generation)
        except RefusalError as refusal:
            exchange.status, exchange.error = refusal.status, refusal.code or refusal.kind
            if not client.started:
                await client.refuse(refusal, [_id(exchange)])
        except ClientGoneError:
            exchange.status, exchange.error = 499, "client_gone"
        except StoreError as error:
            exchange.status, exchange.error = 503, "store"
            if not client.started:
                await client.refuse(overloaded(f"the ledger cannot be written: {error}"))
        except Exception:
            exchange.status, exchange.error = 500, "internal"
            if not client.started:
                await client.refuse(fault(), [_id(exchange)])
            raise  # to be logged by the server
        finally:
            self.gateway.record(exchange)

    async def _serve(self, client: Client, exchange: Exchange, generation: Generation) -> None:
        gateway, server = self.gateway, generation.config.server
        exchange.key = await gateway.identify(client)
        check_type(client.header(b"content-type"))
        body = await client.body(server.body_limit, server.body_seconds)
        exchange.read = time.perf_counter()
        exchange.request = request = parse(body)
        plan = await gateway.plan(generation, exchange, client)
        bill = Bill(gateway.store, gateway.key_id(exchange.key), exchange.id)
        exchange.bill = bill
        try:
            async with client.watch():
                await Answering(gateway, generation, client, exchange, request, bill).run(plan)
        finally:
            await asyncio.shield(bill.close())


@dataclass
class Answering:
    """One request on its way to its answer.

    Args:
        gateway: whose request it is.
        generation: the policy and upstreams that it started with, and keeps.
        client: who waits.
        exchange: what is recorded of it.
        request: of the client.
        bill: what it costs.
    """

    gateway: Gateway
    generation: Generation
    client: Client
    exchange: Exchange
    request: ChatRequest
    bill: Bill
    asked: list[str] = field(default_factory=list)

    async def run(self, plan: Plan) -> None:
        """Ask, judge and go on until there is an answer to give; and give it."""
        answer: Answer | None = None
        while not plan.final:
            try:
                answer, step = await self._judged(plan)
            except RefusalError:
                if answer is None:
                    raise
                plan.why = f"{plan.model} did not answer, so an earlier answer is given"
                break
            if step is None or not step.ask:
                break
            plan = self.generation.decider.next(self.request, plan, step)
        if answer is not None and not plan.final:
            await self._give(plan, answer)
            return
        try:
            called = await ask(self._candidates(plan), self._asking(whole=not self.request.stream))
        except RefusalError:
            if answer is None:
                raise
            plan.why = f"{plan.model} did not answer, so an earlier answer is given"
            await self._give(plan, answer)
            return
        try:
            self._fell_back(plan, called.upstream.name)
            await self._relay(plan, called)
        finally:
            called.close()

    async def _judged(self, plan: Plan) -> tuple[Answer, Step | None]:
        """An answer that was read whole, and the next step; None where the answer stands."""
        assert plan.decision is not None
        signal = self.generation.config.signals[plan.decision.signal or ""]
        asking = self._asking(whole=True, **changes_for(signal))
        answer = read_answer(await ask(self._candidates(plan), asking), asking)
        self.bill.add(answer.cost)
        name = answer.upstream.name
        self._fell_back(plan, name)
        if answer.status >= 400:
            return answer, None
        value, answer = await judge(signal, answer, asking, self.generation.upstreams)
        step = plan.decision.replaced(name, value)
        if not step.ask:
            plan.why, plan.quality = step.why, step.quality
        return answer, step

    def _fell_back(self, plan: Plan, name: str) -> None:
        """Note who answered, who may be another than was to be asked."""
        if name != plan.model:
            plan.why = f"{plan.model} did not answer"
            if not self.asked:
                plan.how = "substitute"
                plan.propensity = plan.propensities = None
        self.asked.append(name)

    async def _give(self, plan: Plan, answer: Answer) -> None:
        """Send an answer that was judged."""
        body = answer.body
        if not self.request.wants_logprobs:
            body = without_logprobs(body, self.request.stream)
        self._answered(plan, answer.upstream.name, answer.usage, answer.status)
        headers = self._headers(plan, answer.upstream.name, answer.headers)
        if answer.status >= 400 or not _has_events(answer.headers):
            await self.bill.settle(self._row(plan))
            await self.client.answer(answer.status, [*headers, self._cost()], body)
            return
        passing = Passing(hide_usage=not self.request.wants_usage)
        ready = passing.feed(body)
        await self.bill.settle(self._row(plan))
        await self.client.start(answer.status, [*headers, self._cost()])
        await self.client.write(ready + passing.end(self._note()), more=False)

    async def _relay(self, plan: Plan, called: Called) -> None:
        """Pass an answer on: at once, or piece by piece as it comes."""
        name = called.upstream.name
        headers = self._headers(plan, name, called.reply.headers)
        status = called.reply.status
        if self.request.stream and status < 400 and _has_events(called.reply.headers):
            await self._stream(plan, called, headers)
            return
        body = await called.read(self.generation.config.server.answer_limit)
        usage = Usage(0, 0)
        if status < 400:
            told = usage_from(parsed(body).get("usage"))
            usage = told or estimate(self.request, len(body) // 4)
        self.bill.add(usage.cost(called.upstream.model))
        self._answered(plan, name, usage, status)
        await self.bill.settle(self._row(plan))
        await self.client.answer(status, [*headers, self._cost()], body)

    async def _stream(self, plan: Plan, called: Called, headers: Headers) -> None:
        passing = Passing(hide_usage=not self.request.wants_usage)
        broken = b""
        await self.client.start(called.reply.status, headers)
        try:
            while piece := await called.piece():
                if ready := passing.feed(piece):
                    await self.client.write(ready)
        except WireError as error:
            broken = failure(f"{called.upstream.name} broke off: {error.reason}")
            self.exchange.error = "upstream_broke_off"
            called.upstream.breaker.failed()
        finally:
            called.close()
            usage = passing.usage or estimate(self.request, passing.pieces)
            self.bill.add(usage.cost(called.upstream.model))
            self._answered(plan, called.upstream.name, usage, called.reply.status)
        await self.bill.settle(self._row(plan))
        await self.client.write(broken + passing.end(self._note()), more=False)

    def _candidates(self, plan: Plan) -> list[Upstream]:
        names = [plan.model, *(name for name in plan.others if name not in self.asked)]
        return [self.generation.upstreams[name] for name in names]

    def _asking(self, *, whole: bool, **changes: object) -> Asking:
        limit = self.generation.config.server.answer_limit if whole else None
        return Asking(self.request, forwarded(self.client.headers), self.bill, changes, limit)

    def _answered(self, plan: Plan, name: str, usage: Usage, status: int) -> None:
        """Note who answered in the end."""
        exchange = self.exchange
        exchange.status, exchange.model, exchange.usage = status, name, usage

    def _headers(self, plan: Plan, name: str, upstream: Headers) -> Headers:
        """Of the answer: the upstream's, and ours on who answered and why."""
        kept = [
            (each, value)
            for each, value in upstream
            if each not in HELD_BACK and not each.startswith(b"x-pointsman-")
        ]
        ours = {"model": name, "why": plan.why, "point": plan.point}
        if plan.quality is not None:
            ours["predicted-quality"] = f"{plan.quality:.4f}"
        if plan.cost is not None:
            ours["predicted-cost-usd"] = f"{plan.cost:.9f}"
        said = [(f"x-pointsman-{k}".encode(), _printable(v)) for k, v in ours.items() if v]
        return [*kept, *said, _id(self.exchange)]

    def _cost(self) -> tuple[bytes, bytes]:
        return b"x-pointsman-cost-usd", f"{self.bill.spent:.9f}".encode()

    def _note(self) -> bytes:
        return comment(f"x-pointsman-cost-usd {self.bill.spent:.9f}")

    def _row(self, plan: Plan) -> Row:
        """Of the served log: its model is the one that was asked first."""
        exchange = self.exchange
        return {
            "id": exchange.id,
            "time": exchange.time,
            "key": self.bill.key,
            "query": self.request.query if self.generation.config.server.log_text else None,
            "task": self.client.header(b"x-pointsman-task"),
            "point": plan.point,
            "model": self.asked[0],
            "answered": exchange.model,
            "how": plan.how,
            "policy": None if plan.how is None else self.generation.learning.name,
            "propensity": plan.propensity,
            "propensities": plan.propensities,
            "context": plan.context,
            "predicted_quality": plan.quality,
            "predicted_cost": plan.cost,
            "cost": self.bill.spent,
            "latency": time.perf_counter() - exchange.began,
            "quality": None,
        }


def _has_events(headers: Headers) -> bool:
    """Whether an answer is a stream of events, and not one piece from an upstream without any."""
    return any(k == b"content-type" and v.startswith(b"text/event-stream") for k, v in headers)


def check_type(given: str | None) -> None:
    """Refuse what is not said to be JSON: a web page can send other types without being asked.

    Raises:
        RefusalError: the type is another.
    """
    if (given or "").partition(";")[0].strip().lower() != "application/json":
        raise RefusalError(415, "the Content-Type must be application/json")


def _id(exchange: Exchange) -> tuple[bytes, bytes]:
    return b"x-pointsman-request-id", exchange.id.encode()


def _printable(text: str) -> bytes:
    """As the value of a header."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text[:200].encode()
