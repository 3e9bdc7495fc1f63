"""What kind of machine this is, found without torch so that the server is up at once."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pagemill.errors import ConfigError

# CUdevice_attribute of the driver API
_MULTIPROCESSORS = 16
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76
_SHARED_MEMORY_OPTIN = 97
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The device that will compute. `bfloat16` says that the type is fast, not just possible."""

    type: str  # "cpu" or "cuda"
    name: str
    total_memory: int  # bytes
    num_threads: int  # CPU cores that this process may use
    bfloat16: bool
    capability: tuple[int, int] = (0, 0)  # CUDA compute capability
    native_kernels: bool = False  # for CPUs: whether the C++ kernels were built
    num_sms: int = 0  # CUDA multiprocessors
    shared_memory: int = 0  # bytes that one block of a CUDA kernel may ask for


def detect(device: str = "auto") -> DeviceFacts:
    """The facts of the CPU or of the first CUDA device; "auto" prefers CUDA.

    Raises ConfigError when CUDA is asked for and there is none.
    """
    found = None if device == "cpu" else _cuda()
    if found is not None:
        return found
    if device == "cuda":
        raise ConfigError("no CUDA device was found; check the driver, or use --device cpu")
    return cpu_facts(Path("/proc/cpuinfo").read_text(errors="replace") if _has_proc() else "")


def cpu_facts(cpuinfo: str) -> DeviceFacts:
    """The CPU's facts from the text of /proc/cpuinfo, which may be empty on other systems."""
    flags: set[str] = set()
    name = ""
    cores = set()
    physical = ""
    for line in cpuinfo.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "flags" and not flags:
            flags = set(value.split())
        elif key == "model name":
            name = value
        elif key == "physical id":
            physical = value
        elif key == "core id":
            cores.add((physical, value))
    return DeviceFacts(
        type="cpu",
        name=name or "CPU",
        total_memory=_memory_limit(),
        num_threads=_usable_cores(len(cores)),
        bfloat16=bool(flags & _BFLOAT16_FLAGS),
        native_kernels=find_spec("pagemill.ops.cpu._native") is not None,
    )


def _has_proc() -> bool:
    return Path("/proc/cpuinfo").exists()


def _usable_cores(physical: int) -> int:
    """Physical cores, within this process's affinity and its control group's quota."""
    affinity = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    count = min(affinity, physical) if physical else affinity
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, _, period = quota.read_text().partition(" ")
        if limit != "max":
            count = min(count, -(-int(limit) // int(period)))
    return max(1, count)


def _memory_limit() -> int:
    """Bytes of memory of the machine or, when lower, of the control group."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        total = min(total, int(text))
    return total


def _cuda() -> DeviceFacts | None:
    """The first visible CUDA device, asked of the driver itself; None when there is none.

    No context is made, so no device memory is used and CUDA_VISIBLE_DEVICES counts.
    """
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return None
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(128)
    memory = ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    major, minor = attribute(_CAPABILITY_MAJOR), attribute(_CAPABILITY_MINOR)
    return DeviceFacts(
        type="cuda",
        name=name.value.decode(errors="replace"),
        total_memory=memory.value,
        num_threads=_usable_cores(0),
        bfloat16=major >= 8,
        capability=(major, minor),
        num_sms=attribute(_MULTIPROCESSORS),
        shared_memory=attribute(_SHARED_MEMORY_OPTIN),
    )
