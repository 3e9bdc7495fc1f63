"""From the name of a quantisation to its method."""

from __future__ import annotations

from pagemill.errors import ConfigError
from pagemill.ops.base import Ops
from pagemill.quant.base import QuantMethod
from pagemill.quant.unquantized import Unquantized


def select_quant(name: str, device_type: str, ops: Ops) -> QuantMethod:
    """The method called `name` for a device. Raises ConfigError where there is none."""
    if name == "none":
        return Unquantized(ops)
    raise ConfigError(f"unknown quantization {name!r} on {device_type}; there is: none")
