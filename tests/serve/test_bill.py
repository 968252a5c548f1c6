"""The bill of one request: what is set aside, and that nothing of it is left over."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from rig import run

from pointsman.serve.bill import Bill
from pointsman.serve.store import ANONYMOUS, open_store


def test_settling_gives_back_every_reservation_in_one_transaction(tmp_path: Path) -> None:
    """Whatever is seen of the ledger after the settlement, it holds no money any more."""

    async def scenario() -> None:
        url = f"sqlite:///{tmp_path}/store.db"
        store = await open_store(url)
        calls: list[str] = []
        release = store.release

        async def counted(request: str) -> bool:
            calls.append(request)
            return await release(request)

        store.release = counted  # type: ignore[method-assign, assignment]
        bill = Bill(store, ANONYMOUS, "r")
        for cost in (0.1, 0.2, 0.3):
            await bill.reserve(0.5)
            bill.add(cost)
        assert len(await store.reservations()) == 3
        row: dict[str, Any] = {"id": "r", "time": 1.0, "key": 0, "model": "small"}
        await bill.settle(row)
        assert calls == []  # a kill between two transactions would have left money in doubt
        with sqlite3.connect(tmp_path / "store.db") as seen:
            states = seen.execute("SELECT state FROM ledger ORDER BY request").fetchall()
        assert states == [(1,), (2,), (2,)]
        assert await store.spent(ANONYMOUS) == (pytest.approx(0.6), 0.0)
        assert await store.check() == []
        await store.close()

    run(scenario)
