"""Who is being served now: counts per key, open generations by id, and the drain at shutdown."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pagemill.api.errors import TooManyRequests
from pagemill.errors import OverloadedError
from pagemill.frontend.board import Board, LoneBoard

DRAIN_RETRY_SECONDS = 10
POLL_SECONDS = 0.05


class Admission:
    """Counts the generating requests that are open. Belongs to one event loop."""

    def __init__(self, board: Board | None = None) -> None:
        self._board = board or LoneBoard()
        self._open_by_key: Counter[str] = Counter()
        self._engine_ids: dict[str, list[str]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_open(self) -> int:
        """Of all processes."""
        return self._open_by_key.total() + self._board.requests_elsewhere()

    @contextmanager
    def admit(self, key_id: str, limit: int) -> Iterator[None]:
        """Hold a place while a request is served; a key may have `limit` of them.

        Raises OverloadedError, TooManyRequests.
        """
        if self.draining:
            raise OverloadedError("The server is shutting down", DRAIN_RETRY_SECONDS)
        if self._open_by_key[key_id] + self._board.key_elsewhere(key_id) >= limit:
            raise TooManyRequests(f"This key has {limit} requests open, as many as it may")
        self._open_by_key[key_id] += 1
        self._board.set_key(key_id, self._open_by_key[key_id])
        self._idle.clear()
        try:
            yield
        finally:
            self._open_by_key[key_id] -= 1
            self._board.set_key(key_id, self._open_by_key[key_id])
            if not self._open_by_key[key_id]:
                del self._open_by_key[key_id]
            if not self._open_by_key:
                self._idle.set()

    @property
    def draining(self) -> bool:
        """Whether new requests are refused because the server is to end."""
        return self._board.is_draining()

    def start_drain(self) -> None:
        """Refuse new requests from now on, in all processes; those that run go on."""
        self._board.start_drain()

    async def wait_idle(self) -> None:
        """Return when no generating request is open, in any process."""
        await self._idle.wait()
        while self._board.requests_elsewhere():
            await asyncio.sleep(POLL_SECONDS)

    @contextmanager
    def track(self, response_id: str, num_prompts: int) -> Iterator[tuple[str, list[str]]]:
        """Reserve a response id and the engine's ids below it, one for each prompt.

        The engine never sees one id twice, although clients choose their request ids: one that is
        in use already gets a random ending, and no client's id can have the slash.
        """
        if response_id in self._engine_ids:
            response_id = f"{response_id}-{secrets.token_hex(4)}"
        ids = [response_id]
        if num_prompts > 1:
            ids = [f"{response_id}/{i}" for i in range(num_prompts)]
        self._engine_ids[response_id] = ids
        try:
            yield response_id, ids
        finally:
            del self._engine_ids[response_id]

    def find(self, request_ids: list[str]) -> list[str]:
        """The engine's ids of open requests, by response id or by X-Request-Id."""
        wanted = set(request_ids)
        found: list[str] = []
        for response_id, ids in self._engine_ids.items():
            stem = response_id.partition("-")[2]
            if response_id in wanted or stem in wanted:
                found += ids
        return found
