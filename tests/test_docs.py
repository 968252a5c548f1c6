"""The pages of the levels: their examples run, and the tables of features name real tests."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {name: ROOT / "docs" / f"{name}.md" for name in ("depth", "steps", "supernet")}


def text_of(name: str) -> str:
    return PAGES[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_the_examples_of_the_page_run_in_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", text_of(name), re.DOTALL)
    assert examples
    names: dict[str, object] = {"__name__": "example"}
    for example in examples:
        exec(compile(example, f"docs/{name}.md", "exec"), names)


@pytest.mark.parametrize("name", ["depth", "supernet"])
def test_every_feature_that_is_claimed_names_a_test(name: str) -> None:
    table = text_of(name).split("<!-- features -->")[1].split("<!-- /features -->")[0]
    rows = [row.split(" | ") for row in table.strip().splitlines()[2:]]
    assert len(rows) > 20
    for feature, ours, *_ in rows:
        named = re.search(r"`(tests/[\w/]+\.py)::(\w+)`", ours)
        assert named is not None, feature
        source = (ROOT / named[1]).read_text(encoding="utf-8")
        assert f"def {named[2]}(" in source, f"{feature}: {named[0]}"


@pytest.mark.parametrize("name", PAGES)
def test_links_of_the_page_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", text_of(name)):
        assert (PAGES[name].parent / target).exists(), target
