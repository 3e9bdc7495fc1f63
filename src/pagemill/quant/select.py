"""From the name of a quantisation to its method."""

from __future__ import annotations

from pagemill.errors import ConfigError
from pagemill.ops.base import Ops
from pagemill.ops.fp8 import Fp8Ops
from pagemill.ops.select import has_native_kernels
from pagemill.quant.base import QuantMethod
from pagemill.quant.unquantized import Unquantized


def select_quant(name: str, device_type: str, ops: Ops) -> QuantMethod:
    """The method called `name` for a device. Raises ConfigError where there is none."""
    if name == "none":
        return Unquantized(ops)
    if name == "int8" and device_type == "cpu":
        if not has_native_kernels():
            raise ConfigError("int8 on CPUs needs the C++ kernels; install with a C++ compiler")
        from pagemill.quant.int8 import Int8

        return Int8()
    if name in ("fp8", "fp8-block"):
        if not isinstance(ops, Fp8Ops):
            raise ConfigError(f"quantization {name!r} has no kernels in {ops.name!r}")
        from pagemill.quant.fp8 import Fp8

        return Fp8(ops, ops, grouped=name == "fp8-block")
    raise ConfigError(
        f"quantization {name!r} is unknown on {device_type}; there are none, int8, fp8"
    )
