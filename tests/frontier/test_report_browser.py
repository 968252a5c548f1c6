"""The report page alive in a browser: it answers mouse and keyboard, and its policy holds."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
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
