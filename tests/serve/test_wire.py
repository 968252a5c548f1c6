"""The HTTP client against servers that say exactly these bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from rig import run

from pointsman.serve.wire import HEADER_LIMIT, Pool, WireError

ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LIMITS = {"connect": 2.0, "first": 2.0, "idle": 2.0, "total": 5.0}


@asynccontextmanager
async def answering(*answers: bytes, close: bool = False) -> AsyncIterator[Pool]:
    """A pool for a server that gives these answers in turn, the last one for ever."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(left.pop(0) if len(left) > 1 else left[0])
                if close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = Pool("127.0.0.1", server.sockets[0].getsockname()[1], False)
    try:
        yield pool
    finally:
        pool.close()
        server.close()


async def read(pool: Pool) -> tuple[int, bytes]:
    reply = await pool.exchange(ASK, **LIMITS)
    try:
        return reply.status, await reply.read(10**7)
    finally:
        reply.close()


SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [SIZED, CHUNKED], ids=["sized", "chunked"])
def test_connections_are_kept_and_used_again(answer: bytes) -> None:
    async def scenario() -> None:
        async with answering(answer) as pool:
            for _ in range(5):
                assert await read(pool) == (200, b"hello")
            assert pool.opened == 1

    run(scenario)


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def scenario() -> None:
        async with answering(b"HTTP/1.1 200 OK\r\n\r\nhello", close=True) as pool:
            assert await read(pool) == (200, b"hello")
            assert await read(pool) == (200, b"hello")
            assert pool.opened == 2

    run(scenario)


def test_a_kept_connection_that_was_closed_is_replaced_without_an_error() -> None:
    async def scenario() -> None:
        async with answering(SIZED, close=True) as pool:
            for _ in range(3):
                assert await read(pool) == (200, b"hello")

    run(scenario)


def test_interim_answers_are_passed_over_and_204_has_no_body() -> None:
    async def scenario() -> None:
        interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        async with answering(interim + SIZED, b"HTTP/1.1 204 No Content\r\n\r\n") as pool:
            assert await read(pool) == (200, b"hello")
            assert await read(pool) == (204, b"")

    run(scenario)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"nonsense\r\n\r\n", "no proper answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", "connection was closed"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhel", "was closed"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "no proper answer"),
        (b"", "connection was closed"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * (HEADER_LIMIT + 1) + b"\r\n", "over the limit"),
    ],
    ids=["nonsense", "short", "short-chunks", "bad-chunk", "nothing", "headers"],
)
def test_broken_answers_are_errors(answer: bytes, words: str) -> None:
    async def scenario() -> None:
        async with answering(answer, close=True) as pool:
            with pytest.raises(WireError, match=words) as caught:
                await read(pool)
            assert caught.value.stage == "answer"

    run(scenario)


def test_silence_runs_into_the_time_limits() -> None:
    async def scenario() -> None:
        async with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhel") as pool:
            reply = await pool.exchange(ASK, **{**LIMITS, "idle": 0.05})
            assert await reply.piece() == b"hel"
            with pytest.raises(WireError, match="no further piece of the answer in time"):
                await reply.piece()
        async with answering(b"") as pool:
            with pytest.raises(WireError, match="no answer in time"):
                await pool.exchange(ASK, **{**LIMITS, "first": 0.05})
        with pytest.raises(WireError, match="no connection") as caught:
            await Pool("127.0.0.1", 1, False).exchange(ASK, **LIMITS)
        assert caught.value.stage == "connect"

    run(scenario)


def test_an_answer_over_its_limit_is_broken_off() -> None:
    async def scenario() -> None:
        async with answering(SIZED) as pool:
            reply = await pool.exchange(ASK, **LIMITS)
            with pytest.raises(WireError, match="over 3 bytes"):
                await reply.read(3)
            assert await read(pool) == (200, b"hello")

    run(scenario)


def test_an_upstream_that_sends_faster_than_its_answer_is_read_is_held_up() -> None:
    async def scenario() -> None:
        size = 30_000_000
        body = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
        async with answering(body) as pool:
            reply = await pool.exchange(ASK, **LIMITS)
            await asyncio.sleep(0.3)
            assert reply._connection is not None
            assert reply._connection._size < 2_000_000
            assert len(await reply.read(size)) == size

    run(scenario)


def test_an_upstream_that_speaks_out_of_turn_is_not_believed() -> None:
    async def scenario() -> None:
        poison = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"
        async with answering(SIZED + poison, SIZED) as pool:
            assert (await read(pool))[1] == b"hello"
            await asyncio.sleep(0.05)
            assert (await read(pool))[1] == b"hello"

    run(scenario)
