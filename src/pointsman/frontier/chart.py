"""The chart of a comparison: quality against cost per input, every way in one frame.

Better is up and cheaper is left. The height shows the region where the decision is made: points far
below it are cut off, marked at the lower edge and counted in the caption. Texts are drawn as paths,
so that the SVG looks the same everywhere. Every mark of a point carries an id,
`point-<way>-<index>` with the index in the results, for the report page to find.

Colours: three of the colour-blind-safe set of Okabe and Ito (2008); the others were chosen to stay
apart from them under the three colour deficiencies as well. Every way has its own marker too.
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pointsman.frontier.table import OperatingPoint, Reading, Results, Way, read, share

# role -> (light, dark): the page swaps one for the other
PALETTE = {
    "ink": ("#1a2230", "#e8ebf0"),
    "muted": ("#566173", "#a3adbd"),
    "grid": ("#e3e7ed", "#2c3440"),
    "paper": ("#ffffff", "#171b22"),
    "band": ("#f2ecd6", "#2f2c20"),
    "way-0": ("#4a5566", "#c9d1dd"),
    "way-1": ("#0072b2", "#4fb0ee"),
    "way-2": ("#d55e00", "#ff8b45"),
    "way-3": ("#009e73", "#2fcf9f"),
    "way-4": ("#7b2382", "#d070c8"),
    "way-5": ("#59330d", "#f2f06a"),
    "way-6": ("#f22457", "#a87b52"),
    "way-7": ("#a56b97", "#7089a6"),
    "way-8": ("#330d59", "#ff6b8b"),
}
MARKERS = ("o", "s", "^", "P", "X", "p", "h", "<", ">")
GLYPHS = ("●", "■", "▲", "✚", "✖\ufe0e", "⬟", "⬢", "◀", "▶")  # the same in running text
FIXED_STYLE = {"dense": 0, "cascade": 1, "exits": 2, "nested": 3, "moe": 4}
FONT = "DejaVu Sans"  # comes with matplotlib: the same on every machine
DPI = 100
Layout = Literal["full", "wide", "narrow"]
SIZES: dict[Layout, tuple[float, float]] = {  # inches
    "full": (9.2, 6.2), "wide": (8.0, 4.9), "narrow": (4.0, 4.6),
}  # fmt: skip
GROWN = {"P": 1.35, "X": 1.25, "^": 1.15, "p": 1.2, "h": 1.15}  # to look as large as the others
POINTS_PER_SEGMENT = 40

Box = tuple[float, float, float, float]  # left, low, right, high, in pixels
Pixels = npt.NDArray[np.float64]  # one place (2,) or several (N, 2)


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
        figure.set_facecolor(_colour("paper"))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        view = _view(reading)
        _frame(axes, reading, view)
        labels = _marks(axes, reading, view, brief=layout == "narrow")
        _around(figure, axes, reading, view, bare=layout != "full")
        _place(axes, reading, labels)
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
    return (
        replace_file(target / "frontier.png", png.getvalue()),
        replace_file(target / "frontier.svg", to_svg(figure).encode()),
    )


def to_svg(figure: Figure) -> str:
    """The SVG text of a drawn chart: texts as paths, the same bytes for the same results."""
    svg = io.StringIO()
    with _style():
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return svg.getvalue()


def way_style(way: Way, ways: Sequence[Way]) -> int:
    """The number of a way's colour and marker: fixed for known names, in turn for others."""
    if way.name in FIXED_STYLE:
        return FIXED_STYLE[way.name]
    others = [other.name for other in ways if other.name not in FIXED_STYLE]
    free = len(MARKERS) - len(FIXED_STYLE)
    return len(FIXED_STYLE) + others.index(way.name) % free


def replace_file(path: Path, content: bytes) -> Path:
    """Write a file beside its place and move it there, so that it is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


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
        spine.set_color(_colour("muted"))
        spine.set_linewidth(0.8)
    axes.grid(axis="y", color=_colour("grid"), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5, labelsize=9.5, labelcolor=_colour("muted"))
    axes.tick_params(axis="x", length=4, color=_colour("muted"))
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
        color=_colour("band"), linewidth=0, zorder=0.5, gid="band",
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


@dataclass(frozen=True)
class _Label:
    """A text to be put near a point of the axes, in natural units."""

    text: str
    at: tuple[float, float] | None
    colour: str
    bold: bool = False


def _marks(axes: Axes, reading: Reading, view: _View, *, brief: bool) -> list[_Label]:
    """Draw lines and marks; give the labels that are still to be placed among them."""
    _mixing(axes, reading)
    for way in reading.ways:
        _one_way(axes, reading, view, way)
    labels = []
    pick, reference, oracle = reading.pick, reading.reference, reading.oracle
    at = _at(reading, view, pick)
    axes.plot(*at, "o", ms=15, mfc="none", mec=_colour("ink"), mew=1.8, zorder=7, gid="pick-ring")
    if pick.gid == "point-pick-0":  # the pick is no point of any way: give it a mark of its own
        _mark(axes, pick, at, "o", _colour("ink"), 7)
    words = f"certified at {reading.confidence}" if reading.certified else "not certified"
    saves = f"saves {share(pick.saved)}" if pick.saved >= 0.0005 else "saves nothing"
    labels.append(_Label(f"the pick: {saves},\n{words}", at, "ink", bold=True))
    at = _at(reading, view, reference)
    _mark(axes, reference, at, "D", _colour("ink"), 9)
    name = "reference" if brief else f"reference: {_short(reference.knob, 30)}"
    labels.append(_Label(name, at, "ink"))
    if oracle:
        at = _at(reading, view, oracle)
        _mark(axes, oracle, at, "*", _colour("ink"), 13)
        beyond = "" if view.quality(oracle) == oracle.quality else " ↑"
        labels.insert(1, _Label(f"oracle {reading.quality(oracle.quality)}{beyond}", at, "muted"))
    between = ":\n" if brief else ": "
    labels.append(_Label(f"allowed drop{between}{reading.allowed()}", None, "muted"))
    return labels


def _at(reading: Reading, view: _View, point: OperatingPoint) -> tuple[float, float]:
    return view.cost(point) * reading.factor, reading.natural(view.quality(point))


def _mark(
    axes: Axes, point: OperatingPoint, at: tuple[float, float], marker: str, colour: str,
    size: float, alpha: float = 1.0,
) -> None:  # fmt: skip
    axes.plot(
        *at, marker, ms=size * GROWN.get(marker, 1.0), color=colour, alpha=alpha,
        mec=_colour("paper"), mew=0.8,
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
        color=_colour("muted"), zorder=2, gid="mixing",
    )  # fmt: skip


def _one_way(axes: Axes, reading: Reading, view: _View, way: Way) -> None:
    """A line through the points that nothing of the same way beats; faint marks for the others."""
    style = way_style(way, reading.ways)
    colour, marker = _colour(f"way-{style}"), MARKERS[style]
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
        _text(figure, left / width, bottom / height, "\n".join(lines), 8.5, "muted")
        bottom += 0.08
    upward = f"{reading.metric.capitalize()} on the test split ↑ better"
    _text(figure, left / width, top / height, upward, 9, "muted")
    across = f"Cost per {reading.per} ({reading.unit}, log scale) ← cheaper"
    _text(figure, left / width, (bottom + 0.17) / height, across, 9, "muted")
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
        _text(figure, left / width, top / height, "\n".join(lines), size, colour,
              bold=colour == "ink")  # fmt: skip
        top -= (len(lines) * size * 1.3 + 5) / 72
    return top - _legend(figure, reading, left / width, (top - 0.02) / height) - 0.14


def _legend(figure: Figure, reading: Reading, left: float, top: float) -> float:
    """Place the legend in as many columns as fit; its height in inches."""
    handles: list[Line2D] = []
    for way in reading.ways:
        style, mixed = way_style(way, reading.ways), len(reading.mixing) > 1
        handles.append(Line2D(
            [], [], color=_colour(f"way-{style}"), marker=MARKERS[style], ms=7,
            lw=0 if way.name == "dense" and mixed else 1.8,
            mec=_colour("paper"), mew=0.8, label=_short(way.title, 34),
        ))  # fmt: skip
    if len(reading.mixing) > 1:
        handles.append(Line2D([], [], color=_colour("muted"), lw=1.3, linestyle=(0, (5, 3)),
                              label="Ladder, mixed at random"))  # fmt: skip
    width = figure.get_size_inches()[0] * DPI
    for columns in range(min(len(handles), 4), 0, -1):
        legend = figure.legend(
            handles=handles, ncols=columns, loc="upper left", bbox_to_anchor=(left, top),
            frameon=False, fontsize=9.5, labelcolor=_colour("ink"), borderaxespad=0, borderpad=0,
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
    said.append("The oracle is the best possible choice per input, known only in hindsight.")
    return " ".join(said if reading.oracle else said[:-1])


def _place(axes: Axes, reading: Reading, labels: Iterable[_Label]) -> None:
    """Put each label where it covers least, with a thin line to its point where that is far.

    Positions are fractions of the figure, so that they hold at every resolution.
    """
    figure: Any = axes.figure
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
    solid = _obstacles(axes, pixel)
    boxes: list[Box] = []
    frame = np.asarray(axes.get_window_extent(renderer).extents, dtype=float)
    for label in labels:
        text = _text(figure, 0, 0, label.text, 9, label.colour, bold=label.bold)
        extent = text.get_window_extent(renderer)
        size = (extent.width + 4 * pixel, extent.height + 3 * pixel)
        spots = _spots(axes, reading, label, size, pixel)
        box, anchor = min(spots, key=lambda at: _covered(at[0], at[1], solid, boxes, frame))
        boxes.append(box)
        corner = (box[0] + 2 * pixel, box[3] - 1.5 * pixel)
        text.set_position(figure.transFigure.inverted().transform(corner))
        solid = np.concatenate([solid, _leader(axes, anchor, box, pixel)])


def _spots(
    axes: Axes, reading: Reading, label: _Label, size: tuple[float, float], pixel: float
) -> list[tuple[Box, Pixels]]:
    """Where a label may go, each place with the point of the chart that it speaks of."""
    if label.at:
        anchor = axes.transData.transform(label.at)
        return [(box, anchor) for box in _rings(anchor, size, pixel)]
    good = reading.reference.quality
    high = axes.transData.transform((1, reading.natural(good)))[1]
    low = axes.transData.transform((1, reading.natural(good - reading.max_drop)))[1]
    left, _, right, _ = axes.get_window_extent().extents
    spots: list[tuple[Box, Pixels]] = []
    for index, x in enumerate(np.linspace(left + 2, right - size[0] - 2, 41)):
        feet = [low, low - size[1]] if high - low >= size[1] else [low - size[1]]
        spots += [((x, y, x + size[0], y + size[1]), np.array([x, y])) for y in feet]
        if index % 10 == 0:
            foot = np.array([x + size[0] / 2, low])
            spots += [(box, foot) for box in _rings(foot, size, pixel)]
    return spots


def _obstacles(axes: Axes, pixel: float) -> Pixels:
    """What labels should not cover, as pixels (N, 2): marks weigh more than lines."""
    found = []
    for line in axes.lines:
        xy = axes.transData.transform(np.asarray(line.get_xydata()))
        if len(xy) == 1:
            ring = 5 * pixel * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
            found += [xy + ring, xy + ring / 2]
        for start, end in pairwise(xy):
            steps = max(int(np.hypot(*(end - start)) / (4 * pixel)), 1)
            found.append(start + (end - start) * np.linspace(0, 1, steps)[:, None])
    return np.concatenate(found)


def _rings(anchor: Pixels, size: tuple[float, float], pixel: float) -> list[Box]:
    """Boxes on rings around a point, each touching its ring with the side that faces the point."""
    boxes: list[Box] = []
    for radius in (11, 16, 24, 36, 52, 72, 96):
        for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
            way = np.array([np.cos(angle), np.sin(angle)])
            x, y = anchor + radius * pixel * way + (way - 1) / 2 * size
            boxes.append((x, y, x + size[0], y + size[1]))
    return boxes


def _covered(box: Box, anchor: Pixels, solid: Pixels, boxes: Sequence[Box], frame: Pixels) -> float:
    """How bad a place is: marks and lines covered, other labels, beyond the frame, far away."""
    left, low, right, high = box
    inside = (solid[:, 0] > left) & (solid[:, 0] < right) & (solid[:, 1] > low)
    bad = float(np.sum(inside & (solid[:, 1] < high)))
    end = np.clip(anchor, box[:2], box[2:])
    path = anchor + (end - anchor) * np.linspace(0, 1, 12)[:, None]
    for x0, y0, x1, y1 in boxes:
        bad += 200.0 * (left < x1 and x0 < right and low < y1 and y0 < high)
        bad += 50.0 * bool(np.any(np.all((path > (x0, y0)) & (path < (x1, y1)), axis=1)))
    beyond = max(frame[0] - left, right - frame[2], frame[1] - low, high - frame[3] - 12, 0.0)
    return bad + 10 * float(beyond) + 0.1 * float(np.hypot(*(end - anchor)))


def _leader(axes: Axes, anchor: Pixels, box: Box, pixel: float) -> Pixels:
    """A thin line from a far label to its point; the pixels (N, 2) that it covers."""
    way = np.clip(anchor, box[:2], box[2:]) - anchor
    length = float(np.hypot(*way))
    if length < 18 * pixel:
        return np.empty((0, 2))
    path = anchor + way * np.linspace(10 * pixel / length, 1, 12)[:, None]
    figure: Any = axes.figure
    xs, ys = figure.transFigure.inverted().transform(path[[0, -1]]).T
    figure.add_artist(Line2D(xs, ys, color=_colour("muted"), lw=0.8))
    return path


def _text(
    figure: Figure, x: float, y: float, text: str, size: float, colour: str, *, bold: bool = False
) -> Text:
    """A text of the figure, from its upper left corner, never read as mathematics."""
    return figure.text(
        x, y, text, fontsize=size, color=_colour(colour), va="top", linespacing=1.25,
        fontweight="bold" if bold else "normal", parse_math=False, zorder=8,
    )  # fmt: skip


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _colour(role: str) -> str:
    return PALETTE[role][0]


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's own defaults, whatever the user's settings are, and what makes files repeat."""
    with (
        matplotlib.style.context("default", after_reset=True),
        mpl.rc_context({"font.family": FONT, "svg.fonttype": "path", "svg.hashsalt": "pointsman"}),
    ):
        yield
