"""How files come in: a few at once, others in a queue, and none slower than a least pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.types import Message, Receive

from pagemill.api.errors import RequestTimeout
from pagemill.errors import OverloadedError

AT_ONCE = 4
RETRY_SECONDS = 5


@dataclass
class UploadQueue:
    """Turns for uploads, first come, first served. Belongs to one event loop."""

    max_waiting: int
    max_seconds: float  # of waiting
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    _num_waiting: int = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold a turn. Raises OverloadedError when too many wait for one, or one waits too long."""
        if self._slots.locked() and self._num_waiting >= self.max_waiting:
            raise OverloadedError("Too many files are being uploaded", RETRY_SECONDS)
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self.max_seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise OverloadedError("Too many files are being uploaded", RETRY_SECONDS) from None
        finally:
            self._num_waiting -= 1
        try:
            yield
        finally:
            self._slots.release()


class PacedReceive:
    """An ASGI `receive` for a body that must bring `num_bytes` in every `seconds` of waiting.

    Only time spent waiting for the client counts, not that of a slow disk. Raises RequestTimeout.
    """

    def __init__(self, receive: Receive, num_bytes: int, seconds: float) -> None:
        self._receive = receive
        self._num_bytes = num_bytes
        self._seconds = seconds
        self._bytes_left = num_bytes
        self._seconds_left = seconds

    async def __call__(self) -> Message:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds_left):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout(
                f"The file came too slowly: less than {self._num_bytes} bytes in "
                f"{self._seconds:g} s"
            ) from None
        self._seconds_left -= time.monotonic() - started
        self._bytes_left -= len(message.get("body", b""))
        if self._bytes_left <= 0:
            self._bytes_left, self._seconds_left = self._num_bytes, self._seconds
        return message
