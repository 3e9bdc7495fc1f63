"""The CPU as a device: its stream is one thread that runs the submitted work in order."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.config.facts import detect
from pagemill.device.base import DeviceInfo

T = TypeVar("T")
_ALIGNMENT = 64  # bytes, a cache line

# (limit, usage) of the control group that a container sees as its root, version 2 then 1.
_CGROUP_FILES = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


class _Past:
    """The event of work that is done when it has been called."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        return True


class CpuDevice:
    """Implements `Device`. `num_threads` is torch's intra-op thread count, 0 leaves it as it is.

    Kernels release the interpreter lock, so the caller's thread schedules and retires steps while
    the device's thread computes.
    """

    type = "cpu"

    def __init__(self, num_threads: int = 0) -> None:
        self.torch_device = torch.device("cpu")
        if num_threads:
            torch.set_num_threads(num_threads)
        # The count is a property of each thread that starts parallel work.
        self._stream = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="cpu-device",
            initializer=torch.set_num_threads,
            initargs=(torch.get_num_threads(),),
        )

    def info(self) -> DeviceInfo:
        facts = detect("cpu")
        return DeviceInfo(
            type="cpu",
            name=facts.name,
            total_memory=facts.total_memory,
            free_memory=self.free_memory(),
            num_threads=facts.num_threads,
            bfloat16=facts.bfloat16,
        )

    def free_memory(self) -> int:
        return free_host_memory()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        return self._stream.submit(work)

    def peak_memory(self, work: Callable[[], None]) -> int:
        return 0  # activations come out of what the cache leaves free

    def allocate(self, num_bytes: int) -> Tensor:
        # calloc of many pages maps them on first touch; torch.zeros would touch them all now.
        memory = np.zeros(num_bytes + _ALIGNMENT, dtype=np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        return torch.from_numpy(memory[start : start + num_bytes])

    def staging(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def upload(self, host: Tensor, out: Tensor) -> None:
        out.copy_(host)

    def download(self, tensor: Tensor, out: Tensor) -> None:
        out.copy_(tensor)

    def from_numpy(self, array: NDArray[Any]) -> Tensor:
        return torch.tensor(array)

    def record_event(self) -> _Past:
        return _Past()

    def release_memory(self) -> None:
        gc.collect()
        # The C library keeps freed memory for itself; others than glibc have no such call.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

    def synchronize(self) -> None:
        self.submit(lambda: None).result()

    def close(self) -> None:
        self._stream.shutdown()


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes that can be allocated without swapping, within the control group's limit.

    `root` holds the proc and sys file systems. Page cache that can be dropped counts as free.
    """
    available = _available_memory(root / "proc/meminfo")
    for limit_name, usage_name in _CGROUP_FILES:
        limit, usage = root / limit_name, root / usage_name
        if not limit.exists() or (text := limit.read_text().strip()) == "max":
            continue
        cache = _inactive_file_cache(limit.parent / "memory.stat")
        free = int(text) - int(usage.read_text()) + cache
        available = min(available, max(free, 0))
    return available


def _available_memory(meminfo: Path) -> int:
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _inactive_file_cache(stat: Path) -> int:
    """Bytes of a control group's page cache that the kernel drops first."""
    if stat.exists():
        for line in stat.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0
