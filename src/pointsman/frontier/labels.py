"""Texts on the chart: written as they are, and labels put where they cover least.

A label tries places on rings around its point; what it would cover, how far it would stand and
whether it would leave the frame decide between them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from pointsman.frontier.reading import Reading
from pointsman.frontier.style import colour_of

Box = tuple[float, float, float, float]  # left, low, right, high, in pixels
Pixels = npt.NDArray[np.float64]  # one place (2,) or several (N, 2)


@dataclass(frozen=True)
class Label:
    """A text to be put near a point of the axes, in natural units."""

    text: str
    at: tuple[float, float] | None
    colour: str
    bold: bool = False


def put_text(
    figure: Figure, x: float, y: float, text: str, size: float, colour: str, *, bold: bool = False
) -> Text:
    """A text of the figure, from its upper left corner, never read as mathematics."""
    return figure.text(
        x, y, text, fontsize=size, color=colour_of(colour), va="top", linespacing=1.25,
        fontweight="bold" if bold else "normal", parse_math=False, zorder=8,
    )  # fmt: skip


def place(axes: Axes, reading: Reading, labels: Iterable[Label]) -> None:
    """Put each label where it covers least, with a thin line to its point where that is far.

    Positions are fractions of the figure, so that they hold at every resolution.
    """
    figure: Any = axes.figure
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
    solid = _obstacles(axes, pixel)
    boxes: list[Box] = []
    frame = np.asarray(axes.get_window_extent(renderer).extents, dtype=float)
    for label in labels:
        text = put_text(figure, 0, 0, label.text, 9, label.colour, bold=label.bold)
        extent = text.get_window_extent(renderer)
        size = (extent.width + 4 * pixel, extent.height + 3 * pixel)
        spots = _spots(axes, reading, label, size, pixel)
        box, anchor = min(spots, key=lambda at: _covered(at[0], at[1], solid, boxes, frame))
        boxes.append(box)
        corner = (box[0] + 2 * pixel, box[3] - 1.5 * pixel)
        text.set_position(figure.transFigure.inverted().transform(corner))
        solid = np.concatenate([solid, _leader(axes, anchor, box, pixel)])


def _spots(
    axes: Axes, reading: Reading, label: Label, size: tuple[float, float], pixel: float
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
    figure.add_artist(Line2D(xs, ys, color=colour_of("muted"), lw=0.8))
    return path
