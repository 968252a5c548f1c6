"""The colours and markers of the chart, and which of them a way has.

Colours: three of the colour-blind-safe set of Okabe and Ito (2008); the others were chosen to stay
apart from them under the three colour deficiencies as well. Every way has its own marker too.
"""

from collections.abc import Sequence

from pointsman.frontier.reading import Way

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


def way_style(way: Way, ways: Sequence[Way]) -> int:
    """The number of a way's colour and marker: fixed for known names, in turn for others."""
    if way.name in FIXED_STYLE:
        return FIXED_STYLE[way.name]
    names = [other.name for other in ways]
    taken = {style for name, style in FIXED_STYLE.items() if name in names}
    free = [style for style in range(len(MARKERS)) if style not in taken]
    free.sort(key=lambda style: style in FIXED_STYLE.values())  # those of known ways at last
    others = [name for name in names if name not in FIXED_STYLE]
    return free[others.index(way.name) % len(free)]


def colour_of(role: str) -> str:
    """The colour of a role in a drawing of its own: the light one."""
    return PALETTE[role][0]
