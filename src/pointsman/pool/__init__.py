"""Model level: which model of a pool answers an input.

`read_log` gives a `Log`, `split_log` its parts; encoders are in `pool.features`, routers in
`pool.routers`, what to do with them in `pool.strategies`, signals after an answer in
`pool.deferral`; `PoolPolicy` is what is saved and served; `pool.online` learns while serving.
`Cascade` is for classifiers at hand rather than logs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pointsman.pool.cascade import Cascade
    from pointsman.pool.log import Log
    from pointsman.pool.policy import Decision, PoolPolicy
    from pointsman.pool.reading import read_log, split_log

__all__ = ["Cascade", "Decision", "Log", "PoolPolicy", "read_log", "split_log"]

# A server that only routes need not load torch, nor pandas.
HOMES = {
    "Cascade": "cascade",
    "Decision": "policy",
    "Log": "log",
    "PoolPolicy": "policy",
    "read_log": "reading",
    "split_log": "reading",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for."""
    if name in HOMES:
        return getattr(import_module(f"pointsman.pool.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
