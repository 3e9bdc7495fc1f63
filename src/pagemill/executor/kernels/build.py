"""The engine's side of compiling kernels ahead; imports no torch, so that it can begin at once."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import msgspec

from pagemill.config.engine import EngineConfig
from pagemill.config.facts import DeviceFacts, detect
from pagemill.errors import ModelLoadError
from pagemill.executor.kernels.messages import GO_ON, Job, Progress

logger = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-P", "-m", "pagemill.executor.kernels.process")
# The process forks, which it may do only while it has one thread.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


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

    def __init__(self, job: Job, spawn: Callable[[Job], subprocess.Popen[bytes]] = _spawn) -> None:
        self._job = job
        self._spawn = spawn
        self._process = spawn(job) if job.hurry else None

    @classmethod
    def start(cls, config: EngineConfig) -> KernelBuild | None:
        """Returns at once; None where there is nothing to compile, or a start has done it before.

        What is done is remembered beside the kernels, for this configuration, device and code.
        """
        if config.device != "cuda" or config.ops != "default" or not find_spec("triton"):
            return None
        if config.pooling is not None and not config.pooling.cached:
            return None  # encoders, whose pooling asks the device how long texts are
        facts = detect("cuda")
        try:
            stamp = _stamp(config, facts)
        except RuntimeError:  # this user has no home, hence no cache folder
            return None
        start_stamp = stamp.with_name(f"{stamp.name}-start")
        if _exists(stamp):
            return None
        hurry = not _exists(start_stamp)
        return cls(Job(config, facts, str(start_stamp), str(stamp), hurry=hurry))

    def wait(self, report: Callable[[str], None]) -> Progress | None:
        """Until all that a start launches is compiled; the rest goes on in the background.

        None where that was so before, and, with a line in the log, when the process fails: kernels
        are then compiled one by one. Raises ModelLoadError with the name of a kernel that does not
        compile.
        """
        if self._process is None:
            return None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            progress = msgspec.json.decode(line, type=Progress)
            if progress.failed:
                raise ModelLoadError(f"a kernel does not compile: {progress.failed}")
            if progress.ready:
                return progress
            done = progress.compiled + progress.found
            report(f"compiling kernels: {done} of {done + progress.left}")
        code = self._process.wait()
        self._end_group()
        logger.warning(
            "the process that compiles kernels ahead ended with code %d; they are compiled one by "
            "one, so this start takes longer",
            code,
        )
        return None

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
        self._end_group()
        self._process.wait()
        self._process.stdout.close()

    def _end_group(self) -> None:
        """End what the process has left behind, and itself: compilers are forks of it."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)


def _stamp(config: EngineConfig, facts: DeviceFacts) -> Path:
    """A file that exists once all kernels of this configuration have been compiled."""
    same = msgspec.structs.replace(config, hash_key="", served_model_names=(), seed=0)
    parts = [msgspec.json.encode(same), msgspec.json.encode(facts)]
    parts += [_version(package).encode() for package in ("triton", "torch")]
    parts += [f"{k}={v}".encode() for k, v in sorted(os.environ.items()) if k.startswith("TRITON_")]
    model = Path(config.model)
    package = Path(__file__).parents[2]
    files = (model, model / "config.json", *sorted(package.rglob("*.py")))
    for path in files:
        with suppress(OSError):
            stat = path.stat()
            parts.append(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode())
    digest = hashlib.sha256(b"\n".join(parts)).hexdigest()
    return _cache_folder() / f"pagemill-{digest}"


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
