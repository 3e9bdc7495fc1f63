"""Decoder layers that a device computes in one call, where device and quantisation allow it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from pagemill.attention.base import ForwardBatch
from pagemill.layers.attention import Attention
from pagemill.layers.base import BuildContext
from pagemill.layers.mlp import GatedMLP
from pagemill.layers.norm import RMSNorm
from pagemill.ops.fused import LayerOps, LayerParts, WholeLayer
from pagemill.quant.base import HoldsMatrices


@runtime_checkable
class BecomesWhole(Protocol):
    """A decoder layer that can be computed in one call."""

    def become_whole(self) -> None:
        """Called once, when all weights are there."""
        ...


class LayerCall:
    """A decoder layer's single call, made when its weights are there."""

    def __init__(self, layer: WholeLayer, layer_index: int) -> None:
        self._layer = layer
        self._index = layer_index

    def takes(self, residual: Tensor, batch: ForwardBatch) -> bool:
        return self._layer.takes(residual, batch.of_layer(self._index).plan)

    def run(self, residual: Tensor, batch: ForwardBatch) -> None:
        """Bring the residual up to date, in place."""
        cache = batch.kv_cache[self._index]
        self._layer.run(residual, cache.k, cache.v, batch.of_layer(self._index).plan)


def whole_layer(
    ctx: BuildContext,
    attention: Attention,
    mlp: GatedMLP,
    input_norm: RMSNorm,
    mlp_norm: RMSNorm,
    after_attention: RMSNorm | None = None,
    after_mlp: RMSNorm | None = None,
) -> LayerCall | None:
    """The layer made of these in one call, None where there is no such kernel. Load first."""
    ops, quant = ctx.ops, ctx.quant
    if not isinstance(ops, LayerOps) or not isinstance(quant, HoldsMatrices):
        return None
    spec = attention.spec
    parts = LayerParts(
        qkv=quant.matrix(attention.qkv_proj),
        o=quant.matrix(attention.o_proj),
        gate_up=quant.matrix(mlp.gate_up_proj),
        down=quant.matrix(mlp.down_proj),
        input_norm=input_norm.weight,
        mlp_norm=mlp_norm.weight,
        eps=input_norm.eps,
        activation=mlp.fused_activation,
        shape=attention.shape,
        rope=attention.rope,
        scale=spec.scale,
        soft_cap=spec.soft_cap,
        window=spec.sliding_window,
        after_attention=None if after_attention is None else after_attention.weight,
        after_mlp=None if after_mlp is None else after_mlp.weight,
    )
    layer = ops.whole_layer(parts)
    return None if layer is None else LayerCall(layer, spec.layer_index)
