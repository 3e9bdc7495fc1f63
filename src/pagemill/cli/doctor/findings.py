"""The rules: what in the facts is a problem, and what makes things slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from pagemill.cli.doctor.facts import Facts, Finding

GIB = 2**30
MIB = 2**20
MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 9)
MIN_FREE_DISK = GIB
MIN_FREE_MEMORY = GIB // 2
MIN_OPEN_FILES = 4096
SLOW_DISK = 150 * MIB  # bytes per second: a 16 GB model takes two minutes
BUSY_SHARE = 0.25  # of the usable cores, or of a GPU
_NETWORK_DISKS = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse", "lustre")
_SLOW_GOVERNORS = ("powersave", "conservative")

Rule: TypeAlias = Callable[[Facts], Iterator[Finding]]


def find(facts: Facts) -> list[Finding]:
    """All findings, problems first."""
    found = [finding for rule in RULES for finding in rule(facts)]
    return sorted(found, key=lambda finding: finding.level != "problem")


def problem(what: str, do: str) -> Finding:
    """Something that keeps PageMill from working."""
    return Finding(level="problem", what=what, do=do)


def slow(what: str, do: str) -> Finding:
    """Something that costs speed."""
    return Finding(level="slow", what=what, do=do)


def installation(facts: Facts) -> Iterator[Finding]:
    """Python, torch and what else must be there."""
    software = facts.software
    if numbers(software.python)[:2] < MIN_PYTHON:
        yield problem(f"Python {software.python} is too old", "use Python 3.11 or newer")
    if software.missing:
        names = ", ".join(software.missing)
        yield problem(f"not installed: {names}", "pip install pagemill, into this environment")
    torch = software.versions.get("torch")
    if torch is not None and numbers(torch)[:2] < MIN_TORCH:
        yield problem(f"torch {torch} is too old", "pip install 'torch>=2.9'")
    if facts.trial is not None and facts.trial.error is not None and not software.missing:
        yield problem(f"torch cannot be imported: {facts.trial.error}", "install torch anew")


def cuda(facts: Facts) -> Iterator[Finding]:
    """A GPU that is there but cannot be used, or is shared."""
    software = facts.software
    has_gpu = bool(facts.gpus) or facts.cuda_device is not None
    if facts.nvidia_tool and not has_gpu:
        yield slow(
            "nvidia-smi is installed but shows no device",
            "check the driver (dmesg), and that the container was given the GPU",
        )
    if not has_gpu:
        return
    if facts.cuda_device is None:
        yield slow(
            "the driver's library shows no CUDA device, although there is a GPU",
            "check CUDA_VISIBLE_DEVICES and that libcuda.so.1 is in the container",
        )
    if software.torch_cuda is None:
        yield slow("this torch is built for CPUs only", "install a CUDA build of torch")
    elif facts.cuda_driver is not None and numbers(software.torch_cuda)[:1] > facts.cuda_driver[:1]:
        major, minor = facts.cuda_driver
        yield problem(
            f"the driver knows CUDA up to {major}.{minor}, torch needs {software.torch_cuda}",
            "update the driver, or install a torch for the older CUDA",
        )
    elif facts.trial is not None and facts.trial.error is None and not facts.trial.cuda_available:
        yield problem("torch cannot use the CUDA device", "install a torch that fits the driver")
    if software.torch_cuda is not None:
        yield from _triton(facts)
    for gpu in facts.gpus:
        if gpu.used_memory > 0.1 * gpu.total_memory or gpu.busy > BUSY_SHARE:
            yield slow(
                f"{gpu.name} is in use: {gpu.used_memory / GIB:.1f} GiB, {gpu.busy:.0%} busy",
                "stop the other program (nvidia-smi names it), or lower --memory-utilization",
            )


def _triton(facts: Facts) -> Iterator[Finding]:
    if facts.software.versions.get("triton") is None:
        yield slow("triton is missing, torch's kernels take over", "pip install triton")
    elif not facts.software.c_compiler:
        yield problem("triton needs a C compiler and finds none", "install gcc")


def cpu(facts: Facts) -> Iterator[Finding]:
    """What slows the CPU's kernels; most of it does not matter with a GPU."""
    if facts.cuda_device is None:
        yield from _kernels(facts)
    yield from _cores(facts)


def _kernels(facts: Facts) -> Iterator[Finding]:
    sets = facts.cpu.instruction_sets
    trial = facts.trial
    if not facts.software.native_kernels:
        yield slow(
            "the C++ kernels were not built, torch's take over",
            "install a C++ compiler and CMake, then install pagemill again",
        )
    elif trial is not None and trial.error is None and trial.native_isa is None:
        yield slow("the C++ kernels cannot be loaded", "install pagemill again, for this Python")
    if sets and not {"avx2", "asimd"} & set(sets):
        yield slow("the CPU has no AVX2", "use a CPU from 2013 or later, or a GPU")


def _cores(facts: Facts) -> Iterator[Finding]:
    cpu, cores = facts.cpu, facts.cpu.usable_cores
    if cpu.governor in _SLOW_GOVERNORS:
        yield slow(f"the CPU governor is {cpu.governor!r}", "cpupower frequency-set -g performance")
    if cpu.busy_cores > BUSY_SHARE * cores:
        yield slow(
            f"other programs use {cpu.busy_cores:.1f} of {cores} cores now, most of it "
            f"{cpu.busiest!r}",
            "stop them, or give PageMill fewer with --threads",
        )
    if cpu.quota_cores is not None and cpu.quota_cores < cores:
        yield slow(
            f"the container may use {cpu.quota_cores:g} cores, a share of the {cores} that it sees",
            "give the container whole cores, or set --threads",
        )
    if cpu.throttled_share > 0.05:
        yield slow(
            f"the container waited for its CPU quota in {cpu.throttled_share:.0%} of the periods",
            "raise its CPU limit, or lower --threads",
        )


def memory(facts: Facts) -> Iterator[Finding]:
    """Too little memory, and swapping."""
    found = facts.memory
    if found.total > 0 and found.available < MIN_FREE_MEMORY:
        yield problem(
            f"only {found.available / MIB:.0f} MiB of memory are free",
            "stop other programs, or raise the container's limit",
        )
    if found.swap_used > 256 * MIB and found.swap_used > 0.1 * found.swap_total:
        yield slow(
            f"{found.swap_used / GIB:.1f} GiB are swapped out", "free memory; swapped weights crawl"
        )


def storage(facts: Facts) -> Iterator[Finding]:
    """Folders that cannot be written, are full, or slow."""
    for disk in facts.disks:
        if not disk.writable:
            do = "make it writable, or set --cache-dir, HF_HOME, XDG_CACHE_HOME or TMPDIR"
            yield problem(f"{disk.path} ({disk.use}) cannot be written", do)
        elif disk.free < MIN_FREE_DISK and disk.use != "sockets":
            yield problem(
                f"{disk.path} ({disk.use}) has {disk.free / MIB:.0f} MiB left", "free some"
            )
        if disk.use != "models":
            continue
        if disk.read_speed is not None and disk.read_speed < SLOW_DISK:
            yield slow(
                f"{disk.path} reads {disk.read_speed / MIB:.0f} MiB/s, so weights load slowly",
                "keep models on a local SSD (--cache-dir)",
            )
        elif disk.file_system.partition(".")[0] in _NETWORK_DISKS:
            yield slow(
                f"{disk.path} is on a network file system ({disk.file_system})",
                "keep models on a local SSD (--cache-dir)",
            )


def network(facts: Facts) -> Iterator[Finding]:
    """The port, and how many connections may be open."""
    port = facts.port
    if port is not None and port.asked and not port.free:
        yield problem(port.reason, "stop what runs there, or serve with another --port")
    if facts.open_files < MIN_OPEN_FILES:
        yield slow(
            f"at most {facts.open_files} files and connections may be open",
            f"ulimit -n {MIN_OPEN_FILES * 4}, or LimitNOFILE= in the systemd unit",
        )


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) of "2.13.0+cpu"."""
    found: list[int] = []
    for part in version.partition("+")[0].split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


RULES: tuple[Rule, ...] = (installation, cuda, cpu, memory, storage, network)
