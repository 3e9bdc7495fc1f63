"""Which requests each frontend has in the engine, for the case that one dies."""

from __future__ import annotations

from collections.abc import Iterable

from pagemill.engine.messages import AddRequest, RequestDelta


class ClientRequests:
    """The open requests by client. With one client it keeps nothing: its end ends the engine."""

    def __init__(self, num_clients: int) -> None:
        self._open: list[set[str]] = [set() for _ in range(num_clients)]
        self._counts = num_clients > 1

    def add(self, message: AddRequest) -> None:
        """A request has come."""
        if self._counts:
            self._open[message.client_id].add(message.request_id)

    def retire(self, deltas: Iterable[RequestDelta]) -> None:
        """Forget the requests that these deltas end."""
        if self._counts:
            for delta in deltas:
                if delta.finish_reason is not None:
                    self._open[delta.client_id].discard(delta.request_id)

    def of(self, client_id: int) -> list[str]:
        """What a client has open."""
        return list(self._open[client_id])
