"""The store as the gateway sees it: a handful of methods to await.

Example:
    store = await open_store("sqlite:///ledger.db")
    key = await store.key(hashed)
    if await store.reserve(key.id, 0.02, request):   # durable before the upstream is called
        ...
        await store.settle(request, 0.0131, row)     # durable before the last byte goes out
    await store.close()
"""

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pointsman.errors import InputError
from pointsman.serve.store import accounts, operations
from pointsman.serve.store.money import dollars, nano, period_label
from pointsman.serve.store.records import (
    Key,
    Process,
    Reservation,
    Row,
    Total,
    check_key,
    check_row,
)
from pointsman.serve.store.writer import Engine, Operation, Writer

T = TypeVar("T")

FRESH = 2.0  # seconds for which a key, or that there is none, is remembered
REMEMBERED = 10_000  # hashes at most: guesses must not fill the memory
BEAT = 5.0  # seconds between two signs of life
FORGET = 86400.0  # seconds after which a dead process that owes nothing is forgotten


class Store:
    """Keys, budgets, rate limits, the ledger and the served log.

    Made by `open_store`. Amounts are US$; inside they are whole nano-dollars and exact.

    Attributes:
        process: this process, as others see it; its `state` and `metrics` are texts that the
            gateway may publish with `publish`.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        now = clock()
        self.clock = clock
        name = f"{socket.gethostname()}:{os.getpid()}"
        self.process = Process(secrets.token_hex(8), name, now, now, None, "", "")
        self._published = ("", "")
        self._closed = False
        self._writer = Writer(engine, lambda: self._beat(None), BEAT)
        self._hashes: dict[str, tuple[float, Key | None]] = {}
        self._keys: dict[int, Key] = {}

    async def open(self) -> None:
        """Connect; `open_store` does this."""
        await self._writer.open()
        await self._write(lambda: accounts.forget_processes(self.clock() - FORGET))

    async def close(self) -> None:
        """Finish what waits, and close; what is still reserved is in doubt from now on."""
        if not self._closed:
            self._closed = True
            self._writer.submit(self._beat(self.clock()))
        await self._writer.close()

    # Keys

    async def key(self, hashed: str) -> Key | None:
        """The key of a hash (see `serve.keys.hash_key`), or None if none is in use.

        It is remembered for `FRESH` seconds, so a key that another process revokes may be let in
        for so long; it cannot reserve from the moment on in which it is revoked.
        """
        now = time.monotonic()
        known = self._hashes.get(hashed)
        if known is not None and known[0] > now:
            return known[1]
        found = await self._read(lambda: accounts.find_key(hashed))
        if len(self._hashes) >= REMEMBERED:
            self._hashes.clear()
        self._hashes[hashed] = (now + FRESH, found)
        if found is not None:
            self._keys[found.id] = found
        return found

    async def add_key(self, key: Key, hashed: str) -> Key:
        """Write down a new key, whose id the store gives.

        Raises:
            InputError: a name that is empty, does not print, or is in use; a period that is none;
                a budget or a rate that is not a positive number.
        """
        check_key(key)
        budget = None if key.budget is None else nano(key.budget, "a budget")
        made = await self._write(lambda: accounts.add_key(key, hashed, budget))
        self._hashes.pop(hashed, None)
        return made

    async def revoke_key(self, which: str) -> Key:
        """Put a key, by name or id, out of use for good.

        Raises:
            InputError: no such key is in use.
        """
        gone = await self._write(lambda: accounts.revoke_key(which, self.clock()))
        self._hashes.clear()
        return gone

    async def keys(self) -> list[Key]:
        """Every key that ever was, revoked ones too, in order of age."""
        return await self._read(accounts.keys)

    # Budgets

    async def reserve(self, key_id: int, amount: float, request_id: str) -> bool:
        """Set money aside for a request; False if that would go over the budget of the period.

        It is durable when this returns. If the caller is cancelled while it waits, what was set
        aside is given back.

        Raises:
            InputError: an amount that is none, no such key, or a request that has a reservation.
            StoreError: the store cannot be written.
        """
        held = nano(amount)
        period = period_label((await self._key(key_id)).period, self.clock())

        def steps() -> operations.Steps[bool]:
            return operations.reserve(
                key_id,
                period,
                held,
                request_id,
                self.process.id,
                self.clock(),
                again=operation.again,
            )

        def unwanted(reserved: bool) -> None:
            if reserved:
                self._writer.submit(self._releasing(request_id))

        operation = Operation(steps, (key_id,), (request_id,), unwanted)
        return bool(await self._writer.submit(operation))

    async def settle(
        self,
        request_id: str,
        cost: float,
        row: Row | None = None,
        releasing: tuple[str, ...] = (),
    ) -> bool:
        """Put the cost in place of what was set aside; all of this in one transaction.

        It is durable when this returns, and happens even if the caller is cancelled. The cost
        counts in the period in which the money was set aside, and may exceed what was. Settling
        again at the same cost changes nothing and gives False; a cost that comes after a release
        counts.

        Args:
            request_id: that the money was set aside for.
            cost: US$ that the request took.
            row: for the served log.
            releasing: further reservations of the same request, to give back.

        Raises:
            InputError: an amount that is none, a request without a reservation, or one that was
                settled at another cost.
            StoreError: the store cannot be written.
        """
        amount = nano(cost, "a cost")
        if row is not None:
            check_row(row)

        def steps() -> operations.Steps[bool]:
            return operations.settle(request_id, amount, self.clock(), row, releasing)

        operation = Operation(steps, requests=(request_id, *releasing))
        return bool(await self._writer.submit(operation))

    async def release(self, request_id: str) -> bool:
        """Give back what is set aside for a request; False if nothing is."""
        return bool(await self._writer.submit(self._releasing(request_id)))

    async def spent(self, key_id: int) -> tuple[float, float]:
        """US$ that the key settled, and has set aside, in its present period."""
        period = period_label((await self._key(key_id)).period, self.clock())
        settled, reserved = await self._read(lambda: operations.spent(key_id, period))
        return dollars(settled), dollars(reserved)

    async def paid(self, since: float) -> dict[int, tuple[float, int]]:
        """US$ that each key settled, and in how many requests, since an hour began.

        Args:
            since: seconds since 1970; the hour that it lies in counts as a whole.
        """
        found = await self._read(lambda: operations.paid(since))
        return {key: (dollars(settled), requests) for key, (settled, requests) in found.items()}

    async def allow(self, key_id: int, cost: float = 1) -> tuple[bool, float]:
        """Whether the key may ask now, and if not, the seconds until it may.

        A bucket of one minute's requests (at least one) that refills evenly, shared by all
        processes of the store. A key without a limit costs no look at the store.
        """
        key = await self._key(key_id)
        if key.rate_per_minute is None:
            return True, 0.0
        each = 60.0 / key.rate_per_minute

        def steps() -> operations.Steps[tuple[bool, float]]:
            return operations.allow(key_id, cost * each, max(60.0, each), self.clock())

        allowed, wait = await self._writer.submit(Operation(steps, (key_id,)))
        return bool(allowed), float(wait)

    # The served log

    async def serve_log(self, row: Row) -> None:
        """Add a row (columns `SERVED`) to the served log; the first of an id stands.

        Raises:
            InputError: an unknown column, or one of id, time, key and model is missing.
        """
        check_row(row)
        await self._write(lambda: operations.log_served(row))

    async def feedback(
        self, request_id: str, quality: float, key_id: int | None = None
    ) -> Row | None:
        """Write down how good a served answer was; the last word counts.

        Args:
            request_id: of the request.
            quality: in [0, 1].
            key_id: if given, only a request of this key.

        Returns:
            The row with the quality in it, or None if there is no such request.

        Raises:
            InputError: a quality outside [0, 1].
        """
        if not 0 <= quality <= 1:
            raise InputError(f"a quality must be from 0 to 1, got {quality}")
        return await self._write(
            lambda: operations.feedback(request_id, float(quality), key_id, self.clock())
        )

    async def unheard(self, policy: str, most: int = 1000) -> list[Row]:
        """Rows of a policy that were judged and not learned from yet, by any process.

        They come in the order in which they were judged first, `most` at once.
        """
        return await self._read(lambda: operations.unheard(policy, most))

    async def learned(self, name: str) -> tuple[int, str]:
        """What was learned under a name, after its version; (0, "") where nothing was."""
        return await self._read(lambda: operations.learned(name))

    async def learn(self, name: str, version: int, body: str, heard: Sequence[str] = ()) -> bool:
        """Put what was learned in the place of what there was, all in one transaction.

        So every row is learned from once, whatever processes do at the same time: read the
        version, then the rows, learn, and write; where that gives False begin again.

        Args:
            name: of what was learned.
            version: that it was made from, 0 for none.
            body: of what was learned.
            heard: ids of the rows that it was learned from, which are not given out again.

        Returns:
            Whether it was written: False if another process has learned since that version.
        """
        return await self._write(lambda: operations.learn(name, version, body, tuple(heard)))

    async def served(self, request_id: str) -> Row | None:
        """The row of a request in the served log, or None."""
        return await self._read(lambda: operations.served(request_id))

    # What people look at

    async def totals(self) -> list[Total]:
        """What every key spent in every period."""
        return await self._read(accounts.totals)

    async def reservations(self) -> list[Reservation]:
        """Everything that is set aside, oldest first, with what is in doubt marked."""
        found = await self._read(accounts.open_reservations)
        living = {process.id for process in await self.processes()}
        return [
            Reservation(r.request, r.key, r.amount, r.since, r.process, process not in living)
            for r, process in found
        ]

    async def processes(self) -> list[Process]:
        """The processes that use the store now."""
        now = self.clock()
        return [p for p in await self._read(accounts.processes) if accounts.lives(p, now)]

    async def check(self) -> list[tuple[int, str]]:
        """Keys and periods whose totals differ from the sums of their requests: none, ever."""
        return await self._read(accounts.differences)

    async def prune(self, before: float) -> tuple[int, int]:
        """Drop what ended before a moment (seconds since 1970), so that the store does not grow.

        Totals and what is set aside stay; a request that is gone can be settled no more.

        Returns:
            How many requests of the ledger, and rows of the served log, were dropped.
        """
        entries = rows = 0
        while True:
            some, more = await self._write(lambda: accounts.prune(before))
            entries, rows = entries + some, rows + more
            if not some and not more:
                return entries, rows

    def publish(self, state: str, metrics: str) -> None:
        """Texts that other processes may read of this one, from the next sign of life on."""
        self._published = (state, metrics)

    async def beat(self) -> None:
        """Tell the others what was published at once, and not at the next sign of life."""
        await self._writer.submit(self._beat(None))

    async def _key(self, key_id: int) -> Key:
        known = self._keys.get(key_id)
        if known is None:
            known = await self._read(lambda: accounts.key_of(key_id))
            if known is None:
                raise InputError(f"the store has no key of id {key_id}")
            self._keys[key_id] = known  # its limits and its period never change
        return known

    async def _read(self, steps: Callable[[], operations.Steps[T]]) -> T:
        result: T = await self._writer.submit(Operation(steps, reads=True))
        return result

    async def _write(self, steps: Callable[[], operations.Steps[T]]) -> T:
        result: T = await self._writer.submit(Operation(steps))
        return result

    def _releasing(self, request: str) -> Operation:
        return Operation(lambda: operations.release(request, self.clock()), requests=(request,))

    def _beat(self, ended: float | None) -> Operation:
        me, (state, metrics) = self.process, self._published
        process = Process(me.id, me.name, me.started, self.clock(), ended, state, metrics)
        return Operation(lambda: accounts.beat(process))
