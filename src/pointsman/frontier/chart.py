"""The chart of a comparison: quality against cost per input, every way in one frame.

Better is up and cheaper is left. The height shows the region where the decision is made: points far
below it are cut off, marked at the lower edge and counted in the caption. Texts are drawn as paths,
so that the SVG looks the same everywhere. Every mark of a point carries an id,
`point-<way>-<index>` with the index in the results, for the report page to find.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import Literal

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pointsman.frontier.labels import Label, place, put_text
from pointsman.frontier.reading import OperatingPoint, Reading, Results, Way, read, share
from pointsman.frontier.style import MARKERS, colour_of, way_style
from pointsman.writing import write_atomically

FONT = "DejaVu Sans"  # comes with matplotlib: the same on every machine
DPI = 100
Layout = Literal["full", "wide", "narrow"]
SIZES: dict[Layout, tuple[float, float]] = {  # inches
    "full": (9.2, 6.2), "wide": (8.0, 4.9), "narrow": (4.0, 4.6),
}  # fmt: skip
GROWN = {"P": 1.35, "X": 1.25, "^": 1.15, "p": 1.2, "h": 1.15}  # to look as large as the others
POINTS_PER_SEGMENT = 40


def draw(results: Results, *, layout: Layout = "full") -> Figure:
    """Draw the chart of a comparison, without any window or global state.

    Args:
        results: what `pointsman compare` writes, schema version 1.
        layout: "full" stands alone; "wide" and "narrow" leave title, legend and caption to a page.

    Raises:
        InputError: not a results mapping, or a part of it is missing or no number.
    """
    reading = read(results)
    with _style():
        figure = Figure(figsize=SIZES[layout], dpi=DPI)
        figure.set_facecolor(colour_of("paper"))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        view = _view(reading)
        _frame(axes, reading, view)
        labels = _marks(axes, reading, view, brief=layout == "narrow")
        _around(figure, axes, reading, view, bare=layout != "full")
        place(axes, reading, labels)
    return figure


def save(results: Results, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write frontier.png (at twice the resolution of the screen) and frontier.svg into a folder.

    A file appears whole or not at all. The folder is made where it is missing.

    Args:
        results: what `pointsman compare` writes, schema version 1.
        folder: where the two files go.

    Returns:
        The paths of the PNG and of the SVG.

    Raises:
        InputError: as `draw`.
    """
    figure = draw(results)
    png = io.BytesIO()
    with _style():
        figure.savefig(png, format="png", dpi=2 * DPI, metadata={"Software": "pointsman"})
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    made = {"frontier.png": png.getvalue(), "frontier.svg": to_svg(figure).encode()}
    for name, content in made.items():
        write_atomically(target / name, content)
    return target / "frontier.png", target / "frontier.svg"


def to_svg(figure: Figure) -> str:
    """The SVG text of a drawn chart: texts as paths, the same bytes for the same results."""
    svg = io.StringIO()
    with _style():
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return svg.getvalue()


@dataclass(frozen=True)
class _View:
    """What the frame shows: quality from `low` to `high`, cost from `cheap` to `dear`."""

    low: float
    high: float
    cheap: float
    dear: float

    def shows(self, point: OperatingPoint) -> bool:
        return point.quality >= self.low

    def cost(self, point: OperatingPoint) -> float:
        """Where a point goes on the log axis; a cost of zero stands at the left edge."""
        return max(point.cost, self.cheap)

    def quality(self, point: OperatingPoint) -> float:
        """Where a point goes upright: cut-off points stand at the edge they are beyond."""
        return min(max(point.quality, self.low), self.high)


def _view(reading: Reading) -> _View:
    """The frame: all costs, and the qualities around which the decision is made.

    The lower edge is the lowest point that is not far below most others: not further below their
    lower quartile than twice the distance from there to the best, nor more than 25 allowed drops
    (or 0.1) below the best. So one failed setting does not flatten the rest.
    """
    points = [point for way in reading.ways for point in way.points]
    points += [reading.reference, reading.pick]
    quality = np.array([point.quality for point in points])
    top = float(quality.max())
    quarter = float(np.quantile(quality, 0.25))
    cut = max(quarter - 2 * (top - quarter), top - max(25 * reading.max_drop, 0.1))
    low = float(quality[quality >= cut].min())
    low = min(low, reading.pick.quality, reading.reference.quality - 2 * reading.max_drop)
    high, span = top, max(top - low, 1e-3)
    if reading.oracle and reading.oracle.quality - top < 0.2 * span:
        high = max(top, reading.oracle.quality)
    span = high - low
    cost = [point.cost for point in [*points, *([reading.oracle] if reading.oracle else [])]]
    cheap = min((c for c in cost if c > 0), default=1.0)
    dear = max([*cost, cheap * 1.5])
    room = (dear / cheap) ** 0.05
    return _View(low - 0.05 * span, high + 0.1 * span, cheap / room, dear * room)


def _frame(axes: Axes, reading: Reading, view: _View) -> None:
    """Axes in natural units, with better up, round ticks, and the band of the allowed drop."""
    axes.set_facecolor("none")
    axes.set_xscale("log")
    axes.set_xlim(view.cheap * reading.factor, view.dear * reading.factor)
    axes.set_ylim(reading.natural(view.low), reading.natural(view.high))
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colour_of("muted"))
        spine.set_linewidth(0.8)
    axes.grid(axis="y", color=colour_of("grid"), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5, labelsize=9.5, labelcolor=colour_of("muted"))
    axes.tick_params(axis="x", length=4, color=colour_of("muted"))
    ticks = _round_ticks(view.cheap * reading.factor, view.dear * reading.factor)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    if reading.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.6g}\xa0%"))
    allowed = reading.reference.quality - reading.max_drop
    axes.axhspan(
        reading.natural(allowed), reading.natural(reading.reference.quality),
        color=colour_of("band"), linewidth=0, zorder=0.5, gid="band",
    )  # fmt: skip


def _round_ticks(low: float, high: float) -> list[float]:
    """At least five round figures where there are some between two costs, for a log axis."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks: list[float] = []
    for heads in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [head * 10.0**decade for decade in decades for head in heads]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 5:
            return ticks
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


def _marks(axes: Axes, reading: Reading, view: _View, *, brief: bool) -> list[Label]:
    """Draw lines and marks; give the labels that are still to be placed among them."""
    _mixing(axes, reading)
    for way in reading.ways:
        _one_way(axes, reading, view, way)
    labels = []
    pick, reference, oracle = reading.pick, reading.reference, reading.oracle
    at = _at(reading, view, pick)
    axes.plot(*at, "o", ms=15, mfc="none", mec=colour_of("ink"), mew=1.8, zorder=7, gid="pick-ring")
    if pick.gid == "point-pick-0":  # the pick is no point of any way: give it a mark of its own
        _mark(axes, pick, at, "o", colour_of("ink"), 7)
    words = f"certified at {reading.confidence}" if reading.certified else "not certified"
    saves = f"saves {share(pick.saved)}" if pick.saved >= 0.0005 else "saves nothing"
    labels.append(Label(f"the pick: {saves},\n{words}", at, "ink", bold=True))
    at = _at(reading, view, reference)
    _mark(axes, reference, at, "D", colour_of("ink"), 9)
    name = "reference" if brief else f"reference: {_short(reference.knob, 30)}"
    labels.append(Label(name, at, "ink"))
    if oracle:
        at = _at(reading, view, oracle)
        _mark(axes, oracle, at, "*", colour_of("ink"), 13)
        beyond = "" if view.quality(oracle) == oracle.quality else " ↑"
        labels.insert(1, Label(f"oracle {reading.quality(oracle.quality)}{beyond}", at, "muted"))
    between = ":\n" if brief else ": "
    labels.append(Label(f"allowed drop{between}{reading.allowed()}", None, "muted"))
    return labels


def _at(reading: Reading, view: _View, point: OperatingPoint) -> tuple[float, float]:
    return view.cost(point) * reading.factor, reading.natural(view.quality(point))


def _mark(
    axes: Axes, point: OperatingPoint, at: tuple[float, float], marker: str, colour: str,
    size: float, alpha: float = 1.0,
) -> None:  # fmt: skip
    axes.plot(
        *at, marker, ms=size * GROWN.get(marker, 1.0), color=colour, alpha=alpha,
        mec=colour_of("paper"), mew=0.8,
        gid=point.gid, zorder=6 if alpha == 1 else 4, clip_on=False,
    )  # fmt: skip


def _mixing(axes: Axes, reading: Reading) -> None:
    """Straight lines in cost between the members that random mixing uses: curves on a log axis."""
    costs = [cost for cost, _ in reading.mixing if cost > 0]
    if len(costs) < 2:
        return
    dense = np.unique(np.concatenate([
        np.geomspace(low, high, POINTS_PER_SEGMENT)
        for low, high in pairwise(costs)
    ]))  # fmt: skip
    dense = np.clip(dense, costs[0], costs[-1])  # geomspace may miss its ends by a rounding
    heights = [reading.natural(reading.mixed(cost) or 0.0) for cost in dense]
    axes.plot(
        dense * reading.factor, heights, linestyle=(0, (5, 3)), linewidth=1.3,
        color=colour_of("muted"), zorder=2, gid="mixing",
    )  # fmt: skip


def _one_way(axes: Axes, reading: Reading, view: _View, way: Way) -> None:
    """A line through the points that nothing of the same way beats; faint marks for the others."""
    style = way_style(way, reading.ways)
    colour, marker = colour_of(f"way-{style}"), MARKERS[style]
    # what the ladder reaches between its members is the dashed line of mixing, drawn already
    line = way.frontier() if way.name != "dense" or len(reading.mixing) < 2 else []
    xs = [view.cost(point) * reading.factor for point in line]
    ys = [reading.natural(point.quality) for point in line]
    axes.plot(xs, ys, color=colour, linewidth=1.8, zorder=3, gid=f"way-{way.slug}",
              solid_joinstyle="round")  # fmt: skip
    for point in way.points:
        at = _at(reading, view, point)
        if not view.shows(point):
            _mark(axes, point, at, "v", colour, 6)
        elif point.on_frontier or point.picked:
            _mark(axes, point, at, marker, colour, 7)
        else:
            _mark(axes, point, at, marker, colour, 5, alpha=0.45)


def _around(figure: Figure, axes: Axes, reading: Reading, view: _View, *, bare: bool) -> None:
    """Title, legend and caption around the axes, each given the height that it needs."""
    width, height = figure.get_size_inches()
    left, right = (0.04, width - 0.1) if bare else (0.2, width - 0.2)
    top, bottom = height - (0.06 if bare else 0.16), 0.06 if bare else 0.16
    if not bare:
        top = _heading(figure, reading, left, top)
        lines = wrap(caption(reading, view), int((right - left) * 72 / 4.9))
        bottom += len(lines) * 8.5 * 1.35 / 72
        put_text(figure, left / width, bottom / height, "\n".join(lines), 8.5, "muted")
        bottom += 0.08
    upward = f"{reading.metric.capitalize()} on the test split ↑ better"
    put_text(figure, left / width, top / height, upward, 9, "muted")
    across = f"Cost per {reading.per} ({reading.unit}, log scale) ← cheaper"
    put_text(figure, left / width, (bottom + 0.17) / height, across, 9, "muted")
    top, bottom, start = top - 0.3, bottom + 0.52, left + 0.46
    axes.set_position((start / width, bottom / height, (right - start) / width,
                       (top - bottom) / height))  # fmt: skip


def _heading(figure: Figure, reading: Reading, left: float, top: float) -> float:
    """Title, what was picked, and the legend; where the next thing may begin, in inches."""
    width, height = figure.get_size_inches()
    pick, reference = reading.pick, _short(reading.reference.knob, 40)
    title = f"The pick saves {share(pick.saved)} of the cost of {reference}"
    title = title if pick.saved >= 0.0005 else f"The pick saves nothing against {reference}"
    title += "" if reading.certified else ", not certified"
    under = f"{pick.title} · {pick.knob} · {reading.results['data']['name']}"
    for text, size, colour in ((title, 13.5, "ink"), (under, 9.5, "muted")):
        lines = wrap(text, int((width - 2 * left) * 72 / (0.64 * size)))[:2]
        put_text(figure, left / width, top / height, "\n".join(lines), size, colour,
              bold=colour == "ink")  # fmt: skip
        top -= (len(lines) * size * 1.3 + 5) / 72
    return top - _legend(figure, reading, left / width, (top - 0.02) / height) - 0.14


def _legend(figure: Figure, reading: Reading, left: float, top: float) -> float:
    """Place the legend in as many columns as fit; its height in inches."""
    handles: list[Line2D] = []
    for way in reading.ways:
        style, mixed = way_style(way, reading.ways), len(reading.mixing) > 1
        handles.append(Line2D(
            [], [], color=colour_of(f"way-{style}"), marker=MARKERS[style], ms=7,
            lw=0 if way.name == "dense" and mixed else 1.8,
            mec=colour_of("paper"), mew=0.8, label=_short(way.title, 34),
        ))  # fmt: skip
    if len(reading.mixing) > 1:
        label = f"{reading.members.capitalize()}, mixed at random"
        handles.append(Line2D([], [], color=colour_of("muted"), lw=1.3, linestyle=(0, (5, 3)),
                              label=label))  # fmt: skip
    width = figure.get_size_inches()[0] * DPI
    for columns in range(min(len(handles), 4), 0, -1):
        legend = figure.legend(
            handles=handles, ncols=columns, loc="upper left", bbox_to_anchor=(left, top),
            frameon=False, fontsize=9.5, labelcolor=colour_of("ink"), borderaxespad=0, borderpad=0,
            handlelength=2.2, columnspacing=1.6, labelspacing=0.45,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
        box = legend.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
        if box.width <= width - 30 or columns == 1:
            break
        legend.remove()
    return float(box.height) / DPI


def caption(reading: Reading, view: _View | None = None) -> str:
    """How to read the marks, and how many points are cut off."""
    view = view or _view(reading)
    points = [point for way in reading.ways for point in way.points]
    hidden = [point for point in points if not view.shows(point)]
    said = ["Lines join the points that no other setting of the same way beats"]
    said[0] += "; faint marks are beaten." if any(not p.on_frontier for p in points) else "."
    if hidden:
        count = "1 point" if len(hidden) == 1 else f"{len(hidden)} points"
        verb = "lies" if len(hidden) == 1 else "lie"
        said.append(f"{count} (▾) {verb} below {reading.quality(view.low)}, cut off.")
    best = "subnet" if reading.searched else "plain network"
    best = "model for each query" if reading.routes_queries else f"{best} for each input"
    said.append(f"The oracle takes the best {best}, known only in hindsight.")
    return " ".join(said if reading.oracle else said[:-1])


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's own defaults, whatever the user's settings are, and what makes files repeat."""
    with (
        matplotlib.style.context("default", after_reset=True),
        mpl.rc_context({"font.family": FONT, "svg.fonttype": "path", "svg.hashsalt": "pointsman"}),
    ):
        yield
