"""Decoder layers that a device computes in one call, where device and quantisation allow it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from pagemill.attention.base import ForwardBatch
from pagemill.layers.attention import Attention
from pagemill.layers.base import BuildContext
from pagemill.layers.mlp import GatedMLP
from pagemill.layers.norm import RMSNorm
from pagemill.ops.fused import LayerOps, LayerParts, WholeLayers
from pagemill.quant.base import HoldsMatrices


@runtime_checkable
class HasParts(Protocol):
    """A decoder layer that can be computed in one call with others."""

    def parts(self) -> LayerParts | None:
        """What that call needs; None where the quantisation has no such matrices. Load first."""
        ...


class LayerStack:
    """All decoder layers of a model, made into one call when their weights are there."""

    def __init__(self, layers: WholeLayers, num_layers: int) -> None:
        self._layers = layers
        self._num_layers = num_layers

    def run(self, residual: Tensor, batch: ForwardBatch) -> bool:
        """Bring the residual up to date, in place; False if it does not take such a step."""
        num_layers = self._num_layers
        plans = [batch.plan] * num_layers
        if batch.more_tables:
            plans = [batch.of_layer(index).plan for index in range(num_layers)]
        if not self._layers.takes(residual, plans):
            return False
        self._layers.run(residual, batch.kv_cache[:num_layers], plans)
        return True


def layer_stack(ctx: BuildContext, layers: Iterable[nn.Module]) -> LayerStack | None:
    """The layers in one call, None where there is no such kernel. Load first."""
    if not isinstance(ctx.ops, LayerOps):
        return None
    found = [layer.parts() if isinstance(layer, HasParts) else None for layer in layers]
    parts = [layer for layer in found if layer is not None]
    whole = ctx.ops.whole_layers(parts) if len(parts) == len(found) else None
    return None if whole is None else LayerStack(whole, len(parts))


def layer_parts(
    ctx: BuildContext,
    attention: Attention,
    mlp: GatedMLP,
    input_norm: RMSNorm,
    mlp_norm: RMSNorm,
    after_attention: RMSNorm | None = None,
    after_mlp: RMSNorm | None = None,
) -> LayerParts | None:
    """What a layer is made of; None where its quantisation has no matrices for other kernels."""
    quant, spec = ctx.quant, attention.spec
    if not isinstance(quant, HoldsMatrices):
        return None
    return LayerParts(
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
