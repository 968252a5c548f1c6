"""The report page: complete, self-contained, safe against its data, and alive in a browser."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from results_example import VARIANTS, features

from pointsman.errors import InputError
from pointsman.frontier import report

HOSTILE = (
    '</script><script>document.title="owned"</script><img src=x onerror=document.title="owned">'
)
CHROMIUM = shutil.which("chromium")


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


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: report.render(make()) for name, make in VARIANTS.items()}


@pytest.fixture(scope="module")
def hostile() -> str:
    results = features()
    results["ways"][1]["points"][0]["knob"] = HOSTILE
    results["ways"][1]["title"] = HOSTILE
    results["reference"] |= {"name": HOSTILE, "unit": HOSTILE}
    results["metric"]["name"] = HOSTILE
    results["data"] |= {"classes": [HOSTILE], "name": HOSTILE, "note": HOSTILE}
    results["trained"][0]["name"] = HOSTILE
    results["certificate"]["words"] = HOSTILE
    results["made_by"]["command"] = HOSTILE
    results["pick"]["shares"] = {HOSTILE: 1.0}
    return report.render(results)


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


def test_only_the_pick_gets_a_command_to_use_it(pages):
    uses = dict(
        re.findall(r'<div data-use="(\w+)"[^>]*>(.*?)</div>\s*(?=<div data|<button)',
                   pages["features"], re.DOTALL)
    )  # fmt: skip
    assert sorted(uses) == ["oracle", "pick", "point", "reference"]
    assert "pointsman predict OUT/policy DATA" in Parsed(uses["pick"]).words()
    assert "predict" not in uses["point"]
    assert "choice made on the test split" in uses["point"]


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
    reading = report.read(results)
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


# --- in a browser -------------------------------------------------------------------------------

browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path to open the page in"),
]
COLLECT = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message || event.type)), true);
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective));
console.error = (...words) => errors.push(words.join(" "));
</script>"""
TOOLS = """
const wide = document.querySelector("svg.wide");
const mark = (id) => wide.getElementById("wide-" + id);
const field = (name) => document.querySelector(`[data-field="${name}"]`).textContent;
const click = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const press = (key) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const order = (column) => [...document.querySelectorAll("#points tbody tr")]
  .filter((row) => !row.hidden).map((row) => row.cells[column].textContent.trim());
const seen = {};
"""


def drive(page: str, folder: Path, script: str, *, policy: bool = False) -> dict[str, Any]:
    """Open a copy of a page, run a script in it, and give what the script put into `seen`.

    Errors of the page fail the caller. The policy is taken out of the copy, since it forbids the
    script, unless it is what the caller looks at.
    """
    assert CHROMIUM is not None
    if not policy:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', COLLECT, page)
        ending = (
            f"<script>{TOOLS}{script};seen.errors = errors;"
            'seen.fetched = performance.getEntriesByType("resource").map((entry) => entry.name);'
            'const out = document.createElement("pre"); out.id = "seen";'
            "out.textContent = JSON.stringify(seen); document.body.append(out);</script>"
        )
        page = page.replace("</body>", ending + "</body>")
    copy = folder / "page.html"
    copy.write_text(page, encoding="utf-8")
    arguments = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={folder / 'profile'}", "--window-size=1280,1600",
        "--virtual-time-budget=3000", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    if policy:
        return {"dom": done.stdout}
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the script did not run to its end: {done.stdout[-2000:]}"
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert seen.pop("errors") == []
    assert seen.pop("fetched") == []
    return seen


class TestInABrowser:
    pytestmark = browser

    def test_points_are_shown_and_chosen_by_mouse(self, pages, tmp_path):
        seen = drive(pages["features"], tmp_path, """
            seen.before = [field("role"), field("knob")];
            const box = mark("point-exits-2").getBoundingClientRect();
            const at = { clientX: box.x + 8, clientY: box.y + 8, bubbles: true };
            wide.dispatchEvent(new PointerEvent("pointermove", at));
            const tip = document.getElementById("tip");
            seen.tip = [tip.hidden, tip.innerText.replace(/\\s+/g, " ")];
            wide.dispatchEvent(new MouseEvent("click", at));
            seen.after = ["role", "way", "knob", "quality", "cost", "again"].map(field);
            seen.uses = [...document.querySelectorAll("[data-use]")]
              .filter((part) => !part.hidden).map((part) => part.dataset.use);
            seen.chosen = document.querySelector("tr.chosen").dataset.point;
            wide.dispatchEvent(new PointerEvent("pointerleave"));
            seen.gone = tip.hidden;
            click(document.getElementById("back"));
            seen.back = field("role");
        """)  # fmt: skip
        assert seen["before"] == ["The pick", "mlp 16 > mlp 256-256 @ 0.93"]
        words = seen["tip"][1].replace("\xa0", " ")
        assert not seen["tip"][0]
        assert words.startswith("Early exits exit @ 0.90 ")
        assert words.endswith("Accuracy 96.4 % Cost 43.6 kFLOPs Saved 75.2 % Drop (points) 1.11")
        assert seen["after"][:3] == ["Selected", "Early exits", "exit @ 0.90"]
        assert seen["after"][5].strip() == "pointsman compare digits --max-drop 0.02"
        assert seen["uses"] == ["point"]
        assert seen["chosen"] == "point-exits-2"
        assert seen["gone"]
        assert seen["back"] == "The pick"

    def test_points_are_reached_and_chosen_from_the_keyboard(self, pages, tmp_path):
        seen = drive(pages["crowded"], tmp_path, """
            const stops = () => [...wide.querySelectorAll('[tabindex="0"]')].map((g) => g.id);
            seen.stops = stops();
            mark("point-cascade-3").focus();
            seen.tip = document.getElementById("tip").hidden;
            press("ArrowRight");
            seen.next = [document.activeElement.id, ...stops()];
            press("Enter");
            seen.chosen = [field("role"), field("knob"), document.activeElement.ariaPressed];
            press("Home"); press(" ");
            seen.first = [field("role"), field("knob")];
            press("Escape");
            seen.escaped = document.getElementById("tip").hidden;
            seen.named = mark("point-cascade-3").getAttribute("aria-label");
        """)  # fmt: skip
        assert seen["stops"] == ["wide-point-cascade-3"]  # one stop for Tab: the pick
        assert not seen["tip"]
        assert seen["next"] == ["wide-point-cascade-2"] * 2  # ascending cost
        assert seen["chosen"] == ["Selected", "cascade 0.84", "true"]
        assert seen["first"] == ["Reference", "mlp 256-256"]
        assert seen["escaped"]
        assert seen["named"].startswith("Cascade, cascade 0.75: Accuracy 97.4")

    def test_the_table_sorts_by_value_and_filters_by_way(self, pages, tmp_path):
        seen = drive(pages["features"], tmp_path, """
            const heads = [...document.querySelectorAll("#points th button")];
            heads[4].click(); seen.up = order(4);
            heads[4].click(); seen.down = order(4); seen.sorted = heads[4].parentNode.ariaSort;
            heads[6].click(); seen.mixed = order(6); heads[6].click(); seen.mixedDown = order(6);
            heads[0].click(); seen.ways = order(0);
            document.querySelector('input[data-way="cascade"]').click();
            seen.left = order(0);
            seen.drawn = ["point-cascade-0", "way-cascade", "pick-ring", "point-exits-0"]
              .map((id) => getComputedStyle(mark(id)).visibility);
            document.querySelector("#points .select").click();
            seen.role = field("role");
        """)  # fmt: skip
        costs = [float(words.split()[0]) for words in seen["up"]]
        assert costs == sorted(costs)
        assert costs[0] == 2.4
        assert [float(words.split()[0]) for words in seen["down"]] == costs[::-1]
        assert seen["sorted"] == "descending"
        assert seen["mixed"][-2:] == seen["mixedDown"][-2:] == ["–", "–"]  # no value stays last
        names = [name.lstrip("●■▲✚✖\ufe0e◆★") for name in seen["ways"]]
        assert names == sorted(names)
        assert len(set(names)) == 7
        assert len(seen["ways"]) - len(seen["left"]) == 8
        assert not [way for way in seen["left"] if "Cascade" in way]
        assert seen["drawn"] == ["hidden", "hidden", "hidden", "visible"]
        assert seen["role"] in ("Selected", "Reference", "Oracle")

    def test_every_mark_can_be_clicked_on_the_page_of_a_text(self, pages, tmp_path):
        seen = drive(pages["text"], tmp_path, """
            for (const part of wide.querySelectorAll("[data-point]")) click(part);
            seen.marks = wide.querySelectorAll("[data-point]").length;
            seen.rows = document.querySelectorAll("#points tbody tr").length;
            seen.colour = getComputedStyle(wide.querySelector('[id$="band"] path')).fill;
        """)  # fmt: skip
        assert seen["marks"] == seen["rows"] > 15
        assert seen["colour"] == "rgb(242, 236, 214)"  # the page's variable, resolved

    def test_texts_of_the_data_run_nothing_even_when_shown(self, hostile, tmp_path):
        seen = drive(hostile, tmp_path, """
            for (const button of document.querySelectorAll("#points .select")) button.click();
            mark("point-cascade-0").focus();
            seen.tip = document.getElementById("tip").textContent;
            seen.inside = document.getElementById("tip").querySelectorAll("img, script").length;
            seen.title = document.title;
            seen.images = document.images.length;
        """)  # fmt: skip
        assert "onerror" in seen["tip"]
        assert seen["title"] != "owned"
        assert seen["inside"] == seen["images"] == 0

    def test_the_policy_lets_the_page_run_and_stops_a_script_that_got_in(self, pages, tmp_path):
        intruder = "<script>document.title = 'owned'</script></body>"
        page = pages["features"].replace("</body>", intruder)
        dom = drive(page, tmp_path, "", policy=True)["dom"]
        assert re.search(r'<html[^>]*class="scripted"', dom)
        assert "<title>owned" not in dom
