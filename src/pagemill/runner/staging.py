"""Host arrays to the device, many in one copy, without waiting for the steps before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.device.base import Device, Event

_ALIGNMENT = 64  # bytes: kernels are compiled for pointers of one alignment
_TYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


class StagingRing:
    """Buffers of (pinned) host memory that are used in turn, one for each step in flight and one
    to write to. The copy on the device is one buffer: the stream keeps steps apart.
    """

    def __init__(self, device: Device, num_buffers: int, capacity: int) -> None:
        self._device = device
        self._events: list[Event | None] = [None] * num_buffers
        self._next = 0
        self._allocate(capacity)

    def upload(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """Enqueue the copy of one-dimensional arrays of 4 or 8 byte numbers.

        The returned tensors are views that are valid until the next upload in stream order.
        """
        ends = np.cumsum([-(-a.nbytes // _ALIGNMENT) * _ALIGNMENT for a in arrays.values()])
        total = int(ends[-1])
        if total > len(self._on_device):
            self._allocate(2 * total)
        buffer = self._next_buffer()
        starts = [0, *ends[:-1].tolist()]
        target = buffer.numpy()
        for start, array in zip(starts, arrays.values(), strict=True):
            target[start : start + array.nbytes] = array.view(np.uint8)
        self._device.upload(buffer[:total], self._on_device[:total])
        self._events[self._next] = self._device.record_event()
        self._next = (self._next + 1) % len(self._buffers)
        return {
            name: self._on_device[start : start + array.nbytes].view(_TYPES[array.dtype])
            for start, (name, array) in zip(starts, arrays.items(), strict=True)
        }

    def _next_buffer(self) -> Tensor:
        event = self._events[self._next]
        if event is not None:
            event.synchronize()  # of the step before the one in flight: long done
        return self._buffers[self._next]

    def _allocate(self, capacity: int) -> None:
        shape = (capacity,)
        self._buffers = [self._device.staging(shape, torch.uint8) for _ in self._events]
        self._events = [None] * len(self._events)
        self._on_device = torch.empty(capacity, dtype=torch.uint8, device=self._device.torch_device)
