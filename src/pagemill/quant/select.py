"""From the name of a quantisation to its method."""

from __future__ import annotations

import torch

from pagemill.errors import ConfigError
from pagemill.ops.base import Ops
from pagemill.ops.fp8 import Fp8Ops
from pagemill.ops.fused import LayerOps
from pagemill.ops.select import has_native_kernels
from pagemill.quant.base import QuantMethod
from pagemill.quant.unquantized import Unquantized

_GROUPED_BITS = {"int8": 8, "int4": 4}
_FLOAT8 = {"fp8": False, "fp8-block": True}  # whether there is a scale for each 128 inputs


def select_quant(
    name: str, device_type: str, ops: Ops, dtype: torch.dtype, *, stored_fp8: bool = False
) -> QuantMethod:
    """The method called `name` for a device and a model of a type; `stored_fp8`: the checkpoint is
    in float8 already.

    Raises ConfigError where there is none.
    """
    if name == "none":
        return _as_they_are(device_type, ops, dtype)
    if name in _GROUPED_BITS and device_type == "cpu":
        if not has_native_kernels():
            raise ConfigError(f"{name} on CPUs needs the C++ kernels; install with a C++ compiler")
        from pagemill.ops.cpu.matrix import MatrixProducts
        from pagemill.quant.grouped import Grouped

        # As with whole layers: what deterministic mode wraps has neither.
        coarse = isinstance(ops, LayerOps)
        return Grouped(_GROUPED_BITS[name], MatrixProducts(), coarse=coarse)
    if name in _FLOAT8 and isinstance(ops, Fp8Ops) and device_type == "cuda":
        from pagemill.quant.fp8 import Fp8

        return Fp8(ops, ops, grouped=_FLOAT8[name], every_layer=stored_fp8)
    known = ", ".join(("none", *_GROUPED_BITS)) if device_type == "cpu" else "none, fp8"
    raise ConfigError(f"quantization {name!r} is unknown on {device_type}; there are {known}")


def _as_they_are(device_type: str, ops: Ops, dtype: torch.dtype) -> QuantMethod:
    """Bfloat16 weights are packed for CPUs whose kernels compute whole layers with them."""
    if device_type != "cpu" or dtype != torch.bfloat16 or not isinstance(ops, LayerOps):
        return Unquantized(ops)
    from pagemill.ops.cpu.matrix import MatrixProducts
    from pagemill.quant.half import PackedHalf

    return PackedHalf(MatrixProducts())
