"""What the process that owns the server's state asks of the other frontends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pagemill.metrics.merge import Family


class Peers(Protocol):
    """The other frontends of this server. One that does not answer counts as having nothing."""

    async def metrics(self) -> Sequence[Sequence[Family]]:
        """Their counts, one list for each."""
        ...

    async def abort(self, request_ids: list[str]) -> int:
        """Abort requests by the ids that clients know; how many were found."""
        ...


class NoPeers:
    """For a server with one frontend."""

    async def metrics(self) -> Sequence[Sequence[Family]]:
        return ()

    async def abort(self, request_ids: list[str]) -> int:
        return 0
