"""A device that computes nothing: its tensors have shapes, types and offsets, but no memory.

What a step would launch can be found on it without a GPU, without weights, and in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.config.facts import DeviceFacts
from pagemill.device.base import DeviceInfo

T = TypeVar("T")


class _Done(Generic[T]):
    """A task or an event of work that was over when it was submitted."""

    def __init__(self, value: T) -> None:
        self._value = value

    def result(self) -> T:
        return self._value

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _NothingCaptured:
    """A graph that launches nothing."""

    def replay(self) -> None: ...


class ShapeDevice:
    """Implements `Device` and `CapturesGraphs` in place of the CUDA device that `facts` describe.

    Code that reads a value back from the device fails on it. Results are whatever the host's memory
    happened to hold, so nothing may depend on them.
    """

    type = "cuda"

    def __init__(self, facts: DeviceFacts) -> None:
        self._facts = facts
        self.torch_device = torch.device("meta")

    def info(self) -> DeviceInfo:
        facts = self._facts
        return DeviceInfo(
            type=self.type,
            name=facts.name,
            total_memory=facts.total_memory,
            free_memory=facts.total_memory,
            num_threads=facts.num_threads,
            bfloat16=facts.bfloat16,
            capability=facts.capability,
        )

    def free_memory(self) -> int:
        return self._facts.total_memory

    def submit(self, work: Callable[[], T]) -> _Done[T]:
        return _Done(work())

    def peak_memory(self, work: Callable[[], None]) -> int:
        work()
        return 0

    def allocate(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device)

    def staging(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def upload(self, host: Tensor, out: Tensor) -> None:
        """Nothing: `out` has no memory."""

    def download(self, tensor: Tensor, out: Tensor) -> None:
        """Nothing: `tensor` has no values."""

    def from_numpy(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.torch_device)

    def record_event(self) -> _Done[None]:
        return _Done(None)

    def capture(self, work: Callable[[], None]) -> _NothingCaptured:
        return _NothingCaptured()  # `work` has been run once before

    def release_memory(self) -> None: ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...
