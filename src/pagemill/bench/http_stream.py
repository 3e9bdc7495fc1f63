"""A light HTTP/1.1 client for streams: reads events as bytes and does not parse their JSON."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import cast

import httptools

from pagemill.bench.records import Call, Record

_EVENT = re.compile(rb'"choices": ?\[\{')  # an event with a choice; usage comes without one
_MARK = b'"choices"'
_OVERLAP = len('"choices": [')  # of an event's mark that the read before may have had
_TAIL = 2048  # bytes of a stream's end, where the usage stands
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens": ?(\d+)')
_ERROR = re.compile(rb'"error": ?\{')


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send: a host, a port, a path, and the header lines that every request has."""

    host: str
    port: int
    path: str
    headers: tuple[str, ...] = ()

    def head(self, length: int) -> bytes:
        """The request line and headers of a body of `length` bytes."""
        lines = (
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            f"Content-Length: {length}",
            *self.headers,
        )
        return "\r\n".join(lines).encode() + b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection, which serves one call after the other."""

    def __init__(self, *, keep_text: bool = False) -> None:
        self.is_open = False
        self._keep_text = keep_text
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._record: Record | None = None
        self._done: asyncio.Future[None] | None = None
        self._tail = b""
        self._now = 0.0

    async def ask(self, target: Target, call: Call) -> Record:
        """Send a call and read its answer to the end. The record says what went wrong."""
        assert self._transport is not None, "ask before the connection was made"
        record = self._record = Record(call.input_len)
        self._parser = httptools.HttpResponseParser(self)
        self._tail = b""
        self._done = asyncio.get_running_loop().create_future()
        record.sent = time.perf_counter()
        self._transport.write(target.head(len(call.body)) + call.body)
        await self._done
        record.ended = time.perf_counter()
        self._conclude(record, call)
        return record

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._done is not None and not self._done.done():
            assert self._record is not None
            self._record.error = f"the connection was lost: {exc or 'closed by the server'}"
            self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._record is not None:
                self._record.error = f"not HTTP: {error}"
            self.close()

    def on_body(self, body: bytes) -> None:
        record = self._record
        if record is None:
            return
        overlap = self._tail[-_OVERLAP:]
        if _MARK in overlap and _EVENT.search(overlap):
            overlap = b""  # that one has been counted
        record.times += [self._now] * len(_EVENT.findall(overlap + body))
        self._tail = (self._tail + body)[-_TAIL:]
        if self._keep_text:
            record.text += body

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.is_open = False
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _conclude(self, record: Record, call: Call) -> None:
        """Check the status and read the usage at the end of the stream."""
        if record.error:
            return
        status = self._parser.get_status_code()
        if status != 200 or _ERROR.search(self._tail):
            detail = self._tail[-500:].decode(errors="replace")
            record.error = f"HTTP {status}: {detail}"
            return
        counted = _COMPLETION_TOKENS.findall(self._tail)
        record.output_len = int(counted[-1]) if counted else len(record.times)
        prompt = _PROMPT_TOKENS.findall(self._tail)
        record.input_len = int(prompt[-1]) if prompt else call.input_len
        if not record.times:
            record.error = "the stream had no token"


class ConnectionPool:
    """Connections to one target; a free one is used again."""

    def __init__(self, target: Target, *, keep_text: bool = False) -> None:
        self._target = target
        self._keep_text = keep_text
        self._free: list[Connection] = []

    async def ask(self, call: Call) -> Record:
        """Send a call on a free connection, or on a new one."""
        try:
            connection = await self._take()
        except OSError as error:
            now = time.perf_counter()
            return Record(call.input_len, now, now, error=f"no connection: {error}")
        record = await connection.ask(self._target, call)
        if connection.is_open and not record.error:
            self._free.append(connection)
        else:
            connection.close()
        return record

    def close(self) -> None:
        """Drop all connections."""
        for connection in self._free:
            connection.close()

    async def _take(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(
            lambda: Connection(keep_text=self._keep_text), self._target.host, self._target.port
        )
        return made
