"""How much of the engine batches may take: what interactive requests leave, and half at most."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pagemill.api.admission import Admission
from pagemill.frontend.base import EngineClient

SHARE = 2  # of the places, one in so many
_POLL_SECONDS = 0.05


class Gate:
    """Places for the requests of all batches of one process."""

    def __init__(self, client: EngineClient, admission: Admission) -> None:
        self._client = client
        self._admission = admission
        self._num_open = 0
        self._turn = asyncio.Lock()  # only one waits and looks, the others stand behind it

    @property
    def num_places(self) -> int:
        """The most requests of batches at once."""
        return max(1, self._client.info.max_num_seqs // SHARE)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place; waits until there is one."""
        async with self._turn:
            while not self._has_room():
                await asyncio.sleep(_POLL_SECONDS)
            self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1

    def _has_room(self) -> bool:
        client = self._client
        stats = client.stats
        if client.status.state != "ready" or stats.sleep_level:
            return False
        if not self._num_open:
            return True  # however busy the server is, batches go on, one by one
        # Not the engine's counts, which hear of our own requests later than we do.
        free = client.info.max_num_seqs - self._admission.num_open
        return not stats.num_waiting and self._num_open < min(self.num_places, free)
