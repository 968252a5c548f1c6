"""The status page, and what an observer tells of a gateway: metrics, log, siblings."""

import asyncio
import html
import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rig import FakePolicy, tables
from starlette.requests import Request

from pointsman.serve.bill import Bill
from pointsman.serve.config import config_from
from pointsman.serve.deciding import Plan
from pointsman.serve.gateway import Exchange, Gateway, Generation
from pointsman.serve.logs import JsonLog
from pointsman.serve.observing import Observer
from pointsman.serve.prices import Usage
from pointsman.serve.request import parse
from pointsman.serve.status import page, snapshot, status
from pointsman.serve.store import ANONYMOUS, Key, open_store


class Policy(FakePolicy):
    def words(self) -> str:
        return "Routes among 2 models."


class Alarm:
    def __init__(self, alarmed: bool = False, words: str = "No alarm after 12 feedbacks.") -> None:
        self.alarmed, self._words = alarmed, words

    def words(self) -> str:
        return self._words


def with_gateway(test: Callable[[Gateway, Observer, io.StringIO], Any], **more: Any) -> Any:
    url = more.pop("url", "memory:")
    alarm = more.pop("alarm", None)

    async def run() -> Any:
        config = config_from(tables("http://127.0.0.1:9", ["small", "large"], **more), Path())
        store = await open_store(url)
        stream = io.StringIO()
        observer = Observer(JsonLog(stream))
        policy = Policy(["small", "large"])
        gateway = Gateway(Generation(policy, config), store, observer.observe)
        gateway.generation.learning.alarm = alarm
        try:
            return await test(gateway, observer, stream)
        finally:
            await store.close()

    return asyncio.run(run())


def request(path: str = "/status", query: str = "", **headers: str) -> Request:
    return Request(
        {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": query.encode(),
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        }
    )


def exchange(gateway: Gateway, **more: Any) -> Exchange:
    body = {"model": "pointsman", "messages": [{"role": "user", "content": "a secret question"}]}
    bill = Bill(gateway.store, ANONYMOUS, "r1")
    bill.add(0.25)
    made = Exchange(
        "r1",
        status=200,
        request=parse(json.dumps(body).encode()),
        plan=Plan("cheap", "small", quality=0.75, cost=0.001),
        bill=bill,
        model="small",
        usage=Usage(12, 7, 4),
        decide_seconds=0.0003,
    )
    for name, value in more.items():
        setattr(made, name, value)
    return made


async def spend(gateway: Gateway, key: int, amount: float, settled: bool = True) -> None:
    name = f"{key}-{time.monotonic_ns()}"
    assert await gateway.store.reserve(key, amount, name)
    if settled:
        await gateway.store.settle(name, amount)


def test_a_request_is_counted_and_written_down_without_its_text() -> None:
    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        gateway.record(exchange(gateway))
        response = await observer.metrics(gateway, None, request("/metrics"))  # type: ignore[arg-type]
        text = bytes(response.body).decode()
        who = f'process="{gateway.store.process.name}",model="small"'
        assert f'pointsman_requests_total{{{who},point="cheap",status="200"}} 1.0' in text
        assert f"pointsman_cost_usd_total{{{who}}} 0.25" in text
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        line = json.loads(stream.getvalue())
        assert line["model"] == "small"
        assert line["cost_usd"] == 0.25
        assert line["prompt_tokens"] == 12
        assert "secret" not in stream.getvalue()

    with_gateway(test)


def test_requests_that_were_refused_are_counted_too() -> None:
    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        gateway.record(Exchange("r1", status=401, error="invalid_api_key"))
        gateway.record(Exchange("r2", status=503, error="store"))
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert [(line["status"], line["level"]) for line in lines] == [
            (401, "info"),
            (503, "warning"),
        ]

    with_gateway(test)


def test_the_text_is_written_where_it_is_asked_for() -> None:
    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        observer.log.text = True
        gateway.record(exchange(gateway))
        assert json.loads(stream.getvalue())["query"] == "a secret question"

    with_gateway(test)


def test_a_process_tells_of_its_siblings(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"

    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        other_store = await open_store(url)
        other = Gateway(gateway.generation, other_store)
        sibling = Observer(JsonLog(io.StringIO()))
        sibling.observe(exchange(other))
        running = asyncio.create_task(sibling.run(other))
        while not (await gateway.store.processes())[-1].metrics:
            await asyncio.sleep(0.01)
        response = await observer.metrics(gateway, None, request("/metrics"))  # type: ignore[arg-type]
        assert b"pointsman_requests_total{" in response.body
        response = await observer.metrics(  # type: ignore[arg-type]
            gateway, None, request("/metrics", "own")
        )
        assert b"pointsman_requests_total{" not in response.body
        found = await status(gateway)
        assert len(found["processes"]) == 2
        assert [model["closed"] for model in found["models"]] == [2, 2]
        running.cancel()
        await other_store.close()
        assert len((await status(gateway))["processes"]) == 1

    with_gateway(test, url=url)


def test_what_a_sibling_of_another_version_says_is_passed_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"

    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        for state in ("no json", "[]", "{}", '{"began": 1, "requests": 0, "alarm": 3}'):
            other = await open_store(url)
            other.publish(state, "")
            await other.beat()
        assert len((await status(gateway))["processes"]) == 1

    with_gateway(test, url=url)


def test_everybody_sees_all_keys_where_none_are_asked_for() -> None:
    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        ada = await gateway.store.add_key(Key(0, "ada", budget=2.0), "h1")
        await gateway.store.add_key(Key(0, "bob"), "h2")
        await spend(gateway, ada.id, 0.5)
        await spend(gateway, ada.id, 0.25, settled=False)
        await spend(gateway, ANONYMOUS, 0.125)
        found = await status(gateway)
        assert [(row["name"], row["settled"], row["reserved"]) for row in found["spending"]] == [
            ("without a key", 0.125, 0.0),
            ("ada", 0.5, 0.25),
            ("bob", 0.0, 0.0),
        ]
        text = page(found)
        assert "Routes among 2 models." in text
        assert "38% of 2.00" in text

    with_gateway(test)


def test_a_key_sees_its_own_spending_alone() -> None:
    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        ada = await gateway.store.add_key(Key(0, "ada"), "h1")
        bob = await gateway.store.add_key(Key(0, "bob"), "h2")
        await spend(gateway, ada.id, 0.5)
        await spend(gateway, bob.id, 0.25)
        asked = request()
        asked.scope["pointsman.key"] = bob
        response = await observer.status(gateway, None, asked)  # type: ignore[arg-type]
        text = bytes(response.body).decode()
        assert "bob" in text
        assert "ada" not in text
        (row,) = (await status(gateway))["spending"]  # an open page of a server with keys
        assert (row["name"], row["settled"], row["requests"]) == ("all keys", 0.75, 2)

    with_gateway(test, server={"keys": True})


def test_the_page_asks_for_nothing_and_escapes_names() -> None:
    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        await gateway.store.add_key(Key(0, "<script>alert(1)</script>"), "h1")
        response = await observer.status(gateway, None, request())  # type: ignore[arg-type]
        text = bytes(response.body).decode()
        assert "<script" not in text
        assert html.escape("<script>alert(1)</script>") in text
        assert not re.search(r"(src|href)=\"(?!data:,)", text)
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert 'http-equiv="refresh"' in text

    with_gateway(test)


def test_the_page_says_when_the_promise_is_broken() -> None:
    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        text = page(await status(gateway))
        assert "▲ Drift: requests for the certified point go to large" in text
        assert "Drift: it is over" in text

    with_gateway(test, alarm=Alarm(True, "Drift: it is over"))


def test_the_page_says_which_model_is_left_alone() -> None:
    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        breaker = gateway.generation.upstreams["small"].breaker
        while breaker.state == "closed":
            breaker.failed()
        assert snapshot(gateway)["upstreams"]["small"]["breaker"] == "open"
        assert "left alone" in page(await status(gateway))

    with_gateway(test, alarm=Alarm())


def test_the_content_is_to_be_had_as_json() -> None:
    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        asked = request(accept="application/json")
        response = await observer.status(gateway, None, asked)  # type: ignore[arg-type]
        found = json.loads(bytes(response.body))
        assert found["policy"]["reference"] == "large"
        assert found["in_doubt"] == {"count": 0, "amount": 0}

    with_gateway(test)


def test_an_answer_that_was_judged_is_counted() -> None:
    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> None:
        observer.feedback({"id": "r1", "model": "small", "quality": 0.5})
        response = await observer.metrics(gateway, None, request("/metrics"))  # type: ignore[arg-type]
        assert b"pointsman_feedback_total{" in response.body

    with_gateway(test)


@pytest.mark.browser
def test_the_page_is_drawn(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")

    async def test(gateway: Gateway, observer: Observer, stream: io.StringIO) -> str:
        return page(await status(gateway))

    path = tmp_path / "status.html"
    path.write_text(with_gateway(test, alarm=Alarm()), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/c"]
    shot = ["--window-size=1200,900", f"--screenshot={tmp_path}/status.png", path.as_uri()]
    subprocess.run([chromium, *options, *shot], check=True, capture_output=True, timeout=120)
    assert (tmp_path / "status.png").stat().st_size > 5000


def test_what_serves_loads_nothing_heavy() -> None:
    code = (
        "import sys, pointsman.serve.store, pointsman.serve.observing, pointsman.serve.keys\n"
        "heavy = {'torch', 'pandas', 'sklearn', 'matplotlib', 'scipy', 'psycopg', 'ray'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
