"""The one place that knows which devices exist."""

from __future__ import annotations

from pagemill.device.base import Device
from pagemill.errors import ConfigError


def select_device(name: str, num_threads: int = 0) -> Device:
    """The device called "cpu" or "cuda"; "auto" takes CUDA where torch can use it.

    `num_threads` is the number of CPU threads for one operation, 0 for torch's own choice.
    Raises ConfigError.
    """
    if name == "auto":
        import torch

        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        from pagemill.device.cpu import CpuDevice

        return CpuDevice(num_threads)
    if name == "cuda":
        from pagemill.device.cuda import CudaDevice

        return CudaDevice(num_threads=num_threads)
    raise ConfigError(f"unknown device {name!r}; there are auto, cpu, cuda")
