"""Kernels that are compiled ahead: side by side, found by the engine, and named when they fail."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pagemill.config.engine import EngineConfig
from pagemill.config.facts import DeviceFacts
from pagemill.config.pooling import PoolingConfig
from pagemill.errors import ModelLoadError
from pagemill.executor.kernels import build, process
from pagemill.executor.kernels.build import KernelBuild
from pagemill.executor.kernels.messages import Job, Progress
from pagemill.executor.kernels.pool import ForkPool, Work

FACTS = DeviceFacts("cuda", "a GPU", 2**30, 2, True, (9, 0), num_sms=132, shared_memory=232_448)
CONFIG = EngineConfig(
    model="/nowhere", served_model_names=("m",), device="cuda", dtype="bfloat16", max_model_len=64
)

NORM = """
import torch
from triton import knobs
from triton.runtime.jit import JITFunction
from pagemill.ops.triton import norm
from pagemill.ops.triton.collect import GpuModel, collecting, use_compile_only

use_compile_only(GpuModel((9, 0), 132, 232448))
x = torch.empty(4, 64, dtype=torch.bfloat16, device="meta")
weight = torch.empty(64, device="meta")
"""
AHEAD = """
found = []
with collecting(found.append):
    norm.rms_norm(x, weight, 1e-6)
    norm.rms_norm(x, weight, 1e-6)
print([(variant.name, variant.compile(), variant.compile()) for variant in found])
"""
LAUNCH = """
hits = []
knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
run = JITFunction.run
JITFunction.run = lambda self, *args, warmup, **kwargs: run(self, *args, warmup=True, **kwargs)
norm.rms_norm(x, weight, 1e-6)
print(hits)
"""


OLD_LAUNCHERS = """
from triton.backends.nvidia import driver as nvidia
built = []
nvidia.make_launcher = None
nvidia.CudaLauncher = lambda src, metadata: built.append((src.fn.__name__, metadata.num_warps))
found = []
with collecting(found.append):
    norm.rms_norm(x, weight, 1e-6)
found[0].compile()
print(built)
"""


def run_python(code: str, folder: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def test_a_launch_finds_what_was_compiled_ahead(tmp_path: Path) -> None:
    """No GPU is needed: the launch is taken as far as the cache folder."""
    pytest.importorskip("triton")
    assert run_python(NORM + AHEAD, tmp_path) == "[('_rms_norm_kernel', True, False)]\n"
    assert run_python(NORM + LAUNCH, tmp_path) == "[True]\n"


def test_launchers_are_built_ahead_where_each_kernel_has_its_own(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    assert run_python(NORM + OLD_LAUNCHERS, tmp_path) == "[('_rms_norm_kernel', 4)]\n"


def fail() -> bool:
    raise ValueError("no such register")


def die() -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def drain(pool: ForkPool) -> None:
    while pool.left:
        pool.turn(0.1)


def test_the_pool_tells_how_each_ended() -> None:
    pool = ForkPool(2)
    for work in (
        Work("new", lambda: True),
        Work("old", lambda: False),
        Work("bad", fail),
        Work("dead", die),
    ):
        pool.submit(work)
    drain(pool)
    assert (pool.tally.compiled, pool.tally.found) == (["new"], 1)
    assert pool.tally.failed["bad"] == "ValueError: no such register"
    assert pool.tally.lost == ["dead"]


def test_the_pool_works_side_by_side_up_to_its_size(tmp_path: Path) -> None:
    """Each child waits for the other one of its pair, so one after the other would never end."""

    def meet(own: str, other: str) -> bool:
        (tmp_path / own).touch()
        while not ((tmp_path / other).exists() and (tmp_path / "counted").exists()):
            pass
        return True

    pool = ForkPool(2)
    pool.submit(Work("a", lambda: meet("a", "b")))
    pool.submit(Work("b", lambda: meet("b", "a")))
    pool.submit(Work("c", lambda: True))
    assert pool.left == 3
    (tmp_path / "counted").touch()
    drain(pool)
    assert sorted(pool.tally.compiled) == ["a", "b", "c"]


JOB = Job(CONFIG, FACTS, "/tmp/start", "/tmp/full")
LATER = msgspec.structs.replace(JOB, hurry=False)


def running(job: Job, *, program: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)


def saying(*lines: Progress, code: int = 0) -> KernelBuild:
    """A process that says these lines and ends."""
    text = b"\n".join(msgspec.json.encode(line) for line in lines).decode()
    program = f"import sys; print({text!r}); sys.exit({code})"
    return KernelBuild(JOB, partial(running, program=program))


def test_waiting_reports_until_it_is_ready() -> None:
    phases: list[str] = []
    ready = Progress(5, 1, 0, ready=True)
    kernels = saying(Progress(1, 1, 4), ready, Progress(6, 1, 3))
    assert kernels.wait(phases.append) == ready
    kernels.close()
    assert phases == ["compiling kernels: 2 of 6"]


def test_a_kernel_that_does_not_compile_is_named() -> None:
    kernels = saying(Progress(1, 0, 2, failed="_rope_kernel: CompilationError: at 3:4"))
    with pytest.raises(ModelLoadError, match="does not compile: _rope_kernel: Compil"):
        kernels.wait(lambda phase: None)
    kernels.close()


def test_a_process_that_ends_early_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    kernels = saying(Progress(1, 0, 2), code=3)
    with caplog.at_level(logging.WARNING):
        assert kernels.wait(lambda phase: None) is None
    kernels.close()
    assert "code 3" in caplog.text


HANGING = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
compiler = os.fork()
if compiler:
    print({line!r}, flush=True)
time.sleep(3600)
"""


def test_a_process_that_hangs_is_ended_and_done_without(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_END_SECONDS", 0.05)
    line = msgspec.json.encode(Progress(1, 0, 2)).decode()
    process = running(JOB, program=HANGING.format(line=line))
    phases: list[str] = []
    assert process.stdout is not None
    select.select([process.stdout], [], [])  # until it has begun
    kernels = KernelBuild(JOB, lambda job: process, silent_seconds=0.05)
    with caplog.at_level(logging.WARNING):
        assert kernels.wait(phases.append) is None
    assert phases == ["compiling kernels: 1 of 3"]
    assert "nothing for 0.05 s" in caplog.text and "when first met" in caplog.text
    assert process.wait(30) == -signal.SIGKILL
    assert select.select([process.stdout], [], [], 30)[0]  # its end: the compiler is gone as well
    assert os.read(process.stdout.fileno(), 1) == b""
    kernels.compile_rest()
    kernels.close()


def test_nobody_waits_for_what_no_start_needs() -> None:
    begun: list[Job] = []

    def spawn(job: Job) -> subprocess.Popen[bytes]:
        begun.append(job)
        return running(job, program="import time; time.sleep(60)")

    kernels = KernelBuild(LATER, spawn)
    assert kernels.wait(lambda phase: None) is None and not begun
    kernels.compile_rest()
    kernels.compile_rest()
    assert begun == [LATER]
    kernels.close()


def test_the_rest_is_compiled_when_the_engine_has_started() -> None:
    process = running(JOB, program="import sys; sys.exit(7 if sys.stdin.readline() else 0)")
    KernelBuild(JOB, lambda job: process).compile_rest()
    assert process.wait(30) == 7


def test_closing_ends_what_still_compiles() -> None:
    process = running(JOB, program="import time; print(flush=True); time.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    KernelBuild(JOB, lambda job: process).close()
    assert process.returncode == -signal.SIGTERM


def test_nothing_is_started_for_cpus_or_when_all_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KernelBuild.start(msgspec.structs.replace(CONFIG, device="cpu")) is None
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build, "detect", lambda device: FACTS)
    build._stamp(CONFIG, FACTS).touch()
    assert KernelBuild.start(CONFIG) is None
    # Another key for the cache of prompts is nothing to compile for, another type is.
    stamp = build._stamp(msgspec.structs.replace(CONFIG, hash_key="ab"), FACTS)
    assert stamp.exists() and stamp.parent == tmp_path
    assert not build._stamp(msgspec.structs.replace(CONFIG, dtype="float16"), FACTS).exists()


def test_a_start_that_has_the_kernels_of_another_waits_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build, "detect", lambda device: FACTS)

    def config(name: str, files: str, **other: Any) -> EngineConfig:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text(files)
        return msgspec.structs.replace(CONFIG, model=str(tmp_path / name), **other)

    first = config("a", "{}")
    build._stamp(first, FACTS).touch()
    assert KernelBuild.start(first) is None
    assert KernelBuild.start(config("copy", "{}")) is None
    other = {"scheduling_policy": "priority", "load_format": "dummy", "num_threads": 7}
    assert KernelBuild.start(config("a", "{}", prefix_caching=False, **other)) is None
    for changed in (config("other", "{ }"), config("a", "{}", max_num_seqs=7)):
        assert not build._stamp(changed, FACTS).exists()


def test_encoders_wait_for_no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build, "detect", lambda device: FACTS)
    pooling = PoolingConfig(task="embed", method="mean", width=4, cached=False)
    kernels = KernelBuild.start(msgspec.structs.replace(CONFIG, pooling=pooling))
    assert kernels is not None and kernels.wait(lambda phase: None) is None
    kernels.close()


def test_the_job_keeps_what_it_names() -> None:
    assert msgspec.json.decode(msgspec.json.encode(LATER), type=Job) == LATER


def test_folders_that_cannot_be_used_are_no_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    process._make_stamp(str(tmp_path / "file" / "stamp"), Progress(1, 0, 0, ready=True))
    process._make_stamp(str(tmp_path / "stamp"), Progress(1, 0, 0, ready=True, lost=1))
    assert not (tmp_path / "stamp").exists()
    process._make_stamp(str(tmp_path / "stamp"), Progress(1, 0, 0, ready=True))
    assert (tmp_path / "stamp").exists()

    def no_home(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.delenv("TRITON_HOME", raising=False)
    monkeypatch.setattr(build, "detect", lambda device: FACTS)
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    assert KernelBuild.start(CONFIG) is None


def test_closing_after_an_early_end() -> None:
    process = running(JOB, program="pass")
    process.wait()
    kernels = KernelBuild(JOB, lambda job: process)
    kernels.compile_rest()
    kernels.close()
