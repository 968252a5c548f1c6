"""The chart of a telemetry: a heat map of loads, and bars of how far each layer is from even."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure

from pointsman.errors import InputError
from pointsman.frontier.style import colour_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pointsman.moe.telemetry import LayerReport

MOST_NUMBERS = 200  # cells of a heat map that numbers are written into
MOST = 4.0  # fair shares at the end of the colours


def draw(reports: "Sequence[LayerReport]") -> Figure:
    """Heat map of layers by experts in fair shares of the load, with bars of max/mean beside it.

    Raises:
        InputError: nothing was recorded.
    """
    if not any(sum(report.load) for report in reports):
        raise InputError("nothing was routed yet: a chart needs at least one recorded call")
    experts = max(len(report.load) for report in reports)
    width = min(15.0, 5.4 + 0.34 * experts)
    figure = Figure(figsize=(width, 1.7 + 0.36 * len(reports)), layout="constrained")
    figure.set_facecolor(colour_of("paper"))
    FigureCanvasAgg(figure)
    map_axes, bar_axes = figure.subplots(
        1, 2, sharey=True, gridspec_kw={"width_ratios": [width - 3.2, 2.2]}
    )
    _heat_map(figure, map_axes, reports, experts)
    _bars(bar_axes, reports)
    tokens = max(report.tokens for report in reports)
    figure.suptitle(
        f"Load of the experts over {tokens:,} tokens", x=0.01, ha="left",
        color=colour_of("ink"), fontsize=11, fontweight="bold",
    )  # fmt: skip
    return figure


def _heat_map(figure: Figure, axes: "Axes", reports: "Sequence[LayerReport]", experts: int) -> None:
    shares = np.full((len(reports), experts), np.nan)
    for row, report in enumerate(reports):
        pairs = max(sum(report.load), 1)
        shares[row, : len(report.load)] = np.array(report.load) * len(report.load) / pairs
    colours = LinearSegmentedColormap.from_list(
        "load", [colour_of("way-2"), colour_of("paper"), colour_of("way-1")]
    )
    axes.set_facecolor(colour_of("grid"))  # seen where a layer has fewer experts
    norm = TwoSlopeNorm(1.0, 0.0, MOST)
    drawn = axes.imshow(shares, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
    if shares.size <= MOST_NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            if np.isfinite(share):
                dark = share > 0.75 * MOST or share < 0.1
                colour = colour_of("paper") if dark else colour_of("ink")
                text = "dead" if share == 0 else f"{share:.1f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_yticks(range(len(reports)), [report.name for report in reports])
    step = max(1, experts // 16)
    axes.set_xticks(range(0, experts, step))
    axes.set_xlabel("expert")
    _plain(axes)
    bar = figure.colorbar(drawn, ax=axes, location="right", pad=0.015, extend="max")
    bar.set_label("load, in fair shares", color=colour_of("muted"), fontsize=8)
    bar.outline.set_visible(False)
    bar.set_ticks([0, 0.5, 1, 2, 3, MOST])
    bar.ax.tick_params(labelsize=7, color=colour_of("muted"), labelcolor=colour_of("muted"))


def _bars(axes: "Axes", reports: "Sequence[LayerReport]") -> None:
    ratios = [report.load_ratio for report in reports]
    axes.barh(range(len(reports)), ratios, color=colour_of("way-1"), height=0.62)
    axes.axvline(1, color=colour_of("muted"), linewidth=0.8, linestyle=":")
    for row, report in enumerate(reports):
        notes = [f"{report.load_ratio:.1f}"]
        if report.dead:
            notes.append(f"{len(report.dead)} dead")
        if report.dropped:
            notes.append(f"{report.dropped:,} dropped")
        axes.annotate(
            ", ".join(notes), (ratios[row], row), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=7.5, color=colour_of("ink"),
        )  # fmt: skip
    axes.set_xlim(0, max(2.0, *ratios) * 1.75)
    axes.set_xlabel("max/mean load (1 is even)")
    axes.tick_params(labelleft=False)
    _plain(axes)


def _plain(axes: "Axes") -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=colour_of("ink"))
    axes.xaxis.label.set(color=colour_of("muted"), fontsize=8)
