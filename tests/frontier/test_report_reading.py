"""Figures in words, and the reading of a results mapping."""

import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_example import VARIANTS, crowded, features, text, with_pick

from pointsman.errors import InputError
from pointsman.frontier.reading import cheapest_within, figure, read, share, worth_showing

# --- figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0024, "0.00240"), (25.34, "25.3"), (176, "176"), (999.9, "1,000"), (1239, "1,240"),
     (0, "0"), (-3.456, "−3.46"), (1e6, "1,000,000"), (0.09996, "0.100")],
)  # fmt: skip
def test_figures_have_three_significant_digits(value, words):
    assert figure(value) == words


@given(st.floats(1e-6, 1e9))
def test_figures_are_within_half_a_digit_of_their_value(value):
    words = figure(value)
    assert float(words.replace(",", "")) == pytest.approx(value, rel=0.00501)
    assert "e" not in words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.8562, "85.6"), (0.95, "95"), (1.0, "100"), (0.99996, "99.99"), (0.9996, "99.96"),
     (0.0, "0"), (-0.0001, "0"), (-0.028, "−2.8"), (1.0004, "100"), (-12.5, "−1,250")],
)  # fmt: skip
def test_shares_are_percentages_that_never_claim_all(value, words):
    assert share(value) == f"{words}\xa0%"


def test_shares_in_columns_keep_their_tenth():
    assert share(0.95, fixed=True) == "95.0\xa0%"


@given(st.floats(0, 1))
def test_only_all_is_a_hundred_percent(value):
    if not math.isclose(value, 1.0, abs_tol=1e-11):
        assert share(value) != "100\xa0%"


@pytest.mark.parametrize(
    ("unit", "reference", "least", "words"),
    [
        ("MFLOPs", 0.176, 0.0024, "176\xa0kFLOPs"),
        ("MFLOPs", 1240.0, 310.0, "1.24\xa0GFLOPs"),
        ("MFLOPs", 1240.0, 3.0, "1,240\xa0MFLOPs"),  # the least would read 0.003 GFLOPs
        ("MFLOPs", 1.0, 0.5, "1.00\xa0MFLOPs"),
        ("ms", 0.012, 0.004, "12.0\xa0µs"),
        ("ms", 2300.0, 900.0, "2.30\xa0s"),
        ("US$", 0.0123, 0.0001, "0.0123\xa0US$"),
        ("FLOPs", 0.5, 0.1, "0.500\xa0FLOPs"),
    ],
)
def test_all_costs_are_shown_in_the_one_unit_that_reads_best(unit, reference, least, words):
    results = with_pick(features(), cost=reference)
    results |= {"random": {"points": []}, "oracle": None, "ladder": []}
    results["reference"] |= {"cost": reference, "unit": unit}
    point = {"knob": "a", "quality": 0.9, "cost": least}
    results["ways"] = [{"name": "one", "title": "One", "points": [point]}]
    assert read(results).cost(reference) == words


def test_qualities_and_drops_follow_the_metric():
    accuracy, bits = read(features()), read(text())
    assert accuracy.quality(0.9755) == "97.5\xa0%"
    assert accuracy.drop(0.0022) == "0.22"
    assert accuracy.drop(-0.0022) == "−0.22"
    assert accuracy.drop(-1e-9) == "0.00"
    assert accuracy.allowed() == "1 percentage point"
    assert accuracy.allowed(0.025) == "2.5 percentage points"
    assert bits.quality(1 - 1.93 / 8) == "1.93"
    assert bits.drop(0.01) == "0.080"
    assert bits.allowed() == "0.08 bits per byte"
    assert bits.natural(0.0) == 8.0


# --- reading ------------------------------------------------------------------------------------


def test_the_frontier_of_a_way_is_what_no_other_of_its_settings_beats():
    for make in VARIANTS.values():
        for way in read(make()).ways:
            for point in way.points:
                beaten = any(
                    other.cost <= point.cost
                    and other.quality >= point.quality
                    and (other.cost < point.cost or other.quality > point.quality)
                    for other in way.points
                )
                assert point.on_frontier == (not beaten), point


def test_of_two_equal_points_one_is_on_the_frontier():
    results = features()
    results["ways"][1]["points"] = [
        {"knob": "a", "quality": 0.9, "cost": 0.1},
        {"knob": "b", "quality": 0.9, "cost": 0.1},
    ]
    assert [p.on_frontier for p in read(results).ways[1].points] == [True, False]


def test_points_carry_what_they_save_drop_and_what_mixing_reaches():
    reading = read(features())
    pick = reading.pick
    assert pick.gid == "point-cascade-3"
    assert pick.saved == pytest.approx(1 - 0.0253 / 0.176)
    assert pick.drop == pytest.approx(0.9755 - 0.9733)
    between = 0.962 + (0.0253 - 0.0176) / (0.0381 - 0.0176) * (0.971 - 0.962)
    assert pick.mixed == pytest.approx(between)
    assert reading.mixed(0.001) is None  # cheaper than the cheapest member
    assert reading.mixed(9.0) == pytest.approx(0.9755)


def test_mixing_reaches_what_the_cheapest_member_is_even_if_its_cost_came_rounded():
    results = features()
    results["ways"][0]["points"][0]["cost"] *= 1 - 1e-7
    assert read(results).ways[0].points[0].mixed == pytest.approx(0.942)


def test_ways_with_names_that_look_alike_get_ids_of_their_own():
    results = features()
    names = ["a b", "a_b", "a-b", "reference", "§"]
    for way, name in zip(results["ways"], names, strict=True):
        way["name"] = name
    slugs = [way.slug for way in read(results | {"ladder": []}).ways]
    assert slugs == ["a_b", "a_b_2", "a_b_3", "reference_2", "way"]


def test_the_ladder_is_shown_once():
    assert [way.name for way in read(features()).ways].count("dense") == 1
    assert read(crowded()).ways[0].title == "Ladder alone"


def test_nothing_is_said_to_be_saved_by_a_pick_as_dear_as_the_reference():
    results = with_pick(features(), way="dense", knob="mlp 256-256", cost=0.176, saved=0.0)
    assert "saves nothing against mlp 256-256" in read(results).headline()


def test_reading_does_not_change_the_results():
    results = features()
    before = copy.deepcopy(results)
    read(results)
    assert results == before


def test_at_most_five_points_of_a_way_are_shown_and_always_the_ones_that_matter():
    for make in VARIANTS.values():
        reading = read(make())
        for way in reading.ways:
            points = worth_showing(way, reading.max_drop)
            assert len(points) <= 5
            assert points == sorted(points, key=lambda point: point.cost)
            must = [p for p in way.points if p.picked] + [way.frontier()[0], way.frontier()[-1]]
            within = cheapest_within(way, reading.max_drop)
            assert not [p for p in [*must, *([within] if within else [])] if p not in points]


def _break(path: str, value: object) -> dict:
    results = features()
    *outer, last = path.split(".")
    part = results
    for key in outer:
        part = part[int(key) if key.isdigit() else key]
    if value is KeyError:
        del part[last]
    else:
        part[last] = value
    return results


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("schema", KeyError, "got None"),
        ("schema.version", 2, r"\('pointsman-results', 2\)"),
        ("pick.certified", KeyError, "pick.certified"),
        ("reference", None, "reference.name"),
        ("ways", [], "at least one way"),
        ("ways.1.points", KeyError, r"ways\[1\]\.points"),
        ("ways.1.points.2.cost", -1.0, "zero or more, got -1.0"),
        ("ways.1.points.2.quality", "high", "quality of mlp 16 > .*got 'high'"),
        ("oracle.cost", math.inf, "cost of the oracle"),
        ("pick.max_drop", None, "max_drop"),
        ("random.points.0.quality", True, "got True"),
    ],
)
def test_broken_results_are_refused_by_the_name_of_the_part(path, value, words):
    with pytest.raises(InputError, match=words) as caught:
        read(_break(path, value))
    assert "\n" not in str(caught.value)


def test_what_is_no_mapping_is_refused():
    with pytest.raises(InputError, match="must be a mapping"):
        read([])  # type: ignore[arg-type]
