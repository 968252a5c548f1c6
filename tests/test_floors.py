"""Imports point down: a lower floor knows nothing of a higher one, and no level of another."""

import ast
from pathlib import Path

import pytest

import pointsman

ROOT = Path(pointsman.__file__).parent
FLOORS = [
    {"errors", "modules", "writing", "policy_folder", "_moves"},
    {"route", "cost"},
    {"select", "learn", "frontier", "run"},
    {"moe", "depth", "steps", "pool", "supernet"},
    {"compare", "serve", "claims"},
    {"cli"},
]
LEVELS = FLOORS[3]
MODULES = sorted(ROOT.rglob("*.py"))


def floor(part: str) -> int:
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "pointsman":
                names = [f"pointsman.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("pointsman.")}
    return {part for part in found if not part.startswith("__")}


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_from_its_own_floor_and_below(file):
    own = file.relative_to(ROOT).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for part in imported(file):
        assert floor(part) <= floor(own), f"{own} imports {part}, which lies above it"
        if own in LEVELS and part in LEVELS:
            assert part == own, f"the level {own} imports another level, {part}"
