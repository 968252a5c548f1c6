"""The pages that several files look at, rendered once."""

import pytest
from results_example import VARIANTS, hostile_texts

from pointsman.frontier import report


@pytest.fixture(scope="session")
def pages() -> dict[str, str]:
    return {name: report.render(make()) for name, make in VARIANTS.items()}


@pytest.fixture(scope="session")
def hostile() -> str:
    return report.render(hostile_texts())
