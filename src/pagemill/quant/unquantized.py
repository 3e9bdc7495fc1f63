"""Weights as they are, in the model's type."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pagemill.ops.base import Ops
from pagemill.quant.base import QuantMethod


class Unquantized:
    """Implements `QuantMethod` with the device's own matrix product."""

    name = "none"
    keeps_groups = False

    def __init__(self, ops: Ops) -> None:
        self._linear = ops.linear
        self.head: QuantMethod = self
        self.ends: QuantMethod = self

    def create(
        self,
        layer: nn.Module,
        out_features: int,
        in_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        weight = torch.empty(out_features, in_features, dtype=dtype, device=device)
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        layer.register_parameter("bias", None)
        if bias:
            zeros = torch.zeros(out_features, dtype=dtype, device=device)
            layer.register_parameter("bias", nn.Parameter(zeros, requires_grad=False))

    def load(self, layer: nn.Module, tensor: Tensor, row: int) -> None:
        layer.get_parameter("weight")[row : row + len(tensor)].copy_(tensor)

    def finish_loading(self, layer: nn.Module) -> None:
        """The weights are used in the layout they are stored in."""

    def tie(self, layer: nn.Module, weight: nn.Parameter) -> None:
        layer.register_parameter("weight", weight)
        layer.register_parameter("bias", None)

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        return self._linear(x, cast(Tensor, layer.weight), cast("Tensor | None", layer.bias))
