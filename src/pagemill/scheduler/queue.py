"""Requests that wait for a slot."""

from __future__ import annotations

from heapq import heappop, heappush

from pagemill.scheduler.request import Request, Status


class WaitingQueue:
    """The most important request first: by priority where the policy has one, then by arrival.

    A preempted request keeps its place in the order of arrival, so it comes back before everything
    that never ran. Finished requests may stay inside until they reach the front.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Request]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, request: Request) -> None:
        """O(log n)."""
        heappush(self._heap, (request.sort_key, request))
        self._size += 1

    def pop(self) -> Request:
        """The most important request, O(log n). The queue must not be empty."""
        while True:
            request = heappop(self._heap)[1]
            if request.status is not Status.FINISHED:
                self._size -= 1
                return request

    def discard(self, request: Request) -> None:
        """Forget a request of this queue; its status is FINISHED from now on. O(1)."""
        assert request.status is Status.FINISHED
        self._size -= 1
