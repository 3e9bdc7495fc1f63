"""The HTTP server in this process: uvicorn, with the signals left to the caller."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pagemill.api.connection import CONNECTION
from pagemill.api.direct import EXTENSION
from pagemill.cli.header_guard import GuardedProtocol
from pagemill.config.args import ServeArgs

IDLE_SECONDS = 75  # of a connection without a request; longer than clients keep theirs
CLOSING_SECONDS = 2  # for responses that the drain has not waited for
_LEFT = getattr(select, "POLLRDHUP", 0)  # Linux tells of it beside unread data; breaks all do


class ChunkWriter:
    """A `BodyWriter` that makes one chunk of a chunked body for each write; a `Connection`."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol

    def is_ready(self) -> bool:
        """See `BodyWriter.is_ready`."""
        protocol = self._protocol
        return not (protocol.flow.write_paused or protocol.transport.is_closing())

    def write(self, data: bytes) -> None:
        """See `BodyWriter.write`."""
        if data:
            self._protocol.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

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
