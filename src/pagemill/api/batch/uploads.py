"""How files come in: a few at once, others in a queue, and none slower than a least pace."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.types import Message, Receive, Scope

from pagemill.api.connection import run_unless_left
from pagemill.api.errors import RequestTimeout, TooManyRequests
from pagemill.errors import OverloadedError

AT_ONCE = 4
AT_ONCE_EACH = 2  # of one owner
RETRY_SECONDS = 5


@dataclass
class UploadQueue:
    """Turns for uploads, first come, first served. Belongs to one event loop.

    An owner, a key or an address, has half of the turns and of the places in the queue at most.
    """

    max_waiting: int
    max_seconds: float  # of waiting
    _open: Counter[str] = field(default_factory=Counter)  # turns, by owner
    # Owners by what tells them of their turn. None of them could begin now.
    _waiting: dict[asyncio.Future[None], str] = field(default_factory=dict)

    @property
    def num_waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self, owner: str, scope: Scope) -> AsyncIterator[None]:
        """Hold a turn; `scope` tells whether the client is still there.

        Raises OverloadedError when too many wait for one, or one waits too long, TooManyRequests
        when too many of the owner's wait, ClientDisconnected.
        """
        await run_unless_left(self._wait(owner), scope)
        try:
            yield
        finally:
            self._end(owner)

    async def _wait(self, owner: str) -> None:
        if self._may_begin(owner):
            self._open[owner] += 1
            return
        self._check_room(owner)
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = owner
        try:
            async with asyncio.timeout(self.max_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it came in the same moment
                self._end(owner)
            if isinstance(error, TimeoutError):
                raise _overloaded() from None
            raise
        finally:
            self._waiting.pop(turn, None)

    def _may_begin(self, owner: str) -> bool:
        return self._open[owner] < AT_ONCE_EACH and self._open.total() < AT_ONCE

    def _check_room(self, owner: str) -> None:
        if len(self._waiting) >= self.max_waiting:
            raise _overloaded()
        own = sum(waiting == owner for waiting in self._waiting.values())
        if own >= max(1, self.max_waiting // 2):
            raise TooManyRequests("Too many of this client's files are being sent", RETRY_SECONDS)

    def _end(self, owner: str) -> None:
        """Give a turn back, and to the first who may have it."""
        self._open[owner] -= 1
        if not self._open[owner]:
            del self._open[owner]
        for turn, waiting in list(self._waiting.items()):
            if not turn.done() and self._may_begin(waiting):
                self._open[waiting] += 1
                del self._waiting[turn]
                turn.set_result(None)


def _overloaded() -> OverloadedError:
    return OverloadedError("Too many files are being uploaded", RETRY_SECONDS)


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
