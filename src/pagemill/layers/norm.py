"""RMSNorm (Zhang and Sennrich, 2019), alone or fused with the residual's addition; LayerNorm."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pagemill.layers.base import BuildContext, WeightSlot


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dimension. The weight is float32.

    `offset_one` is for checkpoints that store weight - 1, as Gemma's do.
    """

    weight: nn.Parameter

    def __init__(
        self, ctx: BuildContext, size: int, eps: float, *, offset_one: bool = False
    ) -> None:
        super().__init__()
        weight = torch.ones(size, dtype=torch.float32, device=ctx.device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._ops = ctx.ops
        self.eps = eps
        self._offset = 1.0 if offset_one else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self._ops.rms_norm(x, self.weight, self.eps)

    def after_add(self, x: Tensor | None, residual: Tensor) -> Tensor:
        """Add x to the residual, in place, and normalise the sum. With x None, only normalise."""
        if x is None:
            return self.forward(residual)
        return self._ops.add_rms_norm(x, residual, self.weight, self.eps)

    def weight_slots(self) -> Iterator[WeightSlot]:
        yield WeightSlot("weight", tuple(self.weight.shape), self._store)

    def finish_loading(self) -> None:
        """The offset was applied when the weight was stored."""

    def _store(self, tensor: Tensor) -> None:
        self.weight.copy_(tensor).add_(self._offset)


class LayerNorm(nn.Module):
    """`(x - mean(x)) / std(x) * weight + bias` over the last dimension (Ba et al., 2016)."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, ctx: BuildContext, size: int, eps: float) -> None:
        super().__init__()
        weight = torch.ones(size, dtype=ctx.dtype, device=ctx.device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros_like(weight), requires_grad=False)
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self._eps)

    def weight_slots(self) -> Iterator[WeightSlot]:
        shape = tuple(self.weight.shape)
        yield WeightSlot("weight", shape, partial(_copy, self.weight))
        yield WeightSlot("bias", shape, partial(_copy, self.bias))

    def finish_loading(self) -> None:
        """The values are used as they are stored."""


def _copy(into: Tensor, values: Tensor) -> None:
    into.copy_(values)
