"""Weights in 8 or 4 bits by groups of 32 inputs, for CPUs; activations are rounded to int8 alike.

What a file holds in so few bits or fewer is taken as it is.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pagemill.checkpoint.groups import GroupedWeight, quantize_groups, stack
from pagemill.ops.cpu.matrix import MatrixProducts, PackedMatrix, pack_matrix
from pagemill.quant.base import QuantMethod

_HEAD_BITS = 8  # four cost a tied vocabulary projection more accuracy than they are worth


class _Held:
    """What a layer has: (row, weight) pairs while it is loaded, the matrix afterwards."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, GroupedWeight]] = []
        self.matrix: PackedMatrix | None = None


class Grouped:
    """Implements `QuantMethod` and `HoldsMatrices`: rounded as it is loaded, packed at the end."""

    keeps_groups = True

    def __init__(self, bits: int, products: MatrixProducts) -> None:
        self.name = f"int{bits}"
        self.head: QuantMethod = self
        self.ends: QuantMethod = self
        self._bits = bits
        self._products = products

    def create(
        self,
        layer: nn.Module,
        out_features: int,
        in_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        object.__setattr__(layer, "held", _Held())  # neither a parameter nor a buffer
        layer.register_parameter("bias", None)
        if bias:
            zeros = torch.zeros(out_features, dtype=torch.float32, device=device)
            layer.register_parameter("bias", nn.Parameter(zeros, requires_grad=False))

    def load(self, layer: nn.Module, tensor: Tensor | GroupedWeight, row: int) -> None:
        self._load(layer, tensor, row, self._bits)

    def _load(self, layer: nn.Module, tensor: Tensor | GroupedWeight, row: int, bits: int) -> None:
        if not isinstance(tensor, GroupedWeight) or tensor.bits > bits:
            tensor = quantize_groups(tensor.float(), bits)
        _held(layer).parts.append((row, tensor))

    def finish_loading(self, layer: nn.Module) -> None:
        held = _held(layer)
        weight = stack([part for _, part in sorted(held.parts, key=lambda part: part[0])])
        bias = cast("Tensor | None", layer.bias)
        held.parts = []
        held.matrix = pack_matrix(
            weight.codes,
            weight.scale,
            weight.offset,
            bias,
            bits=weight.bits,
            in_features=weight.in_features,
        )

    def tie(self, layer: nn.Module, weight: nn.Parameter) -> None:
        out_features, in_features = weight.shape
        self.create(layer, out_features, in_features, False, weight.dtype, weight.device)
        self._load(layer, weight.data, 0, _HEAD_BITS)
        self.finish_loading(layer)

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        return self._products.linear(x, self.matrix(layer))

    def matrix(self, layer: nn.Module) -> PackedMatrix:
        matrix = _held(layer).matrix
        assert matrix is not None, "not loaded"
        return matrix


def _held(layer: nn.Module) -> _Held:
    return cast(_Held, layer.held)
