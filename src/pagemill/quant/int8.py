"""int8 weights with one scale per output channel, for CPUs; activations keep 14 bits."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pagemill.ops.cpu.ops import int8_linear, pack_int8
from pagemill.quant.base import QuantMethod

_TOP = 127
_ROWS_AT_ONCE = 8192  # bounds the float32 copy of a large vocabulary


class Int8:
    """Implements `QuantMethod`: weights are rounded as they are loaded, one tensor at a time."""

    name = "int8"

    def __init__(self) -> None:
        self.head: QuantMethod = self

    def create(
        self,
        layer: nn.Module,
        out_features: int,
        in_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        layer.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.int8))
        layer.register_buffer("scale", torch.empty(out_features, dtype=torch.float32))
        zeros = torch.zeros(out_features, dtype=torch.float32) if bias else None
        layer.register_parameter(
            "bias", None if zeros is None else nn.Parameter(zeros, requires_grad=False)
        )

    def load(self, layer: nn.Module, tensor: Tensor, row: int) -> None:
        weight, scale = cast(Tensor, layer.weight), cast(Tensor, layer.scale)
        for first in range(0, len(tensor), _ROWS_AT_ONCE):
            rows = tensor[first : first + _ROWS_AT_ONCE].float()
            at = slice(row + first, row + first + len(rows))
            scale[at] = (rows.abs().amax(dim=1) / _TOP).clamp_(min=1e-12)
            weight[at] = torch.round(rows / scale[at, None]).to(torch.int8)

    def finish_loading(self, layer: nn.Module) -> None:
        layer.weight = pack_int8(cast(Tensor, layer.weight))

    def tie(self, layer: nn.Module, weight: nn.Parameter) -> None:
        out_features, in_features = weight.shape
        self.create(layer, out_features, in_features, False, weight.dtype, weight.device)
        self.load(layer, weight, 0)
        self.finish_loading(layer)

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        bias = cast("Tensor | None", layer.bias)
        return int8_linear(x, cast(Tensor, layer.weight), cast(Tensor, layer.scale), bias)
