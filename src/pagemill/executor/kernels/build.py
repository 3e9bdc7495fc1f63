"""The engine's side of compiling kernels ahead; imports no torch, so that it can begin at once."""

from __future__ import annotations

import hashlib
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from pagemill.config.engine import EngineConfig
from pagemill.config.facts import DeviceFacts, detect
from pagemill.errors import ModelLoadError
from pagemill.executor.kernels.messages import GO_ON, Job, Progress

logger = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-P", "-m", "pagemill.executor.kernels.process")
# Of a process that hangs; a slow disk's imports and a slow core's largest kernel take less.
SILENT_SECONDS = 120.0
_END_SECONDS = 5.0
# The process forks, which it may do only while it has one thread.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# Settings of the frontend, the scheduler and the values of weights, and where the model lies.
_WITHOUT_KERNELS: dict[str, Any] = {
    "model": "",
    "served_model_names": (),
    "load_format": "auto",
    "prefix_caching": True,
    "overlap": True,
    "scheduling_policy": "fcfs",
    "max_num_queued_reqs": 1,
    "max_num_queued_tokens": 0,
    "prefill_share": 1.0,
    "seed": 0,
    "num_threads": 1,
    "hash_key": "",
}


def _spawn(job: Job) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | _ONE_THREAD,
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it died at once; `wait` says so
    return process


class KernelBuild:
    """A process that fills Triton's cache folder while the engine imports and reads weights."""

    def __init__(
        self,
        job: Job,
        spawn: Callable[[Job], subprocess.Popen[bytes]] = _spawn,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._job = job
        self._spawn = spawn
        self._silent_seconds = silent_seconds
        self._process = spawn(job) if job.hurry else None

    @classmethod
    def start(cls, config: EngineConfig) -> KernelBuild | None:
        """Returns at once; None where there is nothing to compile, or a start has done it before.

        What is done is remembered beside the kernels, for this configuration, device and code.
        """
        if config.device != "cuda" or config.ops != "default" or not find_spec("triton"):
            return None
        facts = detect("cuda")
        try:
            stamp = _stamp(config, facts)
        except RuntimeError:  # this user has no home, hence no cache folder
            return None
        start_stamp = stamp.with_name(f"{stamp.name}-start")
        if _exists(stamp):
            return None
        # An encoder's start launches few: it would wait for the process, not for kernels.
        is_encoder = config.pooling is not None and not config.pooling.cached
        hurry = not (is_encoder or _exists(start_stamp))
        return cls(Job(config, facts, str(start_stamp), str(stamp), hurry=hurry))

    def wait(self, report: Callable[[str], None]) -> Progress | None:
        """Until all that a start launches is compiled; the rest goes on in the background.

        None where that was so before, and, with a line in the log, when the process fails or says
        nothing for `silent_seconds`: kernels are then compiled one by one, when they are first met.
        Raises ModelLoadError with the name of a kernel that does not compile.
        """
        if self._process is None:
            return None
        try:
            for line in self._lines(self._process):
                progress = msgspec.json.decode(line, type=Progress)
                if progress.failed:
                    raise ModelLoadError(f"a kernel does not compile: {progress.failed}")
                if progress.ready:
                    return progress
                done = progress.compiled + progress.found
                report(f"compiling kernels: {done} of {done + progress.left}")
            how = f"ended with code {self._process.wait(_END_SECONDS)}"
        except (TimeoutError, subprocess.TimeoutExpired):
            how = f"has said nothing for {self._silent_seconds:g} s and was ended"
        self._end_group(self._process)
        logger.warning(
            "the process that compiles kernels ahead %s; they are compiled one by one when first "
            "met, so this start and the first requests take longer",
            how,
        )
        return None

    def _lines(self, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
        """What the process says. Raises TimeoutError when that is nothing for too long."""
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        poller = select.poll()
        poller.register(pipe, select.POLLIN)
        rest = b""
        while poller.poll(1000 * self._silent_seconds):
            part = os.read(pipe, 65536)
            if not part:
                return
            *lines, rest = (rest + part).split(b"\n")
            yield from lines
        raise TimeoutError

    def compile_rest(self) -> None:
        """The engine has started: compile in the background what later steps may need."""
        if self._process is None:
            self._process = self._spawn(self._job)
            return
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended early, which `wait` has said
            self._process.stdin.write(GO_ON)
            self._process.stdin.flush()

    def close(self) -> None:
        """End the process, if it still compiles in the background."""
        if self._process is None:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # of what it has not read
            self._process.stdin.close()
        self._end_group(self._process)
        self._process.stdout.close()

    @staticmethod
    def _end_group(process: subprocess.Popen[bytes]) -> None:
        """End the process and what it has left behind: compilers are forks of it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
                return


def _stamp(config: EngineConfig, facts: DeviceFacts) -> Path:
    """A file that exists once all kernels of this configuration have been compiled.

    What no kernel depends on is not part of its name, so that few starts wait for a process that
    finds everything compiled.
    """
    same = msgspec.structs.replace(config, **_WITHOUT_KERNELS)
    parts = [msgspec.json.encode(same), msgspec.json.encode(facts), _model_key(Path(config.model))]
    parts += [_version(package).encode() for package in ("triton", "torch")]
    parts += [f"{k}={v}".encode() for k, v in sorted(os.environ.items()) if k.startswith("TRITON_")]
    parts += [_place(path) for path in sorted(Path(__file__).parents[2].rglob("*.py"))]
    digest = hashlib.sha256(b"\n".join(parts)).hexdigest()
    return _cache_folder() / f"pagemill-{digest}"


def _model_key(path: Path) -> bytes:
    """A folder's shapes and types are in its config.json; what else there is, is not read ahead."""
    try:
        return (path / "config.json").read_bytes()
    except OSError:
        return _place(path)


def _place(path: Path) -> bytes:
    """Where a file is and since when; nothing where none is."""
    try:
        stat = path.stat()
    except OSError:
        return b""
    return f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()


def _exists(path: Path) -> bool:
    """False, not an error, in a folder that cannot be read."""
    try:
        return path.exists()
    except OSError:
        return False


def _cache_folder() -> Path:
    """Where Triton keeps kernels."""
    if folder := os.environ.get("TRITON_CACHE_DIR"):
        return Path(folder)
    return Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
