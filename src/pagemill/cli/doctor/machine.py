"""The processor, the memory and the neighbours, read from the proc and sys file systems."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from pagemill.cli.doctor.facts import Cpu, Memory
from pagemill.config.facts import cpu_facts

SAMPLE_SECONDS = 0.25
_SHOWN_SETS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
_ARM_SETS = ("asimd", "asimddp", "bf16", "i8mm", "sve")


@dataclass(frozen=True)
class System:
    """Reads below `root`, which holds "proc" and "sys"; a file that is not there is empty."""

    root: Path = field(default_factory=lambda: Path("/"))

    def text(self, path: str) -> str:
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def number(self, path: str) -> int | None:
        text = self.text(path)
        return int(text) if text.isdigit() else None

    def cpu(self) -> Cpu:
        """The processor, and who uses it now; takes `SAMPLE_SECONDS`."""
        info = self.text("proc/cpuinfo")
        facts = cpu_facts(info)
        busy, busiest = self._busy()
        return Cpu(
            name=facts.name,
            usable_cores=facts.num_threads,
            logical_cores=os.cpu_count() or 1,
            quota_cores=self._quota(),
            throttled_share=self._throttled(),
            instruction_sets=instruction_sets(info),
            governor=self.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
            busy_cores=busy,
            busiest=busiest,
        )

    def memory(self) -> Memory:
        """The memory of the machine, within the control group's limit."""
        sizes = _sizes(self.text("proc/meminfo"))
        limit = self.number("sys/fs/cgroup/memory.max")
        total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
        if limit is not None:
            used = self.number("sys/fs/cgroup/memory.current") or 0
            dropped = _counter(self.text("sys/fs/cgroup/memory.stat"), "inactive_file")
            total, available = min(total, limit), min(available, max(0, limit - used + dropped))
        swap = sizes.get("SwapTotal", 0)
        return Memory(
            total=total,
            available=available,
            cgroup_limit=limit,
            swap_total=swap,
            swap_used=swap - sizes.get("SwapFree", 0),
        )

    def _quota(self) -> float | None:
        limit, _, period = self.text("sys/fs/cgroup/cpu.max").partition(" ")
        return int(limit) / int(period) if limit.isdigit() and period.isdigit() else None

    def _throttled(self) -> float:
        stat = self.text("sys/fs/cgroup/cpu.stat")
        periods = _counter(stat, "nr_periods")
        return _counter(stat, "nr_throttled") / periods if periods else 0.0

    def _busy(self) -> tuple[float, str]:
        """Cores in use by processes other than this one, and the name of the busiest."""
        before, start = self._process_ticks(), time.monotonic()
        time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - start
        spent = {
            pid: (ticks - before[pid][0], name)
            for pid, (ticks, name) in self._process_ticks().items()
            if pid in before and pid != os.getpid()
        }
        per_second = os.sysconf("SC_CLK_TCK") * seconds
        total = sum(ticks for ticks, _ in spent.values()) / per_second
        most, name = max(spent.values(), default=(0, ""))
        return round(total, 2), name if most else ""

    def _process_ticks(self) -> dict[int, tuple[int, str]]:
        """Process id -> (ticks of processor time so far, name), but not our own children."""
        found = {}
        for folder in (self.root / "proc").glob("[0-9]*"):
            head, _, rest = self.text(f"proc/{folder.name}/stat").rpartition(")")
            fields = rest.split()
            if len(fields) > 12 and fields[1] != str(os.getpid()):
                name = head.partition("(")[2]
                found[int(folder.name)] = (int(fields[11]) + int(fields[12]), name)
        return found


def instruction_sets(cpuinfo: str) -> list[str]:
    """Those that the kernels care about, of the first processor in /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found = set(value.split())
            return [name for name in (*_SHOWN_SETS, *_ARM_SETS) if name in found]
    return []


def _sizes(meminfo: str) -> dict[str, int]:
    """Name -> bytes, of /proc/meminfo."""
    sizes = {}
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if value.split():
            sizes[name] = int(value.split()[0]) * 1024
    return sizes


def _counter(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0
