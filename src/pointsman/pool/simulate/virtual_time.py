"""An asyncio event loop whose clock jumps to the next timer instead of waiting for it.

Code with sleeps and timeouts runs unchanged, at once, and the same way each time. Nothing but
timers may be waited for: no network, no threads.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from pointsman.errors import InputError

Result = TypeVar("Result")


class _Jump(selectors.DefaultSelector):
    """Waits for nothing; moves the clock by as much as it was asked to wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready, without waiting."""
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise InputError("in virtual time nothing but timers may be waited for")
            self.now += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._jump.now


def run_virtually(main: Coroutine[Any, Any, Result]) -> Result:
    """Like `asyncio.run`, in virtual time.

    Raises:
        InputError: everything waits for something that is no timer.
    """
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
