"""The chart: what is drawn, where, under which id, and that files appear whole."""

import copy
import itertools
import re
import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from results_example import VARIANTS, crowded, features, text, with_pick

from pointsman.errors import InputError
from pointsman.frontier import chart
from pointsman.frontier.reading import read


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def drawn(request: pytest.FixtureRequest) -> tuple[dict, Figure]:
    results = VARIANTS[request.param]()
    return results, chart.draw(results)


@pytest.fixture(scope="module")
def plain() -> Figure:
    return chart.draw(features())


def lines(figure: Figure) -> dict[str, Line2D]:
    return {line.get_gid(): line for line in figure.axes[0].lines if line.get_gid()}


def place(figure: Figure, gid: str) -> tuple[float, float]:
    ((x, y),) = lines(figure)[gid].get_xydata()
    return float(x), float(y)


def test_every_point_of_the_results_has_one_mark_with_its_id(drawn):
    results, figure = drawn
    reading = read(results)
    gids = [line.get_gid() for line in figure.axes[0].lines]
    marks = [gid for gid in gids if gid and gid.startswith("point-")]
    wanted = [point.gid for way in reading.ways for point in way.points]
    assert sorted(marks) == sorted([*wanted, "point-reference-0", "point-oracle-0"])


def test_ids_count_the_points_in_the_order_of_the_results_not_of_the_costs(plain):
    point = features()["ways"][1]["points"][3]
    x, y = place(plain, "point-cascade-3")
    np.testing.assert_allclose((x, y), (point["cost"] * 1000, point["quality"]))


def test_better_is_up_and_cheaper_is_left_for_a_metric_that_falls():
    axes = chart.draw(text()).axes[0]
    low, high = axes.get_ylim()
    assert low > high  # 2.4 bits per byte stand below 1.9
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] < axes.get_xlim()[1]


def test_lines_join_the_points_of_a_frontier_in_ascending_cost(drawn):
    results, figure = drawn
    for way in read(results).ways:
        if way.name == "dense":
            continue
        xs, ys = lines(figure)[f"way-{way.slug}"].get_data()
        assert len(xs) == len(way.frontier()) >= 2
        assert np.all(np.diff(xs) > 0)
        better = np.diff(ys) * (1 if read(results).percent else -1)
        assert np.all(better > 0)


def test_random_mixing_is_straight_in_cost_not_in_its_logarithm(plain):
    xs, ys = (np.asarray(part) for part in lines(plain)["mixing"].get_data())
    ladder = sorted((p["cost"] * 1000, p["quality"]) for p in features()["ladder"])
    costs, qualities = zip(*ladder, strict=True)
    np.testing.assert_allclose(ys, np.interp(xs, costs, qualities))
    assert len(xs) > 30 * (len(ladder) - 1)
    np.testing.assert_allclose((xs[0], xs[-1]), (costs[0], costs[-1]))


def test_the_height_shows_the_crowd_and_failed_points_stand_marked_at_the_lower_edge():
    results = crowded()
    figure = chart.draw(results)
    low, high = figure.axes[0].get_ylim()
    assert 0.88 < low < 0.94
    assert high < 1.0  # the oracle at 1.0 must not flatten the rest
    failed = [f"point-{way}-{i}" for way in ("cascade", "exits", "nested") for i in (10, 11)]
    for gid in failed:
        assert lines(figure)[gid].get_marker() == "v"
        assert place(figure, gid)[1] == pytest.approx(low)
    caption = chart.caption(read(results))
    assert "10 points (▾) lie below 92." in caption
    assert "cut off" in caption
    assert "cut off" not in chart.caption(read(_without_failures(results)))


def test_a_point_far_below_a_crowd_is_cut_off_even_if_it_is_no_failure():
    results = _without_failures(crowded())
    results["ways"][0]["points"][-1]["quality"] = 0.8
    assert chart.draw(results).axes[0].get_ylim()[0] > 0.88


def test_a_wide_spread_of_qualities_does_not_hide_the_allowed_drop():
    results = features()
    points = [point for way in results["ways"] for point in way["points"]]
    for index, point in enumerate(points):
        point["quality"] = 0.95 - 0.025 * index
    low, high = chart.draw(results).axes[0].get_ylim()
    assert high - low < 40 * results["pick"]["max_drop"]
    results["pick"]["max_drop"] = 0.1  # where much may be lost, more is shown
    assert chart.draw(results).axes[0].get_ylim()[0] < 0.3


def _without_failures(results: dict) -> dict:
    kept = copy.deepcopy(results)
    for way in kept["ways"]:
        way["points"] = [point for point in way["points"] if point["quality"] > 0.9]
    return kept


def test_the_pick_is_ringed_where_it_stands(drawn):
    results, figure = drawn
    x, y = place(figure, "pick-ring")
    assert (x, y) == place(figure, read(results).pick.gid)
    assert figure.axes[0].get_ylim()[0] != pytest.approx(y)


def test_the_label_of_the_pick_says_what_it_saves_and_whether_it_is_certified(drawn):
    results, figure = drawn
    (label,) = [t.get_text() for t in figure.texts if t.get_text().startswith("the pick")]
    certified = results["pick"]["certified"]
    assert label.endswith(",\n" + ("certified at 95\xa0%" if certified else "not certified"))
    saved = float(re.search(r"saves ([\d.]+)\xa0%", label)[1])
    assert saved == pytest.approx(100 * results["pick"]["saved"], abs=0.05)


@pytest.mark.parametrize("layout", ["full", "wide", "narrow"])
def test_no_text_overlaps_another_or_leaves_the_figure(drawn, layout):
    results, figure = drawn
    figure = figure if layout == "full" else chart.draw(results, layout=layout)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    axes = figure.axes[0]
    texts = list(figure.texts)
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        ticks = [tick for tick in axis.get_major_ticks() if tick.label1.get_text()]
        texts += [t.label1 for t in ticks if min(limits) <= t.get_loc() <= max(limits)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text()]
    assert len(boxes) > 10
    for name, box in boxes:
        inside = (box.x0 >= 0, box.y0 >= 0, box.x1 <= figure.bbox.x1, box.y1 <= figure.bbox.y1)
        assert all(inside), name
    for (name, one), (other, two) in itertools.combinations(boxes, 2):
        apart = one.x1 <= two.x0 or two.x1 <= one.x0 or one.y1 <= two.y0 or two.y1 <= one.y0
        assert apart, f"{name!r} overlaps {other!r}"


def test_saved_files_are_a_sharp_png_and_a_well_formed_svg_with_the_ids(tmp_path):
    png, svg = chart.save(features(), tmp_path / "new")
    assert [png.name, svg.name] == ["frontier.png", "frontier.svg"]
    header = png.read_bytes()[:24]
    assert header[:4] == b"\x89PNG"
    assert int.from_bytes(header[16:20], "big") == 1840  # 9.2 inches at twice 100 dots
    root = ET.fromstring(svg.read_text())
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert {"point-cascade-3", "point-reference-0", "point-oracle-0"} <= set(ids)
    assert not list(root.iter("{http://www.w3.org/2000/svg}text"))  # texts are paths
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["frontier.png", "frontier.svg"]


def test_the_same_results_give_the_same_bytes(plain):
    assert chart.to_svg(plain) == chart.to_svg(chart.draw(features()))


def test_drawing_touches_no_global_state_of_matplotlib():
    plots = "matplotlib.pyplot" in sys.modules
    with mpl.rc_context({"lines.linewidth": 7.0, "text.usetex": True, "figure.facecolor": "red"}):
        before = mpl.rcParams.copy()  # dict() would ask for the backend, which imports pyplot
        figure = chart.draw(features())
        assert mpl.rcParams.copy() == before
    assert lines(figure)["way-cascade"].get_linewidth() == 1.8
    assert not any(text.get_usetex() for text in figure.texts)
    assert plots or "matplotlib.pyplot" not in sys.modules


def test_names_that_look_like_mathematics_or_markup_are_drawn_as_they_are(tmp_path):
    results = features()
    results["reference"]["name"] = "a $x_{1$ <b>&\x1b[31m"
    results["ways"][1]["title"] = "$\\frac{1}{0$ --> <script>"
    results["data"]["name"] = "tab\tand\nline"
    _, svg = chart.save(results, tmp_path)
    ET.fromstring(svg.read_text())
    texts = [text.get_text() for text in chart.draw(results).texts]
    assert any("a $x_{1$ <b>&\ufffd[31m" in text for text in texts)


def test_a_cost_of_zero_stands_at_the_left_edge_because_a_log_axis_has_no_zero():
    results = features()
    results["ways"][1]["points"][7]["cost"] = 0.0
    figure = chart.draw(results)
    left, right = figure.axes[0].get_xlim()
    assert 0 < left < right
    assert place(figure, "point-cascade-7")[0] == pytest.approx(left)


def test_one_point_alone_is_drawn():
    alone = features() | {"random": {"points": []}, "oracle": None, "ladder": []}
    alone["ways"] = [{"name": "one", "title": "One", "points": [dict(features()["pick"])]}]
    figure = chart.draw(alone)
    assert {"point-one-0", "point-reference-0", "pick-ring"} <= set(lines(figure))
    assert "oracle" not in " ".join(text.get_text() for text in figure.texts)


def test_a_pick_that_is_no_point_of_a_way_gets_a_mark_of_its_own():
    figure = chart.draw(with_pick(features(), way="gone", knob="elsewhere"))
    assert place(figure, "point-pick-0") == place(figure, "pick-ring")


@pytest.mark.parametrize(("low", "high"), [(2.1, 210), (0.9, 1.6), (3, 3e6), (11, 14)])
def test_ticks_of_the_cost_axis_are_few_and_within_it(low, high):
    ticks = chart._round_ticks(low, high)
    assert 3 <= len(ticks) <= 10
    assert all(low <= tick <= high for tick in ticks)


def test_what_is_no_results_mapping_is_refused():
    with pytest.raises(InputError, match="pointsman-results"):
        chart.draw({"ways": []})
