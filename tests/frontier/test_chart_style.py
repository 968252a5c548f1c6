"""Colours that stay apart for every reader, and which of them a way has."""

import itertools

import numpy as np
import pytest
from results_example import features

from pointsman.frontier import style
from pointsman.frontier.reading import read

# what a person sees who lacks one kind of cone, in linear RGB (Machado, Oliveira, Fernandes 2009)
VISION = {
    "all cones": np.eye(3),
    "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.052]],
    "deutan": [[0.3673, 0.8606, -0.2279], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9690]],
    "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}  # fmt: skip


def test_known_ways_keep_their_colour_and_unknown_ones_get_a_free_one():
    first, second = features(), features()
    second["ways"] = [*second["ways"][2:], {**second["ways"][0], "name": "new kind"}]
    styles = [
        {way.name: style.way_style(way, ways) for way in ways}
        for ways in (read(first).ways, read(second).ways)
    ]
    assert all(styles[1][name] == styles[0][name] for name in ("exits", "nested", "moe"))
    assert styles[1]["new kind"] not in styles[0].values()


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_of_the_known_ways_stay_apart_for_every_kind_of_vision(mode):
    colours = [style.PALETTE[f"way-{number}"][mode] for number in style.FIXED_STYLE.values()]
    for name, cones in VISION.items():
        seen = [_lab(np.asarray(cones) @ _linear(colour)) for colour in colours]
        for one, two in itertools.combinations(range(len(seen)), 2):
            far = np.linalg.norm(seen[one] - seen[two])
            assert far > 12, (name, colours[one], colours[two])


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_every_colour_can_be_told_from_the_paper(mode):
    paper = _linear(style.PALETTE["paper"][mode]) @ [0.2126, 0.7152, 0.0722]
    for role, colours in style.PALETTE.items():
        light = _linear(colours[mode]) @ [0.2126, 0.7152, 0.0722]
        contrast = (max(light, paper) + 0.05) / (min(light, paper) + 0.05)
        least = {"ink": 7, "muted": 4.5}.get(role, 3)
        assert contrast >= least or role in ("paper", "grid", "band"), role


def _linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.asarray(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
