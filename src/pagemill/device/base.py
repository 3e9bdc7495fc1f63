"""What the runner asks of a device: memory, streams and events. The rest is `ops`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What was found: bytes of memory in all and free, and which types are fast."""

    type: str  # "cpu" or "cuda"
    name: str
    total_memory: int
    free_memory: int
    num_threads: int
    bfloat16: bool
    capability: tuple[int, int] = (0, 0)  # CUDA compute capability


class Event(Protocol):
    """A point in the device's work."""

    def synchronize(self) -> None: ...

    def query(self) -> bool: ...


class Device(Protocol):
    """One device with one stream."""

    type: str
    torch_device: torch.device

    def info(self) -> DeviceInfo: ...

    def free_memory(self) -> int:
        """Bytes that may still be allocated."""
        ...

    def staging(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory that can be copied to the device without waiting (pinned on CUDA)."""
        ...

    def upload(self, host: Tensor, out: Tensor) -> None:
        """Enqueue a copy to the device. `host` must stay unchanged until the step is done."""
        ...

    def download(self, tensor: Tensor, out: Tensor) -> None:
        """Enqueue a copy to `out`, host staging memory."""
        ...

    def record_event(self) -> Event: ...

    def synchronize(self) -> None: ...
