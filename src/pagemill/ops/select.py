"""The one place that knows which kernels exist for which device."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from pagemill.errors import ConfigError
from pagemill.ops.base import Ops

ClassTable = Mapping[str, tuple[str, str]]  # name -> module, class

_CLASSES: ClassTable = {
    "reference": ("pagemill.ops.reference", "ReferenceOps"),
    "triton": ("pagemill.ops.triton.ops", "TritonOps"),
    "cpu": ("pagemill.ops.cpu.ops", "CpuOps"),
}


def select_ops(device_type: str, name: str = "default") -> Ops:
    """The kernels called `name`, or the best ones for the device. Raises ConfigError."""
    default = default_name(device_type, "reference")
    ops: Ops = instantiate(_CLASSES, name, "ops", default)
    return ops


def instantiate(classes: ClassTable, name: str, kind: str, default: str) -> Any:
    """Import and construct what `name` stands for in the table. Raises ConfigError."""
    name = default if name == "default" else name
    if name not in classes:
        raise ConfigError(f"unknown {kind} {name!r}; there are default, {', '.join(classes)}")
    if name == "cpu" and not has_native_kernels():
        raise ConfigError(f"{kind} 'cpu' needs the C++ kernels; install with a C++ compiler")
    module, cls = classes[name]
    return getattr(import_module(module), cls)()


def default_name(device_type: str, fallback: str) -> str:
    """Triton on CUDA where it is installed, C++ on CPUs where it was built, or the fallback."""
    if device_type == "cuda":
        return "triton" if find_spec("triton") else fallback
    return "cpu" if has_native_kernels() else fallback


def has_native_kernels() -> bool:
    """Whether the C++ kernels were built when the package was installed."""
    return find_spec("pagemill.ops.cpu._native") is not None
