"""Keys: random, hashed, read from a header; and the commands that keep them."""

import asyncio
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pointsman.serve.keys import bearer, hash_key, new_key
from pointsman.serve.store import open_store

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def keys(tmp_path: Path, pointsman: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `pointsman keys` on a store of its own."""
    from pointsman.cli import main

    monkeypatch.setitem(main.COMMANDS, "keys", "Keys of the gateway.")
    monkeypatch.setenv("POINTSMAN_STORE", f"sqlite:///{tmp_path}/s.db")
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: pointsman("keys", *words)


def with_store(tmp_path: Path, work: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        store = await open_store(f"sqlite:///{tmp_path}/s.db")
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def test_keys_are_random_and_long() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"pm-[A-Za-z0-9_-]{43}", key) for key in made)


def test_a_hash_is_that_of_sha_256() -> None:
    assert hash_key("pm-a") == "bb7f7f3cad288f05ea86717f9d099be644b9e4e46a211c5bc11a34f0b0e58c15"
    hash_key("\ud800")  # what a header may hold must not raise


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer pm-a", "pm-a"),
        ("bearer  pm-a ", "pm-a"),
        ("Basic pm-a", None),
        ("pm-a", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        (None, None),
        ("Bearer " + "x" * 600, None),
    ],
)
def test_a_key_is_read_from_the_header(header: str | None, key: str | None) -> None:
    assert bearer(header) == key


def test_a_key_is_shown_once_and_only_its_hash_is_kept(keys: Any, tmp_path: Path) -> None:
    ran = keys("add", "ada", "--budget", "5", "--period", "day", "--rate", "60", "--point", "cheap")
    assert ran.code == 0
    secret = ran.out.strip()
    assert secret.startswith("pm-")
    key = with_store(tmp_path, lambda store: store.key(hash_key(secret)))
    assert (key.name, key.budget, key.period, key.rate_per_minute) == ("ada", 5.0, "day", 60.0)
    assert key.points == ("cheap",)
    assert key.created > 1e9
    for path in tmp_path.iterdir():
        assert secret.encode() not in path.read_bytes()
    assert secret not in keys("list").out + keys("ledger").out


def test_keys_are_listed_with_what_they_spent(keys: Any, tmp_path: Path) -> None:
    for name in ("ada", "[red]bob[/red]"):
        assert keys("add", name, "--budget", "2").code == 0

    async def spend(store: Any) -> None:
        await store.reserve(1, 0.5, "a")
        await store.settle("a", 0.000000123)
        await store.reserve(2, 1.5, "b")

    with_store(tmp_path, spend)
    out = keys("list").out
    assert "0.000000123" in out
    assert "[red]bob[/red]" in out
    assert "2.00 a month" in out
    listed = json.loads(keys("list", "--json").out)
    assert [(one["name"], one["settled"], one["reserved"]) for one in listed] == [
        ("ada", 1.23e-07, 0.0),
        ("[red]bob[/red]", 0.0, 1.5),
    ]


def test_a_revoked_key_is_listed_only_on_demand(keys: Any) -> None:
    keys("add", "ada")
    assert keys("revoke", "ada").out == "key 1 'ada' is revoked\n"
    assert "ada" not in keys("list").out
    assert "ada (revoked" in keys("list", "--all").out
    ran = keys("revoke", "ada")
    assert ran.code == 2
    assert "no key 'ada' is in use" in ran.err


def test_the_ledger_shows_what_is_in_doubt_and_closes_it(keys: Any, tmp_path: Path) -> None:
    keys("add", "ada")

    async def leave(store: Any) -> None:
        for name in ("r1", "r2", "r3"):
            await store.reserve(1, 0.25, name)

    with_store(tmp_path, leave)
    out = keys("ledger").out
    assert "In doubt: 3 reservations, US$ 0.75" in out
    assert keys("ledger", "--settle", "r1", "--cost", "0.1").code == 0
    found = json.loads(keys("ledger", "--json", "--release", "r2").out)
    assert [one["request"] for one in found["reservations"]] == ["r3"]
    assert found["reservations"][0]["in_doubt"] is True
    assert found["reservations"][0]["name"] == "ada"
    (total,) = found["totals"]
    assert (total["settled"], total["reserved"], total["requests"]) == (0.1, 0.25, 3)
    assert found["differences"] == []
    keys("ledger", "--release", "r3")
    assert "Nothing is set aside." in keys("ledger").out
    for words in (["--release", "r3"], ["--settle", "r1", "--cost", "0.1"]):
        ran = keys("ledger", *words)
        assert ran.code == 2
        assert "nothing is set aside for request" in ran.err


def test_a_ledger_that_does_not_add_up_is_said(keys: Any, tmp_path: Path) -> None:
    keys("add", "ada")
    with_store(tmp_path, lambda store: store.reserve(1, 0.25, "a"))
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE spending SET settled = settled + 1")
    connection.close()
    ran = keys("ledger")
    assert ran.code == 2
    assert "totals differ from the sums of their requests" in ran.err


def test_old_requests_are_dropped_on_demand(keys: Any, tmp_path: Path) -> None:
    keys("add", "ada")
    with_store(tmp_path, lambda store: store.reserve(1, 0.25, "a"))
    with_store(tmp_path, lambda store: store.settle("a", 0.125))
    assert keys("prune", "--days", "1").out.startswith("dropped 0 requests")
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE ledger SET ended_at = ended_at - 100000")
    connection.close()
    assert keys("prune", "--days", "1").out.startswith("dropped 1 requests")
    assert json.loads(keys("list", "--json").out)[0]["settled"] == 0.125
    assert keys("ledger").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "ada", "--budget", "-1"], "a budget must be US$ from 0"),
        (["add", "ada", "--rate", "0"], "a rate must be a positive number"),
        (["add", ""], "a key's name must be"),
        (["add", "a\nb"], "a key's name must be"),
        (["ledger", "--settle", "x"], "go together"),
        (["list"], "there is no store at"),
        (["revoke", "ada"], "there is no store at"),
        (["ledger"], "there is no store at"),
        (["list", "--store", "mysql://x"], "the store must be sqlite"),
    ],
)
def test_mistakes_are_told_in_one_line(keys: Any, words: list[str], said: str) -> None:
    ran = keys(*words)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("pointsman: ")
    assert said in ran.err
    assert ran.err.count("\n") == 1
