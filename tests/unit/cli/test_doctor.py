"""The doctor: facts from files, rules from facts, the table from the rules of a start."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pagemill.cli.doctor import command, findings, fits, machine, software, storage, trial
from pagemill.cli.doctor.facts import Cpu, Disk, Facts, Gpu, Memory, Port, Software, Trial
from pagemill.cli.main import main
from pagemill.config.facts import DeviceFacts
from pagemill.config.model import num_weights

GIB = 2**30
CPU = DeviceFacts("cpu", "CPU", 16 * GIB, 4, bfloat16=False)
CUDA = DeviceFacts("cuda", "GPU", 80 * GIB, 8, bfloat16=True, capability=(9, 0))


def healthy(**changes: Any) -> Facts:
    facts = Facts(
        cpu=Cpu(name="x", usable_cores=4, logical_cores=8, instruction_sets=["avx2"]),
        memory=Memory(total=16 * GIB, available=12 * GIB),
        software=Software(
            python="3.11.7",
            versions={"torch": "2.13.0+cpu", "triton": None},
            missing=[],
            native_kernels=True,
        ),
        disks=[Disk(use="models", path="/m", writable=True, free=GIB * 9, read_speed=1e9)],
        port=Port(host="127.0.0.1", number=8000, free=True),
        open_files=20000,
        trial=Trial(native_isa="avx2"),
    )
    return changed(facts, **changes)


def changed(facts: Facts, **changes: Any) -> Facts:
    """With fields replaced; "cpu__governor" is a field of a field."""
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        if inner:
            value = msgspec.structs.replace(getattr(facts, outer), **{inner: value})
        facts = msgspec.structs.replace(facts, **{outer: value})
    return facts


def gpu(**changes: Any) -> dict[str, Any]:
    """The changes that make a healthy machine one with a GPU."""
    device = Gpu(name="H100", driver="550", total_memory=80 * GIB, used_memory=0, busy=0.0)
    return {
        "gpus": [device],
        "nvidia_tool": True,
        "cuda_device": "H100",
        "cuda_driver": (13, 0),
        "software__torch_cuda": "13.0",
        "software__versions": {"torch": "2.13.0", "triton": "3.7"},
        "software__c_compiler": True,
        "trial": Trial(cuda_available=True, native_isa="avx2"),
        **changes,
    }


def test_a_healthy_machine_has_no_findings() -> None:
    assert findings.find(healthy()) == []
    assert findings.find(healthy(**gpu())) == []


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"software__python": "3.10.2"}, "problem", "Python 3.10.2"),
        ({"software__missing": ["uvicorn"]}, "problem", "uvicorn"),
        ({"software__versions": {"torch": "2.4.1"}}, "problem", "2.4.1"),
        ({"trial": Trial(error="OSError: libgomp")}, "problem", "libgomp"),
        ({"nvidia_tool": True}, "slow", "nvidia-smi"),
        (gpu(cuda_device=None), "slow", "CUDA_VISIBLE_DEVICES"),
        (gpu(software__torch_cuda=None), "slow", "CPUs only"),
        (gpu(cuda_driver=(12, 4)), "problem", "12.4"),
        (gpu(trial=Trial(cuda_available=False)), "problem", "cannot use the CUDA"),
        (gpu(software__versions={"torch": "2.13.0", "triton": None}), "slow", "triton"),
        (gpu(software__c_compiler=False), "problem", "gcc"),
        (
            gpu(gpus=[Gpu(name="A", driver="", total_memory=GIB, used_memory=GIB // 2, busy=0)]),
            "slow",
            "in use",
        ),
        ({"software__native_kernels": False, "trial": None}, "slow", "C++ kernels"),
        ({"trial": Trial(native_isa=None)}, "slow", "cannot be loaded"),
        ({"cpu__instruction_sets": ["f16c"]}, "slow", "AVX2"),
        ({"cpu__governor": "powersave"}, "slow", "powersave"),
        ({"cpu__busy_cores": 3.0, "cpu__busiest": "chrome"}, "slow", "chrome"),
        ({"cpu__quota_cores": 1.5}, "slow", "1.5 cores"),
        ({"cpu__throttled_share": 0.4}, "slow", "40%"),
        ({"memory__available": 2**28}, "problem", "256 MiB"),
        (
            {"memory__swap_used": GIB, "memory__swap_total": 2 * GIB},
            "slow",
            "swapped out",
        ),
        (
            {"disks": [Disk(use="cache", path="/c", writable=False, free=GIB * 9)]},
            "problem",
            "/c",
        ),
        ({"disks": [Disk(use="cache", path="/c", writable=True, free=99)]}, "problem", "/c"),
        (
            {"disks": [Disk(use="models", path="/m", writable=True, free=GIB * 9, read_speed=1e7)]},
            "slow",
            "10 MiB/s",
        ),
        (
            {
                "disks": [
                    Disk(use="models", path="/m", writable=True, free=GIB * 9, file_system="nfs4")
                ]
            },
            "slow",
            "nfs4",
        ),
        (
            {"port": Port(host="h", number=1, free=False, asked=True, reason="port 1 is in use")},
            "problem",
            "port 1",
        ),
        ({"open_files": 1024}, "slow", "1024"),
    ],
)
def test_each_rule_alone(changes: dict[str, Any], level: str, words: str) -> None:
    (found,) = findings.find(healthy(**changes))
    assert found.level == level
    assert words in f"{found.what} {found.do}"


def test_a_port_that_nobody_asked_for_is_no_problem() -> None:
    assert findings.find(healthy(port=Port(host="h", number=8000, free=False))) == []


def write(root: Path, files: dict[str, str]) -> machine.System:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return machine.System(root)


def test_cpu_and_memory_of_a_container(tmp_path: Path) -> None:
    system = write(
        tmp_path,
        {
            "proc/cpuinfo": "model name : Best\nflags : sse avx2 fma avx512f\n",
            "proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemAvailable: {60 * 2**20} kB\n"
            f"SwapTotal: {2**20} kB\nSwapFree: {2**19} kB\n",
            "sys/fs/cgroup/memory.max": str(8 * GIB),
            "sys/fs/cgroup/memory.current": str(3 * GIB),
            "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            "sys/fs/cgroup/cpu.max": "150000 100000",
            "sys/fs/cgroup/cpu.stat": "nr_periods 10\nnr_throttled 4\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        },
    )
    cpu, memory = system.cpu(), system.memory()
    assert (cpu.name, cpu.instruction_sets) == ("Best", ["avx2", "fma", "avx512f"])
    assert (cpu.quota_cores, cpu.throttled_share, cpu.governor) == (1.5, 0.4, "powersave")
    assert (memory.total, memory.available) == (8 * GIB, 6 * GIB)
    assert (memory.swap_used, memory.swap_total) == (GIB // 2, GIB)


def test_nothing_to_read_is_no_error(tmp_path: Path) -> None:
    system = machine.System(tmp_path)
    assert system.cpu().busy_cores == 0
    assert system.memory().total == 0


def test_the_busiest_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(pid: int, name: str, parent: int, ticks: int) -> dict[str, str]:
        return {f"proc/{pid}/stat": f"{pid} ({name}) S {parent} " + "0 " * 9 + f"{ticks} 0 0 0"}

    def later(_: float) -> None:
        write(tmp_path, stat(7, "web (1)", 1, 2_000) | stat(9, "child", os.getpid(), 9_000))

    system = write(tmp_path, stat(7, "web (1)", 1, 100) | stat(9, "child", os.getpid(), 0))
    monkeypatch.setattr(machine.time, "sleep", later)
    cpu = system.cpu()
    assert cpu.busiest == "web (1)"
    assert cpu.busy_cores > 1


def test_lines_of_the_drivers_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 570.1, 81559, 1024, 50'\necho 'broken'\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    there, found = software.gpus()
    assert there
    assert [(g.name, g.driver, g.used_memory, g.busy) for g in found] == [
        ("NVIDIA H100", "570.1", GIB, 0.5)
    ]


def test_file_system_is_that_of_the_longest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path.resolve()} nfs4 rw 0 0\n")
    assert storage.file_system(tmp_path / "x", mounts) == "nfs4"
    assert storage.file_system(Path("/"), mounts) == "ext4"


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    found = storage.disk("models", tmp_path / "a/b")
    assert found.writable
    assert found.read_speed is None or found.read_speed > 0
    assert not (tmp_path / "a").exists()


def test_a_trial_that_fails_tells_the_last_line() -> None:
    assert trial.TrialRun("import sys; sys.exit('boom')").result().error == "boom"
    assert "code 3" in str(trial.TrialRun("import os; os._exit(3)").result().error)


def test_the_table_follows_the_memory() -> None:
    small = {(f.model, f.quantization): f for f in fits.fit_table(CPU, 8 * GIB)}
    assert small["SmolLM2-135M", "none"].context == 8192
    assert small["Llama-3.1-8B", "none"].context == 0
    large = {(f.model, f.quantization): f for f in fits.fit_table(CUDA, 80 * GIB)}
    assert large["Llama-3.1-8B", "none"].dtype == "bfloat16"
    assert large["Llama-3.1-8B", "none"].context == 131072
    assert large["Llama-3.3-70B", "none"].context == 0


@pytest.mark.parametrize(
    ("name", "billions"),
    [("SmolLM2-135M", 0.135), ("Qwen3-0.6B", 0.596), ("Llama-3.1-8B", 8.03), ("Qwen3-32B", 32.8)],
)
def test_sizes_are_those_of_the_models(name: str, billions: float) -> None:
    linear, embedding = num_weights(dict(fits.SIZES)[name])
    assert (linear + embedding) / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_command_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["doctor", "--json", "--port", str(port)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["facts"]["trial"]["error"] is None
    assert [f["what"] for f in told["findings"] if f["level"] == "problem"] == [
        f"port {port} on 127.0.0.1 is in use; choose another with --port"
    ]
    assert {fit["model"] for fit in told["fits"]} == {name for name, _ in fits.SIZES}


def test_the_report_for_one_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TrialRun", lambda: trial.TrialRun("print('trial:{}')"))
    main(["doctor", "smollm2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("software")
    assert any("SmolLM2" in line and "float" in line for line in lines)
