"""Stores that are none, are damaged, cannot be written, or are of another version."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pointsman.errors import InputError
from pointsman.serve.store import ANONYMOUS, StoreError, open_store, read_served, schema

Run = Callable[[Any], Any]


async def opened(url: str, **options: Any) -> None:
    store = await open_store(url, **options)
    await store.close()


def refused(run: Run, url: str, kind: type[Exception] = InputError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        run(opened(url, **options))
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ledger.db",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://host/path.db",
        "mysql://u:secret@h/d",
        "memory:x",
        "sqlite:///x.db#part",
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(run: Run, url: str) -> None:
    line = refused(run, url)
    assert "must be sqlite:///PATH" in line
    assert "secret" not in line


@pytest.mark.parametrize("query", ["synchronous=off", "mode=ro", "synchronous"])
def test_an_unknown_option_is_refused(run: Run, tmp_path: Path, query: str) -> None:
    assert "?synchronous=normal or full" in refused(run, f"sqlite:///{tmp_path}/s.db?{query}")
    assert list(tmp_path.iterdir()) == []


def test_a_store_may_wait_for_the_disk(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/s.db?synchronous=full")
        assert await store.reserve(ANONYMOUS, 0.1, "a")
        await store.close()

    run(test())


def test_a_path_may_hold_what_urls_escape(run: Run, tmp_path: Path) -> None:
    run(opened(f"sqlite:///{tmp_path}/a%20b%3Fc%25d.db"))
    assert (tmp_path / "a b?c%d.db").is_file()


def test_a_file_of_something_else_is_refused_and_left_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"name,age\nada,36\n" * 100)
    before = path.read_bytes()
    assert "is not a store" in refused(run, f"sqlite:///{path}")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_database_of_something_else_is_refused_and_left_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE keys (id INTEGER)")
    connection.close()
    before = path.read_bytes()
    assert "database of something else" in refused(run, f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_damaged_store_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s.db"

    async def fill() -> None:
        store = await open_store(f"sqlite:///{path}")
        await asyncio.gather(*(store.reserve(ANONYMOUS, 0.1, f"r{i}") for i in range(2000)))
        await store.close()

    run(fill())
    content = bytearray(path.read_bytes())
    assert len(content) > 60_000
    for start in range(4096, len(content), 4096):  # all pages but the first
        content[start : start + 64] = b"\xff" * 64
    path.write_bytes(content)
    assert "is damaged" in refused(run, f"sqlite:///{path}")


def test_a_store_cut_short_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    run(opened(f"sqlite:///{path}"))
    path.write_bytes(path.read_bytes()[:5000])
    assert "is damaged" in refused(run, f"sqlite:///{path}")


def test_places_without_a_store_are_named(run: Run, tmp_path: Path) -> None:
    assert "is a folder" in refused(run, f"sqlite:///{tmp_path}")
    assert "there is no folder" in refused(run, f"sqlite:///{tmp_path}/none/s.db")
    assert "there is no store" in refused(run, f"sqlite:///{tmp_path}/s.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_store_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    run(opened(f"sqlite:///{path}"))
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    assert "update pointsman" in refused(run, f"sqlite:///{path}")


def test_a_store_of_version_1_is_brought_up_to_date_with_its_rows(
    run: Run, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row() -> Any:
        yield (
            "INSERT INTO served (id, time, key, model, point, propensity)"
            " VALUES ('old', 1.0, 0, 'small', 'certified', 1.0)",
            (),
        )

    async def before() -> None:
        store = await open_store(shared)
        await store.reserve(ANONYMOUS, 0.1, "a")
        await store._write(row)
        await store.close()

    with monkeypatch.context() as patch:
        patch.setattr(schema, "STEPS", schema.STEPS[:1])
        for part in ("sqlite", "postgres"):
            patch.setattr(f"pointsman.serve.store.{part}.VERSION", 1)
        run(before())
    with pytest.raises(InputError, match="older version"):
        list(read_served(shared))

    async def after() -> None:
        store = await open_store(shared)
        assert await store.settle("a", 0.05)
        assert (await store.feedback("old", 0.5))["how"] is None  # type: ignore[index]
        assert await store.unheard("p") == []
        assert list((await store.paid(0.0)).values()) == [(0.05, 1)]
        await store.close()

    run(after())
    (old,) = read_served(shared)
    assert (old["id"], old["answered"], old["policy"]) == ("old", None, None)


def test_an_older_store_is_brought_up_to_date(
    run: Run, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def before() -> None:
        store = await open_store(shared)
        await store.reserve(ANONYMOUS, 0.1, "a")
        await store.close()

    run(before())
    step = ("ALTER TABLE keys ADD COLUMN colour TEXT", "UPDATE keys SET colour = 'red'")
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, step))
    for part in ("sqlite", "postgres"):
        monkeypatch.setattr(f"pointsman.serve.store.{part}.VERSION", schema.VERSION + 1)

    def colours() -> Any:
        return (yield "SELECT colour FROM keys", ())

    async def after() -> None:
        stores = [await open_store(shared) for _ in range(2)]
        assert await stores[1]._write(colours) == [("red",)]
        assert await stores[1].spent(ANONYMOUS) == (0.0, 0.1)
        for store in stores:
            await store.close()

    run(after())
    monkeypatch.undo()
    assert "update pointsman" in refused(run, shared)


def test_a_step_that_fails_leaves_the_store_as_it_was(
    run: Run, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(opened(shared))
    step = ("ALTER TABLE keys ADD COLUMN colour TEXT", "UPDATE nothing SET colour = 'red'")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "STEPS", (*schema.STEPS, step))
        for part in ("sqlite", "postgres"):
            patch.setattr(f"pointsman.serve.store.{part}.VERSION", schema.VERSION + 1)
        refused(run, shared, StoreError)
    run(opened(shared))


def child(code: str, **options: Any) -> str:
    """Last line that a process prints which limits itself before it opens a store."""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **options
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()[-1]


def test_a_store_that_cannot_be_written_is_refused(run: Run, tmp_path: Path) -> None:
    run(opened(f"sqlite:///{tmp_path}/s.db"))
    for path in tmp_path.iterdir():
        path.chmod(0o444)
    tmp_path.chmod(0o555)
    drop = "os.setgid(65534); os.setuid(65534)\n" if os.getuid() == 0 else ""
    opening = (
        "import asyncio, os, sys\n"
        "from pointsman.serve.store import StoreError, open_store\n"
        + drop
        + f"os.chdir({str(tmp_path)!r})\n"
        "try: asyncio.run(open_store('sqlite:///s.db'))\n"
        "except StoreError as error: print(error)\n"
    )
    for folder in (tmp_path, *tmp_path.parents):  # so that the other user can come here
        if folder.stat().st_uid == os.getuid() and "pytest" in str(folder):
            folder.chmod(folder.stat().st_mode | 0o055)
    line = child(opening, user=None)
    tmp_path.chmod(0o755)
    assert "cannot be written" in line
    assert "check its permissions" in line


def test_a_full_disk_loses_nothing_that_was_promised(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    code = (
        "import asyncio, resource\n"
        "from pointsman.serve.store import StoreError, open_store\n"
        "async def main():\n"
        f"    store = await open_store({url!r})\n"
        "    await store.reserve(0, 0.1, 'r')\n"
        "    await store._write(lambda: iter_pragma())\n"
        "    failed = 0\n"
        "    for i in range(3000):\n"
        "        try: await store.reserve(0, 0.001, f'r{i}' + 'x' * 200)\n"
        "        except StoreError as error:\n"
        "            if not failed: print(i)\n"
        "            failed += 1; line = str(error)\n"
        "        if failed == 3: break\n"
        "    assert not await store.check()\n"
        "    print(line)\n"
        "    await store.close()\n"
        "def iter_pragma():\n"
        "    yield 'PRAGMA max_page_count = 60', ()\n"
        "asyncio.run(main())\n"
    )
    line = child(code)
    assert "cannot be written (database or disk is full): free space" in line

    async def after() -> None:
        store = await open_store(url)
        assert await store.check() == []
        assert await store.reserve(ANONYMOUS, 0.1, "room again")
        await store.close()

    run(after())


def test_a_file_that_may_not_grow_fails_in_words(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    run(opened(url))
    code = (
        "import asyncio, resource\n"
        "from pointsman.serve.store import StoreError, open_store\n"
        "async def main():\n"
        f"    store = await open_store({url!r})\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "    held = []\n"
        "    for i in range(3000):\n"
        "        try:\n"
        "            if await store.reserve(0, 0.001, f'r{i}'): held.append(i)\n"
        "        except StoreError as error: line = str(error); break\n"
        "    print(len(held)); print(line)\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    count, line = ran.stdout.splitlines()
    assert "cannot be written" in line

    async def after() -> None:
        store = await open_store(url)
        assert len(await store.reservations()) == int(count)
        assert await store.check() == []
        await store.close()

    run(after())


def test_a_store_that_another_process_locks_fails_once_for_all(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.serve.store.sqlite.WAIT", 0.2)

    async def test() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/s.db")
        await store.spent(ANONYMOUS)
        other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waiting = [store.reserve(ANONYMOUS, 0.1, f"r{i}") for i in range(200)]
        async with asyncio.timeout(20):  # and not 200 times the wait
            done = await asyncio.gather(*waiting, return_exceptions=True)
        assert all("was locked for 0 s by another process" in str(one) for one in done)
        other.execute("ROLLBACK")
        other.close()
        assert await store.reserve(ANONYMOUS, 0.1, "r0")
        await store.close()

    run(test())


def test_reading_the_served_log(run: Run, shared: str) -> None:
    rows = [
        {"id": f"r{i}", "time": 10.0 - i, "key": 0, "model": "m", "propensities": {"m": 0.5}}
        for i in range(5)
    ]

    async def fill() -> None:
        store = await open_store(shared)
        for row in rows:
            await store.serve_log({**row, "propensity": 0.5, "cost": 0.001})
        await store.feedback("r0", 0.5)
        found = list(read_served(shared, since=7.0))  # while the store is open
        await store.close()
        assert [row["id"] for row in found] == ["r3", "r2", "r1", "r0"]
        assert found[-1]["quality"] == 0.5
        assert found[-1]["propensities"] == {"m": 0.5}

    run(fill())
    assert len(list(read_served(shared))) == 5


def test_the_served_log_can_be_replayed(run: Run, shared: str) -> None:
    from pointsman.pool.online.served import columns

    async def fill() -> None:
        store = await open_store(shared)
        for i, model in enumerate(("small", "large")):
            shares = {"small": 0.25, "large": 0.75}
            row = {"id": f"r{i}", "time": i + 1.0, "key": 0, "model": model, "query": f"query {i}"}
            await store.serve_log({**row, "propensity": shares[model], "propensities": shares})
        await store.feedback("r1", 0.5)
        await store.close()

    run(fill())
    served = columns(read_served(shared), ["small", "large"])
    assert served.queries == ("query 0", "query 1")
    assert served.chosen.tolist() == [0, 1]
    assert served.propensities.tolist() == [[0.25, 0.75]] * 2
    assert served.quality[1] == 0.5


def test_reading_what_is_no_store_is_refused(tmp_path: Path, postgres_url: str) -> None:
    with pytest.raises(InputError, match="there is no store"):
        list(read_served(f"sqlite:///{tmp_path}/none.db"))
    (tmp_path / "text.db").write_text("text " * 1000)
    with pytest.raises(StoreError, match="cannot be read"):
        list(read_served(f"sqlite:///{tmp_path}/text.db"))
    sqlite3.connect(tmp_path / "other.db").close()
    with pytest.raises(InputError, match="no store of the gateway"):
        list(read_served(f"sqlite:///{tmp_path}/other.db"))
    with pytest.raises(InputError, match="no store of the gateway"):
        list(read_served(postgres_url))


def test_a_server_that_is_away_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    line = refused(run, f"postgresql://u:secret@/d?host={tmp_path}", StoreError)
    assert "check that the server is up" in line
    assert "secret" not in line


def test_without_psycopg_the_way_to_get_it_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'pointsman[postgres]'" in refused(run, "postgresql://h/d")


def test_a_schema_of_something_else_is_refused(run: Run, postgres_url: str) -> None:
    import psycopg

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA pointsman")
        connection.execute("CREATE TABLE pointsman.keys (id INTEGER)")
    assert "of something else" in refused(run, postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'pointsman'"
        ).fetchall()
    assert tables == [("keys",)]


def test_a_lost_connection_is_made_anew_and_nothing_counts_twice(
    run: Run, postgres_url: str
) -> None:
    import psycopg

    def cut() -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    async def test() -> None:
        store = await open_store(postgres_url)
        assert await store.reserve(ANONYMOUS, 0.1, "a")
        cut()
        assert await store.reserve(ANONYMOUS, 0.2, "b")
        cut()
        assert await store.settle("a", 0.05)
        for turn in range(10):
            going = [
                asyncio.create_task(store.reserve(ANONYMOUS, 0.001, f"{turn}-{i}"))
                for i in range(40)
            ]
            await asyncio.sleep(0.001)
            await asyncio.to_thread(cut)
            assert all(await asyncio.gather(*going))
            await store.spent(ANONYMOUS)  # is connected again, should the cut have come late
        assert await store.spent(ANONYMOUS) == (0.05, pytest.approx(0.6))
        assert await store.check() == []
        await store.close()

    run(test())


def test_a_copy_of_the_file_taken_under_way_is_a_store(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/s.db")
        for i in range(50):
            await store.reserve(ANONYMOUS, 0.001, f"r{i}")
        with sqlite3.connect(tmp_path / "s.db") as source, sqlite3.connect(tmp_path / "b") as copy:
            source.backup(copy)
        source.close()
        copy.close()
        await store.close()
        again = await open_store(f"sqlite:///{tmp_path}/b")
        assert len(await again.reservations()) == 50
        assert await again.check() == []
        await again.close()

    run(test())


def test_a_commit_that_was_not_heard_of_counts_once(
    run: Run, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    from pointsman.serve.store.postgres import PostgreSQL

    whole = PostgreSQL._together
    cut = False

    def together(engine: PostgreSQL, operations: Any) -> Any:
        nonlocal cut
        results = whole(engine, operations)
        if cut:
            cut = False
            assert engine._connection is not None
            engine._connection.close()
            raise psycopg.OperationalError("lost")
        return results

    async def test() -> None:
        nonlocal cut
        store = await open_store(postgres_url)
        await store.spent(ANONYMOUS)
        monkeypatch.setattr(PostgreSQL, "_together", together)
        cut = True
        assert await store.reserve(ANONYMOUS, 0.1, "a")
        cut = True
        await store.settle("a", 0.05)
        assert await store.spent(ANONYMOUS) == (0.05, 0.0)
        with pytest.raises(InputError, match="has a reservation already"):
            await store.reserve(ANONYMOUS, 0.1, "a")
        assert await store.check() == []
        await store.close()

    run(test())
