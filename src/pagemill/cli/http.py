"""The HTTP server in this process: uvicorn, with the signals left to the caller."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from pagemill.cli.header_guard import GuardedProtocol
from pagemill.config.args import ServeArgs

CLOSING_SECONDS = 2  # for responses that the drain has not waited for


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
            http=GuardedProtocol,
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
