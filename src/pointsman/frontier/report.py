"""The report page of a comparison: one HTML file that needs nothing else, not even a network.

The chart is embedded as SVG, once for wide and once for narrow screens, with its colours turned
into variables so that they follow the reader's light or dark mode. Style and script stand in the
page; a content security policy in it forbids every request and every other script. All texts of
the results are escaped. Without scripts the page still shows chart, tables and certificate.
"""

import base64
import hashlib
import math
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pointsman.frontier.breakdown import pool_sections
from pointsman.frontier.chart import Layout, caption, draw, to_svg
from pointsman.frontier.reading import OperatingPoint, Reading, Results, figure, read, share
from pointsman.frontier.style import GLYPHS, PALETTE, way_style
from pointsman.writing import write_atomically

SPLITS = {
    "train": "fits the models",
    "validation": "stops training and sets what training leaves open",
    "calibration": "picks the setting and certifies it; seen by no training",
    "test": "gives every figure on this page; chooses nothing",
}
METHODS = {
    "exact": "Exact trinomial test",
    "betting": "Betting, mixture of bets",
    "predictable_betting": "Betting, predictable bets",
    "empirical_bernstein": "Empirical Bernstein bound",
    "hoeffding_bentkus": "Hoeffding-Bentkus bound",
    "hoeffding": "Hoeffding bound",
}
METRICS = {
    "hypervolume": ("Hypervolume", "area below the frontier; more is better"),
    "aiq": ("AIQ", "mean quality along the cost axis; more is better"),
    "apgr": ("APGR", "mean share of the gap to the reference that is closed"),
    "cost_at_reference_quality": ("Cost at reference quality", "on the test split, by mixing"),
}


def render(results: Results) -> str:
    """The page as one string of HTML.

    Args:
        results: what `pointsman compare` writes, schema version 1.

    Raises:
        InputError: not a results mapping, or a part of it is missing or no number.
    """
    reading = read(results)
    script = _part("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_part("report.html.jinja")).render(
        reading=reading,
        results=reading.results,
        palette=PALETTE,
        style=Markup(_part("report.css")),
        script=Markup(script),
        script_digest=digest,
        charts=[_inline(results, "wide"), _inline(results, "narrow")],
        caption=caption(reading),
        tiles=_tiles(reading),
        ways=_ways(reading),
        points=_points(reading),
        numbers=_numbers(reading),
        certificate=_certificate(reading),
        methods=_methods(reading),
        metrics=_metrics(reading),
        trained=_trained(reading),
        pool=pool_sections(reading),
        splits=_splits(reading),
        shares=_shares(reading),
        truth=_truth(reading.results.get("truth")),
        made_by=_scalars(reading.results.get("made_by")),
    )


def write(results: Results, path: str | os.PathLike[str]) -> Path:
    """Write the page; the file appears whole or not at all.

    Args:
        results: what `pointsman compare` writes, schema version 1.
        path: the HTML file; its folder is made where it is missing.

    Raises:
        InputError: as `render`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, render(results))
    return target


def _part(name: str) -> str:
    return resources.files("pointsman.frontier").joinpath(name).read_text(encoding="utf-8")


def _inline(results: Results, layout: Layout) -> Markup:
    """The chart as an SVG element of the page, its ids led by the layout."""
    svg = to_svg(draw(results, layout=layout))
    svg = svg[svg.index("<svg") :]
    # its style rule would reach beyond the chart: the page's own says the same for charts alone
    unwanted = r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>"
    svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*"(?= viewBox)', r"\1", svg, count=2)
    svg = svg.replace("xlink:href", "href").replace(
        ' xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{layout}-", svg)
    for role, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{role})")
    # a hundredth of a point is finer than any screen; scale(...) is that of a font's own units
    svg = re.sub(r"scale\([^)]*\)|(\d\.\d\d)\d+", lambda found: found[1] or found[0], svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    # drawn on the card, so without a ground of its own
    svg = re.sub(rf'(<g id="{layout}-patch_1">) <path .*?/>', r"\1", svg, count=1)
    described = f'<svg class="{layout}" role="group" aria-label="Chart of quality against cost"'
    return Markup(svg.replace("<svg", described, 1))


def _tiles(reading: Reading) -> list[dict[str, str]]:
    """The four or five figures at the head of the page."""
    pick, reference, raw = reading.pick, reading.reference, reading.results["pick"]
    tiles = [
        {"name": "Cost saved", "value": share(pick.saved), "beside": f"against {reference.knob}"},
        {
            "name": reading.metric.capitalize(),
            "value": reading.quality(pick.quality),
            "beside": f"reference {reading.quality(reference.quality)}",
        },
        {
            "name": f"Cost per {reading.per}",
            "value": reading.cost(pick.cost),
            "beside": f"reference {reading.cost(reference.cost)}",
        },
    ]
    if raw.get("measured_ms") and raw.get("reference_ms"):
        tiles.append({
            "name": f"Time per {reading.per}, measured",
            "value": milliseconds(float(raw["measured_ms"])),
            "beside": f"reference {milliseconds(float(raw['reference_ms']))}",
        })  # fmt: skip
    tiles.append({
        "name": "Certificate",
        "value": "Certified" if reading.certified else "Not certified",
        "beside": f"drop at most {reading.allowed()}, {reading.confidence} confidence",
        "state": "good" if reading.certified else "poor",
    })  # fmt: skip
    return tiles


def milliseconds(amount: float) -> str:
    """A time in ms or, below a tenth, in microseconds."""
    return f"{figure(amount)}\xa0ms" if amount >= 0.1 else f"{figure(1000 * amount)}\xa0µs"


def _ways(reading: Reading) -> list[dict[str, Any]]:
    return [
        {"slug": way.slug, "title": way.title, "style": style, "glyph": GLYPHS[style]}
        for way in reading.ways
        for style in [way_style(way, reading.ways)]
    ]


def _points(reading: Reading) -> list[dict[str, Any]]:
    """Every point in words, for the table, the tooltip and the panel; the reference comes first."""
    points = [_in_words(reading, reading.reference, "reference", "◆", "ink")]
    for way in reading.ways:
        style = way_style(way, reading.ways)
        for point in way.points:
            role = "pick" if point.picked else "point"
            words = _in_words(reading, point, role, GLYPHS[style], f"way-{style}")
            points.append(words | {"slug": way.slug, "frontier": point.on_frontier})
    if reading.pick.gid == "point-pick-0":
        points.append(_in_words(reading, reading.pick, "pick", "●", "ink"))
    if reading.oracle:
        points.append(_in_words(reading, reading.oracle, "oracle", "★", "ink"))
    return points


def _in_words(
    reading: Reading, point: OperatingPoint, role: str, glyph: str, colour: str
) -> dict[str, Any]:
    """A point's figures as texts."""
    lone = role in ("reference", "oracle")
    return {
        "id": point.gid,
        "role": role,
        "slug": "",
        "glyph": glyph,
        "colour": colour,
        "frontier": True,
        "way": role.capitalize() if lone else point.title,
        "knob": "best choice per input, in hindsight" if role == "oracle" else point.knob,
        "quality": reading.quality(point.quality),
        "drop": reading.drop(point.drop),
        "cost": reading.cost(point.cost),
        "saved": share(point.saved, fixed=True),
        "mixed": "–" if point.mixed is None else reading.quality(point.mixed),
        "again": _again(reading, point),
    }


def _numbers(reading: Reading) -> dict[str, list[float | None]]:
    """What the columns of figures are sorted by, for each point."""
    points = [reading.reference, reading.pick, *(p for way in reading.ways for p in way.points)]
    points += [reading.oracle] if reading.oracle else []
    return {p.gid: [p.quality, p.drop, p.cost, p.saved, p.mixed] for p in points}


def _again(reading: Reading, point: OperatingPoint) -> str:
    """The command that would consider a point: the same with a round, larger allowed drop."""
    made_by = reading.results.get("made_by") or {}
    command = str(made_by.get("command") or "pointsman compare DATA")
    command = re.sub(r"\s--max-drop[ =]\S+", "", command)
    # half as much again as the drop that was seen: a bound lies above what it bounds
    wanted = max(1.5 * point.drop, 1.5 * reading.max_drop, 1e-4)
    ten = 10.0 ** math.floor(math.log10(wanted))
    allowed = next(head * ten for head in (1, 2, 5, 10) if head * ten >= wanted * (1 - 1e-9))
    again = " --resume" if reading.searched and "--resume" not in command else ""
    return f"{command} --max-drop {min(allowed, 0.5):.4g}{again}"


def _certificate(reading: Reading) -> list[tuple[str, str]]:
    """The certificate's figures, named."""
    raw = reading.results["certificate"]
    rows = [
        ("Allowed drop", reading.allowed()),
        ("Confidence", reading.confidence),
        ("Drop seen on the calibration split", _drop(reading, raw.get("observed_drop"))),
        ("Drop that can be promised", _drop(reading, raw.get("promised_drop"))),
        ("Calibration inputs", _count(raw.get("inputs"))),
        ("Settings tested, from the safest on", _count(raw.get("tested"))),
        ("Settings accepted", _count(raw.get("accepted"))),
        ("p-value of the setting", p_value(raw.get("p_value"))),
        ("More inputs that would do, about", _count(raw.get("more_inputs") or None)),
    ]
    return [(name, text) for name, text in rows if text]


def _drop(reading: Reading, drop: float | None) -> str:
    return "" if drop is None else reading.allowed(float(drop)).replace("-", "−")


def _count(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def p_value(value: float | None) -> str:
    """A p-value with two digits that matter, or that it is below a ten-thousandth."""
    if value is None:
        return ""
    return "below 0.0001" if value < 1e-4 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _methods(reading: Reading) -> list[dict[str, Any]]:
    """The p-value of every method, and which one was fixed beforehand and so decides."""
    raw = reading.results["certificate"]
    level = 1 - float(reading.results["pick"]["confidence"])
    return [
        {
            "name": METHODS.get(name, name),
            "p": p_value(value),
            "enough": value <= level + 1e-12,
            "used": name == raw.get("method"),
        }
        for name, value in sorted((raw.get("by_method") or {}).items(), key=lambda pair: pair[1])
    ]


def _metrics(reading: Reading) -> dict[str, Any]:
    """One row a way of what sums up its frontier; columns that some way has."""
    keys = list(dict.fromkeys(key for way in reading.ways for key in way.metrics))
    heads = [METRICS.get(key, (key.replace("_", " ").capitalize(), "")) for key in keys]

    def words(key: str, value: Any) -> str:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return "–"
        return reading.cost(value) if key.startswith("cost") else figure(value)

    rows = [
        {"title": way.title, "cells": [words(key, way.metrics.get(key)) for key in keys]}
        for way in reading.ways
        if way.metrics
    ]
    return {"heads": heads, "rows": rows}


def _trained(reading: Reading) -> dict[str, Any]:
    """What was trained, one row a model, and the sums."""
    models = list(reading.results.get("trained") or ())
    titles = {way.name: way.title for way in reading.ways} | {"ladder": "Ladder"}
    rows = [
        {
            "name": model.get("name", ""),
            "way": titles.get(model.get("way"), model.get("way", "")),
            "cells": [
                _count(model.get("parameters")),
                _count(model.get("epochs")),
                figure(float(model.get("tflops") or 0)),
                figure(float(model.get("seconds") or 0)),
            ],
        }
        for model in models
    ]
    sums = [sum(float(model.get(key) or 0) for model in models) for key in ("tflops", "seconds")]
    return {"rows": rows, "sums": [figure(total) for total in sums]}


def _splits(reading: Reading) -> list[dict[str, Any]]:
    given = reading.results["data"]["inputs"]
    inputs = {name: count for name, count in given.items() if isinstance(count, int)}
    total = max(sum(inputs.values()), 1)
    return [
        {
            "name": name,
            "inputs": f"{count:,}",
            "share": f"{100 * count / total:.2f}",
            "purpose": SPLITS.get(name, ""),
        }
        for name, count in inputs.items()
    ]


def _shares(reading: Reading) -> list[dict[str, str]]:
    """Who answers how many inputs under the pick, largest first."""
    shares = reading.results["pick"].get("shares") or {}
    ranked = sorted(shares.items(), key=lambda pair: -pair[1])
    return [
        {"name": name, "words": share(value, fixed=True), "percent": f"{100 * value:.2f}"}
        for name, value in ranked
    ]


def _truth(truth: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What is known of the best routes, as shares: one row a share, groups named before it."""
    rows: list[tuple[str, str]] = []
    for key, value in (truth or {}).items():
        parts = value if isinstance(value, Mapping) else {"": value}
        for part, amount in parts.items():
            if isinstance(amount, float) and 0 <= amount <= 1:
                name = f"{key}, {part}" if part else key
                rows.append((name.replace("_", " "), share(amount, fixed=True)))
    return rows


def _scalars(part: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The plain entries of a mapping, named and in words."""
    return [
        (key.replace("_", " "), figure(value) if isinstance(value, float) else str(value))
        for key, value in (part or {}).items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
