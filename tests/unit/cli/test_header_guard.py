"""Connections whose headers never end, or never come."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pagemill.cli import header_guard
from pagemill.cli.http import HttpServer
from pagemill.config.args import ServeArgs

OK = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
UPLOAD = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 300000\r\n\r\n"

Scenario = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await Response(str(len(body)))(scope, receive, send)


def run(scenario: Scenario) -> None:
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

    asyncio.run(asyncio.wait_for(serve(), 10))


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
    monkeypatch.setattr(header_guard, "HEADER_SECONDS", 0.1)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        assert await answer(reader) == b"0"
        writer.write(OK[:20])
        assert await asyncio.wait_for(reader.read(), 2) == b""

    run(scenario)


def test_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_guard, "HEADER_SECONDS", 0.1)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await asyncio.wait_for(reader.read(), 2) == b""

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
