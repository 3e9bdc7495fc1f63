"""Server-sent events: the bytes, and the response that writes them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import NoReturn

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pagemill.api.connection import connection_of, run_while_connected
from pagemill.api.context import Clock
from pagemill.api.direct import BodyWriter, DirectPath, body_writer
from pagemill.api.errors import ClientDisconnected, error_body
from pagemill.api.responses import ErrorResponse
from pagemill.errors import PageMillError

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
QUIET_TICK_SECONDS = 15.0  # how often a stream without comments looks at its client
KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_encoder = msgspec.json.Encoder()


def event(data: msgspec.Struct, name: str = "") -> bytes:
    """One event with a JSON body; APIs with several kinds of events name them."""
    body = b"data: " + _encoder.encode(data) + b"\n\n"
    return b"event: " + name.encode() + b"\n" + body if name else body


def _openai_error(error: Exception) -> bytes:
    return event(ErrorResponse(error_body(error)))


@dataclass(frozen=True)
class StreamProtocol:
    """How an API's streams end, show errors, and keep the connection."""

    error: Callable[[Exception], bytes] = _openai_error
    done: bytes = DONE
    keep_alive: bytes = KEEP_ALIVE


OPENAI_STREAM = StreamProtocol()


class EventStream(Response):
    """Writes what `events` yields, one write each, and ends as the protocol says.

    Nothing is sent before the first events are there, so an error before them still becomes a
    response with a status of its own; an error after them becomes an event. While `events` is
    silent something is sent every `keep_alive` seconds, so that proxies keep the connection, unless
    that is 0. A client that takes nothing for `write_timeout` seconds, or leaves, closes `events`.
    Between two of them `direct`, which is told when the stream has begun, may write as well.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        clock: Clock,
        keep_alive: float,
        write_timeout: float,
        headers: dict[str, str] | None = None,
        protocol: StreamProtocol = OPENAI_STREAM,
        direct: DirectPath | None = None,
    ) -> None:
        super().__init__(headers=headers)
        self._direct = direct
        self._body: BodyWriter | None = None
        self._events = events
        self._protocol = protocol
        self._clock = clock
        self._keep_alive = keep_alive
        self._write_timeout = write_timeout
        self._extra = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
        self._started = False
        self._write_lock = asyncio.Lock()
        self._writing_since: float | None = None
        self._last_write = clock.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._body = body_writer(scope)
        async with aclosing(self._events):
            try:
                await run_while_connected(
                    self._write_all(send),
                    receive,
                    connection_of(scope),
                    on_tick=lambda: self._tick(send),
                    tick_seconds=self._keep_alive or QUIET_TICK_SECONDS,
                )
            except ClientDisconnected:
                if not self._started:
                    raise
                logger.debug("client left its stream")
            finally:
                if self._direct is not None:
                    self._direct.close()

    async def _write_all(self, send: Send) -> None:
        try:
            async for data in self._events:
                await self._write(send, data)
                self._open_direct()
        except PageMillError as error:
            if not self._started:
                raise
            await self._write(send, self._protocol.error(error))
        except Exception as error:
            if not self._started:
                raise
            logger.exception("stream failed")
            await self._write(send, self._protocol.error(error))
        await self._write(send, self._protocol.done, is_last=True)

    def _open_direct(self) -> None:
        """After the first events, not after a comment: they begin what the others go on with."""
        if self._direct is not None and not self._direct.is_open:
            self._direct.open(self._body)

    async def _write(self, send: Send, data: bytes, *, is_last: bool = False) -> None:
        body = {"type": "http.response.body", "body": data, "more_body": not is_last}
        async with self._write_lock:
            self._writing_since = self._clock.monotonic()
            if self._started:
                await send(body)
            else:
                await self._begin(send, body)
            self._writing_since = None
            self._last_write = self._clock.monotonic()

    async def _begin(self, send: Send, body: Message) -> None:
        """The headers go out with the first events: to write costs more than to make them."""
        self._started = True
        writer, headers = self._body, _HEADERS + self._extra
        if writer is not None:
            writer.hold()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send(body)
        finally:
            if writer is not None:
                writer.release()

    async def _tick(self, send: Send) -> None:
        now = self._clock.monotonic()
        if self._direct is not None and self._direct.wrote:
            self._direct.wrote = False
            self._last_write = now
        if self._writing_since is not None:
            if now - self._writing_since >= self._write_timeout:
                self._drop()
        elif self._keep_alive and now - self._last_write >= self._keep_alive * 0.9:
            try:
                async with asyncio.timeout(self._write_timeout):  # no tick comes meanwhile
                    await self._write(send, self._protocol.keep_alive)
            except TimeoutError:
                self._drop()

    def _drop(self) -> NoReturn:
        logger.info("a client that reads nothing is dropped")
        if self._body is not None:
            self._body.abort()  # closing would wait for it to read
        raise ClientDisconnected
