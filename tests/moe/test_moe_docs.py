"""docs/moe.md: its examples run, its list of parts is whole, and its table names real tests."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "moe.md"


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_moe", ROOT / "docs" / "make_moe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_examples_run_one_after_the_other(page: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    assert names["telemetry"].names == ("2",)  # type: ignore[attr-defined]


def test_the_list_of_parts_is_what_is_exported(page: str) -> None:
    made = maker()
    found = made.PARTS.search(page)
    assert found is not None
    listed = found[0].removeprefix(found[1]).removesuffix(found[2])
    assert listed == made.parts(), "run: python docs/make_moe.py --parts"
    assert made.PICTURE.is_file()


def test_every_feature_that_is_claimed_names_a_test_that_exists(page: str) -> None:
    table = page.split("<!-- features -->")[1].split("<!-- /features -->")[0]
    rows = [row.split(" | ") for row in table.strip().splitlines()[2:]]
    assert len(rows) > 25
    for feature, ours, *_ in rows:
        named = re.search(r"`(tests/[\w/]+\.py)::(\w+)`", ours)
        assert named is not None or "no compiled extension" in ours, feature
        if named is not None:
            source = (ROOT / named[1]).read_text(encoding="utf-8")
            assert f"def {named[2]}(" in source, f"{feature}: {named[0]}"


def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (PAGE.parent / target).exists(), target
