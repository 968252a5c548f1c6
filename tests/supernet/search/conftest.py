"""The PostgreSQL server of the gateway's tests, for the tests of the history."""

from pathlib import Path
from runpy import run_path

_fixtures = run_path(str(Path(__file__).parents[2] / "serve" / "conftest.py"))
postgres_server, postgres_url = _fixtures["postgres_server"], _fixtures["postgres_url"]
