"""The report page: complete, self-contained, and safe against its data."""

import base64
import hashlib
import html
import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from results_example import HOSTILE, VARIANTS, features

from pointsman.errors import InputError
from pointsman.frontier import report
from pointsman.frontier.reading import read


class Parsed(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_page_is_small_and_its_ids_are_unique_and_resolved(pages, variant):
    page = pages[variant]
    assert len(page.encode()) < 300_000
    ids = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert not [name for name, count in ids.items() if count > 1]
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {name for pair in used for name in pair if name} <= set(ids)
    assert len(used) > 100


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_nothing_is_fetched_from_anywhere(pages, variant):
    page = pages[variant]
    addresses = re.findall(r"https?://[^\s\"'<]+", page)
    assert set(addresses) == {"http://www.w3.org/2000/svg"}  # the name of a namespace
    for tag, attributes in Parsed(page).tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "link":
            assert attributes["href"] == "data:,"
        elif "href" in attributes:
            assert str(attributes["href"]).startswith("#")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_the_security_policy_allows_the_one_script_of_the_page_and_no_request(pages):
    page = pages["features"]
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "default-src 'none'" in policy
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("features", "saves 85.6 % of the cost of mlp 256-256 and keeps accuracy within 1 "
                     "percentage point of it, certified at 95 % confidence."),
        ("text", "saves 56 % of the cost of 6 layers x 256 and keeps within 0.08 bits per byte "
                 "of it, certified at 95 % confidence."),
        ("uncertified", "saves 59.5 % of the cost of mlp 256-256, but is not certified: that it "
                        "keeps accuracy within 1 percentage point of it was not shown."),
    ],
)  # fmt: skip
def test_the_headline_says_what_was_picked_what_it_saves_and_if_it_is_certified(
    pages, variant, words
):
    headline = re.search(r"<h1>(.*?)</h1>", pages[variant], re.DOTALL)[1]
    headline = html.unescape(headline).replace("\xa0", " ")
    pick = VARIANTS[variant]()["pick"]
    assert headline.startswith("The pick, ")
    assert f"set to “{pick['knob']}”" in headline
    assert headline.endswith(words)


def test_every_part_of_the_results_is_on_the_page(pages):
    results, words = features(), Parsed(pages["features"]).words()
    wanted = [results["certificate"]["words"], results["data"]["note"]]
    wanted += [point["knob"] for way in results["ways"] for point in way["points"]]
    wanted += [way["title"] for way in results["ways"]]
    wanted += [model["name"] for model in results["trained"]]
    wanted += ["85,002", "Exact trinomial test", "0.018", "Hypervolume", "AIQ"]
    wanted += ["718", "450", "449", "10 classes: 0, 1, 2", "4.30 µs", "pointsman compare digits"]
    assert not [part for part in wanted if part not in words]
    assert "How to read this page" in words
    assert "Sent on, easy 6.0 % Sent on, hard 94.0 %" in Parsed(pages["text"]).words()


def test_a_row_of_the_table_gives_the_figures_of_its_point(pages):
    row = re.search(r'<tr data-point="point-cascade-3".*?</tr>', pages["features"], re.DOTALL)[0]
    assert re.sub(r"\s+", " ", Parsed(row).words()) == (
        "■ Cascade of ladder members mlp 16 > mlp 256-256 @ 0.93 the pick "
        "97.3 % 0.22 25.3 kFLOPs 85.6 % 96.5 %"
    )


def test_costs_of_text_are_per_token_and_drops_in_the_unit_of_the_metric(pages):
    words = Parsed(pages["text"]).words()
    assert "Cost per token 5.02 MFLOPs reference 11.4 MFLOPs" in words
    assert "drop at most 0.08 bits per byte" in words
    assert "percentage point" not in words


def test_only_the_pick_gets_a_command_and_lines_of_python_to_use_it(pages):
    uses = dict(
        re.findall(r'<div data-use="(\w+)"[^>]*>(.*?)</div>\s*(?=<div data|<button)',
                   pages["features"], re.DOTALL)
    )  # fmt: skip
    assert sorted(uses) == ["oracle", "pick", "point", "reference"]
    assert "pointsman predict OUT/policy DATA" in Parsed(uses["pick"]).words()
    code = re.search(r'<code class="command python">(.*?)</code>', uses["pick"])[1]
    assert [line.replace("<wbr>", "") for line in re.findall("<span>(.*?)</span>", code)] == [
        "from pointsman.compare import load_policy",
        'load_policy("OUT/policy").predict(x)',
    ]
    assert "predict" not in uses["point"]
    assert "choice made on the test split" in uses["point"]


def test_a_searched_subnet_is_loaded_into_the_network_that_was_searched():
    results = features() | {"search": {"engine": "front"}}
    page = report.render(results)
    assert 'load_subnet("OUT/policy",<wbr> supernet)' in page
    assert "pointsman search <span" in page
    assert "<span>predict</span>" not in page
    assert "--resume" in page
    assert "best subnet for each input" in page


@pytest.mark.parametrize(
    ("command", "drop", "wanted"),
    [
        ("pointsman compare a.csv", 0.013, "pointsman compare a.csv --max-drop 0.02"),
        ("pointsman compare a.csv --max-drop 0.01 --out b", 0.05,
         "pointsman compare a.csv --out b --max-drop 0.1"),
        ("pointsman compare a --max-drop=0.01", -0.3, "pointsman compare a --max-drop 0.02"),
        ("pointsman compare a.csv", 0.9, "pointsman compare a.csv --max-drop 0.5"),
    ],
)  # fmt: skip
def test_other_points_get_the_command_that_would_consider_them(command, drop, wanted):
    results = features()
    results["made_by"]["command"] = command
    results["ways"][1]["points"][0]["quality"] = results["reference"]["quality"] - drop
    if drop < 0:
        results["ways"][1]["points"][0]["quality"] = 1.0
    reading = read(results)
    point = next(p for way in reading.ways for p in way.points if p.gid == "point-cascade-0")
    assert report._again(reading, point) == wanted


def test_texts_of_the_data_cannot_leave_their_place(hostile):
    assert HOSTILE not in hostile
    assert hostile.count("<script") == 2  # the data and the page's own
    assert not [tag for tag, _ in Parsed(hostile).tags if tag == "img"]
    data = re.search(r'id="data">(.*?)</script>', hostile, re.DOTALL)[1]
    knobs = [point["knob"] for point in json.loads(data)["points"]]
    assert HOSTILE in knobs


def test_what_may_be_missing_is_left_out():
    results = features() | {"oracle": None, "made_by": {}, "trained": [], "truth": None}
    results["certificate"] = {"words": "none"}
    results["pick"] |= {"shares": None, "reference_ms": None}
    for way in results["ways"]:
        del way["metrics"]
    words = Parsed(report.render(results)).words()
    assert "the models came trained" in words
    assert "The ways in figures" not in words
    assert "measured 4" not in words
    assert "Who answers" not in words
    assert "p-value" not in words


def test_writing_gives_the_same_page_and_leaves_nothing_beside_it(pages, tmp_path):
    path = report.write(features(), tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == pages["features"]
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_failed_write_keeps_the_old_page(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    broken = features()
    broken["ways"][1]["points"][2]["cost"] = float("nan")
    with pytest.raises(InputError, match=r"cost of mlp 16 > .* must be a finite number"):
        report.write(broken, path)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, ""), (0.0183, "0.018"), (3e-7, "below 0.0001"), (0.405, "0.41"), (1.0, "1.00")],
)
def test_p_values_keep_two_digits_that_matter(value, words):
    assert report.p_value(value) == words


@pytest.mark.parametrize(
    ("amount", "words"), [(0.0043, "4.30\xa0µs"), (0.25, "0.250\xa0ms"), (1234, "1,230\xa0ms")]
)
def test_times_are_in_a_unit_that_reads_well(amount, words):
    assert report.milliseconds(amount) == words
