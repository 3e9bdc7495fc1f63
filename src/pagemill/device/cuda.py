"""One CUDA device. All work is on its current stream; the host never waits but in `Event`."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.config.facts import detect
from pagemill.device.base import DeviceInfo
from pagemill.errors import ConfigError

T = TypeVar("T")

# What torch keeps besides tensors: cuBLAS's 32 MiB for each stream, pinned memory. Calls without a
# public name, and not in every version.
_RELEASES = ("_cuda_clearCublasWorkspaces", "_host_emptyCache")


class _Called(Generic[T]):
    """A task that was run when it was submitted."""

    def __init__(self, value: T) -> None:
        self._value = value

    def result(self) -> T:
        return self._value


class CudaDevice:
    """Implements `Device`. Raises ConfigError when torch cannot use the device."""

    type = "cuda"

    def __init__(self, index: int = 0, num_threads: int = 0) -> None:
        if not torch.cuda.is_available():
            raise ConfigError(
                "torch cannot use the CUDA device; install a CUDA build of torch that fits the "
                "driver, or use --device cpu"
            )
        if num_threads:
            torch.set_num_threads(num_threads)
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        self._graph_stream: torch.cuda.Stream | None = None
        self._graph_memory: Any = None  # graphs never run at the same time, so all share it

    def info(self) -> DeviceInfo:
        properties = torch.cuda.get_device_properties(self.torch_device)
        return DeviceInfo(
            type="cuda",
            name=properties.name,
            total_memory=properties.total_memory,
            free_memory=self.free_memory(),
            num_threads=detect("cpu").num_threads,
            bfloat16=properties.major >= 8,
            capability=(properties.major, properties.minor),
        )

    def free_memory(self) -> int:
        torch.cuda.empty_cache()  # what torch holds but does not use is free
        return int(torch.cuda.mem_get_info(self.torch_device)[0])

    def submit(self, work: Callable[[], T]) -> _Called[T]:
        return _Called(work())

    def peak_memory(self, work: Callable[[], None]) -> int:
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        before = torch.cuda.memory_allocated(self.torch_device)
        work()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.torch_device) - before

    def allocate(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8, device=self.torch_device)

    def staging(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def upload(self, host: Tensor, out: Tensor) -> None:
        out.copy_(host, non_blocking=True)

    def download(self, tensor: Tensor, out: Tensor) -> None:
        out.copy_(tensor, non_blocking=True)

    def from_numpy(self, array: NDArray[Any]) -> Tensor:
        # torch keeps the pinned copy until the stream has read it; a plain copy would wait.
        return torch.tensor(array).pin_memory().to(self.torch_device, non_blocking=True)

    def record_event(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.torch_device))
        return event

    def capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        if self._graph_stream is None:
            self._graph_stream = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        if self._graph_memory is None:
            self._graph_memory = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        self._graph_stream.wait_stream(torch.cuda.current_stream(self.torch_device))
        # Not `torch.cuda.graph`, which waits for the device and returns its memory.
        with torch.cuda.stream(self._graph_stream):
            graph.capture_begin(pool=self._graph_memory, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph

    def release_memory(self) -> None:
        gc.collect()
        self._graph_memory = None  # a pool whose graphs are gone cannot be captured into
        for name in _RELEASES:
            if release := getattr(torch._C, name, None):
                release()
        torch.cuda.empty_cache()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def close(self) -> None:
        self.synchronize()
