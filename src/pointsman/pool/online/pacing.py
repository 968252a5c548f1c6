"""Spending a budget evenly over a period, however requests come and prices move.

Legend: B slices of a period.
"""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self

import numpy as np

from pointsman.errors import InputError
from pointsman.pool.online.bandit import Array, State, check_between
from pointsman.pool.saving import Arrays, Plain

SLICES = 24  # of a period, in which the usual course of its requests is remembered
KEPT = 0.5  # weight of what was known before when a period ends
TRUST = 20.0  # requests that today must show before it outweighs the usual course
EARLIEST = 1e-3  # share of a period that counts as gone at the least, before much is known
MEMORY = 0.98  # of earlier calls, where what they cost is compared with what was expected
FIRM = 5.0  # expected calls by which that comparison is held at 1
SWING = 10.0  # the comparison is believed within a factor of this

DAY = 86_400.0


class Pacer:
    """Dollars per period: what a request may cost, so that the budget lasts and is used.

    The target is rest / requests still expected / correction. The rest is the budget less what was
    spent and what calls under way are expected to cost. Requests still expected come from the share
    of the period that is gone and, once a whole period was seen, from its usual course scaled to
    today. The correction is what calls cost over what was expected of them, of late: it follows a
    change of prices that the policy does not know of. `PoolPolicy.at_cost` turns the target into a
    point.

    Args:
        budget: to spend in every period, above 0, in the unit of the costs.
        period: "day" or "month" (calendar, UTC), or seconds since `start`, again and again.
        floor: least target, the expected cost of the point below which nobody may go. It comes
            first: where it alone spends more than the budget, the budget is exceeded, which
            `words` says; a hard stop is the ledger's.
        ceiling: highest target, the expected cost of the best point.
        requests: expected in a period, if anything is known; halved with what each period shows.
        start: of the first period, where its length is in seconds.
        clock: gives the time in seconds since 1970.

    Raises:
        InputError: a number out of range, or a period that is none.

    The primal-dual pacing of ParetoBandit (2026, arXiv 2604.00136) and of advertising (Balseiro &
    Gur 2019) moves a price; here the policy file knows the whole hull, so the price is not needed
    and the target follows from what is left, as in "budget smoothing" (Agarwal et al. 2014).
    """

    def __init__(
        self,
        budget: float,
        period: float | str = "day",
        *,
        floor: float = 0.0,
        ceiling: float = math.inf,
        requests: float | None = None,
        start: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.budget = check_between("budget", budget, 1e-300, 1e300)
        if period not in ("day", "month") and not (
            isinstance(period, int | float) and 0 < period < math.inf
        ):
            raise InputError(f'a period is "day", "month" or seconds above 0, got {period!r}')
        self.period = period
        self.floor = check_between("floor", floor, 0.0, math.inf)
        self.ceiling = check_between("ceiling", ceiling, self.floor, math.inf)
        if requests is not None:
            check_between("requests", requests, 1.0, 1e300)
        self.requests, self.start, self.clock = requests, float(start), clock
        self._begin, self._end = self._bounds(clock())
        self._usual: Array | None = None  # (B,) requests by slice in the periods before
        if requests is not None:
            self._usual = np.full(SLICES, requests / SLICES)
        self._whole = False  # whether this period was watched from its beginning
        self._course: Array = np.zeros(SLICES)
        self._spent = self._pending = 0.0
        self._paid = self._expected = 0.0

    def request(self, expected: float = 0.0, now: float | None = None) -> None:
        """A request has come and is sent to a model that is expected to cost this much."""
        at = self._roll(now)
        self._course[min(int(at * SLICES), SLICES - 1)] += 1
        self._pending += check_between("expected", expected, 0.0, math.inf)

    def spend(self, cost: float, expected: float = 0.0, now: float | None = None) -> None:
        """A call has cost this much; `expected` as it was given to `request`.

        One that cost nothing has failed, most likely, and says nothing of prices.
        """
        self._roll(now)
        self._spent += check_between("cost", cost, 0.0, math.inf)
        self._pending = max(self._pending - expected, 0.0)
        if expected > 0.0 and cost > 0.0:
            self._paid = MEMORY * self._paid + cost
            self._expected = MEMORY * self._expected + expected

    def sync(
        self,
        spent: float,
        requests: float | None = None,
        now: float | None = None,
        *,
        pending: float = 0.0,
    ) -> None:
        """Take over what the ledger says of this period, where several processes share a budget.

        Args:
            spent: settled and reserved so far, by all of them.
            requests: so far, of all of them; None: as counted here.
            now: time, from the clock where it is None.
            pending: what calls under way are expected to cost and `spent` does not hold.
        """
        at = self._roll(now)
        self._spent = check_between("spent", spent, 0.0, math.inf)
        self._pending = check_between("pending", pending, 0.0, math.inf)
        counted = float(self._course.sum())
        if requests is not None and requests != counted:
            if counted > 0:
                self._course *= requests / counted
            else:
                gone = min(int(at * SLICES), SLICES - 1) + 1
                self._course[:gone] = requests / gone

    def target_cost(self, now: float | None = None) -> float:
        """Expected cost that the next request may have, within floor and ceiling."""
        at = self._roll(now)
        rest = max(self.budget - self._spent - self._pending, 0.0)
        target = rest / max(self.expected_requests(at), 1.0) / self.correction
        return min(max(target, self.floor), self.ceiling)

    @property
    def correction(self) -> float:
        """What calls cost of late over what was expected of them."""
        if self._expected <= 0.0:
            return 1.0
        held = FIRM * (1 - MEMORY) * self._expected
        return min(max((self._paid + held) / (self._expected + held), 1 / SWING), SWING)

    @property
    def begin(self) -> float:
        """When the present period began, in seconds since 1970."""
        self._roll(None)
        return self._begin

    @property
    def pending(self) -> float:
        """What calls under way are expected to cost."""
        return self._pending

    @property
    def spent(self) -> float:
        """In this period so far."""
        return self._spent

    def expected_requests(self, gone: float) -> float:
        """Requests still to come, when this share of the period is gone."""
        seen = float(self._course.sum())
        if self._usual is None or self._usual.sum() <= 0:
            held = max(gone, EARLIEST)
            return max(seen, 1.0) * (1.0 - gone) / held
        slice_ = min(int(gone * SLICES), SLICES - 1)
        past = float(self._usual[:slice_].sum() + self._usual[slice_] * (gone * SLICES - slice_))
        level = (seen + TRUST) / (past + TRUST)
        return (float(self._usual.sum()) - past) * level

    def words(self, now: float | None = None) -> str:
        """How the period goes, in a sentence or two."""
        at = self._roll(now)
        said = (
            f"{self._spent:.4g} of {self.budget:.4g} spent with {at * 100:.0f}% of the period "
            f"gone; the next request may cost {self.target_cost(now):.3g}."
        )
        if self._spent >= self.budget:
            said += " The budget is used up."
        if self.floor > 0.0:
            rest = max(self.budget - self._spent - self._pending, 0.0)
            need = self.floor * self.correction * self.expected_requests(at)
            if need > rest:
                said += (
                    " The floor alone would spend more than what is left: raise the budget or "
                    "lower the floor."
                )
        return said

    def _roll(self, now: float | None) -> float:
        """Share of the period that is gone; a new period is begun where the old one has ended."""
        when = self.clock() if now is None else float(now)
        if when >= self._end:
            self._learn()
            self._begin, self._end = self._bounds(when)
            self._whole = True  # every request is counted: a gap between periods had none
            self._course = np.zeros(SLICES)
            self._spent = self._pending = 0.0
        return min(max((when - self._begin) / (self._end - self._begin), 0.0), 1.0)

    def _learn(self) -> None:
        """The usual course, now that a period has ended."""
        if not self._course.any():
            return
        if self._usual is None:
            self._usual = self._course if self._whole else self._filled()
        elif self._whole:
            self._usual = KEPT * self._usual + (1 - KEPT) * self._course

    def _filled(self) -> Array:
        """(B,) a period watched from somewhere on; before that, the mean of what was seen."""
        first = int(np.flatnonzero(self._course)[0])
        filled = self._course.copy()
        filled[:first] = self._course[first:].mean()
        return filled

    def _bounds(self, when: float) -> tuple[float, float]:
        """Beginning and end of the period around a time."""
        if self.period == "month":
            day = datetime.fromtimestamp(when, UTC)
            first = datetime(day.year, day.month, 1, tzinfo=UTC)
            after = datetime(day.year + day.month // 12, day.month % 12 + 1, 1, tzinfo=UTC)
            return first.timestamp(), after.timestamp()
        if isinstance(self.period, str):
            length, start = DAY, 0.0
        else:
            length, start = float(self.period), self.start
        begin = start + math.floor((when - start) / length) * length
        return begin, begin + length

    def to_state(self) -> State:
        """See `Saved`; the clock is not kept."""
        names = ("budget", "period", "floor", "requests", "start")
        plain: dict[str, Any] = {name: getattr(self, name) for name in names}
        plain["ceiling"] = None if math.isinf(self.ceiling) else self.ceiling
        plain["whole"] = self._whole
        sums = [self._begin, self._end, self._spent, self._pending, self._paid, self._expected]
        arrays = {"course": self._course.copy(), "sums": np.array(sums)}
        if self._usual is not None:
            arrays["usual"] = self._usual.copy()
        return plain, arrays

    @classmethod
    def from_state(
        cls, plain: Plain, arrays: Arrays, *, clock: Callable[[], float] = time.time
    ) -> Self:
        """See `Saved`."""
        names = ("budget", "period", "floor", "requests", "start")
        keywords = {name: plain[name] for name in names}
        ceiling = math.inf if plain["ceiling"] is None else plain["ceiling"]
        pacer = cls(**keywords, ceiling=ceiling, clock=clock)
        pacer._whole = plain["whole"]
        sums = [float(value) for value in arrays["sums"]]
        pacer._begin, pacer._end, pacer._spent, pacer._pending, pacer._paid, pacer._expected = sums
        pacer._course = np.array(arrays["course"], dtype=np.float64)
        pacer._usual = np.array(arrays["usual"]) if "usual" in arrays else None
        return pacer
