"""A results mapping in words and figures.

`read` checks a results mapping (schema version 1) once and gives a `Reading`: every operating
point with what it saves and drops, and one way to write qualities, drops and costs. The chart, the
report page and the table are made from the same reading, so a figure looks alike wherever it is
shown.

Qualities are on the scale 0..1, higher is better; costs are per input (per token for text) in the
unit of the reference. Figures are written with three significant digits, every cost in one unit.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pointsman.errors import InputError
from pointsman.frontier.points import Frontier, Point

Results = Mapping[str, Any]

SCHEMA = ("pointsman-results", 1)
REQUIRED = {
    "data": ("name", "kind", "inputs"),
    "metric": ("name", "worst", "best"),
    "reference": ("name", "quality", "cost", "unit"),
    "pick": ("way", "knob", "quality", "cost", "saved", "max_drop", "confidence", "certified"),
    "certificate": ("words",),
}
# Units of one kind in steps of a thousand: figures are shown in whichever reads best.
STEPS = (("FLOPs", "kFLOPs", "MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs"), ("us", "ms", "s"))
MONEY, MANY = "US$", 1000
SHOWN_PER_WAY = 5


@dataclass(frozen=True)
class OperatingPoint:
    """One setting of one way as measured on the test split.

    `gid` names its mark in the chart. `saved` is a share of the reference's cost and `drop` what is
    lost against the reference's quality, negative where the point is better. `on_frontier` says
    that no other setting of the same way is as cheap and as good. `mixed` is the quality that
    mixing the ladder at random reaches at this cost, None below its cheapest member.
    """

    gid: str
    way: str
    title: str
    knob: str
    quality: float
    cost: float
    saved: float
    drop: float
    mixed: float | None = None
    on_frontier: bool = True
    picked: bool = False


@dataclass(frozen=True)
class Way:
    """One way to spend less, with its points in ascending cost."""

    name: str
    title: str
    slug: str
    points: tuple[OperatingPoint, ...]
    metrics: Mapping[str, float | None]

    def frontier(self) -> list[OperatingPoint]:
        """The points that no other point of this way beats."""
        return [point for point in self.points if point.on_frontier]


@dataclass(frozen=True)
class Reading:
    """A results mapping, checked, with its figures in words.

    `results` is the mapping with every unprintable character of its texts replaced; `unit` is the
    unit that costs are shown in and `factor` what an amount is multiplied by to be in it.
    """

    results: Results
    ways: tuple[Way, ...]
    reference: OperatingPoint
    oracle: OperatingPoint | None
    pick: OperatingPoint
    mixing: tuple[tuple[float, float], ...]
    unit: str
    factor: float

    @property
    def percent(self) -> bool:
        """Whether the metric is a share, written as a percentage."""
        metric = self.results["metric"]
        return float(metric["worst"]) == 0.0 and float(metric["best"]) == 1.0

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return str(self.results["metric"]["name"])

    @property
    def routes_queries(self) -> bool:
        """Whether models that came trained were compared on an evaluation log."""
        return bool(self.results["data"]["kind"] == "queries")

    @property
    def searched(self) -> bool:
        """Whether the points are subnets that `pointsman search` found in one network."""
        return "search" in self.results

    @property
    def one(self) -> str:
        """What is routed."""
        return {"text": "token", "queries": "query"}.get(self.results["data"]["kind"], "input")

    @property
    def per(self) -> str:
        """What a cost is counted per: one of them, or many where one costs next to nothing."""
        return f"{MANY:,} queries" if self.unit == MONEY and self.factor == MANY else self.one

    @property
    def members(self) -> str:
        """What stands alone on the chart: a ladder of plain networks, or the models of a log."""
        return "models" if self.routes_queries else "ladder"

    @property
    def certified(self) -> bool:
        """Whether the pick carries a certificate."""
        return bool(self.results["pick"]["certified"])

    @property
    def max_drop(self) -> float:
        """The drop that was allowed, on the scale of qualities."""
        return float(self.results["pick"]["max_drop"])

    @property
    def confidence(self) -> str:
        """The confidence asked for, in words."""
        return share(float(self.results["pick"]["confidence"]))

    def natural(self, quality: float) -> float:
        """A quality in the units of its metric, such as bits per byte."""
        metric = self.results["metric"]
        worst, best = float(metric["worst"]), float(metric["best"])
        return worst + (best - worst) * quality

    def quality(self, quality: float) -> str:
        """A quality in words: a percentage, or a figure of the metric."""
        return share(quality, fixed=True) if self.percent else figure(self.natural(quality))

    def drop(self, drop: float) -> str:
        """A drop as a bare figure: percentage points, or a difference of the metric."""
        scaled = drop * (100 if self.percent else abs(self.natural(1.0) - self.natural(0.0)))
        text = f"{abs(scaled):.2f}" if self.percent else f"{abs(scaled):.3f}"
        return text if scaled >= 0 or float(text) == 0 else "−" + text

    def allowed(self, drop: float | None = None) -> str:
        """The allowed drop, or another, with its unit: `1 percentage point`."""
        drop = self.max_drop if drop is None else drop
        if not self.percent:
            amount = drop * abs(self.natural(1.0) - self.natural(0.0))
            return f"{amount:.3g} {self.metric}"
        points = f"{100 * drop:.3g}"
        return f"{points} percentage point" + ("" if points == "1" else "s")

    def cost(self, cost: float, *, unit: bool = True) -> str:
        """A cost in the unit that is shown: `25.3 kFLOPs`."""
        text = figure(cost * self.factor)
        return f"{text}\xa0{self.unit}" if unit else text

    def headline(self) -> str:
        """One sentence: what was picked, what it saves, and whether that is certified."""
        pick, reference = self.pick, self.reference.knob
        # a pick that is the reference itself has nothing to save: say so instead of "saves 0 %"
        saves = (
            f"saves {share(pick.saved)} of the cost of {reference}"
            if pick.saved >= 0.0005
            else f"saves nothing against {reference}"
        )
        kept = ("" if not self.percent else self.metric + " ") + f"within {self.allowed()}"
        it = f"The pick, {pick.title} set to “{pick.knob}”, {saves}"
        if self.certified:
            return f"{it} and keeps {kept} of it, certified at {self.confidence} confidence."
        return f"{it}, but is not certified: that it keeps {kept} of it was not shown."

    def mixed(self, cost: float) -> float | None:
        """Quality of mixing the ladder at random at a cost, None below its cheapest member."""
        if not self.mixing or cost < self.mixing[0][0] * (1 - 1e-6):  # costs may come by float32
            return None
        costs, qualities = zip(*self.mixing, strict=True)
        return float(np.interp(cost, costs, qualities))


def figure(value: float) -> str:
    """A number with three significant digits, thousands set apart: 0.00240, 25.3, 1,240."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(float(f"{value:.2e}"))))
    return f"{round(value, digits):,.{max(digits, 0)}f}".replace("-", "−")


def share(value: float, *, fixed: bool = False) -> str:
    """A share as a percentage, to a tenth: 85.6 %, 95 %; `fixed` keeps a last zero, for columns.

    What is less than all is never rounded up to 100 %.
    """
    percent = 100 * value
    tenths = f"{percent:,.1f}"
    if tenths == "100.0" and percent < 100 - 1e-9:
        tenths = f"{min(percent, 99.99):.2f}"
    tenths = "0.0" if tenths == "-0.0" else tenths.replace("-", "−")
    return (tenths if fixed else tenths.removesuffix(".0")) + "\xa0%"


def read(results: Results) -> Reading:
    """Check a results mapping and put its points into words.

    Args:
        results: what `pointsman compare` writes, schema version 1.

    Raises:
        InputError: not a results mapping, of a newer version, or a part is missing or no number.
    """
    _check(results)
    results = _printable(results)
    reference, oracle, pick = results["reference"], results.get("oracle"), results["pick"]
    mixing = [(_number(p, "cost"), _number(p, "quality"))
              for p in (results.get("random") or {}).get("points", ())]  # fmt: skip
    listed = list(results["ways"])
    if results.get("ladder") and "dense" not in {way["name"] for way in listed}:
        listed.insert(0, {"name": "dense", "title": "Ladder alone", "points": results["ladder"]})
    costs = [_number(point, "cost") for way in listed for point in way["points"]]
    unit, factor = _unit(str(reference["unit"]), _number(reference, "cost"), min(costs, default=0))
    if results["data"]["kind"] == "queries" and unit == MONEY and reference["cost"] < 1:
        factor = float(MANY)  # a call costs fractions of a cent
    titles = {way["name"]: str(way.get("title") or way["name"]) for way in listed}
    base = Reading(
        results=results, ways=(), mixing=tuple(sorted(mixing)), unit=unit, factor=factor,
        reference=_lone(reference, reference, "reference"),
        oracle=_lone(oracle, reference, "oracle") if oracle else None,
        pick=replace(_lone(pick, reference, "pick"), way=str(pick["way"]), picked=True,
                     title=titles.get(pick["way"], str(pick["way"]))),
    )  # fmt: skip
    slugs = _slugs([str(way["name"]) for way in listed])
    ways = tuple(_way(way, slug, base) for way, slug in zip(listed, slugs, strict=True))
    picked = next((point for way in ways for point in way.points if point.picked), base.pick)
    return replace(base, ways=ways, pick=picked)


def cheapest_within(way: Way, max_drop: float) -> OperatingPoint | None:
    """The cheapest point of a way whose drop on the test split is allowed; None if none is."""
    return next((p for p in way.frontier() if p.drop <= max_drop + 1e-12), None)


def worth_showing(way: Way, max_drop: float, most: int = SHOWN_PER_WAY) -> list[OperatingPoint]:
    """At most `most` points of a way: its frontier's ends, the pick, the cheapest allowed, more."""
    frontier = way.frontier()
    must = [p for p in way.points if p.picked or p is cheapest_within(way, max_drop)]
    places = np.linspace(0, len(frontier) - 1, most).round().astype(int)
    spread = [frontier[place] for place in places] if frontier else []
    # ends of the frontier before its middle, so that the range of a way is always seen
    ranked = {point.gid: point for point in (*must, *spread[:1], *spread[-1:], *spread)}
    return [point for point in way.points if point.gid in list(ranked)[:most]]


def _way(way: Mapping[str, Any], slug: str, base: Reading) -> Way:
    name, pick = str(way["name"]), base.results["pick"]
    title = str(way.get("title") or name)
    knobs = [str(point["knob"]) for point in way["points"]]
    chosen = str(pick["knob"]) if name == str(pick["way"]) else None
    picked = knobs.index(chosen) if chosen in knobs else None
    # known by their place here: two settings may have one name
    measured = [
        Point(index, _number(point, "quality"), _number(point, "cost"))
        for index, point in enumerate(way["points"])
    ]
    unit, reference = str(base.results["reference"]["unit"]), base.reference
    unbeaten = Frontier(name, tuple(measured), unit).pareto().points if measured else ()
    # ascending cost, better first among equals
    ranked = sorted(enumerate(measured), key=lambda pair: (pair[1].cost, -pair[1].quality))
    points = tuple(
        OperatingPoint(
            f"point-{slug}-{index}", name, title, knobs[index], point.quality, point.cost,
            *_against(reference.quality, reference.cost, point.quality, point.cost),
            base.mixed(point.cost), on_frontier=point in unbeaten, picked=index == picked,
        )
        for index, point in ranked
    )  # fmt: skip
    return Way(name, title, slug, points, dict(way.get("metrics") or {}))


def _lone(point: Mapping[str, Any], reference: Mapping[str, Any], role: str) -> OperatingPoint:
    quality, cost = _number(point, "quality"), _number(point, "cost")
    against = _against(_number(reference, "quality"), _number(reference, "cost"), quality, cost)
    knob = str(point.get("name") or point.get("knob") or role)
    return OperatingPoint(f"point-{role}-0", role, role, knob, quality, cost, *against)


def _against(good: float, dear: float, quality: float, cost: float) -> tuple[float, float]:
    """What a point saves and drops against a reference of quality `good` and cost `dear`."""
    return (1 - cost / dear if dear > 0 else 0.0), good - quality


def _check(results: Results) -> None:
    schema = results.get("schema") if isinstance(results, Mapping) else None
    found = (schema.get("name"), schema.get("version")) if isinstance(schema, Mapping) else schema
    if found != SCHEMA:
        raise InputError(
            f"results must be a mapping of schema {SCHEMA[0]} version {SCHEMA[1]}, got {found!r}: "
            "give the results.json of `pointsman compare`, read by this version or a newer one"
        )
    ways = results.get("ways")
    if not isinstance(ways, Sequence) or not ways:
        raise InputError("results must hold at least one way, `ways` is missing or empty")
    parts = [(name, results.get(name), keys) for name, keys in REQUIRED.items()]
    parts += [(f"ways[{i}]", way, ("name", "points")) for i, way in enumerate(ways)]
    for name, part, keys in parts:
        for key in keys:
            if not isinstance(part, Mapping) or key not in part:
                raise InputError(f"results must hold {name}.{key}, it is missing: compare again")
    for part, key in (("pick", "max_drop"), ("pick", "confidence"),
                      ("metric", "worst"), ("metric", "best")):  # fmt: skip
        _number(results[part], key)


def _number(point: Mapping[str, Any], key: str) -> float:
    value: Any = point.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or (key == "cost" and value < 0):
        kind = "a finite number, zero or more" if key == "cost" else "a finite number"
        where = point.get("knob") or point.get("name") or "the oracle"
        raise InputError(f"the {key} of {where} must be {kind}, got {value!r}: compare again")
    return float(value)


def _printable(value: Any) -> Any:
    """The same data with what no terminal, SVG or page should be sent replaced by U+FFFD."""
    if isinstance(value, str):
        spaced = re.sub(r"\s+", " ", value)
        return "".join(c if c.isprintable() or c == "\xa0" else "\ufffd" for c in spaced)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(part) for part in value]
    return value


def _unit(unit: str, reference: float, least: float) -> tuple[str, float]:
    """The unit to show: the reference reads 1 to 999 in it, or more if the least needs it."""
    kind = next((steps for steps in STEPS if unit in steps), None)
    if kind is None or reference <= 0:
        return unit, 1.0
    here = kind.index(unit)
    step = max(0, min(here + math.floor(math.log10(reference) / 3 + 1e-9), len(kind) - 1))
    factor = 1000.0 ** (here - step)
    if step > 0 and 0 < least * factor < 0.1 and reference * factor < 100:
        step, factor = step - 1, factor * 1000
    return kind[step].replace("us", "µs"), factor


def _slugs(names: Sequence[str]) -> list[str]:
    """A distinct word for each way, fit to be part of an id."""
    slugs: list[str] = []
    for name in names:
        slug = stem = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "way"
        count = 2
        while slug in (*slugs, "reference", "oracle", "pick"):
            slug, count = f"{stem}_{count}", count + 1
        slugs.append(slug)
    return slugs
