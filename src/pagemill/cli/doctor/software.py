"""Versions, kernels and the graphics driver, found without importing torch."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from pagemill.cli.doctor.facts import Gpu, Software

SHOWN = ("pagemill", "torch", "triton", "numpy", "tokenizers", "llguidance", "uvicorn")
TOOL_TIMEOUT = 10.0
_QUERY = "name,driver_version,memory.total,memory.used,utilization.gpu"
_MIB = 2**20
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_TORCH_CUDA = re.compile(r"^cuda[^=]*= '([\d.]+)'", re.MULTILINE)


def software() -> Software:
    """What is installed in this environment."""
    return Software(
        python=platform.python_version(),
        versions={name: version(name) for name in SHOWN},
        missing=missing_requirements(),
        torch_cuda=torch_cuda(),
        native_kernels=_has_native_kernels(),
        c_compiler=any(map(shutil.which, ("cc", "gcc", "clang"))),
    )


def version(name: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_requirements(name: str = "pagemill") -> list[str]:
    """What a distribution needs on every system and does not have here."""
    try:
        needed = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = (_NAME.match(line) for line in needed if ";" not in line)
    return [match.group() for match in found if match and version(match.group()) is None]


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built for; None for a CPU build."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        found = _TORCH_CUDA.search((Path(spec.origin).parent / "version.py").read_text())
    except OSError:
        return None
    return found.group(1) if found else None


def _has_native_kernels() -> bool:
    folder = Path(__file__).parents[2] / "ops/cpu"
    return any(folder.glob("_native*.so")) or any(folder.glob("_native*.pyd"))


def gpus() -> tuple[bool, list[Gpu]]:
    """Whether the driver's tool is there, and the devices that it shows."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False, []
    command = [tool, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TOOL_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return True, []
    return True, [gpu for gpu in map(_gpu, done.stdout.splitlines()) if gpu is not None]


def _gpu(line: str) -> Gpu | None:
    """One line of the tool's table; what a device does not tell reads "[N/A]"."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != len(_QUERY.split(",")):
        return None
    name, driver, total, used, busy = parts
    return Gpu(
        name=name,
        driver=driver,
        total_memory=_number(total) * _MIB,
        used_memory=_number(used) * _MIB,
        busy=_number(busy) / 100,
    )


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def cuda_driver() -> tuple[int, int] | None:
    """The newest CUDA version that the installed driver can run."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)) or not number.value:
        return None
    return number.value // 1000, number.value % 1000 // 10
