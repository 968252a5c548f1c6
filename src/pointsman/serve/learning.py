"""What is learned from feedback on a policy, once for all processes that serve it.

Feedback may reach any process, and processes come and go. So what was learned is kept in the store
as one state with a version: whoever finds feedback that nobody has heard takes up the state, learns
from it, and puts the new state and the marks on the rows down in one transaction, which fails where
another process was quicker. So every row counts once, everybody watches the same, and a restart
loses nothing.
"""

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pointsman.errors import PointsmanError
from pointsman.pool.online.alarm import DriftAlarm
from pointsman.serve.deciding import CERTIFIED
from pointsman.serve.drift import alarm_of
from pointsman.serve.online import Online
from pointsman.serve.store import Store
from pointsman.serve.store.records import Row

if TYPE_CHECKING:
    from pointsman.pool.policy import PoolPolicy

log = logging.getLogger("pointsman.serve")

AT_ONCE = 500  # rows that are learned from in one transaction
KEPT_PROMISE = ("policy", "cascade")  # ways of choosing that the certificate speaks of

State = tuple[Mapping[str, Any], Mapping[str, Any]]


class Learning:
    """What feedback says of one policy.

    Args:
        policy: that is served.
        online: its bandit, or None.

    Attributes:
        name: digest of what the policy promises and expects, as rows of the served log have it.
        alarm: on its certificate; None where it promises nothing that feedback could test.
    """

    def __init__(self, policy: "PoolPolicy", online: Online | None = None) -> None:
        self.name = digest(policy)
        self.policy, self.online = policy, online
        self.alarm: DriftAlarm | None = alarm_of(policy)
        self._version = 0
        self._parts: dict[str, Any] = {}
        self._busy = asyncio.Lock()
        self._waiting = False

    @property
    def learns(self) -> bool:
        """Whether there is anything that feedback is for."""
        return self.alarm is not None or self.online is not None

    def same(self, other: "Learning") -> bool:
        """Whether the other learns the same, so that one can stand for both."""
        parts = [None if one.online is None else one.online.part for one in (self, other)]
        return self.name == other.name and parts[0] == parts[1]

    async def sync(self, store: Store) -> None:
        """Take up what others learned, and learn from feedback that nobody has heard.

        Raises:
            StoreError: the store cannot be read or written.
        """
        if not self.learns or self._waiting:
            return  # whoever waits already will hear it too
        self._waiting = True
        try:
            await self._busy.acquire()
        finally:
            self._waiting = False
        try:
            while await self._step(store):
                pass
        finally:
            self._busy.release()

    async def _step(self, store: Store) -> bool:
        """Learn from some rows; whether there may be more."""
        version, body = await store.learned(self.name)
        if version != self._version:
            self._take_up(version, body)
        rows = await store.unheard(self.name, AT_ONCE)
        if not rows:
            return False
        before = self._version, self._body()
        written = False
        try:
            self._hear(rows)
            ids = [row["id"] for row in rows]
            written = await store.learn(self.name, version, self._body(), ids)
        finally:
            if written:
                self._version += 1
            else:  # what was heard has not been kept
                self._take_up(*before)
        return not written or len(rows) == AT_ONCE

    def _hear(self, rows: Sequence[Row]) -> None:
        """Learn from rows of this policy with feedback."""
        for row in rows:
            promised = row["point"] == CERTIFIED and row["how"] in KEPT_PROMISE
            if promised and self.alarm is not None:
                self.alarm.observe(row["quality"])
            if self.online is not None:
                self.online.learn(row)

    def _body(self) -> str:
        """What was learned, as the store keeps it; parts that are not ours stay as they were."""
        if self.alarm is not None:
            self._parts["alarm"] = packed(self.alarm.to_state())
        if self.online is not None:
            self._parts[self.online.part] = packed(self.online.bandit.to_state())
        return json.dumps(self._parts)

    def _take_up(self, version: int, body: str) -> None:
        """Go on from what the store has; what cannot be read counts as nothing learned."""
        self._version, self._parts = version, {}
        self.alarm = alarm_of(self.policy)
        if self.online is not None:
            self.online.reset()
        try:
            self._parts = dict(json.loads(body)) if body else {}
            if self.alarm is not None and "alarm" in self._parts:
                self.alarm = DriftAlarm.from_state(*unpacked(self._parts["alarm"]))
            if self.online is not None and self.online.part in self._parts:
                self.online.restore(*unpacked(self._parts[self.online.part]))
        except (ValueError, KeyError, TypeError, AttributeError, PointsmanError) as error:
            log.warning("what was learned cannot be read, so it begins anew: %s", error)


def digest(policy: "PoolPolicy") -> str:
    """A short name of what a policy promises and expects; the same in every process."""
    about = [policy.models, policy.reference, policy.certificate, policy.expected]
    text = json.dumps(about, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def packed(state: State) -> dict[str, Any]:
    """A state (see `pool.saving.Saved`) as plain JSON values; `unpacked` gives it back."""
    plain, arrays = state
    return {
        "plain": plain,
        "arrays": {
            name: [array.dtype.str, array.shape, base64.b64encode(array.tobytes()).decode()]
            for name, array in ((name, np.asarray(given)) for name, given in arrays.items())
        },
    }


def unpacked(kept: Mapping[str, Any]) -> State:
    """The state that `packed` wrote."""
    return kept["plain"], {
        name: np.frombuffer(base64.b64decode(data), dtype=kind).reshape(shape).copy()
        for name, (kind, shape, data) in kept["arrays"].items()
    }
