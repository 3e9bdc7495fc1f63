"""The slots: counters of the running requests as arrays, so that a step costs no loop over them."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

from pagemill.scheduler.request import Request, Status

Index = NDArray[np.intp]  # what numpy indexes with; anything else it would convert every time

_NO_TOKEN = -1


def _sort_key(request: Request) -> tuple[int, int]:
    return request.sort_key


class Slots:
    """Running requests: a row of counters for each, and their order of importance.

    `num_pending` counts tokens that the device has or will have sampled but the host has not seen.
    It is optimistic: scheduling raises it as if every draft were accepted, retiring takes back
    what was promised and raises `length` by what came. So `length + num_pending` is the most that
    a request can have. A *resident* request's next input token is in its slot on the device; it
    has computed everything but that token. `num_computed` is about the other requests.
    """

    def __init__(self, num_slots: int) -> None:
        self.length = np.zeros(num_slots, np.int32)  # tokens the host knows
        self.num_computed = np.zeros(num_slots, np.int32)
        self.num_pending = np.zeros(num_slots, np.int32)
        self.max_total = np.zeros(num_slots, np.int32)
        self.capacity = np.zeros(num_slots, np.int32)  # positions that have a block
        self.max_drafts = np.zeros(num_slots, np.int32)
        self.has_grammar = np.zeros(num_slots, np.bool_)
        self.resident = np.zeros(num_slots, np.bool_)
        self.stop_ids = np.full((4, num_slots), _NO_TOKEN, np.int32)  # padded columns
        self.epoch = np.zeros(num_slots, np.int64)  # raised when a request leaves the slot
        self._free = list(range(num_slots - 1, -1, -1))
        self._order: list[Request] = []
        self._decoding: tuple[Index, list[Request]] | None = None

    def __len__(self) -> int:
        return len(self._order)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def requests(self) -> list[Request]:
        """All running requests, the most important first."""
        return self._order

    @property
    def least_important(self) -> Request:
        return self._order[-1]

    def decoding(self) -> tuple[Index, list[Request]]:
        """Resident requests in order, and their slots [n]; neither may be changed."""
        if self._decoding is None:
            requests = [r for r in self._order if self.resident[r.slot]]
            self._decoding = np.array([r.slot for r in requests], np.intp), requests
        return self._decoding

    def prefilling(self) -> list[Request]:
        """Requests with known text to compute, in order."""
        num_decoding = len(self.decoding()[1])
        if num_decoding == len(self._order):
            return []
        return [r for r in self._order if not self.resident[r.slot]]

    def admit(self, request: Request, num_computed: int, capacity: int, max_drafts: int) -> None:
        """Give the request a slot."""
        slot = self._free.pop()
        request.slot, request.status = slot, Status.RUNNING
        self.length[slot] = len(request.token_ids)
        self.num_computed[slot] = num_computed
        self.num_pending[slot] = 0
        self.max_total[slot] = request.max_total
        self.capacity[slot] = capacity
        self.max_drafts[slot] = max_drafts
        self.has_grammar[slot] = request.grammar is not None
        self.resident[slot] = False
        self._set_stop_ids(slot, request.stop_ids)
        insort(self._order, request, key=_sort_key)

    def _set_stop_ids(self, slot: int, stop_ids: frozenset[int]) -> None:
        excess = len(stop_ids) - len(self.stop_ids)
        if excess > 0:
            padding = ((0, excess), (0, 0))
            self.stop_ids = np.pad(self.stop_ids, padding, constant_values=_NO_TOKEN)
        self.stop_ids[:, slot] = _NO_TOKEN
        self.stop_ids[: len(stop_ids), slot] = list(stop_ids)

    def make_resident(self, request: Request) -> None:
        """The request samples for the first time since it got the slot."""
        self.resident[request.slot] = True
        self._decoding = None

    def release(self, request: Request) -> None:
        """Take the slot back; results of earlier steps no longer concern it."""
        self._order.pop(bisect_left(self._order, request.sort_key, key=_sort_key))
        if self.resident[request.slot]:
            self._decoding = None
        self.epoch[request.slot] += 1
        self._free.append(request.slot)
        request.slot = -1
