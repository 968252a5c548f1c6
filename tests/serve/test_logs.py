"""The log: lines of JSON that nothing breaks out of, and no text unless asked for."""

import io
import json
import logging
from typing import Any

import pytest

from pointsman.serve.logs import JsonLog


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json() -> None:
    stream = io.StringIO()
    JsonLog(stream).write("request", id="r\n1", status=200, error=None, seconds=0.12345678901)
    (line,) = lines(stream)
    assert line["event"] == "request"
    assert line["level"] == "info"
    assert line["id"] == "r\n1"
    assert line["seconds"] == 0.123456789
    assert "error" not in line
    assert line["time"].endswith("Z")


def test_the_text_of_a_query_is_left_out_unless_asked_for() -> None:
    for text, there in ((False, False), (True, True)):
        stream = io.StringIO()
        JsonLog(stream, text=text).write("request", query="my secret")
        assert ("my secret" in stream.getvalue()) is there


def test_a_long_text_is_cut() -> None:
    stream = io.StringIO()
    JsonLog(stream, text=True).write("request", query="x" * 10**6)
    assert len(stream.getvalue()) < 25_000


def test_what_is_below_the_level_is_not_written() -> None:
    stream = io.StringIO()
    log = JsonLog(stream, level="warning")
    log.write("request")
    log.write("request", level="error")
    assert [line["level"] for line in lines(stream)] == ["error"]


def test_a_stream_that_is_closed_fails_no_request() -> None:
    stream = io.StringIO()
    stream.close()
    JsonLog(stream).write("request")


def test_it_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    JsonLog().write("start")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "start"


def test_what_libraries_log_comes_along() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("pointsman.tests.logs")
    handler = JsonLog(stream).handler()
    logger.addHandler(handler)
    try:
        logger.warning("a %s", "word")
        try:
            raise RuntimeError("broken\nin two")
        except RuntimeError:
            logger.exception("it failed")
        logger.critical("bad")
    finally:
        logger.removeHandler(handler)
    first, second, third = lines(stream)
    assert (first["level"], first["message"], first["logger"]) == ("warning", "a word", logger.name)
    assert "RuntimeError: broken" in second["traceback"]
    assert third["level"] == "error"
