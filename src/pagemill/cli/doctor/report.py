"""The doctor's words: facts line by line as they are found, then the table and the findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pagemill.cli.doctor.facts import Cpu, Disk, Facts, Finding, Gpu, Memory, Port, Software, Trial
from pagemill.cli.doctor.fits import Fit

GIB = 2**30
MIB = 2**20


def row(name: str, text: str) -> str:
    """One line under a heading on the left."""
    return f"{name:<10}{text}"


def software_lines(found: Software) -> Iterator[str]:
    shown = [f"{name} {number or 'missing'}" for name, number in found.versions.items()]
    yield row("software", f"Python {found.python}, {', '.join(shown)}")
    built = "built" if found.native_kernels else "not built"
    yield row(
        "kernels",
        f"C++ {built}; torch for {f'CUDA {found.torch_cuda}' if found.torch_cuda else 'CPUs'}",
    )


def cpu_lines(cpu: Cpu) -> Iterator[str]:
    quota = "" if cpu.quota_cores is None else f", quota {cpu.quota_cores:g}"
    yield row(
        "cpu",
        f"{cpu.name}: {cpu.usable_cores} cores to use of {cpu.logical_cores} logical{quota}; "
        f"{' '.join(cpu.instruction_sets) or 'instruction sets unknown'}",
    )
    yield row(
        "load",
        f"other programs use {cpu.busy_cores:.1f} cores; governor {cpu.governor or 'unknown'}",
    )


def memory_line(memory: Memory) -> str:
    limit = "" if memory.cgroup_limit is None else " (the container's limit)"
    return row(
        "memory",
        f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}{limit}, "
        f"{memory.swap_used / GIB:.1f} GiB swapped out",
    )


def gpu_lines(gpus: list[Gpu], device: str | None, driver: tuple[int, int] | None) -> Iterator[str]:
    if not gpus:
        yield row("gpu", device or "none")
    for gpu in gpus:
        cuda = f", CUDA up to {driver[0]}.{driver[1]}" if driver else ""
        free = (gpu.total_memory - gpu.used_memory) / GIB
        yield row(
            "gpu",
            f"{gpu.name}: {free:.1f} GiB free of {gpu.total_memory / GIB:.1f}, "
            f"{gpu.busy:.0%} busy; driver {gpu.driver}{cuda}",
        )


def disk_line(disk: Disk) -> str:
    speed = "" if disk.read_speed is None else f", reads {disk.read_speed / MIB:.0f} MiB/s"
    state = "" if disk.writable else ", not writable"
    return row(disk.use, f"{disk.path}: {disk.free / GIB:.1f} GiB free{speed}{state}")


def port_line(port: Port) -> str:
    return row("port", f"{port.number} on {port.host} is {'free' if port.free else 'in use'}")


def trial_line(trial: Trial) -> str:
    if trial.error is not None:
        return row("torch", f"does not import: {trial.error}")
    cuda = "sees CUDA" if trial.cuda_available else "no CUDA"
    isa = f", C++ kernels for {trial.native_isa}" if trial.native_isa else ""
    return row("torch", f"imports in {trial.seconds:.1f} s, {trial.threads} threads, {cuda}{isa}")


def table_lines(fits: Iterable[Fit], where: str) -> Iterator[str]:
    """What fits; a form of a model that does not fit says so."""
    yield f"\nWhat fits on {where}:"
    head = f"{'weights':>10} {'context':>9} {'tokens in all':>14}"
    yield f"  {'model':<24} {'computed in':<16} {head}"
    for fit in fits:
        form = fit.dtype if fit.quantization == "none" else f"{fit.quantization}, {fit.dtype}"
        size = f"{fit.weight_bytes / GIB:.2f} GiB"
        room = f"{fit.context:>9,} {fit.tokens:>14,}" if fit.context else f"{'does not fit':>24}"
        yield f"  {fit.model:<24} {form:<16} {size:>10} {room}"


def finding_lines(findings: list[Finding]) -> Iterator[str]:
    """The findings, each with what to do; or that there are none."""
    yield ""
    if not findings:
        yield "Nothing is wrong, and nothing here would make PageMill slow."
    for finding in findings:
        yield f"{finding.level}: {finding.what}\n      {finding.do}"


def fact_lines(facts: Facts) -> Iterator[str]:
    """All facts but the trial."""
    yield from software_lines(facts.software)
    yield from cpu_lines(facts.cpu)
    yield memory_line(facts.memory)
    yield from gpu_lines(facts.gpus, facts.cuda_device, facts.cuda_driver)
    yield from map(disk_line, facts.disks)
    if facts.port is not None:
        yield port_line(facts.port)
    yield row("files", f"{facts.open_files} may be open")
