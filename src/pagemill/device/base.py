"""What the runner asks of a device: memory, streams and events. The rest is `ops`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


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


class Task(Protocol[T_co]):
    """Work that was submitted to a device."""

    def result(self) -> T_co:
        """What the work returned; raises what it raised. Waits for the device's thread."""
        ...


class Device(Protocol):
    """One device with one stream."""

    type: str
    torch_device: torch.device

    def info(self) -> DeviceInfo: ...

    def free_memory(self) -> int:
        """Bytes that may still be allocated."""
        ...

    def submit(self, work: Callable[[], T]) -> Task[T]:
        """Run `work`, which enqueues device work, after all work submitted before.

        A CPU computes it on a thread of its own; for CUDA it is called at once.
        """
        ...

    def peak_memory(self, work: Callable[[], None]) -> int:
        """Bytes that `work` needs for a while; 0, without running it, where none are set aside."""
        ...

    def allocate(self, num_bytes: int) -> Tensor:
        """Zeroed memory, uint8 [num_bytes]; a CPU provides its pages when they are touched.

        Raises MemoryError, or torch.OutOfMemoryError on CUDA.
        """
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

    def from_numpy(self, array: NDArray[Any]) -> Tensor:
        """A device copy of `array`, which may be changed at once. For small, rare uploads."""
        ...

    def record_event(self) -> Event: ...

    def release_memory(self) -> None:
        """Give back to the system what no tensor uses, graphs' memory included."""
        ...

    def synchronize(self) -> None: ...

    def close(self) -> None:
        """Finish the submitted work and end the device's thread."""
        ...


class Graph(Protocol):
    """Device work that was captured."""

    def replay(self) -> None:
        """Enqueue all of it, on the tensors it was captured with."""
        ...


@runtime_checkable
class CapturesGraphs(Protocol):
    """A device that can record work once and launch it as a whole."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` enqueues, without running it. `work` has been run once before.

        Tensors that it allocates are valid until another graph of the device is replayed.
        """
        ...
