"""Bounds that uvicorn's fast HTTP parser lacks: how large headers are, and how slowly they come."""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle, Transport
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 30.0

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose request line and headers are not complete in time, or endless.

    As endless count trailers, which are dropped, and extensions of chunks, too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._num_idle_bytes = 0  # neither of a body nor before the end of headers
        self._has_moved_on = False
        self._header_timer: TimerHandle | None = None
        self._in_headers = False

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Transport, transport))
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_moved_on = False
        super().data_received(data)
        # A piece that moves on may hold anything else besides; what follows it is counted.
        self._num_idle_bytes = 0 if self._has_moved_on else self._num_idle_bytes + len(data)
        if self._num_idle_bytes > MAX_HEADER_BYTES:
            self._refuse()
        elif not self._in_headers and self.cycle is not None and self.cycle.response_complete:
            self._expect_headers()  # the rest of a request that was answered early, or nothing

    def on_message_begin(self) -> None:
        self._has_moved_on = True
        super().on_message_begin()
        if not self._in_headers:
            self._expect_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # else it follows a chunked body, and is nobody's
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._has_moved_on = True
        self._end_headers()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_moved_on = True
        super().on_body(body)

    def _expect_headers(self) -> None:
        self._in_headers = True
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _end_headers(self) -> None:
        self._in_headers = False
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _refuse(self) -> None:
        if self._in_headers and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
        self._end_headers()
        self.transport.close()
