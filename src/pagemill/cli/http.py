"""The HTTP server in this process: uvicorn, with the signals left to the caller."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from pagemill.api.connection import CONNECTION
from pagemill.api.direct import EXTENSION
from pagemill.cli.header_guard import GuardedProtocol
from pagemill.config.args import ServeArgs

IDLE_SECONDS = 75  # of a connection without a request; longer than clients keep theirs
CLOSING_SECONDS = 2  # for responses that the drain has not waited for
_LEFT = getattr(select, "POLLRDHUP", 0)  # Linux tells of it beside unread data; breaks all do


class GatheringTransport:
    """A connection's transport for uvicorn, which writes a response's head by itself.

    It has what uvicorn calls. Between `hold` and `release` it keeps what is to be written.
    """

    def __init__(self, inner: asyncio.Transport) -> None:
        self.inner = inner
        self.is_closing = inner.is_closing
        self.get_extra_info = inner.get_extra_info
        self.pause_reading = inner.pause_reading
        self.resume_reading = inner.resume_reading
        self._held: list[bytes] | None = None

    def hold(self) -> None:
        """Keep what is written from now on."""
        self._held = []

    def release(self) -> None:
        """Write what was kept, in one piece."""
        held, self._held = self._held, None
        if held:
            self.inner.write(b"".join(held))

    def write(self, data: bytes) -> None:
        if self._held is None:
            self.inner.write(data)
        else:
            self._held.append(data)

    def close(self) -> None:
        self.release()
        self.inner.close()

    def abort(self) -> None:
        self._held = None
        self.inner.abort()


class ChunkWriter:
    """A `BodyWriter` that makes one chunk of a chunked body for each write; a `Connection`."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: StreamingProtocol) -> None:
        self._protocol = protocol

    def on_left(self, tell: Callable[[], None] | None) -> bool:
        """See `Connection.on_left`."""
        protocol = self._protocol
        protocol.tell_lost = tell
        if tell is not None:
            protocol.flow.resume_reading()  # paused after a large body, it would not notice
        return not protocol.is_lost

    def is_ready(self) -> bool:
        """See `BodyWriter.is_ready`."""
        protocol = self._protocol
        return not (protocol.flow.write_paused or protocol.transport.is_closing())

    def write(self, data: bytes) -> None:
        """See `BodyWriter.write`."""
        if data:
            self._protocol.gathering.inner.write(b"%x\r\n%b\r\n" % (len(data), data))

    def hold(self) -> None:
        """See `BodyWriter.hold`."""
        self._protocol.gathering.hold()

    def release(self) -> None:
        """See `BodyWriter.release`."""
        self._protocol.gathering.release()

    def abort(self) -> None:
        """See `BodyWriter.abort`, `Connection.abort`."""
        self._protocol.transport.abort()

    def has_left(self) -> bool:
        """See `Connection.has_left`."""
        transport = self._protocol.transport
        if transport.is_closing():
            return True
        poller = select.poll()
        poller.register(transport.get_extra_info("socket").fileno(), _LEFT)
        return bool(poller.poll(0))


class StreamingProtocol(GuardedProtocol):
    """The guarded protocol, with a `ChunkWriter` in the scope's extensions."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.is_lost = False
        self.tell_lost: Callable[[], None] | None = None  # of the request that runs

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.gathering = GatheringTransport(cast(asyncio.Transport, transport))
        super().connection_made(cast(asyncio.Transport, self.gathering))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        super().connection_lost(exc)
        if self.tell_lost is not None:
            self.tell_lost()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        writer = ChunkWriter(self)
        extensions = {EXTENSION: writer, CONNECTION: writer}
        self.scope["extensions"] = extensions  # type: ignore[typeddict-item]


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers; `should_exit` ends it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    @classmethod
    def build(cls, app: ASGIApp, args: ServeArgs, uds: str | None = None) -> HttpServer:
        """A server for `app`; with `uds` for `serve` on a local socket there, without TLS."""
        config = uvicorn.Config(
            app,
            http=StreamingProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=CLOSING_SECONDS,
            uds=uds,
            ssl_certfile=None if uds else args.ssl_certfile,
            ssl_keyfile=None if uds else args.ssl_keyfile,
        )
        return cls(config)

    def stop(self) -> None:
        """End soon: no more connections, and the open ones get their last seconds."""
        self.should_exit = True

    async def run_on(self, listener: socket.socket) -> None:
        """Answer on a listening socket until `should_exit`."""
        await self.serve(sockets=[listener])
