"""Whole comparisons, on small data and with few epochs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pointsman.compare import Dataset, Part, Request, compare, load, load_policy
from pointsman.compare.builtin import known_routes
from pointsman.compare.data import split
from pointsman.errors import InputError, PointsmanError
from pointsman.frontier import Outcomes, Pick, certify

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def table(make_table: Callable[..., Any], tmp_path: Path) -> Dataset:
    make_table().to_csv(tmp_path / "table.csv", index=False)
    return load(str(tmp_path / "table.csv"))


def image_set(make_images: Callable[..., Any], **shape: Any) -> Dataset:
    x, y = make_images(**shape)
    x = x if x.ndim == 4 else x[..., None]
    return Dataset("pictures", "images", {"train": Part(x, y)}, ("a", "b", "c"))


def text_set() -> Dataset:
    rng = np.random.default_rng(0)
    parts = {}
    for name, rows in (("train", 120), ("validation", 30), ("calibration", 40), ("test", 40)):
        starts = rng.integers(0, 26, size=(rows, 1))
        x = (97 + (starts + np.arange(17)) % 26).astype(np.uint8)
        parts[name] = Part(x, np.zeros(rows, np.int64))
    return Dataset("letters", "text", parts, stratify=False)


def always_picking(way: str) -> Callable[..., Pick]:
    """`certify`, but of one setting: of this way, and of several stages where it has such."""

    def pick(outcomes: Outcomes, max_drop: float, confidence: float, _: object) -> Pick:
        own = [str(knob) for knob in outcomes.knobs if str(knob).startswith(f"{way}: ")]
        chosen = max(own, key=lambda knob: knob.count(" > "))
        return certify(outcomes, max_drop, confidence, [chosen])

    return pick


@pytest.mark.parametrize("way", ["dense", "cascade", "exits", "skips", "nested", "moe"])
@pytest.mark.parametrize("kind", ["features", "images"])
def test_a_policy_does_what_its_results_say(
    kind: str,
    way: str,
    table: Dataset,
    make_images: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pointsman.compare.run.certify", always_picking(way))
    data = table if kind == "features" else image_set(make_images, side=14, channels=3)
    ways = ("cascade",) if way == "dense" else (way,)
    found = compare(data, Request(ways=ways), tmp_path / "out")
    policy = load_policy(tmp_path / "out" / "policy")
    test = split(data, seed=0)["test"]
    answers = policy.predict(test.x)
    pick = found["pick"]
    assert pick["way"] == policy.way == way
    assert np.mean(answers.classes == test.y) == pytest.approx(pick["quality"], abs=1e-12)
    assert float(answers.cost.mean()) == pytest.approx(pick["cost"], rel=1e-12)
    shares = np.bincount(answers.stage, minlength=len(policy.stage_names)) / len(test)
    told = [pick["shares"].get(name, 0.0) for name in policy.stage_names]
    np.testing.assert_allclose(told, shares, atol=5e-5)


@pytest.mark.parametrize("way", ["dense", "cascade", "exits", "skips", "nested", "moe", "relu-moe"])
def test_a_text_policy_says_which_byte_follows(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.compare.run.certify", always_picking(way))
    data = text_set()
    ways = {"dense": ("cascade",), "relu-moe": ("moe",)}.get(way, (way,))
    found = compare(data, Request(ways=ways), tmp_path / "out")
    policy = load_policy(tmp_path / "out" / "policy")
    x = data.given["test"].x
    answers = policy.predict(x)
    assert found["metric"] == {
        "name": "bits per byte", "worst": 8.0, "best": 0.0, "higher_is_better": False,
    }  # fmt: skip
    assert found["pick"]["way"] == policy.way == way
    assert float(answers.cost.mean()) == pytest.approx(found["pick"]["cost"], rel=1e-12)
    with torch.no_grad():  # the byte that is not read changes nothing
        blind = policy.predict(np.column_stack([x[:, :-1], np.zeros(len(x), np.uint8)]))
    np.testing.assert_array_equal(blind.classes, answers.classes)
    assert ((answers.classes >= 97) & (answers.classes < 123)).mean() > 0.9


class Cut:
    """Progress that cuts the run off, after so many reports of finished work."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.begun: list[str] = []

    def plan(self, total: float) -> None:
        pass

    def begin(self, name: str) -> None:
        self.begun.append(name)

    def advance(self, work: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def timeless(found: dict[str, Any]) -> dict[str, Any]:
    """Results without what no two runs share."""
    found = json.loads(json.dumps(found))
    for key in ("seconds", "date"):
        del found["made_by"][key]
    for key in ("measured_ms", "reference_ms"):
        del found["pick"][key]
    for one in found["trained"]:
        del one["seconds"]
    return found


@pytest.mark.parametrize("after", [3, 9, 16])
def test_a_run_cut_off_goes_on_to_the_same_results(
    after: int, table: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.compare.training.SECONDS_BETWEEN_SAVES", -1.0)
    request = Request(max_drop=0.1)
    whole = compare(table, request, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compare(table, request, tmp_path / "cut", progress=Cut(after))
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["unfinished"]
    resumed = compare(table, request, tmp_path / "cut", resume=True)
    assert timeless(resumed) == timeless(whole)
    for name in ("policy.json", "weights.safetensors"):
        one, other = (tmp_path / run / "policy" / name for run in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()
    assert not (tmp_path / "cut" / "unfinished").exists()


def test_a_run_depends_on_its_seed_alone(table: Dataset, tmp_path: Path) -> None:
    first, again, other = (
        timeless(compare(table, Request(ways=("moe",), seed=seed), tmp_path / f"out{at}"))
        for at, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert first["ways"] != other["ways"]


def test_a_second_run_replaces_the_results_of_the_first(table: Dataset, tmp_path: Path) -> None:
    compare(table, Request(ways=("moe",)), tmp_path / "out")
    found = compare(table, Request(ways=("exits",), seed=1), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["made_by"]["seed"] == 1
    assert [way["name"] for way in found["ways"]] == ["dense", "exits"]


def test_costs_may_be_times(table: Dataset, tmp_path: Path) -> None:
    found = compare(table, Request(cost="latency"), tmp_path / "out")
    assert found["reference"]["unit"] == "ms"
    assert all(0 < point["cost"] < 1_000 for way in found["ways"] for point in way["points"])
    policy = load_policy(tmp_path / "out" / "policy")
    answers = policy.predict(split(table, seed=0)["test"].x)
    assert answers.cost.unit == "ms"
    assert float(answers.cost.mean()) == pytest.approx(found["pick"]["cost"])


@pytest.mark.parametrize("way", ["exits", "skips", "nested", "moe", "cascade"])
def test_one_way_may_be_tried_alone(way: str, table: Dataset, tmp_path: Path) -> None:
    found = compare(table, Request(ways=(way,)), tmp_path / "out")
    assert [one["name"] for one in found["ways"]] == ["dense", way]
    trained = [one["name"] for one in found["trained"] if one["way"] != "ladder"]
    assert trained == ([] if way == "cascade" else [way])


def test_a_given_test_part_is_tested_on_as_it_is(make_table: Any, tmp_path: Path) -> None:
    frame = make_table(rows=360)
    x, y = frame.drop(columns="label").to_numpy(np.float32), frame["label"].to_numpy(np.int64)
    parts = {"train": Part(x[:300], y[:300]), "test": Part(x[300:], y[300:])}
    data = Dataset("given", "features", parts, ("0", "1", "2"))
    found = compare(data, Request(), tmp_path / "out")
    answers = load_policy(tmp_path / "out" / "policy").predict(x[300:])
    assert found["data"]["inputs"]["test"] == 60
    assert found["pick"]["quality"] == pytest.approx(np.mean(answers.classes == y[300:]))


def test_known_routes_tell_what_was_sent_on(tmp_path: Path) -> None:
    found = compare(known_routes(rows=600), Request(), tmp_path / "out")
    assert set(found["truth"]["sent_on"]) == {"easy", "hard"}


def extreme(name: str) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows, features, classes = {"wide": (120, 5_000, 2), "many": (1_600, 3, 200)}.get(
        name, (240, 4, 2)
    )
    y = np.arange(rows) % classes
    x = rng.normal(size=(rows, features)) + (y % 2)[:, None]
    if name == "constant":
        x[:, 1] = 7.5
    if name == "all constant":
        x[:] = 1.0
    x = x * {"huge": 1e30, "tiny": 1e-20}.get(name, 1.0)
    frame = pd.DataFrame(x[:, :2] if name == "two" else x)
    frame.columns = [f"f{i}" for i in frame.columns]
    return frame.assign(label=y)


@pytest.mark.parametrize(
    "name", ["constant", "all constant", "huge", "tiny", "two", "wide", "many"]
)
def test_unusual_tables_are_compared(name: str, tmp_path: Path) -> None:
    extreme(name).to_csv(tmp_path / "t.csv", index=False)
    found = compare(load(str(tmp_path / "t.csv")), Request(ways=("cascade", "moe")), tmp_path / "o")
    qualities = [point["quality"] for way in found["ways"] for point in way["points"]]
    assert all(0 <= quality <= 1 for quality in qualities)
    if name in ("constant", "huge", "tiny", "two"):
        assert max(qualities) > 0.7


def test_values_at_the_end_of_the_range_are_named(tmp_path: Path) -> None:
    x = np.random.default_rng(0).choice([-3e38, 3e38], size=(200, 3)).astype(np.float32)
    data = Dataset("ends", "features", {"train": Part(x, np.arange(200) % 2)}, ("a", "b"))
    with pytest.raises(PointsmanError, match=r"diverged .*look for extreme values"):
        compare(data, Request(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("side", "channels"), [(1, 1), (4, 3), (8, 0), (14, 4)])
def test_small_images_are_compared(
    side: int, channels: int, make_images: Any, tmp_path: Path
) -> None:
    data = image_set(make_images, side=side, channels=channels)
    found = compare(data, Request(), tmp_path / "out")
    assert [way["name"] for way in found["ways"]] == [
        "dense",
        "exits",
        "cascade",
        "skips",
        "moe",
        "nested",
    ]


def test_what_cannot_be_compared_leaves_nothing_behind(tmp_path: Path) -> None:
    x, y = np.zeros((300, 2), np.float32), np.zeros(300, np.int64)
    one_class = Dataset("one", "features", {"train": Part(x, y)}, ("a",))
    few = Dataset("few", "features", {"train": Part(x[:10], y[:10])}, ("a",))
    for data in (one_class, few):
        with pytest.raises(InputError):
            compare(data, Request(), tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["policy", "report.html", "frontier.png", "results.json"])
def test_what_others_wrote_is_not_replaced(name: str, table: Dataset, tmp_path: Path) -> None:
    mine = tmp_path / "out" / name
    if name == "policy":
        mine.mkdir(parents=True)
        mine = mine / "terms.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(InputError, match=rf"{name} is there and was not written by pointsman"):
        compare(table, Request(), tmp_path / "out")
    assert mine.read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("removed", ["unfinished", "."])
def test_a_folder_removed_meanwhile_is_an_error(
    removed: str, table: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Remove(Cut):
        def begin(self, name: str) -> None:
            if name == "training mlp 24":
                shutil.rmtree(tmp_path / "out" / removed)

    with pytest.raises(InputError, match=r"was its folder removed"):
        compare(table, Request(), tmp_path / "out", progress=Remove(0))
    assert not (tmp_path / "out" / "results.json").exists()
    compare(table, Request(ways=("cascade",)), tmp_path / "out")


def test_the_number_of_threads_is_the_callers_again(table: Dataset, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    compare(table, Request(ways=("cascade",)), tmp_path / "out")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("change", "what"),
    [
        *(({"max_drop": drop}, "--max-drop lies between 0 and 1") for drop in (0, 1, -1, np.nan)),
        *(({"confidence": sure}, "--confidence lies between 0 and 1") for sure in (0, 1, 1.5)),
        *(({"seed": seed}, "--seed is a whole number from 0 to") for seed in (-1, 2**32)),
        ({"cost": "euros"}, "--cost is one of flops, latency, got 'euros'"),
        ({"ways": ("exits", "magic")}, "--ways takes one or more of .* got 'magic'"),
        ({"ways": ()}, "--ways takes one or more of .* got none"),
        ({"ways": ("moe", "moe")}, "takes every way once, got moe,moe"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    change: dict[str, Any], what: str, table: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=what):
        compare(table, replace(Request(), **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_offers_three_kinds_of_routed_networks() -> None:
    routed = ("moe", "fine-moe", "relu-moe")
    assert Request().check("text").ways == ("exits", "cascade", "skips", *routed, "nested")
    assert Request(ways=("nested",)).check("text").ways == ("nested",)
