from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pagemill.device.cpu import CpuDevice, free_host_memory
from pagemill.device.select import select_device
from pagemill.errors import ConfigError
from unit.runner.harness import DEVICES

GIB = 2**30


def host(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {8 * 2**20} kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * GIB),
        ({"sys/fs/cgroup/memory.max": "max\n"}, 8 * GIB),
        (
            {
                "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            },
            0,
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            },
            8 * GIB,
        ),
    ],
)
def test_free_memory_knows_the_control_group(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert free_host_memory(host(tmp_path, {"proc/meminfo": MEMINFO} | files)) == expected


def test_the_machine_is_described() -> None:
    info = select_device("cpu").info()
    assert info.type == "cpu" and info.name
    assert 0 < info.free_memory <= info.total_memory and info.num_threads >= 1


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="tpu"):
        select_device("tpu")


def test_work_runs_in_order_on_one_thread_beside_the_caller() -> None:
    device, gate, log = CpuDevice(1), threading.Event(), []

    def note(name: str) -> str:
        gate.wait(10)
        log.append((name, threading.get_ident(), torch.get_num_threads()))
        return name

    tasks = [device.submit(lambda name=name: note(name)) for name in "abc"]
    assert log == [], "the caller went on before the work began"
    gate.set()
    assert [task.result() for task in tasks] == ["a", "b", "c"]
    assert [name for name, _, _ in log] == ["a", "b", "c"]
    assert len({thread for _, thread, _ in log} | {threading.get_ident()}) == 2
    assert {threads for _, _, threads in log} == {1}
    device.close()


@pytest.mark.parametrize("name", DEVICES)
def test_copies_do_not_depend_on_what_the_host_does_later(name: str) -> None:
    device = select_device(name)
    array = np.arange(1000)
    tensor = device.from_numpy(array)
    array[:] = 0
    out = device.staging((1000,), torch.int64)
    device.download(tensor * 2, out)
    device.record_event().synchronize()
    assert torch.equal(out, torch.arange(1000) * 2)
    assert not device.allocate(4096).any()


def test_cpu_memory_is_not_touched_before_it_is_used() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    memory = CpuDevice().allocate(GIB)
    assert resident() - before < GIB // 8
    memory[: GIB // 4] = 1
    assert resident() - before > GIB // 8
