"""What one request costs its key: set aside before each call, settled when it is known."""

from pointsman.errors import InputError
from pointsman.serve.refusal import RefusalError
from pointsman.serve.store import Store
from pointsman.serve.store.records import Row


class Bill:
    """The money of one request.

    Every call to an upstream is preceded by a durable reservation that covers it and all that was
    spent before; `settle` puts the cost in its place before the last byte goes to the client.

    Args:
        store: with the ledger.
        key: id of the key.
        request: id of the request.
    """

    def __init__(self, store: Store, key: int, request: str) -> None:
        self.store, self.key, self.request = store, key, request
        self.spent = 0.0
        self.done = False
        self._held = 0.0
        self._count = 0
        self._entries: list[str] = []

    async def reserve(self, amount: float) -> None:
        """Set aside so many US$ beside what was spent.

        Raises:
            RefusalError: that would go over the budget of the key.
        """
        missing = max(0.0, self.spent + amount - self._held)
        if missing == 0 and self._entries:
            return
        self._count += 1
        entry = self.request if self._count == 1 else f"{self.request}.{self._count}"
        self._held += missing  # before the wait, since several calls may ask at once
        self._entries.append(entry)
        covered = False
        try:
            covered = await self.store.reserve(self.key, missing, entry)
        finally:
            if not covered:
                self._held -= missing
                self._entries.remove(entry)
        if not covered:
            raise RefusalError(
                429,
                f"the budget of this key does not cover the request (US$ {amount:.6f} are set "
                "aside for it): ask for fewer tokens or a cheaper point, or wait for its next "
                "period",
                "insufficient_quota",
                "insufficient_quota",
            )

    def add(self, cost: float) -> None:
        """So much was spent."""
        self.spent += cost

    async def settle(self, row: Row | None = None) -> None:
        """Write the cost down, and the row of the served log with it; once."""
        if self.done:
            return
        self.done = True
        if not self._entries:
            return
        first, *others = self._entries
        try:
            await self.store.settle(first, self.spent, row, releasing=tuple(others))
        except InputError:
            self.done = False
            raise

    async def close(self) -> None:
        """Settle what was spent, or give back what was set aside where nothing was."""
        if self.done:
            return
        if self.spent > 0:
            await self.settle()
            return
        self.done = True
        for entry in self._entries:
            await self.store.release(entry)
