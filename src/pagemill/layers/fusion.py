"""Which layers may take the fused path of small steps, see `ops.fused`."""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from pagemill.attention.base import ForwardBatch
from pagemill.layers.base import BuildContext
from pagemill.layers.linear import MergedLinear
from pagemill.layers.norm import RMSNorm
from pagemill.ops.fused import FusedOps, Stream

_PLAIN_WEIGHTS = "none"


@runtime_checkable
class FusedLayer(Protocol):
    """A decoder layer that can add itself to the residual stream by fused kernels.

    Members must be the class's own: from Python 3.12 on, `isinstance` looks at nothing else, and
    submodules of a torch module are no attributes of its class.
    """

    @property
    def first_norm(self) -> RMSNorm:
        """What reads the stream before the layer."""
        ...

    @property
    def fusible(self) -> bool:
        """Whether all of its parts can, given the context and the model's numbers."""
        ...

    def add_fused(self, stream: Stream, next_norm: Tensor, batch: ForwardBatch) -> None:
        """The layer, in place; the norm that reads the stream next has these weights."""
        ...


def fused_ops(ctx: BuildContext) -> FusedOps | None:
    """The context's fused kernels, None where it has none or weights are not plain matrices."""
    if ctx.quant.name != _PLAIN_WEIGHTS or not isinstance(ctx.ops, FusedOps):
        return None
    return ctx.ops


def plain_weight(layer: MergedLinear) -> tuple[Tensor, Tensor | None]:
    """The matrix [out, in] and the bias of a layer that is not quantised."""
    return layer.get_parameter("weight"), cast("Tensor | None", layer.bias)
