"""What the endpoints share: configuration, policy, upstreams, store, and who may ask."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

from pointsman.pool.online.alarm import DriftAlarm
from pointsman.pool.online.pacing import Pacer
from pointsman.pool.online.shift import ShiftWarning
from pointsman.pool.strategies.single import Single
from pointsman.serve.bill import Bill
from pointsman.serve.client import Client
from pointsman.serve.config import Config
from pointsman.serve.deciding import Decider, Plan, read_vector
from pointsman.serve.keys import bearer, hash_key
from pointsman.serve.learning import Learning
from pointsman.serve.limits import Guesses
from pointsman.serve.online import Online
from pointsman.serve.prices import Usage
from pointsman.serve.refusal import RefusalError, overloaded
from pointsman.serve.request import ChatRequest
from pointsman.serve.store import ANONYMOUS, Key, Store, StoreError
from pointsman.serve.store.records import Row
from pointsman.serve.upstream import Upstream, make_upstreams

if TYPE_CHECKING:
    from pointsman.pool.policy import PoolPolicy

log = logging.getLogger("pointsman.serve")

SHIFT_EVERY = 8  # requests of which one is looked at, since a look takes as long as to decide
SYNC = 3.0  # seconds between two looks at what other processes spent and learned
PERIODS: dict[str, float | str] = {"hour": 3600.0, "day": "day", "month": "month"}
LOCAL = frozenset({"localhost", "127.0.0.1", "::1", "testserver"})


@dataclass
class Exchange:
    """What is recorded of one request.

    Args:
        id: of the request, in the header x-pointsman-request-id.
        began: of `time.perf_counter`.
        time: seconds since 1970.
        status: of HTTP; 499 where the client left.
        error: code of what went wrong, or None.
        key: of the client, or None.
        request: as read.
        plan: as decided.
        bill: what it costs.
        model: that answered.
        usage: of the answer.
        pacer: of the budget that it is spent from, or None.
        expected: cost that the pacer was told of.
        read: when the request had been read, of `time.perf_counter`.
        decide_seconds: that deciding took.
    """

    id: str
    began: float = field(default_factory=time.perf_counter)
    time: float = field(default_factory=time.time)
    status: int = 0
    error: str | None = None
    key: Key | None = None
    request: ChatRequest | None = None
    plan: Plan | None = None
    bill: Bill | None = None
    model: str | None = None
    usage: Usage | None = None
    pacer: Pacer | None = None
    expected: float = 0.0
    read: float = 0.0
    decide_seconds: float = 0.0


class Generation:
    """A policy and its configuration, as requests that started with them keep them.

    Args:
        policy: that is served.
        config: of the server.
        before: the generation that this one replaces; upstreams that are configured as before are
            taken over, with their connections and breakers.

    Raises:
        InputError: policy and configuration do not fit each other.
    """

    def __init__(
        self, policy: "PoolPolicy", config: Config, before: "Generation | None" = None
    ) -> None:
        self.policy, self.config = policy, config
        self.learning = Learning(
            policy, Online(policy, config.policy) if config.policy.online else None
        )
        self.shift: ShiftWarning | None = ShiftWarning.of_policy(policy)
        if before is not None and before.learning.same(self.learning):
            self.learning, self.shift = before.learning, before.shift  # what they saw still counts
        self.decider = Decider(policy, config, online=self.learning.online)
        known = {} if before is None else before.upstreams
        self.upstreams: dict[str, Upstream] = make_upstreams(config.models, config.folder, known)
        self.pacer = _pacer(policy, config, before)
        self.requests = self.planned = 0

    @property
    def alarm(self) -> DriftAlarm | None:
        """Watches whether the certificate of the policy holds."""
        return self.learning.alarm


class Gateway:
    """The state of one server process.

    Args:
        generation: to begin with.
        store: with keys, ledger and served log.
        observe: is told of every request once it is over.
        judged: is told of every row of the served log that there was feedback on.
        clock: seconds, that only goes forward.
    """

    def __init__(
        self,
        generation: Generation,
        store: Store,
        observe: Callable[[Exchange], None] = lambda exchange: None,
        judged: Callable[[Row], None] = lambda row: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.generation, self.store = generation, store
        self.observe, self.judged = observe, judged
        self.began = time.time()
        self.requests = 0
        self._guesses = Guesses(generation.config.server.guesses_per_minute, clock)
        self._pacers: dict[int, Pacer] = {}

    @property
    def alarm(self) -> DriftAlarm | None:
        """Watches whether the certificate of the policy holds."""
        return self.generation.alarm

    @contextmanager
    def admitted(self) -> Iterator[Generation]:
        """A place for one request, and the generation that it keeps.

        Raises:
            RefusalError: there are too many already.
        """
        generation = self.generation
        if self.requests >= generation.config.server.max_requests:
            raise overloaded(f"{self.requests} requests are under way: try again later")
        self.requests += 1
        generation.requests += 1
        try:
            yield generation
        finally:
            self.requests -= 1
            generation.requests -= 1
            if generation is not self.generation and generation.requests == 0:
                self._retire(generation)

    def replace(self, generation: Generation) -> None:
        """Serve new requests by another policy or configuration; those under way keep theirs."""
        old, self.generation = self.generation, generation
        if old.requests == 0:
            self._retire(old)

    async def identify(self, client: Client) -> Key | None:
        """Whose request it is; None where no keys are asked for.

        Raises:
            RefusalError: no key, a wrong one, too many wrong ones, or too many requests; without
                keys, a request that a web page could have made its reader's browser send.
        """
        server = self.generation.config.server
        if not server.keys:
            check_host(client.header(b"host"), server.hosts)
            return None
        if wait := self._guesses.wait(client.address):
            raise RefusalError(
                429, "too many wrong keys from this address", "rate_limit_error", retry_after=wait
            )
        given = bearer(client.header(b"authorization"))
        if given is None:
            raise _wrong_key("a key is needed: Authorization: Bearer KEY")
        key = await self.store.key(hash_key(given))
        if key is None:
            self._guesses.wrong(client.address)
            raise _wrong_key("there is no such key")
        allowed, wait = await self.store.allow(key.id)
        if not allowed:
            raise RefusalError(
                429,
                f"this key may ask {key.rate_per_minute:g} times a minute",
                "rate_limit_error",
                "rate_limit_exceeded",
                retry_after=wait,
            )
        return key

    async def plan(self, generation: Generation, exchange: Exchange, client: Client) -> Plan:
        """Whom a request goes to, noted in the exchange.

        Raises:
            RefusalError: to nobody.
        """
        assert exchange.request is not None
        pacer = self._pacer(generation, exchange.key)
        decide = partial(
            generation.decider.plan,
            exchange.request,
            exchange.key,
            task=client.header(b"x-pointsman-task"),
            vector=read_vector(client.header(b"x-pointsman-vector")),
            pace=None if pacer is None else pacer.target_cost(),
            alarmed=generation.alarm is not None and generation.alarm.alarmed,
        )
        plan = await asyncio.to_thread(decide) if generation.decider.slow else decide()
        if pacer is not None:
            pacer.request(plan.cost or 0.0)
        exchange.plan, exchange.pacer = plan, pacer
        exchange.expected = plan.cost or 0.0
        exchange.decide_seconds = time.perf_counter() - exchange.read
        generation.planned += 1
        if generation.planned % SHIFT_EVERY == 0:
            self._watch_shift(generation, plan)
        return plan

    async def feedback(self, request_id: str, quality: float, key: Key | None) -> bool:
        """How good a served answer was; whether there is such a request of this client.

        The first word on an answer is what the policy is watched by, and learns from.
        """
        row = await self.store.feedback(request_id, quality, None if key is None else key.id)
        if row is None:
            return False
        with suppress(StoreError):  # it is written down, and will be heard later
            await self.generation.learning.sync(self.store)
        self.judged(row)
        return True

    async def sync(self, generation: Generation | None = None) -> None:
        """Take over what all processes spent, and what they learned.

        Args:
            generation: to bring up to date; None: the one that is served.

        Raises:
            StoreError: the store cannot be read or written.
        """
        generation = generation or self.generation
        await generation.learning.sync(self.store)
        apart: set[int] = set()  # keys that do not count in the server's pacer
        if generation.config.policy.pace_keys:
            for key in await self.store.keys():
                if key.budget is not None:
                    apart.add(key.id)
                    pacer = None if key.revoked is not None else self._pacer(generation, key)
                    if pacer is not None:
                        known = await self.store.paid(pacer.begin)
                        pacer.sync(*known.get(key.id, (0.0, 0)), pending=pacer.pending)
        if generation.pacer is not None:
            paid = await self.store.paid(generation.pacer.begin)
            some = [paid[each] for each in paid if each not in apart]
            spent, requests = sum(cost for cost, _ in some), sum(count for _, count in some)
            generation.pacer.sync(spent, requests, pending=generation.pacer.pending)

    async def run(self, seconds: float = SYNC) -> None:
        """Do so now and then, until cancelled."""
        while True:
            try:
                await self.sync()
            except StoreError:  # it is said by the requests that need the store
                pass
            except Exception:
                log.exception("what other processes spent and learned was not taken over")
            await asyncio.sleep(seconds)

    def record(self, exchange: Exchange) -> None:
        """A request is over: its pacer, metrics and logs learn of it."""
        if exchange.pacer is not None:
            spent = 0.0 if exchange.bill is None else exchange.bill.spent
            exchange.pacer.spend(spent, exchange.expected)
        self.observe(exchange)

    @staticmethod
    def key_id(key: Key | None) -> int:
        """The ledger's number for a client."""
        return ANONYMOUS if key is None else key.id

    @staticmethod
    def _watch_shift(generation: Generation, plan: Plan) -> None:
        """Let the weaker warning see what the router expects of this query."""
        decision = plan.decision
        if generation.shift is None or decision is None or decision.strategy == Single.name:
            return  # one model alone expects the same of every query
        expected = dict(zip(generation.policy.models, decision.prediction.quality[0], strict=True))
        stored = generation.shift.stored
        generation.shift.observe({name: float(expected[name]) for name in stored})

    def _pacer(self, generation: Generation, key: Key | None) -> Pacer | None:
        if key is None or key.budget is None or not generation.config.policy.pace_keys:
            return generation.pacer
        if key.period == "total":
            return None  # a period without an end cannot be spread over
        pacer = self._pacers.get(key.id)
        if pacer is None or pacer.budget != key.budget:
            floor = key.floor or generation.config.policy.floor
            least = generation.policy.point(floor).cost if floor else 0.0
            pacer = self._pacers[key.id] = Pacer(key.budget, key.period, floor=least)
        return pacer

    def _retire(self, generation: Generation) -> None:
        """Close idle connections of upstreams that the present generation did not take over."""
        kept = {id(upstream) for upstream in self.generation.upstreams.values()}
        for upstream in generation.upstreams.values():
            if id(upstream) not in kept:
                upstream.pool.close()


def _pacer(policy: "PoolPolicy", config: Config, before: Generation | None) -> Pacer | None:
    """The pacer of a server: the one there is, where its budget is still the same."""
    serving = config.policy
    if not serving.pace:
        return None
    if before is not None and before.pacer is not None:
        old = before.config.policy
        if (old.pace, old.pace_period) == (serving.pace, serving.pace_period):
            return before.pacer
    floor = policy.point(serving.floor).cost if serving.floor else 0.0
    return Pacer(serving.pace, PERIODS[serving.pace_period], floor=floor)


def is_loopback(host: str) -> bool:
    """Whether an address to bind to is reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(given: str | None, more: tuple[str, ...]) -> None:
    """Refuse names that are not this server's.

    Raises:
        RefusalError: the Host header is another's, as when a web page has had its own name pointed
            to the loopback.
    """
    name = (given or "").rpartition(":")[0] if (given or "")[-1:].isdigit() else given or ""
    name = (name or given or "").strip("[]").lower()
    if name not in LOCAL and name not in more:
        raise RefusalError(
            403,
            f"this server has no keys and answers to localhost alone, got host {name[:100]!r}: "
            "add the name to hosts in models.toml",
            "permission_error",
        )


def _wrong_key(message: str) -> RefusalError:
    return RefusalError(401, message, "authentication_error", "invalid_api_key")
