"""The HTTP server in this process: uvicorn, with the signals left to the caller."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pagemill.api.direct import EXTENSION
from pagemill.config.args import ServeArgs

CLOSING_SECONDS = 2  # for responses that the drain has not waited for


class ChunkWriter:
    """A `BodyWriter`: one chunk of a chunked body for each write."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> bool:
        """See `BodyWriter.write`."""
        protocol = self._protocol
        if protocol.flow.write_paused or protocol.transport.is_closing():
            return False
        protocol.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True


class StreamingProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a `ChunkWriter` in the scope's extensions."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: ChunkWriter(self)}  # type: ignore[dict-item]


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers; `should_exit` ends it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    @classmethod
    def build(cls, app: ASGIApp, args: ServeArgs, keep_alive: float) -> HttpServer:
        """A server for `app`; connections without a request are closed after `keep_alive` s."""
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
            timeout_keep_alive=int(keep_alive),
            timeout_graceful_shutdown=CLOSING_SECONDS,
            ssl_certfile=args.ssl_certfile,
            ssl_keyfile=args.ssl_keyfile,
        )
        return cls(config)

    async def run_on(self, listener: socket.socket) -> None:
        """Answer on a listening socket until `should_exit`."""
        await self.serve(sockets=[listener])
