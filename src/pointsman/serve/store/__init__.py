"""Where the gateway keeps its keys, its ledger and its served log: SQLite or PostgreSQL."""

from pointsman.serve.store.opening import open_store
from pointsman.serve.store.reading import read_served
from pointsman.serve.store.records import (
    ANONYMOUS,
    SERVED,
    Key,
    Process,
    Reservation,
    StoreError,
    Total,
)
from pointsman.serve.store.store import Store

__all__ = [
    "ANONYMOUS",
    "SERVED",
    "Key",
    "Process",
    "Reservation",
    "Store",
    "StoreError",
    "Total",
    "open_store",
    "read_served",
]
