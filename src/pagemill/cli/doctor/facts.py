"""What the doctor finds out. Plain data, so that the rules can be tested on any machine."""

from __future__ import annotations

from typing import Literal

import msgspec


class Cpu(msgspec.Struct, kw_only=True):
    """`usable_cores` is what PageMill takes: physical cores within affinity and quota."""

    name: str
    usable_cores: int
    logical_cores: int
    quota_cores: float | None = None  # of the control group
    throttled_share: float = 0.0  # of the control group's periods in which it had to wait
    instruction_sets: list[str] = []
    governor: str | None = None
    busy_cores: float = 0.0  # taken by all processes just now
    busiest: str = ""  # the process that took most of them


class Memory(msgspec.Struct, kw_only=True):
    """All in bytes. `total` is the control group's limit where that is lower."""

    total: int
    available: int
    cgroup_limit: int | None = None
    swap_used: int = 0
    swap_total: int = 0


class Gpu(msgspec.Struct, kw_only=True):
    """A device as the driver's own tool shows it; memory in bytes, `busy` from 0 to 1."""

    name: str
    driver: str
    total_memory: int
    used_memory: int
    busy: float


class Software(msgspec.Struct, kw_only=True):
    """Versions, None for what is not installed. `torch_cuda` is the version torch was built for."""

    python: str
    versions: dict[str, str | None]
    missing: list[str]  # requirements of PageMill that are not installed
    torch_cuda: str | None = None
    native_kernels: bool = False
    c_compiler: bool = False


class Disk(msgspec.Struct, kw_only=True):
    """One folder that PageMill writes to or reads models from."""

    use: str
    path: str
    writable: bool
    free: int
    file_system: str = ""
    read_speed: float | None = None  # bytes per second, measured, past the page cache


class Trial(msgspec.Struct, kw_only=True):
    """What a fresh process said when it imported torch and the kernels."""

    error: str | None = None
    seconds: float = 0.0
    cuda_available: bool = False
    native_isa: str | None = None
    threads: int = 0


class Port(msgspec.Struct, kw_only=True):
    """`asked`: the user named it, so that it must be free."""

    host: str
    number: int
    free: bool
    asked: bool = False
    reason: str = ""


class Facts(msgspec.Struct, kw_only=True):
    """Everything together. `cuda_driver` is the newest CUDA version that the driver knows."""

    cpu: Cpu
    memory: Memory
    software: Software
    gpus: list[Gpu] = []
    nvidia_tool: bool = False
    cuda_device: str | None = None
    cuda_driver: tuple[int, int] | None = None
    disks: list[Disk] = []
    port: Port | None = None
    open_files: int = 1024
    trial: Trial | None = None


class Finding(msgspec.Struct, kw_only=True):
    """A "problem" keeps PageMill from working, a "slow" one costs speed; both say what to do."""

    level: Literal["problem", "slow"]
    what: str
    do: str
