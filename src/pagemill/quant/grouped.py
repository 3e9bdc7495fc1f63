"""Weights in 8 or 4 bits by groups of 32 inputs, for CPUs; activations are rounded to int8 alike.

What a file holds in so few bits or fewer is taken as it is.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pagemill.checkpoint.groups import GroupedWeight, quantize_groups, stack
from pagemill.ops.cpu.matrix import MatrixProducts, PackedMatrix, pack_matrix
from pagemill.ops.cpu.memory import WeightMemory
from pagemill.quant.base import QuantMethod

_HEAD_BITS = 8  # four cost a tied vocabulary projection more accuracy than they are worth


class _Held:
    """What a layer has: (row, weight) pairs while it is loaded, the matrix afterwards."""

    def __init__(self) -> None:
        self.is_table = False
        self.parts: list[tuple[int, GroupedWeight]] = []
        self.matrix: PackedMatrix | None = None


class Grouped:
    """Implements `QuantMethod`, `HoldsMatrices` and `HoldsTables`: rounded as it is loaded, packed
    at the end.
    """

    keeps_groups = True
    activations = None
    exact = False

    def __init__(self, bits: int, products: MatrixProducts, *, coarse: bool = False) -> None:
        """With `coarse` many rows may be multiplied faster, and less exactly, than few."""
        self.name = f"int{bits}"
        self.head: QuantMethod = Grouped(bits, products) if coarse else self
        self.ends: QuantMethod = self
        self._bits = bits
        self._products = products
        self._coarse = coarse
        self._memory = WeightMemory()

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
        coarse = self._coarse and not held.is_table
        held.matrix = pack_matrix(
            weight.codes,
            weight.scale,
            weight.offset,
            bias,
            bits=weight.bits,
            in_features=weight.in_features,
            memory=self._memory,
            coarse=coarse,
        )

    def tie(self, layer: nn.Module, table: nn.Module) -> None:
        object.__setattr__(layer, "held", _held(table))

    def create_table(
        self, layer: nn.Module, rows: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.create(layer, rows, width, False, dtype, device)
        _held(layer).is_table = True

    def load_table(self, layer: nn.Module, tensor: Tensor) -> None:
        self._load(layer, tensor, 0, _HEAD_BITS)
        self.finish_loading(layer)

    def look_up(self, layer: nn.Module, ids: Tensor) -> Tensor:
        return self._products.look_up(ids, self.matrix(layer))

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        return self._products.linear(x, self.matrix(layer))

    def matrix(self, layer: nn.Module) -> PackedMatrix:
        matrix = _held(layer).matrix
        assert matrix is not None, "not loaded"
        return matrix


def _held(layer: nn.Module) -> _Held:
    return cast(_Held, layer.held)
