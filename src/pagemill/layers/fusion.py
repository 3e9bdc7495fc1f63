"""Which layers may take the fused path of very small steps, see `ops.fused`."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from pagemill.layers.base import BuildContext
from pagemill.layers.linear import MergedLinear
from pagemill.ops.fused import FusedOps

_PLAIN_WEIGHTS = "none"


def fused_ops(ctx: BuildContext) -> FusedOps | None:
    """The context's fused kernels, None where it has none or weights are not plain matrices."""
    if ctx.quant.name != _PLAIN_WEIGHTS or not isinstance(ctx.ops, FusedOps):
        return None
    return ctx.ops


def plain_weight(layer: MergedLinear) -> tuple[Tensor, Tensor | None]:
    """The matrix [out, in] and the bias of a layer that is not quantised."""
    return layer.get_parameter("weight"), cast("Tensor | None", layer.bias)
