"""Connections whose headers never end, or never come."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pagemill.cli import header_guard
from pagemill.cli.http import HttpServer
from pagemill.config.args import ServeArgs

OK = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
UPLOAD = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 300000\r\n\r\n"

Scenario = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await Response(str(len(body)))(scope, receive, send)


def run(scenario: Scenario, app: ASGIApp = app) -> None:
    async def serve() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = HttpServer.build(app, ServeArgs())
            serving = asyncio.create_task(server.run_on(listener))
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            try:
                await scenario(reader, writer)
            finally:
                writer.close()
                server.should_exit = True
                await serving

    asyncio.run(asyncio.wait_for(serve(), 20))


async def answer(reader: asyncio.StreamReader) -> bytes:
    """The body of an answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
    return await reader.readexactly(int(length))


@pytest.mark.parametrize("before", [0, 1])
def test_endless_headers_end_the_connection(before: int) -> None:
    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(before):
            writer.write(OK)
            assert await answer(reader) == b"0"
        writer.write(OK.removesuffix(b"\r\n"))
        sent = 0
        while not reader.at_eof() and sent < 2**20:
            try:
                writer.write(b"x-a: " + b"a" * 1000 + b"\r\n")
                await writer.drain()
            except ConnectionError:
                break
            sent += 1007
            await asyncio.sleep(0)
        assert sent < 2**20

    run(scenario)


def test_slow_headers_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_guard, "HEADER_SECONDS", 0.5)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        assert await answer(reader) == b"0"
        writer.write(OK[:20])
        assert await asyncio.wait_for(reader.read(), 5) == b""

    run(scenario)


def test_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_guard, "HEADER_SECONDS", 0.5)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await asyncio.wait_for(reader.read(), 5) == b""

    run(scenario)


def test_large_bodies_and_following_requests_are_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_guard, "HEADER_SECONDS", 0.3)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(UPLOAD)
            await asyncio.sleep(0.4)  # a body may take its time
            writer.write(b"x" * 300_000 + OK[:20])  # the next request begins with it
            assert await answer(reader) == b"300000"
            writer.write(OK[20:])
            assert await answer(reader) == b"0"

    run(scenario)


CHUNKED = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (CHUNKED + b"0\r\n", b"x-a: " + b"a" * 1000 + b"\r\n"),
        (CHUNKED + b"0\r\nx-a: ", b"a" * 1000),
        (CHUNKED + b"1;a=", b"a" * 1000),
        (b"", b"\r\n" * 500),
    ],
)
def test_what_is_endless_beside_a_body_ends_the_connection(begin: bytes, piece: bytes) -> None:
    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        for _ in range(2 * header_guard.MAX_HEADER_BYTES // len(piece)):
            try:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)
            except ConnectionError:
                return
        with suppress(ConnectionError):
            assert (await asyncio.wait_for(reader.read(), 5))[:12] in (b"", b"HTTP/1.1 431")

    run(scenario)


def test_trailers_are_not_headers() -> None:
    seen: list[dict[str, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        seen.append(dict(Request(scope).headers))
        await Response("1")(scope, receive, send)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n0\r\nx-a: 1\r\n\r\n")
        assert await answer(reader) == b"1"
        assert "x-a" not in seen[0]
        writer.write(OK)
        assert await answer(reader) == b"1"

    run(scenario, app)


@pytest.mark.parametrize("rest", [b"\r\n", UPLOAD + b"x"])
def test_a_connection_that_says_nothing_new_is_closed(
    rest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server counts any byte as the end of the time between requests."""
    monkeypatch.setattr(header_guard, "HEADER_SECONDS", 0.5)

    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("1")(scope, receive, send)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        assert await answer(reader) == b"1"
        writer.write(rest)
        if rest != b"\r\n":
            assert await answer(reader) == b"1"
            writer.write(b"x")
        assert await asyncio.wait_for(reader.read(), 5) == b""

    run(scenario, early)
