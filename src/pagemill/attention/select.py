"""The one place that knows which attention backends exist for which device."""

from __future__ import annotations

from pagemill.attention.base import AttentionBackend
from pagemill.ops.select import ClassTable, default_name, instantiate

_CLASSES: ClassTable = {
    "torch": ("pagemill.attention.torch_sdpa", "TorchAttention"),
    "triton": ("pagemill.attention.triton", "TritonAttention"),
    "cpu": ("pagemill.attention.cpu", "CpuAttention"),
}


def select_attention(device_type: str, name: str = "default") -> AttentionBackend:
    """The backend called `name`, or the best one for the device. Raises ConfigError."""
    default = default_name(device_type, "torch")
    backend: AttentionBackend = instantiate(_CLASSES, name, "attention backend", default)
    return backend
